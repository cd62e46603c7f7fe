//! Exchanges of logins' codes, which run side by side, and the order of their pairs.
//!
//! Forgejo makes every earlier refresh token of an account worthless with each exchange, and whose code it was shows only
//! afterwards. So the exchanges of all accounts run at once, within a bound, and the logins of one account store their
//! pairs one at a time, never an older one in the place of a newer. Of two exchanges that did not overlap it is known
//! which came later; of two that did, only Forgejo can tell: it takes the newer refresh token and refuses the older.
//!
//! Nothing here asks anybody. A login whose account Forgejo does not name keeps a place of its own and nobody waiting.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as TurnMutex, watch};

use wire::message::TenantId;

/// A moment; a later one is greater. Clocks may stand still or go back.
type Moment = u64;

/// From before a pair was asked for until after it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    began: Moment,
    ended: Moment,
}

/// How a pair stands to the one that was stored last for its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Newer,
    Older,
    /// They were asked for at the same time.
    Unknown,
}

/// One account's turn to store a pair. Holds when the last one was asked for that may have overlapped with others.
pub(super) type Turn = Arc<TurnMutex<Option<Span>>>;

/// All exchanges under way.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    now: Moment,
    /// When each login began whose pair is not stored yet, and whose it is as soon as that is known.
    open: BTreeMap<Moment, Option<TenantId>>,
    turns: HashMap<TenantId, Turn>,
}

/// One login, from before the exchange of its code until its pair is stored or lost.
#[derive(Debug)]
pub(super) struct Exchange {
    exchanges: Arc<Exchanges>,
    /// Its key among those that are open.
    opened: Moment,
    span: Span,
}

impl State {
    fn tick(&mut self) -> Moment {
        self.now = self.now.saturating_add(1);
        self.now
    }
}

impl Span {
    /// How a pair of this span stands to the one that is stored.
    pub(super) fn order(self, stored: Option<Self>) -> Order {
        match stored {
            Some(stored) if self.ended < stored.began => Order::Older,
            Some(stored) if self.began < stored.ended => Order::Unknown,
            _ => Order::Newer,
        }
    }
}

impl Exchanges {
    /// A login's code is about to be exchanged.
    pub(super) fn begin(self: &Arc<Self>) -> Exchange {
        let mut state = self.state.lock();
        let began = state.tick();
        state.open.insert(began, None);
        Exchange { exchanges: Arc::clone(self), opened: began, span: Span { began, ended: began } }
    }

    /// Waits until no login that is under way now can be one of this account whose pair is not stored yet.
    pub(super) async fn settled(&self, tenant: TenantId) {
        let mut changed = self.changed.subscribe();
        let now = self.state.lock().tick();
        let may_be_theirs = || {
            let state = self.state.lock();
            state.open.range(..now).any(|(_, whose)| whose.is_none_or(|whose| whose == tenant))
        };
        // The sender is here as long as this is asked.
        while may_be_theirs() && changed.changed().await.is_ok() {}
    }
}

impl Exchange {
    /// The pair has come.
    pub(super) fn came(&mut self) -> Span {
        self.span.ended = self.exchanges.state.lock().tick();
        self.span
    }

    /// Another pair is asked for in the place of the first.
    pub(super) fn asks_again(&mut self) {
        self.span.began = self.exchanges.state.lock().tick();
    }

    /// Whose login it is, and their turn to store its pair.
    pub(super) fn is_of(&self, tenant: TenantId) -> Turn {
        let turn = {
            let mut state = self.exchanges.state.lock();
            state.open.insert(self.opened, Some(tenant));
            Arc::clone(state.turns.entry(tenant).or_default())
        };
        self.exchanges.changed.send_replace(());
        turn
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.exchanges.state.lock();
        state.open.remove(&self.opened);
        // What no login under way can have overlapped with is older than whatever comes.
        let oldest = state.open.keys().next().copied();
        let matters = |span: Option<Span>| span.is_some_and(|span| oldest.is_some_and(|oldest| oldest < span.ended));
        state.turns.retain(|_, turn| Arc::strong_count(turn) > 1 || turn.try_lock().is_ok_and(|span| matters(*span)));
        drop(state);
        self.exchanges.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(n: u64) -> TenantId {
        TenantId::new(n).expect("a number")
    }

    #[test]
    fn of_two_pairs_the_later_is_newer_and_of_two_that_were_asked_for_at_once_nobody_here_knows() {
        let exchanges = Arc::new(Exchanges::default());
        let mut first = exchanges.begin();
        let first = first.came();
        let (mut second, mut third) = (exchanges.begin(), exchanges.begin());
        let (third, second) = (third.came(), second.came());
        assert_eq!(first.order(None), Order::Newer);
        assert_eq!(second.order(Some(first)), Order::Newer);
        assert_eq!(first.order(Some(second)), Order::Older);
        assert_eq!([second.order(Some(third)), third.order(Some(second))], [Order::Unknown; 2]);
    }

    #[tokio::test]
    async fn what_was_stored_is_remembered_for_as_long_as_a_login_under_way_may_be_older() {
        let exchanges = Arc::new(Exchanges::default());
        let (mut slow, mut quick) = (exchanges.begin(), exchanges.begin());
        let span = quick.came();
        *quick.is_of(tenant(1)).lock().await = Some(span);
        drop(quick);
        slow.came();
        let turn = slow.is_of(tenant(1));
        assert_eq!(*turn.lock().await, Some(span));
        drop((turn, slow));
        assert!(exchanges.state.lock().turns.is_empty(), "nothing is kept of logins that are over");
    }

    #[tokio::test]
    async fn who_waits_for_the_logins_of_an_account_waits_for_those_that_may_be_its_own_and_for_no_later_one() {
        let exchanges = Arc::new(Exchanges::default());
        let (unnamed, own, other) = (exchanges.begin(), exchanges.begin(), exchanges.begin());
        own.is_of(tenant(1));
        other.is_of(tenant(2));
        let waiting = Arc::clone(&exchanges);
        let waiting = tokio::spawn(async move { waiting.settled(tenant(1)).await });
        tokio::task::yield_now().await;
        let _later = exchanges.begin();
        drop(own);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "one is not named yet");
        unnamed.is_of(tenant(3));
        waiting.await.expect("no panic");
    }
}
