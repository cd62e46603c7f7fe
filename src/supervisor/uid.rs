//! Who leases which uid. No I/O: it says what is to be cleaned and is told when that is done.
//!
//! One uid (and the equal gid) a tenant, for as long as the tenant has children; two tenants never share one. A uid
//! that was leased goes through `cleaning` before it is free again, and into `quarantine` where its processes do not
//! go away; a uid in quarantine is never leased.
//!
//! The last uid of the range is never leased: the process that kills everything under a dirty uid holds it as its
//! real and saved uid, so that what it is about to kill cannot kill or stop it first (kill(2): the target's real or
//! saved uid counts, the sender's real or effective one).

use std::collections::{BTreeSet, HashMap, VecDeque};

use wire::message::TenantId;

/// A uid of the supervisor's range, and the gid of the same number. Only [`UidRange`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChildUid(u32);

impl ChildUid {
    /// The number, for system calls and the log.
    pub(crate) const fn get(self) -> u32 {
        self.0
    }
}

/// A range of uids that belongs to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UidRange {
    first: u32,
    count: u32,
}

/// Why two numbers are no range for children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RangeError {
    /// One uid for a child and one for the sweeper.
    #[error("needs at least 2 uids")]
    TooFew,
    /// Below 1024 are the system's, and 2^31 and above confuse old interfaces.
    #[error("must lie between 1024 and 2147483647")]
    OutOfBounds,
    /// systemd's `DynamicUser=` (61184 to 65519), nobody and the 16-bit "no uid" (systemd's UIDS-GIDS document).
    #[error("overlaps 61184 to 65535, which belongs to systemd and nobody")]
    Reserved,
}

impl UidRange {
    /// `count` uids from `first` on, the last of them the sweeper's.
    pub(crate) fn new(first: u32, count: u32) -> Result<Self, RangeError> {
        if count < 2 {
            return Err(RangeError::TooFew);
        }
        let last = first.checked_add(count - 1).filter(|&last| i32::try_from(last).is_ok());
        let Some(last) = last.filter(|_| first >= 1024) else { return Err(RangeError::OutOfBounds) };
        if first <= 65_535 && last >= 61_184 {
            return Err(RangeError::Reserved);
        }
        Ok(Self { first, count })
    }

    /// The lowest.
    pub(crate) const fn first(self) -> u32 {
        self.first
    }

    /// The highest: the sweeper's.
    pub(crate) const fn sweeper(self) -> ChildUid {
        ChildUid(self.first + (self.count - 1))
    }

    /// The uid with this number, if it is in the range.
    pub(crate) fn get(self, uid: u32) -> Option<ChildUid> {
        (self.first..=self.sweeper().0).contains(&uid).then_some(ChildUid(uid))
    }
}

/// The leases.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The next one that was never leased; below `fresh_end`.
    fresh: u32,
    fresh_end: u32,
    /// Leased before and clean, the longest unused first.
    free: VecDeque<ChildUid>,
    leased: HashMap<TenantId, ChildUid>,
    cleaning: BTreeSet<ChildUid>,
    quarantine: BTreeSet<ChildUid>,
}

impl Pool {
    /// All of the range but the sweeper's uid is free.
    pub(crate) fn new(range: UidRange) -> Self {
        Self {
            fresh: range.first,
            fresh_end: range.sweeper().0,
            free: VecDeque::new(),
            leased: HashMap::new(),
            cleaning: BTreeSet::new(),
            quarantine: BTreeSet::new(),
        }
    }

    /// The tenant's uid: the one it has, else one that is free.
    pub(crate) fn lease(&mut self, tenant: TenantId) -> Option<ChildUid> {
        if let Some(&uid) = self.leased.get(&tenant) {
            return Some(uid);
        }
        let uid = self.next_fresh().or_else(|| self.free.pop_front())?;
        self.leased.insert(tenant, uid);
        Some(uid)
    }

    fn next_fresh(&mut self) -> Option<ChildUid> {
        while self.fresh < self.fresh_end {
            let uid = ChildUid(self.fresh);
            self.fresh += 1;
            // A uid found dirty at start is already on another list.
            if !self.cleaning.contains(&uid) && !self.quarantine.contains(&uid) && !self.free.contains(&uid) {
                return Some(uid);
            }
        }
        None
    }

    /// Ends the tenant's lease; the uid is to be cleaned now.
    pub(crate) fn release(&mut self, tenant: TenantId) -> Option<ChildUid> {
        let uid = self.leased.remove(&tenant)?;
        self.cleaning.insert(uid);
        Some(uid)
    }

