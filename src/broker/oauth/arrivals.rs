//! Logins that have come back from Forgejo: what they come to, for browsers that wait for it or ask again.
//!
//! A browser is held for no longer than a person waits for a page; the login goes on without it, and its outcome is kept
//! until the browser asks again or the login expires. One that came to nothing can be tried again: an answer of Forgejo's
//! may have been lost on the way there, before it knew of the code.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::auth::token::TokenHash;
use crate::forge::rotation::{HeldUp, LogInError, LoggedIn};
use wire::clock::UnixTime;

/// How long a browser waits before it is shown a page.
const SHOWN_WITHIN: Duration = Duration::from_secs(4);

/// What a login came to. Shared by all requests of its browser.
pub(crate) type Outcome = Arc<Result<LoggedIn, LogInError>>;

/// What there is to be told of a login now.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// It has ended so.
    Ended(Outcome),
    /// It goes on.
    GoesOn,
    /// It goes on, and waits for a store that takes nothing.
    HeldUp,
    /// It came to nothing, and may not be tried again so soon.
    TooOften,
}

/// A login that was begun: what it comes to, and whether it is held up until then.
type Going = (Shared<BoxFuture<'static, Outcome>>, HeldUp);

/// All logins that have come back, by their state.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Mutex<HashMap<TokenHash, Arrival>>);

#[derive(Debug)]
struct Arrival {
    /// `None` after it came to nothing.
    outcome: Option<Going>,
    /// When its login began.
    began: UnixTime,
}

impl Arrivals {
    /// Waits a little for what a login comes to. It is begun here with the first request of its browser, and once more
    /// after it came to nothing, as often as `may_try_again` says.
    pub(crate) async fn outcome<F: Future<Output = Result<LoggedIn, LogInError>> + Send + 'static>(
        &self,
        state: TokenHash,
        began: UnixTime,
        may_try_again: impl FnOnce() -> bool,
        log_in: impl FnOnce(HeldUp) -> F,
    ) -> Arrived {
        let (outcome, held_up) = {
            let mut arrivals = self.0.lock();
            let arrival = arrivals.entry(state);
            if let Entry::Occupied(known) = &arrival
                && known.get().outcome.is_none()
                && !may_try_again()
            {
                return Arrived::TooOften;
            }
            let arrival = arrival.or_insert(Arrival { outcome: None, began });
            let going = || {
                let held_up = HeldUp::default();
                (log_in(held_up.clone()).map(Arc::new).boxed().shared(), held_up)
            };
            arrival.outcome.get_or_insert_with(going).clone()
        };
        let failed = held_up.failed();
        held_up.try_again();
        let ended = tokio::select! {
            biased;
            ended = outcome => ended,
            () = failed => return Arrived::HeldUp,
            () = sleep(SHOWN_WITHIN) => return Arrived::GoesOn,
        };
        if ended.is_err()
            && let Some(arrival) = self.0.lock().get_mut(&state)
        {
            arrival.outcome = None;
        }
        Arrived::Ended(ended)
    }

    /// A login is over, well or for good.
    pub(crate) fn forget(&self, state: &TokenHash) {
        self.0.lock().remove(state);
    }

    /// Forgets logins that began before `before`.
    pub(crate) fn forget_old(&self, before: UnixTime) {
        self.0.lock().retain(|_, arrival| arrival.began >= before);
    }
}
