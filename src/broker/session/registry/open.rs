//! Opening a session: a child, its `initialize`, an id, a record; in this order, and nothing stays of a failure.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Instrument, error};

use crate::chain::chain;
use crate::child::bridge::Bridge;
use crate::child::calls::Mode;
use crate::child::get_stream::GetStream;
use crate::child::handshake::{self, InitializeResult};
use crate::jsonrpc::{Message, Spliced};
use crate::session::machine::{ChildNumber, Effect, Event, Machine};
use crate::session::quota::Full;
use crate::session::registry::changes::Change;
use crate::session::registry::children::Started;
use crate::session::registry::lines;
use crate::session::registry::{
    Inner, Permit, Principal, Record, Registry, Session, SessionError, SessionId, Settings,
};
use crate::store::SessionRecord;

/// How long a client waits for a new session in all. Its answer carries the session's id in a header, so nothing can keep
/// the connection alive before; proxies and clients give up after a minute.
const OPEN_WITHIN: Duration = Duration::from_secs(55);
/// Why a session ends that the store did not take.
const NOT_RECORDED: &str = "not-recorded";
/// Bytes of `initialize`'s parameters, which are kept with the session; those of today's clients have one or two thousand.
const MAX_INITIALIZE: usize = 64 * 1024;

/// The outcome of an `initialize` that reached a child.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The id to give to the client; `None` where the child refused, so that there is no session.
    pub(crate) id: Option<SessionId>,
    /// The child's answer.
    pub(crate) answer: Spliced,
}

impl Registry {
    /// Opens a session with the client's `initialize`, by `deadline` and within [`OPEN_WITHIN`].
    ///
    /// Dropping the future before the child has answered stops the child.
    pub(crate) async fn open(
        &self,
        principal: &Principal,
        initialize: &Message,
        deadline: Instant,
    ) -> Result<Opened, SessionError> {
        let started = Instant::now();
        let params = initialize.params().unwrap_or("{}");
        if params.len() > MAX_INITIALIZE {
            return Err(SessionError::InitializeTooLarge { limit: MAX_INITIALIZE });
        }
        let config = self.config();
        let deadline = deadline.min(started + OPEN_WITHIN);
        let permit = self.session_permit(principal)?;
        let get_stream = Arc::new(GetStream::default());
        let begun = async {
            let child = self.start(principal, Arc::clone(&get_stream), Mode::Session, deadline).await?;
            let by = deadline.min(Instant::now() + config.start_timeout);
            let answered = handshake::initialize(&child.bridge, initialize, by).await?;
            Ok((child, answered))
        };
        let (Started { bridge, number, permit: child_permit }, answered) = self.counted(begun).await?;
        let Some(result) = answered.result else {
            return Ok(Opened { id: None, answer: answered.text });
        };
        let id = SessionId::mint(&mut rand::rngs::SysRng).map_err(|e| {
            error!(error = %e, "no session can be opened: {}", chain(&e));
            SessionError::Storage
        })?;
        let serving = Arc::clone(&bridge);
        let admission = Admission {
            id: id.clone(),
            principal: principal.clone(),
            params: params.to_owned(),
            result,
            get_stream,
            bridge,
            number,
            permit,
            child_permit,
        };
        // A task of its own: a client that hangs up now must not leave half a session.
        let registry = self.clone();
        let admitted = self.0.tasks.spawn(async move { registry.admit(admission).await }.in_current_span());
        let session = admitted.await.map_err(|_| SessionError::ShuttingDown)??;
        self.0.metrics.session_opened();
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        lines::opened(&session, principal, &serving, duration_ms);
        Ok(Opened { id: Some(id), answer: answered.text })
    }

    async fn admit(&self, admission: Admission) -> Result<Arc<Session>, SessionError> {
        let Admission { id, principal, params, result, get_stream, bridge, number, permit, child_permit } = admission;
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
            holder: principal.holder(),
            given: principal.given(),
            version: result.version.into(),
            get_stream,
            last_used: now,
        };
        let machine = Machine::live(self.config().respawn, number, Arc::clone(&bridge));
        let session = Arc::new(Session::new(kept, Settings::of_new_session(), machine, permit));
        self.0.sessions.lock().insert(Arc::clone(&session));
        self.watch(&session.route, number, bridge, child_permit);
        self.0.changed.notify_one();
        if self.0.closing.is_cancelled()
            && let Effect::Stop(bridge) = session.route.step(Event::Closing)
        {
            // It was being opened when the shutdown looked for children to stop.
            bridge.stop();
        }
        // After the session is in the table: a revocation of its grant either finds it there, or came first and
        // makes this fail.
        if let Err(e) = self.0.records.insert(&record).await {
            error!(error = %e, "a session could not be stored: {}", chain(&e));
            // After a wait that was given up it may be there all the same. On a full disk it certainly is not.
            if e.is_full() {
                self.forget(&session, NOT_RECORDED);
            } else {
                self.end(&session, NOT_RECORDED);
            }
            return Err(SessionError::Storage);
        }
        // One that has ended while it was written must not come back after a restart.
        let ended = self.0.sessions.lock().get(&session.digest).is_none();
        if ended {
            self.store_change(session.digest, Change::Ended { reason: "ended-at-once", at: self.0.clock.now() }).await;
        }
        Ok(session)
    }

    /// A permit for one more session. A user at their cap loses the sessions of theirs that have been idle for longest,
    /// as many as it takes: more than one where the cap was lowered. Where that is not enough, none.
    fn session_permit(&self, principal: &Principal) -> Result<Permit, SessionError> {
        if self.0.closing.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        let (inner, tenant) = (&self.0, principal.tenant);
        match inner.session_quota.take(tenant) {
            Ok(permit) => return Ok(permit),
            Err(Full::Total) => return Err(SessionError::SessionsTotal),
            Err(Full::User) => {}
        }
        let evict_after = self.config().evict_after;
        let refused = |retry_after| Err(SessionError::SessionsOfUser { retry_after });
        let mut idle = inner.idle_of(principal);
        let lacks = inner.session_quota.lacks(tenant).max(1);
        idle.truncate(lacks);
        let Some(last) = idle.last().filter(|_| idle.len() == lacks) else {
            return refused(evict_after);
        };
        let idle_for = inner.clock.now().since(last.last_used());
        if let Some(wait) = evict_after.checked_sub(idle_for).filter(|wait| *wait > Duration::ZERO) {
            return refused(wait);
        }
        for session in &idle {
            self.end(session, "made-room");
        }
        inner.session_quota.take(tenant).or_else(|full| match full {
            Full::Total => Err(SessionError::SessionsTotal),
            Full::User => refused(evict_after),
        })
    }
}

impl Inner {
    /// The user's sessions with nothing under way, those that were used longest ago first.
    fn idle_of(&self, principal: &Principal) -> Vec<Arc<Session>> {
        let sessions = self.sessions.lock();
        let idle = sessions.values().filter(|session| session.tenant() == principal.tenant && !session.route.is_busy());
        let mut idle: Vec<_> = idle.cloned().collect();
        drop(sessions);
        // Once each: a use in between must not change the order under the sort.
        idle.sort_by_cached_key(|session| session.last_used());
        idle
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
    number: ChildNumber,
    permit: Permit,
    child_permit: Permit,
}
