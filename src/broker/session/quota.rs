//! Counting against caps: in total and per user.
//!
//! Used twice, for sessions and for live children. A permit is a guard: it gives itself back when dropped, so no path
//! out of a start or an end can forget to. Who waits for a permit stands in line: one that is given back goes to the first
//! in line whose user may have it, and never to somebody who asks in that moment.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

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
    taken: Mutex<Taken>,
    /// Rung when one was taken or given back.
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Taken {
    caps: Caps,
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
    #[cfg(test)]
    pub(crate) fn new(caps: Caps) -> Self {
        Self::ringing(caps, Arc::default())
    }

    /// None taken; rings when that changes.
    pub(crate) fn ringing(caps: Caps, changed: Arc<Notify>) -> Self {
        let taken = Taken { caps, total: 0, per_user: HashMap::new(), line: VecDeque::new() };
        Self(Arc::new(Inner { taken: Mutex::new(taken), changed }))
    }

    /// Counts against other caps from now on. What is taken beyond them stays; what has become free goes to who waits.
    pub(crate) fn change_caps(&self, caps: Caps) {
        self.0.taken.lock().caps = caps;
        self.0.serve_line();
        self.0.changed.notify_one();
    }

    /// Takes a permit. The user's own cap is looked at first: it is the one they can do something about.
    pub(crate) fn take(&self, tenant: TenantId) -> Result<Permit, Full> {
        let mut taken = self.0.taken.lock();
        if let Some(full) = taken.full(tenant) {
            return Err(full);
        }
        taken.add(tenant);
        drop(taken);
        Ok(self.0.permit(tenant))
    }

    /// Takes a permit beyond any cap, for what exists already when the broker starts.
    pub(crate) fn take_existing(&self, tenant: TenantId) -> Permit {
        self.0.taken.lock().add(tenant);
        self.0.permit(tenant)
    }

    /// Takes a permit, or a place in the line for one.
    pub(crate) fn take_or_wait(&self, tenant: TenantId) -> Result<Permit, (Full, Waiting)> {
        let mut taken = self.0.taken.lock();
        if let Some(full) = taken.full(tenant) {
            taken.line.retain(|waiting| !waiting.to.is_closed());
            let (to, permit) = oneshot::channel();
            taken.line.push_back(InLine { tenant, to });
            return Err((full, Waiting(permit)));
        }
        taken.add(tenant);
        drop(taken);
        Ok(self.0.permit(tenant))
    }

    /// How many wait in line.
    pub(crate) fn waiting(&self) -> usize {
        self.0.taken.lock().line.iter().filter(|waiting| !waiting.to.is_closed()).count()
    }

    /// Permits taken.
    pub(crate) fn taken(&self) -> usize {
        self.0.taken.lock().total
    }

    /// Users who have any.
    pub(crate) fn users(&self) -> usize {
        self.0.taken.lock().per_user.len()
    }

    /// How many of a user's must be given back before the user can have one more.
    pub(crate) fn lacks(&self, tenant: TenantId) -> usize {
        let taken = self.0.taken.lock();
        let own = taken.per_user.get(&tenant).copied().unwrap_or_default();
        own.saturating_add(1).saturating_sub(taken.caps.per_user)
    }
}

impl Inner {
    /// One that is counted already.
    fn permit(self: &Arc<Self>, tenant: TenantId) -> Permit {
        self.changed.notify_one();
        Permit { of: Arc::clone(self), tenant }
    }

    /// Gives what is free to those in line who may have it.
    fn serve_line(self: &Arc<Self>) {
        let mut taken = self.taken.lock();
        while let Some(InLine { tenant, to }) = taken.next() {
            taken.add(tenant);
            // Outside of the lock: a permit that nobody takes any more is dropped, which comes back here.
            drop(taken);
            drop(to.send(self.permit(tenant)));
            taken = self.taken.lock();
        }
    }
}

impl Taken {
    fn full(&self, tenant: TenantId) -> Option<Full> {
        if self.per_user.get(&tenant).is_some_and(|&count| count >= self.caps.per_user) {
            return Some(Full::User);
        }
        (self.total >= self.caps.total).then_some(Full::Total)
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
    fn next(&mut self) -> Option<InLine> {
        let may = |waiting: &InLine| !waiting.to.is_closed() && self.full(waiting.tenant).is_none();
        let at = self.line.iter().position(may)?;
        self.line.remove(at)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.taken.lock().remove(self.tenant);
        self.of.serve_line();
        self.of.changed.notify_one();
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
