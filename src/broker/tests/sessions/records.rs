//! Session records in a map.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::auth::principal::{Given, GrantId, Holder};
use crate::session::record_store::Records;
use crate::store::{LiveSession, SessionDigest, SessionRecord, StoreError};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use wire::clock::UnixTime;
use wire::message::TenantId;

#[derive(Debug, Clone, Default)]
pub(crate) struct FakeRecords(Arc<Mutex<HashMap<SessionDigest, SessionRecord>>>, Arc<AtomicBool>);

/// When the grants of tests are given, unless they say otherwise.
pub(crate) const GIVEN: UnixTime = UnixTime::from_secs(1_700_000_000);

/// The user by way of the client of tests.
pub(crate) fn holder(tenant: TenantId) -> Holder {
    Holder { tenant, client_id: "test".into(), credential: format!("credential of {tenant}").into() }
}

impl FakeRecords {
    /// Everything fails from now on, or works again.
    pub(crate) fn fail(&self, fails: bool) {
        self.1.store(fails, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.1.load(Ordering::SeqCst) { Err(StoreError::Damaged("failing on purpose")) } else { Ok(()) }
    }

    /// What clients have set, as far as it was written.
    pub(crate) fn settings(&self) -> Vec<String> {
        self.0.lock().values().map(|session| session.settings.clone()).collect()
    }

    /// When a session was last used, as far as it was written.
    pub(crate) fn last_uses(&self) -> Vec<UnixTime> {
        self.0.lock().values().map(|session| session.last_used_at).collect()
    }
}

impl Records for FakeRecords {
    fn insert<'a>(&'a self, session: &'a SessionRecord) -> BoxFuture<'a, Result<(), StoreError>> {
        let checked = self.check();
        if checked.is_ok() {
            self.0.lock().insert(session.digest, session.clone());
        }
        ready(checked).boxed()
    }

    fn find<'a>(&'a self, digest: &'a SessionDigest) -> BoxFuture<'a, Result<Option<SessionRecord>, StoreError>> {
        ready(self.check().map(|()| self.0.lock().get(digest).cloned())).boxed()
    }

    fn live(&self) -> BoxFuture<'_, Result<Vec<LiveSession>, StoreError>> {
        let sessions = self.0.lock();
        let live = sessions.values().cloned().map(|record| LiveSession {
            digest: record.digest,
            holder: holder(record.tenant),
            given: Given { at: GIVEN, grant: record.grant },
            protocol_version: record.protocol_version.into(),
            last_used_at: record.last_used_at,
        });
        ready(Ok(live.collect())).boxed()
    }

    fn move_to<'a>(&'a self, digest: &'a SessionDigest, grant: &'a GrantId) -> BoxFuture<'a, Result<(), StoreError>> {
        let checked = self.check();
        if checked.is_ok()
            && let Some(session) = self.0.lock().get_mut(digest)
        {
            session.grant = grant.clone();
        }
        ready(checked).boxed()
    }

    fn end<'a>(
        &'a self,
        digest: &'a SessionDigest,
        _reason: &'static str,
        _now: UnixTime,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let checked = self.check();
        if checked.is_ok() {
            self.0.lock().remove(digest);
        }
        ready(checked).boxed()
    }

    fn stands<'a>(&'a self, grant: &'a GrantId) -> BoxFuture<'a, Result<bool, StoreError>> {
        ready(self.check().map(|()| grant.as_str() != "revoked")).boxed()
    }

    fn touch<'a>(&'a self, uses: &'a [(SessionDigest, UnixTime)]) -> BoxFuture<'a, Result<(), StoreError>> {
        if let Err(e) = self.check() {
            return ready(Err(e)).boxed();
        }
        let mut sessions = self.0.lock();
        for (digest, at) in uses {
            if let Some(session) = sessions.get_mut(digest) {
                session.last_used_at = *at;
            }
        }
        ready(Ok(())).boxed()
    }

    fn keep_settings<'a>(&'a self, settings: &'a [(SessionDigest, String)]) -> BoxFuture<'a, Result<(), StoreError>> {
        if let Err(e) = self.check() {
            return ready(Err(e)).boxed();
        }
        let mut sessions = self.0.lock();
        for (digest, settings) in settings {
            if let Some(session) = sessions.get_mut(digest) {
                session.settings.clone_from(settings);
            }
        }
        ready(Ok(())).boxed()
    }
}
