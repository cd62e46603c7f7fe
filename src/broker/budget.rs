//! Memory that is held for users, counted in bytes: bodies being read, lines of children, and whatever waits of them for a
//! client that reads slowly or a child that does not read. A leaf.
//!
//! Bytes are counted once, where they come in, and their count rides on them ([`counted`]): every slice, queue and write
//! buffer that keeps them alive keeps them counted, and the last one to let go gives them back. So nobody behind the two
//! entrances (a client's body, a child's line) has to know of budgets.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use wire::message::TenantId;

/// What may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BudgetCaps {
    /// Bytes for all users together.
    pub(crate) total: usize,
    /// Bytes for one user.
    pub(crate) per_user: usize,
}

/// Which budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OverBudget {
    /// This user's.
    #[error("more than {0} bytes of your requests and answers would wait here; read or cancel some first")]
    User(usize),
    /// That of all together.
    #[error("the broker holds as much for all users as it may; try again soon")]
    Total,
}

/// The budgets of all users. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Budgets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    used: Mutex<Used>,
    freed: Notify,
}

#[derive(Debug)]
struct Used {
    caps: BudgetCaps,
    total: usize,
    per_user: HashMap<TenantId, usize>,
}

impl Budgets {
    /// With nothing held.
    pub(crate) fn new(caps: BudgetCaps) -> Self {
        let used = Used { caps, total: 0, per_user: HashMap::new() };
        Self(Arc::new(Inner { used: Mutex::new(used), freed: Notify::new() }))
    }

    /// Holds to other caps from now on. What is held beyond them is let go of as it would have been.
    pub(crate) fn change_caps(&self, caps: BudgetCaps) {
        self.0.used.lock().caps = caps;
        self.0.freed.notify_waiters();
    }

    /// One user's.
    pub(crate) fn of(&self, tenant: TenantId) -> Budget {
        Budget { all: Arc::clone(&self.0), tenant }
    }

    /// Bytes held for all.
    pub(crate) fn used(&self) -> usize {
        self.0.used.lock().total
    }
}

/// One user's budget. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    all: Arc<Inner>,
    tenant: TenantId,
}

impl Budget {
    /// Holds so many bytes.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Held, OverBudget> {
        let mut held = Held { budget: self.clone(), bytes: 0 };
        held.grow(bytes)?;
        Ok(held)
    }
}

/// Bytes that are held, until dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Budget,
    bytes: usize,
}

impl Held {
    /// How many.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds so many more.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), OverBudget> {
        let mut used = self.budget.all.used.lock();
        let caps = used.caps;
        let own = used.per_user.get(&self.budget.tenant).copied().unwrap_or_default().saturating_add(more);
        let total = used.total.saturating_add(more);
        if own > caps.per_user {
            return Err(OverBudget::User(caps.per_user));
        }
        if total > caps.total {
            return Err(OverBudget::Total);
        }
        used.per_user.insert(self.budget.tenant, own);
        used.total = total;
        drop(used);
        self.bytes = self.bytes.saturating_add(more);
        Ok(())
    }

    /// The same, as soon as enough was given back; the error of the last try at the deadline, and at once where a user's
    /// whole budget is too small.
    pub(crate) async fn grow_by(&mut self, more: usize, deadline: Instant) -> Result<(), OverBudget> {
        let all = Arc::clone(&self.budget.all);
        loop {
            // Made before the try, so that what is given back in between wakes it.
            let freed = all.freed.notified();
            let Err(over) = self.grow(more) else { return Ok(()) };
            if matches!(over, OverBudget::User(most) if self.bytes.saturating_add(more) > most) {
                return Err(over);
            }
            if timeout_at(deadline, freed).await.is_err() {
                return Err(over);
            }
        }
    }

    /// Gives back what is above `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let back = self.bytes.saturating_sub(bytes);
        self.bytes = self.bytes.min(bytes);
        self.give_back(back);
    }

    fn give_back(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut used = self.budget.all.used.lock();
        used.total = used.total.saturating_sub(bytes);
        if let Some(own) = used.per_user.get_mut(&self.budget.tenant) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                used.per_user.remove(&self.budget.tenant);
            }
        }
        drop(used);
        self.budget.all.freed.notify_waiters();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// The bytes with their count on them: it is given back with the last reference to any part of them.
pub(crate) fn counted(bytes: Bytes, held: Held) -> Bytes {
    struct Counted {
        bytes: Bytes,
        _held: Held,
    }
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Counted { bytes, _held: held })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::time::Duration;

    fn tenant(id: u64) -> TenantId {
        TenantId::new(id).expect("an id")
    }

    #[test]
    fn each_cap_holds_and_what_is_given_back_can_be_held_again() {
        let budgets = Budgets::new(BudgetCaps { total: 100, per_user: 60 });
        let first = budgets.of(tenant(1)).hold(60).expect("within");
        assert_eq!(budgets.of(tenant(1)).hold(1).err(), Some(OverBudget::User(60)));
        assert_eq!(budgets.of(tenant(2)).hold(41).err(), Some(OverBudget::Total));
        let mut second = budgets.of(tenant(2)).hold(40).expect("within");
        second.shrink_to(10);
        assert_eq!((budgets.used(), second.bytes()), (70, 10));
        drop((first, second));
        assert_eq!(budgets.used(), 0);
        assert!(budgets.0.used.lock().per_user.is_empty(), "users with nothing take no memory");
    }

    #[test]
    fn a_count_rides_on_its_bytes_until_the_last_part_of_them_goes() {
        let budgets = Budgets::new(BudgetCaps { total: 100, per_user: 100 });
        let held = budgets.of(tenant(1)).hold(11).expect("within");
        let bytes = counted(Bytes::from_static(b"hello world"), held);
        let part = bytes.slice(0..5);
        drop(bytes);
        assert_eq!((budgets.used(), &part[..]), (11, &b"hello"[..]));
        drop(part);
        assert_eq!(budgets.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_memory_gets_it_when_it_is_given_back_or_is_told_at_the_deadline() {
        let budgets = Budgets::new(BudgetCaps { total: 10, per_user: 10 });
        let first = budgets.of(tenant(1)).hold(8).expect("within");
        let mut second = budgets.of(tenant(2)).hold(0).expect("nothing");
        let deadline = Instant::now() + Duration::from_secs(5);
        assert_eq!(second.grow_by(5, deadline).await, Err(OverBudget::Total));
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut waiting = Box::pin(second.grow_by(5, deadline));
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        assert_eq!(waiting.await, Ok(()));
        assert_eq!(budgets.used(), 5);
    }
}
