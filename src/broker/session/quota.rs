//! Counting against caps: in total and per user.
//!
//! Used twice, for sessions and for live children. A permit is a guard: it gives itself back when dropped, so no path
//! out of a start or an end can forget to. Who waits for a permit stands in line: one that is given back goes to the first
//! in line whose user may have it, and never to somebody who asks in that moment.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

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
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    per_user: HashMap<TenantId, usize>,
    line: VecDeque<InLine>,
}

#[derive(Debug)]
struct InLine {
    tenant: TenantId,
    to: oneshot::Sender<Permit>,
}

/// One of them, until dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    of: Arc<Inner>,
    tenant: TenantId,
}

/// A place in the line. Dropping it leaves the line.
#[derive(Debug)]
pub(crate) struct Waiting(oneshot::Receiver<Permit>);

impl Waiting {
    /// The permit, when it is this one's turn. Safe to cancel: a permit that has come stays.
    pub(crate) async fn permit(&mut self) -> Option<Permit> {
        // The sender is dropped unsent only with the quota itself.
        (&mut self.0).await.ok()
    }
}

impl Quota {
    /// None taken.
    pub(crate) fn new(caps: Caps) -> Self {
        Self(Arc::new(Inner { caps, taken: Mutex::default() }))
    }

    /// Takes a permit. The user's own cap is looked at first: it is the one they can do something about.
    pub(crate) fn take(&self, tenant: TenantId) -> Result<Permit, Full> {
        let mut taken = self.0.taken.lock();
        if let Some(full) = taken.full(tenant, self.0.caps) {
            return Err(full);
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

    /// Takes a permit, or a place in the line for one.
    pub(crate) fn take_or_wait(&self, tenant: TenantId) -> Result<Permit, (Full, Waiting)> {
        let mut taken = self.0.taken.lock();
        if let Some(full) = taken.full(tenant, self.0.caps) {
            taken.line.retain(|waiting| !waiting.to.is_closed());
            let (to, permit) = oneshot::channel();
            taken.line.push_back(InLine { tenant, to });
            return Err((full, Waiting(permit)));
        }
        taken.add(tenant);
        drop(taken);
        Ok(Permit { of: Arc::clone(&self.0), tenant })
    }

    /// Permits taken.
    pub(crate) fn taken(&self) -> usize {
        self.0.taken.lock().total
    }
}

impl Taken {
    fn full(&self, tenant: TenantId, caps: Caps) -> Option<Full> {
        if self.per_user.get(&tenant).is_some_and(|&count| count >= caps.per_user) {
            return Some(Full::User);
        }
        (self.total >= caps.total).then_some(Full::Total)
    }

    fn add(&mut self, tenant: TenantId) {
        self.total = self.total.saturating_add(1);
        let count = self.per_user.entry(tenant).or_default();
        *count = count.saturating_add(1);
    }

    fn remove(&mut self, tenant: TenantId) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.per_user.get_mut(&tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.per_user.remove(&tenant);
            }
        }
    }

    /// The first in line who may have a permit now.
    fn next(&mut self, caps: Caps) -> Option<InLine> {
        let may = |waiting: &InLine| !waiting.to.is_closed() && self.full(waiting.tenant, caps).is_none();
        let at = self.line.iter().position(may)?;
        self.line.remove(at)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock();
        taken.remove(self.tenant);
        while let Some(InLine { tenant, to }) = taken.next(self.of.caps) {
            taken.add(tenant);
            // Outside of the lock: a permit that nobody takes any more is dropped, which comes back here.
            drop(taken);
            drop(to.send(Permit { of: Arc::clone(&self.of), tenant }));
            taken = self.of.taken.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn tenant(id: u64) -> TenantId {
        TenantId::new(id).expect("an id")
    }

    #[test]
    fn each_cap_holds_and_a_dropped_permit_is_free_again() {
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

    #[test]
    fn a_permit_goes_to_who_waits_and_not_to_who_asks_when_it_is_given_back() {
        let quota = Quota::new(Caps { total: 1, per_user: 1 });
        let first = quota.take(tenant(1)).expect("free");
        let (_, mut waiting) = quota.take_or_wait(tenant(2)).expect_err("full");
        drop(first);
        assert_eq!(quota.take(tenant(3)).err(), Some(Full::Total), "it is the other's already");
        let permit = waiting.permit().now_or_never().flatten().expect("the permit");
        drop(permit);
        assert_eq!(quota.taken(), 0);
    }

    #[test]
    fn who_is_at_their_own_cap_holds_up_nobody_behind_them_in_line() {
        let quota = Quota::new(Caps { total: 2, per_user: 1 });
        let own = quota.take(tenant(1)).expect("free");
        let other = quota.take(tenant(2)).expect("free");
        let (_, mut again) = quota.take_or_wait(tenant(1)).expect_err("full");
        let (_, mut third) = quota.take_or_wait(tenant(3)).expect_err("full");
        drop(other);
        let third = third.permit().now_or_never().flatten().expect("the permit");
        assert!(again.permit().now_or_never().is_none(), "the user still has their one");
        drop(own);
        assert!(again.permit().now_or_never().flatten().is_some());
        drop(third);
    }

    #[test]
    fn a_permit_for_somebody_who_has_left_goes_to_the_next_and_none_is_lost() {
        let quota = Quota::new(Caps { total: 1, per_user: 1 });
        let first = quota.take(tenant(1)).expect("free");
        let (_, left) = quota.take_or_wait(tenant(2)).expect_err("full");
        let (_, mut next) = quota.take_or_wait(tenant(3)).expect_err("full");
        drop(left);
        drop(first);
        drop(next.permit().now_or_never().flatten().expect("the permit"));
        // Who leaves with a permit in hand gives it back.
        let first = quota.take(tenant(1)).expect("free");
        let (_, waiting) = quota.take_or_wait(tenant(2)).expect_err("full");
        drop(first);
        drop(waiting);
        assert!(quota.take(tenant(3)).is_ok());
    }

    #[test]
    fn users_without_permits_take_no_memory() {
        let quota = Quota::new(Caps { total: 9, per_user: 9 });
        drop(quota.take(tenant(1)));
        assert!(quota.0.taken.lock().per_user.is_empty());
    }
}
