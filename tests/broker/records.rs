//! Session records in a map.

use std::collections::HashMap;
use std::sync::Arc;

use forgejo_mcp_broker::clock::UnixTime;
use forgejo_mcp_broker::frontend::session::records::Records;
use forgejo_mcp_broker::frontend::store::{LiveSession, SessionDigest, SessionRecord, StoreError};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

#[derive(Debug, Clone, Default)]
pub(crate) struct FakeRecords(Arc<Mutex<HashMap<SessionDigest, SessionRecord>>>);

impl Records for FakeRecords {
    fn insert<'a>(&'a self, session: &'a SessionRecord) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.lock().insert(session.digest, session.clone());
        ready(Ok(())).boxed()
    }

    fn find<'a>(&'a self, digest: &'a SessionDigest) -> BoxFuture<'a, Result<Option<SessionRecord>, StoreError>> {
        ready(Ok(self.0.lock().get(digest).cloned())).boxed()
    }

    fn live(&self) -> BoxFuture<'_, Result<Vec<LiveSession>, StoreError>> {
        let sessions = self.0.lock();
        let live = sessions.values().cloned().map(|record| LiveSession {
            digest: record.digest,
            grant: record.grant,
            tenant: record.tenant,
            protocol_version: record.protocol_version,
            last_used_at: record.last_used_at,
        });
        ready(Ok(live.collect())).boxed()
    }

    fn end<'a>(
        &'a self,
        digest: &'a SessionDigest,
        _reason: &'static str,
        _now: UnixTime,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.lock().remove(digest);
        ready(Ok(())).boxed()
    }

    fn touch<'a>(&'a self, uses: &'a [(SessionDigest, UnixTime)]) -> BoxFuture<'a, Result<(), StoreError>> {
        let mut sessions = self.0.lock();
        for (digest, at) in uses {
            if let Some(session) = sessions.get_mut(digest) {
                session.last_used_at = *at;
            }
        }
        ready(Ok(())).boxed()
    }
}
