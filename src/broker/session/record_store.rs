//! What the registry knows of the store: this trait and nothing else.
//!
//! In production the database implements it, in tests a map, so that the logic of sessions is tested with time
//! standing still and without a disk.

use futures_util::future::BoxFuture;

use crate::auth::principal::GrantId;
use crate::store::{LiveSession, SessionDigest, SessionRecord, Store, StoreError};
use wire::clock::UnixTime;

/// Keeps session records.
pub(crate) trait Records: Send + Sync + std::fmt::Debug + 'static {
    /// Writes a session that was just opened.
    fn insert<'a>(&'a self, session: &'a SessionRecord) -> BoxFuture<'a, Result<(), StoreError>>;
    /// A session that has not ended.
    fn find<'a>(&'a self, digest: &'a SessionDigest) -> BoxFuture<'a, Result<Option<SessionRecord>, StoreError>>;
    /// All sessions that have not ended.
    fn live(&self) -> BoxFuture<'_, Result<Vec<LiveSession>, StoreError>>;
    /// Gives a session to a later grant of its holder.
    fn move_to<'a>(&'a self, digest: &'a SessionDigest, grant: &'a GrantId) -> BoxFuture<'a, Result<(), StoreError>>;
    /// Marks a session as ended.
    fn end<'a>(
        &'a self,
        digest: &'a SessionDigest,
        reason: &'static str,
        now: UnixTime,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    /// Whether a grant is there and was not revoked.
    fn stands<'a>(&'a self, grant: &'a GrantId) -> BoxFuture<'a, Result<bool, StoreError>>;
    /// Writes when sessions were last used.
    fn touch<'a>(&'a self, uses: &'a [(SessionDigest, UnixTime)]) -> BoxFuture<'a, Result<(), StoreError>>;
    /// Writes what clients have set beyond the handshake.
    fn keep_settings<'a>(&'a self, settings: &'a [(SessionDigest, String)]) -> BoxFuture<'a, Result<(), StoreError>>;
}

impl Records for Store {
    fn insert<'a>(&'a self, session: &'a SessionRecord) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.insert_session(session))
    }

    fn find<'a>(&'a self, digest: &'a SessionDigest) -> BoxFuture<'a, Result<Option<SessionRecord>, StoreError>> {
        Box::pin(self.find_session(digest))
    }

    fn live(&self) -> BoxFuture<'_, Result<Vec<LiveSession>, StoreError>> {
        Box::pin(self.live_sessions())
    }

    fn move_to<'a>(&'a self, digest: &'a SessionDigest, grant: &'a GrantId) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.move_session(digest, grant))
    }

    fn end<'a>(
        &'a self,
        digest: &'a SessionDigest,
        reason: &'static str,
        now: UnixTime,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.end_session(digest, reason, now))
    }

    fn stands<'a>(&'a self, grant: &'a GrantId) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(self.grant_stands(grant))
    }

    fn touch<'a>(&'a self, uses: &'a [(SessionDigest, UnixTime)]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.touch_sessions(uses))
    }

    fn keep_settings<'a>(&'a self, settings: &'a [(SessionDigest, String)]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.keep_session_settings(settings))
    }
}