    /// Notes the end of a cleaning.
    pub(crate) fn cleaned(&mut self, uid: ChildUid, clean: bool) {
        if !self.cleaning.remove(&uid) {
            return;
        }
        if !clean {
            self.quarantine.insert(uid);
        } else if uid.0 < self.fresh {
            self.free.push_back(uid);
        }
        // A clean one that was never leased is still ahead of `fresh`.
    }

    /// Puts a uid that was found dirty at start into cleaning.
    pub(crate) fn found_dirty(&mut self, uid: ChildUid) {
        if uid.0 < self.fresh_end {
            self.cleaning.insert(uid);
        }
    }

    /// Moves everything in quarantine back to cleaning and names it: worth a try when nothing is free.
    pub(crate) fn retry_quarantine(&mut self) -> Vec<ChildUid> {
        let again: Vec<_> = std::mem::take(&mut self.quarantine).into_iter().collect();
        self.cleaning.extend(&again);
        again
    }

    /// How many could be leased now.
    pub(crate) fn free(&self) -> u32 {
        let ahead = usize::try_from(self.fresh_end.saturating_sub(self.fresh)).unwrap_or(0);
        let dirty_ahead = self.cleaning.iter().chain(&self.quarantine).filter(|uid| uid.0 >= self.fresh).count();
        u32::try_from(ahead.saturating_sub(dirty_ahead) + self.free.len()).unwrap_or(u32::MAX)
    }

    /// Whether no cleaning is under way. A uid in quarantine is settled: nobody waits for it.
    pub(crate) fn settled(&self) -> bool {
        self.cleaning.is_empty()
    }

    /// How many are being cleaned or in quarantine.
    pub(crate) fn unclean(&self) -> u32 {
        u32::try_from(self.cleaning.len() + self.quarantine.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: u64) -> TenantId {
        TenantId::new(id).expect("a tenant")
    }

    #[test]
    fn two_tenants_never_share_a_uid_and_one_tenant_keeps_its_own() {
        let mut pool = Pool::new(UidRange::new(73_728, 4).expect("a range"));
        let a = pool.lease(tenant(1)).expect("free");
        let b = pool.lease(tenant(2)).expect("free");
        assert_ne!(a, b);
        assert_eq!(pool.lease(tenant(1)), Some(a));
        assert_eq!((pool.free(), pool.unclean()), (1, 0));
    }

    #[test]
    fn the_sweepers_uid_is_never_leased() {
        let range = UidRange::new(73_728, 3).expect("a range");
        let mut pool = Pool::new(range);
        let leased: Vec<_> = (1..=5).filter_map(|id| pool.lease(tenant(id))).collect();
        assert_eq!(leased.len(), 2);
        assert!(!leased.contains(&range.sweeper()));
    }

    #[test]
    fn a_uid_is_leased_again_only_when_it_is_clean() {
        let mut pool = Pool::new(UidRange::new(73_728, 2).expect("a range"));
        let uid = pool.lease(tenant(1)).expect("free");
        assert_eq!(pool.release(tenant(1)), Some(uid));
        assert_eq!((pool.lease(tenant(2)), pool.free(), pool.unclean()), (None, 0, 1));
        pool.cleaned(uid, false);
        assert_eq!((pool.lease(tenant(2)), pool.unclean()), (None, 1));
        assert_eq!(pool.retry_quarantine(), [uid]);
        pool.cleaned(uid, true);
        assert_eq!((pool.free(), pool.lease(tenant(2))), (1, Some(uid)));
    }

    #[test]
    fn a_uid_found_dirty_at_start_waits_until_it_is_clean() {
        let range = UidRange::new(73_728, 3).expect("a range");
        let mut pool = Pool::new(range);
        let dirty = range.get(73_728).expect("in range");
        pool.found_dirty(dirty);
        assert_eq!(pool.free(), 1);
        assert_eq!(pool.lease(tenant(1)).map(ChildUid::get), Some(73_729));
        pool.cleaned(dirty, true);
        assert_eq!(pool.lease(tenant(2)), Some(dirty));
    }

    #[test]
    fn a_range_that_others_use_is_refused() {
        assert_eq!(UidRange::new(60_000, 5000), Err(RangeError::Reserved));
        assert_eq!(UidRange::new(0, 5000), Err(RangeError::OutOfBounds));
        assert_eq!(UidRange::new(u32::MAX, 2), Err(RangeError::OutOfBounds));
        assert_eq!(UidRange::new(73_728, 1), Err(RangeError::TooFew));
    }
}
