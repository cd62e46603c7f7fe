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
use tokio::time::timeout;

use crate::auth::token::TokenHash;
use crate::forge::rotation::{LogInError, LoggedIn};
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
    /// It came to nothing, and may not be tried again so soon.
    TooOften,
}

/// All logins that have come back, by their state.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Mutex<HashMap<TokenHash, Arrival>>);

#[derive(Debug)]
struct Arrival {
    /// `None` after it came to nothing.
    outcome: Option<Shared<BoxFuture<'static, Outcome>>>,
    /// When its login began.
    began: UnixTime,
}

impl Arrivals {
    /// Waits a little for what a login comes to. It is begun here with the first request of its browser, and once more
    /// after it came to nothing, as often as `may_try_again` says.
    pub(crate) async fn outcome(
        &self,
        state: TokenHash,
        began: UnixTime,
        may_try_again: impl FnOnce() -> bool,
        log_in: impl Future<Output = Result<LoggedIn, LogInError>> + Send + 'static,
    ) -> Arrived {
        let outcome = {
            let mut arrivals = self.0.lock();
            let arrival = arrivals.entry(state);
            if let Entry::Occupied(known) = &arrival
                && known.get().outcome.is_none()
                && !may_try_again()
            {
                return Arrived::TooOften;
            }
            let arrival = arrival.or_insert(Arrival { outcome: None, began });
            arrival.outcome.get_or_insert_with(|| log_in.map(Arc::new).boxed().shared()).clone()
        };
        let Ok(ended) = timeout(SHOWN_WITHIN, outcome).await else { return Arrived::GoesOn };
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
