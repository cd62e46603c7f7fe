//! Opening a session: a child, its `initialize`, an id, a record; in this order, and nothing stays of a failure.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info};

use crate::child::bridge::Bridge;
use crate::child::get_stream::GetStream;
use crate::child::handshake;
use crate::child::handshake::InitializeResult;
use crate::jsonrpc::{Message, Spliced};
use crate::session::id;
use crate::session::quota::Full;
use crate::session::registry::{
    Child, Inner, Permit, Principal, Record, Registry, Session, SessionError, SessionId, Settings,
};
use crate::store::SessionRecord;

/// The outcome of an `initialize` that reached a child.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The id to give to the client; `None` where the child refused, so that there is no session.
    pub(crate) id: Option<SessionId>,
    /// The child's answer.
    pub(crate) answer: Spliced,
}

impl Registry {
    /// Opens a session with the client's `initialize`.
    ///
    /// Dropping the future before the child has answered stops the child.
    pub(crate) async fn open(&self, principal: &Principal, initialize: &Message) -> Result<Opened, SessionError> {
        let started = tokio::time::Instant::now();
        let permit = self.session_place(principal)?;
        let get_stream = Arc::new(GetStream::default());
        let started_child = self.start(principal, Arc::clone(&get_stream)).await?;
        let bridge = started_child.bridge;
        let answered = handshake::initialize(&bridge, initialize, self.0.config.start_timeout).await?;
        let Some(result) = answered.result else {
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
            result,
            get_stream,
            bridge,
            permit,
            child_permit: started_child.permit,
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
        let Admission { id, principal, params, result, get_stream, bridge, permit, child_permit } = admission;
        let now = self.0.clock.now();
        let record = SessionRecord {
            digest: id.digest(),
            grant: principal.grant.clone(),
            tenant: principal.tenant,
            protocol_version: result.version.clone(),
            initialize: params,
            answer: result.result,
            created_at: now,
            last_used_at: now,
            settings: "{}".to_owned(),
        };
        let kept = Record {
            digest: record.digest,
            grant: record.grant.clone(),
            tenant: record.tenant,
            version: result.version.into(),
            get_stream,
            last_used: now,
        };
        let session =
            Arc::new(Session::new(kept, Settings::of_new_session(), Child::Live(Arc::clone(&bridge)), permit));
        self.0.sessions.lock().insert(session.digest, Arc::clone(&session));
        self.watch(&session, bridge, child_permit);
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

    /// A permit for one more session; a user at their cap loses their longest-idle session.
    fn session_place(&self, principal: &Principal) -> Result<Permit, SessionError> {
        if self.0.closing.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        let inner = &self.0;
        match inner.session_quota.take(principal.tenant) {
            Ok(permit) => return Ok(permit),
            Err(Full::Total) => return Err(SessionError::SessionsTotal),
            Err(Full::User) => {}
        }
        let Some(oldest) = inner.longest_idle_of(principal) else {
            return Err(SessionError::SessionsOfUser { retry_after: inner.config.evict_after });
        };
        let idle = inner.clock.now().since(oldest.last_used());
        let Some(wait) = inner.config.evict_after.checked_sub(idle).filter(|wait| *wait > Duration::ZERO) else {
            self.end(&oldest, "made-room");
            return inner.session_quota.take(principal.tenant).map_err(|full| match full {
                Full::Total => SessionError::SessionsTotal,
                Full::User => SessionError::SessionsOfUser { retry_after: inner.config.evict_after },
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
    result: InitializeResult,
    get_stream: Arc<GetStream>,
    bridge: Arc<Bridge>,
    permit: Permit,
    child_permit: Permit,
}
