//! How a session ends.

use std::sync::Arc;

use tracing::error;

use crate::auth::principal::GrantId;
use crate::chain::chain;
use crate::session::error::SessionError;
use crate::session::id;
use crate::session::machine::Effect;
use crate::session::record::Session;
use crate::session::registry::changes::Change;
use crate::session::registry::{Registry, lines};

impl Registry {
    /// Ends a session: its child is stopped, its stream closed, its record marked. Ending it again does nothing.
    pub(crate) fn end(&self, session: &Arc<Session>, reason: &'static str) {
        if !self.forget(session, reason) {
            return;
        }
        let (registry, digest) = (self.clone(), session.digest);
        let ended = Change::Ended { reason, at: self.0.clock.now() };
        self.0.tasks.spawn(async move { registry.store_change(digest, ended).await });
    }

    /// Ends a session as its client asked for it. Its record is marked first, because the client is told that the session
    /// has ended and does not end it again: while the store takes nothing, the session goes on and the client is refused.
    pub(crate) async fn end_for_client(&self, session: &Arc<Session>) -> Result<(), SessionError> {
        const REASON: &str = "client-ended";
        let (registry, session) = (self.clone(), Arc::clone(session));
        // A task of its own: a client that hangs up now must not leave a child to a session that is over.
        let ending = self.0.tasks.spawn(async move {
            let inner = &registry.0;
            inner.records.end(&session.digest, REASON, inner.clock.now()).await.map_err(|e| {
                error!(session = %id::tag(&session.digest), error = %e, "the end of a session could not be stored: {}", chain(&e));
                SessionError::Storage
            })?;
            registry.forget(&session, REASON);
            Ok(())
        });
        ending.await.map_err(|_| SessionError::ShuttingDown)?
    }

    /// The part of an end that is about memory and the child; whether the session was there.
    pub(super) fn forget(&self, session: &Arc<Session>, reason: &'static str) -> bool {
        if !self.0.sessions.lock().remove(&session.digest) {
            return false;
        }
        if let Effect::Stop(bridge) = session.end() {
            bridge.stop();
        }
        session.get_stream.close();
        self.0.metrics.session_ended(reason);
        lines::ended(session, reason);
        true
    }

    /// Ends all sessions of a grant, and what serves it besides; how many sessions.
    pub(crate) fn end_grant(&self, grant: &GrantId, reason: &'static str) -> usize {
        self.end_routes_of(grant, reason);
        let of_grant = self.0.sessions.lock().of_grant(grant);
        for session in &of_grant {
            self.end(session, reason);
        }
        of_grant.len()
    }
}
