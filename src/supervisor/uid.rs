//! Who leases which uid. No I/O: it says what is to be cleaned and is told when that is done.
//!
//! One uid (and the equal gid) a child, from before its fork until after its end: no two children ever share one, also
//! those of one user, so that neither can signal, trace, slow down or list the other, and what one leaves behind is
//! killed without the other. A uid that was leased goes through `cleaning` before it is free again, and into
//! `quarantine` where its processes do not go away; a uid in quarantine is not leased until they have. What is free is
//! leased in turn, so that the same uid comes back as late as it can.
//!
//! The last uid of the range is never leased: the supervisor takes it for its real one while it kills everything under
//! a dirty uid ([`sweep`](super::sweep)), so that what it is about to kill cannot kill or stop it first (kill(2): the
//! target's real or saved uid counts, the sender's real or effective one).

use std::collections::{BTreeSet, VecDeque};

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

/// The most that a range may have: the kernel is asked about each at start, a sixth of a microsecond apiece.
const MOST: u32 = 1 << 20;

/// Why two numbers are no range for children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RangeError {
    /// One uid for a child and one for the sweeper.
    #[error("needs at least 2 uids")]
    TooFew,
    /// Each is looked at when the supervisor starts.
    #[error("must have at most {MOST} uids")]
    TooMany,
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
        if count > MOST {
            return Err(RangeError::TooMany);
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

    /// All of them, the sweeper's too.
    pub(crate) fn iter(self) -> impl Iterator<Item = ChildUid> {
        (self.first..=self.sweeper().0).map(ChildUid)
    }
}

/// The uids and who waits for what.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Not leased, not dirty, the longest unused first.
    free: VecDeque<ChildUid>,
    cleaning: BTreeSet<ChildUid>,
    quarantine: BTreeSet<ChildUid>,
}

impl Pool {
    /// All of the range but the sweeper's uid is free.
    pub(crate) fn new(range: UidRange) -> Self {
        let free = range.iter().filter(|&uid| uid != range.sweeper()).collect();
        Self { free, cleaning: BTreeSet::new(), quarantine: BTreeSet::new() }
    }

    /// A uid for one child.
    pub(crate) fn lease(&mut self) -> Option<ChildUid> {
        self.free.pop_front()
    }

    /// Ends a lease; the uid is to be cleaned now.
    pub(crate) fn release(&mut self, uid: ChildUid) {
        self.cleaning.insert(uid);
    }

    /// Puts uids that were found dirty at start into cleaning.
    pub(crate) fn found_dirty(&mut self, uids: &[ChildUid]) {
        let dirty: BTreeSet<_> = uids.iter().collect();
        self.free.retain(|uid| {
            let clean = !dirty.contains(uid);
            if !clean {
                self.cleaning.insert(*uid);
            }
            clean
        });
    }

    /// Notes that nothing is left under a uid, or (`false`) that this takes too long.
    pub(crate) fn cleaned(&mut self, uid: ChildUid, clean: bool) {
        let awaited = self.cleaning.remove(&uid);
        if clean {
            if self.quarantine.remove(&uid) || awaited {
                self.free.push_back(uid);
            }
        } else if awaited {
            self.quarantine.insert(uid);
        }
    }

    /// What is in quarantine: worth a try when nothing is free.
    pub(crate) fn quarantined(&self) -> impl Iterator<Item = ChildUid> {
        self.quarantine.iter().copied()
    }

    /// How many could be leased now.
    pub(crate) fn free(&self) -> u32 {
        u32::try_from(self.free.len()).unwrap_or(u32::MAX)
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

    fn range(count: u32) -> UidRange {
        UidRange::new(73_728, count).expect("a range")
    }

    #[test]
    fn no_two_children_share_a_uid_and_the_sweepers_is_never_leased() {
        let mut pool = Pool::new(range(3));
        let leased: Vec<_> = std::iter::from_fn(|| pool.lease()).collect();
        assert_eq!(leased.iter().map(|uid| uid.get()).collect::<Vec<_>>(), [73_728, 73_729]);
        assert!(!leased.contains(&range(3).sweeper()));
    }

    #[test]
    fn a_uid_is_leased_again_only_when_it_is_clean() {
        let mut pool = Pool::new(range(2));
        let uid = pool.lease().expect("free");
        pool.release(uid);
        assert_eq!((pool.lease(), pool.free(), pool.unclean(), pool.settled()), (None, 0, 1, false));
        pool.cleaned(uid, false);
        assert_eq!((pool.lease(), pool.unclean(), pool.settled()), (None, 1, true));
        assert_eq!(pool.quarantined().collect::<Vec<_>>(), [uid]);
        pool.cleaned(uid, true);
        assert_eq!((pool.free(), pool.unclean(), pool.lease()), (1, 0, Some(uid)));
    }

    #[test]
    fn what_was_free_longest_is_leased_first() {
        let mut pool = Pool::new(range(4));
        let first = pool.lease().expect("free");
        pool.release(first);
        pool.cleaned(first, true);
        let next: Vec<_> = std::iter::from_fn(|| pool.lease()).map(ChildUid::get).collect();
        assert_eq!(next, [73_729, 73_730, 73_728]);
    }

    #[test]
    fn a_uid_found_dirty_at_start_waits_until_it_is_clean() {
        let mut pool = Pool::new(range(3));
        let dirty: Vec<_> = range(3).iter().filter(|uid| uid.get() != 73_729).collect();
        pool.found_dirty(&dirty);
        assert_eq!((pool.free(), pool.unclean()), (1, 1), "the sweeper's own is nobody's to lease");
        assert_eq!((pool.lease().map(ChildUid::get), pool.lease()), (Some(73_729), None));
        for uid in dirty {
            pool.cleaned(uid, true);
        }
        assert_eq!((pool.lease().map(ChildUid::get), pool.lease()), (Some(73_728), None));
    }

    #[test]
    fn a_clean_uid_that_nobody_waits_for_is_not_free_twice() {
        let mut pool = Pool::new(range(2));
        let uid = pool.lease().expect("free");
        pool.cleaned(uid, true);
        assert_eq!(pool.free(), 0, "it is leased");
    }

    #[test]
    fn a_range_that_others_use_is_refused() {
        assert_eq!(UidRange::new(60_000, 5000), Err(RangeError::Reserved));
        assert_eq!(UidRange::new(0, 5000), Err(RangeError::OutOfBounds));
        assert_eq!(UidRange::new(u32::MAX, 2), Err(RangeError::OutOfBounds));
        assert_eq!(UidRange::new(73_728, 1), Err(RangeError::TooFew));
        assert_eq!(UidRange::new(73_728, MOST + 1), Err(RangeError::TooMany));
    }
}
