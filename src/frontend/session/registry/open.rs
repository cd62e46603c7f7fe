//! Opening a session: a child, its `initialize`, an id, a record; in this order, and nothing stays of a failure.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info};

use super::{Child, Inner, Place, Principal, Record, Registry, Session, SessionError, SessionId, Settings};
use crate::frontend::jsonrpc::{Message, Spliced};
use crate::frontend::session::bridge::Bridge;
use crate::frontend::session::handshake::{self, Welcome};
use crate::frontend::session::id;
use crate::frontend::session::listener::Listener;
use crate::frontend::session::places::Full;
use crate::frontend::store::SessionRecord;

/// The outcome of an `initialize` that reached a child.
#[derive(Debug)]
pub struct Opened {
    /// The id to give to the client; `None` where the child refused, so that there is no session.
    pub id: Option<SessionId>,
    /// The child's answer.
    pub answer: Spliced,
}

impl Registry {
    /// Opens a session with the client's `initialize`.
    ///
    /// Dropping the future before the child has answered stops the child.
    pub async fn open(&self, principal: &Principal, initialize: &Message) -> Result<Opened, SessionError> {
        let started = tokio::time::Instant::now();
        let place = self.session_place(principal)?;
        let listener = Arc::new(Listener::default());
        let started_child = self.start(principal, Arc::clone(&listener)).await?;
        let bridge = started_child.bridge;
        let answered = handshake::initialize(&bridge, initialize, self.0.policy.start_timeout).await?;
        let Some(welcome) = answered.welcome else {
            return Ok(Opened { id: None, answer: answered.text });
        };
        let id = SessionId::mint(&mut rand::rngs::SysRng).map_err(|e| {
            error!(error = %e, "no session can be opened");
            SessionError::Storage
        })?;
        let admission = Admission {
            id: id.clone(),
            principal: principal.clone(),
            params: initialize.params().unwrap_or("{}").to_owned(),
            welcome,
            listener,
            bridge,
            place,
            child_place: started_child.place,
        };
        // A task of its own: a client that hangs up now must not leave half a session.
        let registry = self.clone();
        let admitted = self.0.tasks.spawn(async move { registry.admit(admission).await });
        let session = admitted.await.map_err(|_| SessionError::ShuttingDown)??;
        info!(
            session = %id::tag(&session.digest), grant = %principal.grant, tenant = %principal.tenant,
            login = %principal.login, client = %principal.client_id, version = %session.version,
            duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX), "session opened"
        );
        Ok(Opened { id: Some(id), answer: answered.text })
    }

    async fn admit(&self, admission: Admission) -> Result<Arc<Session>, SessionError> {
        let Admission { id, principal, params, welcome, listener, bridge, place, child_place } = admission;
        let now = self.0.clock.now();
        let record = SessionRecord {
            digest: id.digest(),
            grant: principal.grant.clone(),
            tenant: principal.tenant,
            protocol_version: welcome.version.clone(),
            initialize: params,
            answer: welcome.result,
            created_at: now,
            last_used_at: now,
            settings: "{}".to_owned(),
        };
        let kept = Record {
            digest: record.digest,
            grant: record.grant.clone(),
            tenant: record.tenant,
            version: welcome.version.into(),
            listener,
            last_used: now,
        };
        let session = Arc::new(Session::new(kept, Settings::of_new_session(), Child::Live(Arc::clone(&bridge)), place));
        self.0.sessions.lock().insert(session.digest, Arc::clone(&session));
        self.watch(&session, bridge, child_place);
        // After the session is in the table: a revocation of its grant either finds it there, or came first and
        // makes this fail.
        if let Err(e) = self.0.records.insert(&record).await {
            error!(error = %e, "a session could not be stored");
            self.end(&session, "not-recorded");
            return Err(SessionError::Storage);
        }
        // One that has ended while it was written must not come back after a restart.
        let ended = !self.0.sessions.lock().contains_key(&session.digest);
        if ended && let Err(e) = self.0.records.end(&session.digest, "ended-at-once", self.0.clock.now()).await {
            error!(error = %e, "the end of a session could not be stored; it may come back after a restart");
        }
        Ok(session)
    }

    /// A place for one more session; a user at their cap loses their longest-idle session.
    fn session_place(&self, principal: &Principal) -> Result<Place, SessionError> {
        if self.0.closing.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        let inner = &self.0;
        match inner.session_places.take(principal.tenant) {
            Ok(place) => return Ok(place),
            Err(Full::Total) => return Err(SessionError::SessionsTotal),
            Err(Full::User) => {}
        }
        let Some(oldest) = inner.longest_idle_of(principal) else {
            return Err(SessionError::SessionsOfUser { retry_after: inner.policy.evict_after });
        };
        let idle = inner.clock.now().since(oldest.last_used());
        let Some(wait) = inner.policy.evict_after.checked_sub(idle).filter(|wait| *wait > Duration::ZERO) else {
            self.end(&oldest, "made-room");
            return inner.session_places.take(principal.tenant).map_err(|full| match full {
                Full::Total => SessionError::SessionsTotal,
                Full::User => SessionError::SessionsOfUser { retry_after: inner.policy.evict_after },
            });
        };
        Err(SessionError::SessionsOfUser { retry_after: wait })
    }
}

impl Inner {
    fn longest_idle_of(&self, principal: &Principal) -> Option<Arc<Session>> {
        let sessions = self.sessions.lock();
        let idle = sessions.values().filter(|session| session.tenant == principal.tenant && !session.is_busy());
        idle.min_by_key(|session| session.last_used()).cloned()
    }
}

/// All that makes a session, once its child has answered.
struct Admission {
    id: SessionId,
    principal: Principal,
    params: String,
    welcome: Welcome,
    listener: Arc<Listener>,
    bridge: Arc<Bridge>,
    place: Place,
    child_place: Place,
}
