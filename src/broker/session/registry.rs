//! The sessions of the broker: opening, finding, waking, ending.
//!
//! Trusts a [`Principal`], because only the bearer layer makes one, and nothing else: an id in a header is looked up
//! and then checked against the grant that minted it. Knows the [`Spawner`] trait, not the supervisor.
//!
//! Where a request waits: for its turn to start a child ([`StartQueue`]), for the child's handshake. Never under a lock.

mod children;
mod open;
mod sweep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::auth::principal::{GrantId, Principal};
use crate::child::bridge::Bridge;
use crate::child::spawner::Spawner;
use crate::session::config::SessionConfig;
use crate::session::error::SessionError;
use crate::session::id;
use crate::session::id::SessionId;
use crate::session::quota::{Permit, Quota};
use crate::session::record::{Child, Record, Session};
use crate::session::record_store::Records;
use crate::session::settings::Settings;
use crate::session::start_queue::StartQueue;
use crate::store::{SessionDigest, StoreError};
use wire::clock::Clock;

/// Starts of children that run at once.
const STARTS_AT_ONCE: usize = 8;
/// Starts of one user that may wait.
const STARTS_WAITING: usize = 16;

/// The registry. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: SessionConfig,
    spawner: Arc<dyn Spawner>,
    records: Arc<dyn Records>,
    clock: Clock,
    sessions: Mutex<HashMap<SessionDigest, Arc<Session>>>,
    session_quota: Quota,
    child_quota: Quota,
    start_queue: StartQueue,
    /// One for each live child, and one for each write to the store that nobody waits for.
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Registry {
    /// A registry that knows the sessions in the store: those of before a restart go on.
    pub(crate) async fn load(
        config: SessionConfig,
        spawner: Arc<dyn Spawner>,
        records: Arc<dyn Records>,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let session_quota = Quota::new(config.sessions);
        let mut sessions = HashMap::new();
        for live in records.live().await? {
            let record = Record {
                digest: live.digest,
                grant: live.grant,
                tenant: live.tenant,
                version: live.protocol_version.into(),
                get_stream: Arc::default(),
                last_used: live.last_used_at,
            };
            let session =
                Session::new(record, Settings::default(), Child::Cold, session_quota.take_existing(live.tenant));
            sessions.insert(session.digest, Arc::new(session));
        }
        info!(sessions = sessions.len(), "sessions loaded");
        Ok(Self(Arc::new(Inner {
            child_quota: Quota::new(config.children),
            start_queue: StartQueue::new(STARTS_AT_ONCE, STARTS_WAITING),
            config,
            spawner,
            records,
            clock,
            sessions: Mutex::new(sessions),
            session_quota,
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        })))
    }

    /// The session that `id` names, if it is the caller's; notes the use.
    pub(crate) fn find(&self, id: &str, principal: &Principal) -> Result<Arc<Session>, SessionError> {
        let digest = SessionId::parse(id).ok_or(SessionError::Unknown)?.digest();
        let session = self.0.sessions.lock().get(&digest).cloned().ok_or(SessionError::Unknown)?;
        if session.grant != principal.grant {
            info!(session = %id::tag(&digest), tenant = %principal.tenant, reason = "foreign-session", "request refused");
            return Err(SessionError::Foreign);
        }
        session.touch(self.0.clock.now());
        Ok(session)
    }

    /// Ends a session: its child is stopped, its stream closed, its record marked. Ending it again does nothing.
    pub(crate) fn end(&self, session: &Arc<Session>, reason: &'static str) {
        if self.0.sessions.lock().remove(&session.digest).is_none() {
            return;
        }
        let before = std::mem::replace(&mut *session.child.lock(), Child::Ended);
        if let Child::Live(bridge) = before {
            bridge.stop();
        }
        drop(session.permit.lock().take());
        session.get_stream.close();
        info!(session = %id::tag(&session.digest), tenant = %session.tenant, reason, "session ended");
        let (inner, digest, now) = (Arc::clone(&self.0), session.digest, self.0.clock.now());
        self.0.tasks.spawn(async move {
            if let Err(error) = inner.records.end(&digest, reason, now).await {
                error!(error = %error, "the end of a session could not be stored; it may come back after a restart");
            }
        });
    }

    /// Ends all sessions of a grant; how many.
    pub(crate) fn end_grant(&self, grant: &GrantId, reason: &'static str) -> usize {
        let of_grant = self.of_grant(grant);
        for session in &of_grant {
            self.end(session, reason);
        }
        of_grant.len()
    }

    /// Gives the running children of a grant's sessions a new token, by giving the sessions new children: each is
    /// started and led through the recorded handshake, then takes over; the old one finishes what it has, for at most
    /// `drain`, and is stopped. Its token stays good until it ends by itself. A child that is only being started is
    /// replaced at the next request.
    pub(crate) fn rotate(&self, principal: &Principal, drain: Duration) {
        for session in self.of_grant(&principal.grant) {
            self.renew(&session, principal, drain);
        }
    }

    fn of_grant(&self, grant: &GrantId) -> Vec<Arc<Session>> {
        self.0.sessions.lock().values().filter(|session| session.grant == *grant).cloned().collect()
    }

    /// How many sessions a grant has open.
    pub(crate) fn sessions_of(&self, grant: &GrantId) -> usize {
        self.of_grant(grant).len()
    }

    /// Sessions, and live children.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.0.sessions.lock().len(), self.0.child_quota.taken())
    }

    /// The deadline of a request.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.0.config.request_timeout
    }

    /// Stops: starts nothing any more, waits up to `drain` for what is in flight, then stops every child and waits
    /// until all are gone. The records stay: after a restart the sessions go on.
    pub(crate) async fn shut_down(&self, drain: Duration) {
        self.0.closing.cancel();
        let sessions: Vec<_> = self.0.sessions.lock().values().cloned().collect();
        let live: Vec<Arc<Bridge>> = sessions.iter().filter_map(|session| session.live()).collect();
        let quiet = async {
            for bridge in &live {
                bridge.quiet().await;
            }
        };
        let in_time = tokio::time::timeout(drain, quiet).await.is_ok();
        drop(live);
        for session in &sessions {
            session.get_stream.close();
            if let Some(bridge) = session.live() {
                session.detach(&bridge);
                bridge.stop();
            }
        }
        self.save_uses().await;
        self.0.tasks.close();
        self.0.tasks.wait().await;
        info!(sessions = sessions.len(), drained = in_time, "all children are stopped");
    }
}
