//! The sessions of the broker: opening, finding, waking, ending.
//!
//! Trusts a [`Principal`], because only the bearer layer makes one, and nothing else: an id in a header is looked up
//! and then checked against the grant that minted it. Knows the [`Spawner`] trait, not the supervisor.
//!
//! Where a request waits: for its turn to start a child ([`Turns`]), for the child's handshake. Never under a lock.

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

use super::bridge::Bridge;
use super::entry::{Child, Record, Session};
use super::error::SessionError;
use super::id::{self, SessionId};
use super::places::{Caps, Place, Places};
use super::records::Records;
use super::settings::Settings;
use super::spawner::Spawner;
use super::turns::Turns;
use crate::clock::Clock;
use crate::frontend::principal::{GrantId, Principal};
use crate::frontend::store::{SessionDigest, StoreError};

pub use open::Opened;

/// Starts of children that run at once.
const STARTS_AT_ONCE: usize = 8;
/// Starts of one user that may wait.
const STARTS_WAITING: usize = 16;

/// What an operator decides about sessions.
#[derive(Debug, Clone)]
pub struct Policy {
    /// On sessions.
    pub sessions: Caps,
    /// On live children.
    pub children: Caps,
    /// A child without requests for so long is stopped.
    pub child_idle: Duration,
    /// A session without use for so long ends.
    pub session_idle: Duration,
    /// A session must have been idle for so long before it makes room for another of the same user.
    pub evict_after: Duration,
    /// How long a child may take to answer `initialize`.
    pub start_timeout: Duration,
    /// How long it may take to answer a request.
    pub request_timeout: Duration,
    /// Bytes in one line of a child.
    pub max_line: usize,
    /// Whether the session of a child that ended on its own lives on.
    pub respawn: bool,
}

/// The registry. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    policy: Policy,
    spawner: Arc<dyn Spawner>,
    records: Arc<dyn Records>,
    clock: Clock,
    sessions: Mutex<HashMap<SessionDigest, Arc<Session>>>,
    session_places: Places,
    child_places: Places,
    turns: Turns,
    /// One for each live child, and one for each write to the store that nobody waits for.
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Registry {
    /// A registry that knows the sessions in the store: those of before a restart go on.
    pub async fn load(
        policy: Policy,
        spawner: Arc<dyn Spawner>,
        records: Arc<dyn Records>,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let session_places = Places::new(policy.sessions);
        let mut sessions = HashMap::new();
        for live in records.live().await? {
            let record = Record {
                digest: live.digest,
                grant: live.grant,
                tenant: live.tenant,
                version: live.protocol_version.into(),
                listener: Arc::default(),
                last_used: live.last_used_at,
            };
            let session =
                Session::new(record, Settings::default(), Child::Cold, session_places.take_existing(live.tenant));
            sessions.insert(session.digest, Arc::new(session));
        }
        info!(sessions = sessions.len(), "sessions loaded");
        Ok(Self(Arc::new(Inner {
            child_places: Places::new(policy.children),
            turns: Turns::new(STARTS_AT_ONCE, STARTS_WAITING),
            policy,
            spawner,
            records,
            clock,
            sessions: Mutex::new(sessions),
            session_places,
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        })))
    }

    /// The session that `id` names, if it is the caller's; notes the use.
    pub fn find(&self, id: &str, principal: &Principal) -> Result<Arc<Session>, SessionError> {
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
    pub fn end(&self, session: &Arc<Session>, reason: &'static str) {
        if self.0.sessions.lock().remove(&session.digest).is_none() {
            return;
        }
        let before = std::mem::replace(&mut *session.child.lock(), Child::Ended);
        if let Child::Live(bridge) = before {
            bridge.stop();
        }
        drop(session.place.lock().take());
        session.listener.close();
        info!(session = %id::tag(&session.digest), tenant = %session.tenant, reason, "session ended");
        let (inner, digest, now) = (Arc::clone(&self.0), session.digest, self.0.clock.now());
        self.0.tasks.spawn(async move {
            if let Err(error) = inner.records.end(&digest, reason, now).await {
                error!(error = %error, "the end of a session could not be stored; it may come back after a restart");
            }
        });
    }

    /// Ends all sessions of a grant; how many.
    pub fn end_grant(&self, grant: &GrantId, reason: &'static str) -> usize {
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
    pub fn rotate(&self, principal: &Principal, drain: Duration) {
        for session in self.of_grant(&principal.grant) {
            self.renew(&session, principal, drain);
        }
    }

    fn of_grant(&self, grant: &GrantId) -> Vec<Arc<Session>> {
        self.0.sessions.lock().values().filter(|session| session.grant == *grant).cloned().collect()
    }

    /// How many sessions a grant has open.
    pub fn sessions_of(&self, grant: &GrantId) -> usize {
        self.of_grant(grant).len()
    }

    /// Sessions, and live children.
    pub fn counts(&self) -> (usize, usize) {
        (self.0.sessions.lock().len(), self.0.child_places.taken())
    }

    /// The deadline of a request.
    pub fn request_timeout(&self) -> Duration {
        self.0.policy.request_timeout
    }

    /// Stops: starts nothing any more, waits up to `drain` for what is in flight, then stops every child and waits
    /// until all are gone. The records stay: after a restart the sessions go on.
    pub async fn shut_down(&self, drain: Duration) {
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
            session.listener.close();
            if let Some(bridge) = session.live() {
                session.chill(&bridge);
                bridge.stop();
            }
        }
        self.save_uses().await;
        self.0.tasks.close();
        self.0.tasks.wait().await;
        info!(sessions = sessions.len(), drained = in_time, "all children are stopped");
    }
}
