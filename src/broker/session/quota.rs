//! Counting against caps: in total and per user.
//!
//! Used twice, for sessions and for live children. A permit is a guard: it gives itself back when dropped, so no path
//! out of a start or an end can forget to.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use wire::message::TenantId;

/// How many are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caps {
    /// In total.
    pub(crate) total: usize,
    /// Of one user.
    pub(crate) per_user: usize,
}

/// Which cap is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The one on all users together.
    Total,
    /// This user's.
    User,
}

/// The count.
#[derive(Debug, Clone)]
pub(crate) struct Quota(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    caps: Caps,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    per_user: HashMap<TenantId, usize>,
}

/// One of them, until dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    of: Arc<Inner>,
    tenant: TenantId,
}

impl Quota {
    /// None taken.
    pub(crate) fn new(caps: Caps) -> Self {
        Self(Arc::new(Inner { caps, taken: Mutex::default(), freed: Notify::new() }))
    }

    /// Takes a permit. The user's own cap is looked at first: it is the one they can do something about.
    pub(crate) fn take(&self, tenant: TenantId) -> Result<Permit, Full> {
        let mut taken = self.0.taken.lock();
        if taken.per_user.get(&tenant).is_some_and(|&count| count >= self.0.caps.per_user) {
            return Err(Full::User);
        }
        if taken.total >= self.0.caps.total {
            return Err(Full::Total);
        }
        taken.add(tenant);
        drop(taken);
        Ok(Permit { of: Arc::clone(&self.0), tenant })
    }

    /// Takes a permit beyond any cap, for what exists already when the broker starts.
    pub(crate) fn take_existing(&self, tenant: TenantId) -> Permit {
        self.0.taken.lock().add(tenant);
        Permit { of: Arc::clone(&self.0), tenant }
    }

    /// Takes a permit as soon as one is free.
    pub(crate) async fn wait(&self, tenant: TenantId) -> Permit {
        loop {
            // Made before the look, so that a permit given back in between wakes it.
            let freed = self.0.freed.notified();
            if let Ok(permit) = self.take(tenant) {
                return permit;
            }
            freed.await;
        }
    }

    /// Permits taken.
    pub(crate) fn taken(&self) -> usize {
        self.0.taken.lock().total
    }
}

impl Taken {
    fn add(&mut self, tenant: TenantId) {
        self.total = self.total.saturating_add(1);
        let count = self.per_user.entry(tenant).or_default();
        *count = count.saturating_add(1);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock();
        taken.total = taken.total.saturating_sub(1);
        if let Some(count) = taken.per_user.get_mut(&self.tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.per_user.remove(&self.tenant);
            }
        }
        drop(taken);
        self.of.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: u64) -> TenantId {
        TenantId::new(id).expect("an id")
    }

    #[test]
    fn each_cap_holds_and_a_dropped_place_is_free_again() {
        let quota = Quota::new(Caps { total: 3, per_user: 2 });
        let first = quota.take(tenant(1)).expect("free");
        let _second = quota.take(tenant(1)).expect("free");
        assert_eq!(quota.take(tenant(1)).err(), Some(Full::User));
        let _third = quota.take(tenant(2)).expect("free");
        assert_eq!(quota.take(tenant(2)).err(), Some(Full::Total));
        drop(first);
        assert!(quota.take(tenant(2)).is_ok());
        assert_eq!(quota.taken(), 2);
    }

    #[tokio::test]
    async fn who_waits_gets_the_next_free_place() {
        let quota = Quota::new(Caps { total: 1, per_user: 1 });
        let first = quota.take(tenant(1)).expect("free");
        let waiter = tokio::spawn({
            let quota = quota.clone();
            async move { quota.wait(tenant(2)).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        drop(waiter.await.expect("a permit"));
        assert_eq!(quota.taken(), 0);
    }

    #[test]
    fn users_without_places_take_no_memory() {
        let quota = Quota::new(Caps { total: 9, per_user: 9 });
        drop(quota.take(tenant(1)));
        assert!(quota.0.taken.lock().per_user.is_empty());
    }
}
