//! One uid a tenant: a pool of leases.
//!
//! Two tenants never share a uid. A uid is leased while its tenant has children; afterwards everything that still
//! runs under it is killed and must be seen to be gone before it is leased again. The pool itself only counts; the
//! killing is done by `spawn`, which reports back.

use std::collections::{HashMap, HashSet, VecDeque};

use nix::unistd::{Group, Uid, User};

use crate::ipc::message::TenantId;

/// A uid (and equal gid) that belongs to the supervisor's range; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChildUid(u32);

impl ChildUid {
    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for ChildUid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The uids that belong to the supervisor. Not empty, without 0 and without -1, which means «no change» to
/// setresuid(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: u32,
    last: u32,
}

impl Default for Range {
    fn default() -> Self {
        Self { first: 73_728, last: 90_111 }
    }
}

impl Range {
    /// `count` uids from `first` on.
    pub fn new(first: u32, count: u32) -> Option<Self> {
        let last = first.checked_add(count.checked_sub(1)?)?;
        (first > 0 && last < u32::MAX).then_some(Self { first, last })
    }

    /// The uid as one of the range.
    pub fn uid(self, number: u32) -> Option<ChildUid> {
        (self.first..=self.last).contains(&number).then_some(ChildUid(number))
    }

    fn all(self) -> impl Iterator<Item = ChildUid> {
        (self.first..=self.last).map(ChildUid)
    }

    /// Names that the system gives to uids or gids of the range, which then belong to somebody else. The local files
    /// are read whole; other name services are asked about the ends of the range only, since they may hold millions.
    pub fn foreign_names(self) -> Vec<String> {
        let mut found = Vec::new();
        for (file, kind) in [("/etc/passwd", "user"), ("/etc/group", "group")] {
            let lines = std::fs::read_to_string(file).unwrap_or_default();
            for line in lines.lines() {
                let mut fields = line.split(':');
                let (name, id) = (fields.next(), fields.nth(1).and_then(|id| id.parse::<u32>().ok()));
                if let (Some(name), Some(id)) = (name, id)
                    && self.uid(id).is_some()
                {
                    found.push(format!("the range holds {id}, which is the {kind} `{name}`"));
                }
            }
        }
        for id in [self.first, self.last] {
            if found.is_empty()
                && (User::from_uid(Uid::from_raw(id)).is_ok_and(|user| user.is_some())
                    || Group::from_gid(id.into()).is_ok_and(|group| group.is_some()))
            {
                found.push(format!("the range holds {id}, which a name service gives to somebody"));
            }
        }
        found
    }
}

/// The leases.
#[derive(Debug)]
pub struct Pool {
    range: Range,
    /// Longest unused first, so that a uid rests before it is used again.
    free: VecDeque<ChildUid>,
    leased: HashMap<TenantId, Lease>,
    /// Being cleaned, or seen not to be clean.
    unclean: HashSet<ChildUid>,
}

#[derive(Debug)]
struct Lease {
    uid: ChildUid,
    children: usize,
}

impl Pool {
    /// All of the range is free, but for those that were found in use.
    pub fn new(range: Range, in_use: &HashSet<ChildUid>) -> Self {
        Self {
            range,
            free: range.all().filter(|uid| !in_use.contains(uid)).collect(),
            leased: HashMap::new(),
            unclean: in_use.clone(),
        }
    }

    /// The uid for one more child of the tenant; `None` where none is free.
    pub fn lease(&mut self, tenant: TenantId) -> Option<ChildUid> {
        if let Some(lease) = self.leased.get_mut(&tenant) {
            lease.children = lease.children.saturating_add(1);
            return Some(lease.uid);
        }
        let uid = self.free.pop_front()?;
        self.leased.insert(tenant, Lease { uid, children: 1 });
        Some(uid)
    }

    /// One child of the tenant is gone; the uid to clean if it was the last.
    pub fn release(&mut self, tenant: TenantId) -> Option<ChildUid> {
        let lease = self.leased.get_mut(&tenant)?;
        lease.children = lease.children.saturating_sub(1);
        if lease.children > 0 {
            return None;
        }
        let uid = lease.uid;
        self.leased.remove(&tenant);
        self.unclean.insert(uid);
        Some(uid)
    }

    /// Everything under the uid was seen to be gone: it may be leased again.
    pub fn cleaned(&mut self, uid: ChildUid) {
        if self.unclean.remove(&uid) {
            self.free.push_back(uid);
        }
    }

    /// Uids that wait to be clean.
    pub fn unclean(&self) -> Vec<ChildUid> {
        self.unclean.iter().copied().collect()
    }

    /// Leases, free uids, and unclean ones.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.leased.len(), self.free.len(), self.unclean.len())
    }

    /// The range.
    pub const fn range(&self) -> Range {
        self.range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: u64) -> TenantId {
        TenantId::new(id).expect("an id")
    }

    #[test]
    fn two_tenants_never_share_a_uid_and_one_tenant_keeps_theirs() {
        let mut pool = Pool::new(Range::new(1000, 2).expect("a range"), &HashSet::new());
        let alice = pool.lease(tenant(1)).expect("free");
        assert_eq!(pool.lease(tenant(1)), Some(alice));
        let bob = pool.lease(tenant(2)).expect("free");
        assert_ne!(alice, bob);
        assert_eq!(pool.lease(tenant(3)), None);
    }

    #[test]
    fn a_uid_is_leased_again_only_after_it_was_seen_clean() {
        let mut pool = Pool::new(Range::new(1000, 1).expect("a range"), &HashSet::new());
        let uid = pool.lease(tenant(1)).expect("free");
        pool.lease(tenant(1));
        assert_eq!(pool.release(tenant(1)), None, "one child is left");
        assert_eq!(pool.release(tenant(1)), Some(uid));
        assert_eq!(pool.lease(tenant(2)), None, "not clean yet");
        pool.cleaned(uid);
        assert_eq!(pool.lease(tenant(2)), Some(uid));
    }

    #[test]
    fn a_uid_found_in_use_at_start_is_not_leased() {
        let range = Range::new(1000, 2).expect("a range");
        let in_use = HashSet::from([range.uid(1000).expect("in range")]);
        let mut pool = Pool::new(range, &in_use);
        assert_eq!(pool.lease(tenant(1)).map(ChildUid::get), Some(1001));
        assert_eq!(pool.lease(tenant(2)), None);
    }

    #[test]
    fn neither_root_nor_the_number_that_means_no_change_is_in_any_range() {
        assert_eq!(Range::new(0, 5), None);
        assert_eq!(Range::new(u32::MAX, 1), None);
        assert_eq!(Range::new(u32::MAX - 1, 2), None);
        assert_eq!(Range::new(5, 0), None);
    }
}
