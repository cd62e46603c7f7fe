//! The last calls that may have changed something, on their way to the store, where their user sees them.
//!
//! What cannot be kept is in the journal all the same, so nothing waits for it, and what waits in memory is bounded.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::error;

use crate::auth::principal::GrantId;
use crate::chain::chain;
use crate::store::{Store, WRITES_KEPT, WriteCall};

/// Grants whose calls wait at once: a few times as many as there are children.
const MAX_GRANTS: usize = 4096;

/// Calls that wait, by grant. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecentWrites(Arc<Mutex<HashMap<GrantId, VecDeque<WriteCall>>>>);

impl RecentWrites {
    /// A call has ended.
    pub(crate) fn note(&self, call: WriteCall) {
        let mut waiting = self.0.lock();
        if waiting.len() >= MAX_GRANTS && !waiting.contains_key(&call.grant) {
            return;
        }
        let calls = waiting.entry(call.grant.clone()).or_default();
        if calls.len() >= usize::try_from(WRITES_KEPT).unwrap_or(usize::MAX) {
            calls.pop_front();
        }
        calls.push_back(call);
    }

    /// What waits of a grant, the last call first.
    pub(crate) fn waiting(&self, grant: &GrantId) -> Vec<WriteCall> {
        self.0.lock().get(grant).into_iter().flatten().rev().cloned().collect()
    }

    /// Writes what waits. What cannot be written is not tried again: calls that come later matter more.
    pub(crate) async fn flush(&self, store: &Store) {
        let waiting = std::mem::take(&mut *self.0.lock());
        let calls: Vec<_> = waiting.into_values().flatten().collect();
        if calls.is_empty() {
            return;
        }
        if let Err(e) = store.keep_writes(&calls).await {
            error!(error = %e, calls = calls.len(), "the last writes could not be kept for their users: {}", chain(&e));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::clock::UnixTime;

    #[test]
    fn what_waits_is_bounded_by_grant_and_in_all() {
        let recent = RecentWrites::default();
        for n in 0..100_000_i64 {
            let grant = GrantId::new(format!("g{}", n % 5000));
            let at = UnixTime::from_secs(n);
            recent.note(WriteCall { grant, at, tool: "x".to_owned(), target: String::new(), outcome: "ok".into() });
        }
        for n in 100_000..100_050 {
            let (grant, at) = (GrantId::new("g0"), UnixTime::from_secs(n));
            recent.note(WriteCall { grant, at, tool: "x".to_owned(), target: String::new(), outcome: "ok".into() });
        }
        let waiting = recent.0.lock();
        assert_eq!(waiting.len(), MAX_GRANTS);
        let first = &waiting[&GrantId::new("g0")];
        let ages = (first.len(), first.front().expect("there").at.secs(), first.back().expect("there").at.secs());
        assert_eq!(ages, (20, 100_030, 100_049), "the last ones");
    }
}
