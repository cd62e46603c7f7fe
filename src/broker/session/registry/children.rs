//! The children of sessions: started in turn, watched until they are gone, started again on demand.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{error, info, info_span, warn};

use crate::child::bridge::{Bridge, BridgeConfig};
use crate::child::get_stream::GetStream;
use crate::child::handshake;
use crate::child::handshake::HandshakeError;
use crate::child::spawner::SpawnRequest;
use crate::session::id;
use crate::session::quota::Full;
use crate::session::registry::{Child, Inner, Permit, Principal, Registry, Session, SessionError};

/// A child that runs and has said nothing yet.
pub(crate) struct Started {
    pub(crate) bridge: Arc<Bridge>,
    pub(crate) permit: Permit,
}

impl Registry {
    /// Starts a child for a user, when it is their turn and there is room.
    pub(crate) async fn start(
        &self,
        principal: &Principal,
        get_stream: Arc<GetStream>,
    ) -> Result<Started, SessionError> {
        let inner = &self.0;
        if inner.closing.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        let _turn = inner.start_queue.wait(principal.tenant).await.map_err(|_| SessionError::StartsWaiting)?;
        let permit = self.child_permit(principal).await?;
        let order = SpawnRequest {
            tenant: principal.tenant,
            label: principal.login.clone(),
            token: principal.upstream.clone(),
        };
        let spawned = timeout(inner.config.start_timeout, inner.spawner.spawn(order)).await;
        let backend = match spawned {
            Ok(backend) => backend.map_err(SessionError::Spawn)?,
            Err(_) => return Err(HandshakeError::new("the supervisor did not start it in time", "").into()),
        };
        let span = info_span!(
            "child", tenant = %principal.tenant, login = %principal.login, grant = %principal.grant,
            child_pid = backend.pid, uid = backend.uid
        );
        let config = BridgeConfig {
            max_line: inner.config.max_line,
            // Below 2^48, so that no JSON reader loses digits; far from the numbers of an earlier child.
            first_number: u64::from(rand::rng().next_u32()) << 16,
            token_ends: principal.upstream_ends,
            span,
        };
        let bridge = Arc::new(Bridge::start(backend, &principal.upstream, get_stream, &config));
        Ok(Started { bridge, permit })
    }

    /// A permit for one more child. A user at their cap loses their own longest-idle child; at the cap on all, the
    /// longest-idle child of anybody goes. Only children go, never sessions.
    async fn child_permit(&self, principal: &Principal) -> Result<Permit, SessionError> {
        let inner = &self.0;
        let full = match inner.child_quota.take(principal.tenant) {
            Ok(permit) => return Ok(permit),
            Err(full) => full,
        };
        let error = match full {
            Full::User => SessionError::ChildrenOfUser,
            Full::Total => SessionError::ChildrenTotal,
        };
        let Some((session, bridge)) = inner.longest_idle_child(principal, full) else { return Err(error) };
        Self::stop_child(&session, &bridge, "made-room");
        drop(bridge);
        // Its permit is free when it is gone, which the stop ladder bounds.
        let permit = timeout(inner.config.start_timeout, inner.child_quota.wait(principal.tenant)).await;
        permit.map_err(|_| error)
    }

    /// The child that serves the session: the running one, or a new one that has been through the recorded
    /// handshake. Of many callers one starts it, in a task of its own, and all wait for it.
    pub(crate) async fn bridge(
        &self,
        session: &Arc<Session>,
        principal: &Principal,
    ) -> Result<Arc<Bridge>, SessionError> {
        let mut outcome = {
            let mut child = session.child.lock();
            match &*child {
                Child::Live(bridge) => {
                    if principal.upstream_ends > bridge.token_ends() {
                        // It was being started when the token changed. What it has is good for a while yet.
                        self.renew(session, principal, self.0.config.request_timeout);
                    }
                    return Ok(Arc::clone(bridge));
                }
                Child::Ended => return Err(SessionError::Unknown),
                Child::Starting(outcome) => outcome.clone(),
                Child::Cold => {
                    let (tell, outcome) = watch::channel(None);
                    *child = Child::Starting(outcome.clone());
                    let (registry, session, principal) = (self.clone(), Arc::clone(session), principal.clone());
                    self.0.tasks.spawn(async move {
                        let woken = registry.wake(&session, &principal).await;
                        tell.send_replace(Some(woken));
                    });
                    outcome
                }
            }
        };
        let woken = outcome.wait_for(Option::is_some).await.map_err(|_| SessionError::ShuttingDown)?;
        woken.clone().unwrap_or(Err(SessionError::ShuttingDown))
    }

    /// Starts a child for a session that has none and puts it in place, unless the session has ended meanwhile.
    async fn wake(&self, session: &Arc<Session>, principal: &Principal) -> Result<Arc<Bridge>, SessionError> {
        let pause = session.restart_backoff.lock().not_before();
        if let Some(pause) = pause {
            sleep_until(pause).await;
        }
        let started = self.replayed(session, principal).await;
        let mut child = session.child.lock();
        if matches!(*child, Child::Ended) {
            return Err(SessionError::Unknown);
        }
        match started {
            Ok(Started { bridge, permit }) => {
                *child = Child::Live(Arc::clone(&bridge));
                drop(child);
                self.watch(session, Arc::clone(&bridge), permit);
                Ok(bridge)
            }
            Err(error) => {
                *child = Child::Cold;
                drop(child);
                warn!(session = %id::tag(&session.digest), tenant = %session.tenant, error = %error, "no child for a session");
                Err(error)
            }
        }
    }

    /// Gives the session a child with the caller's token in a task of its own, unless that is being done.
    pub(crate) fn renew(&self, session: &Arc<Session>, principal: &Principal, drain: Duration) {
        if session.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (registry, session, principal) = (self.clone(), Arc::clone(session), principal.clone());
        self.0.tasks.spawn(async move {
            registry.replace(&session, &principal, drain).await;
            session.renewing.store(false, Ordering::Release);
        });
    }

    /// Puts a new child in the place of the running one, unless that has the token already.
    async fn replace(&self, session: &Arc<Session>, principal: &Principal, drain: Duration) {
        let Some(old) = session.live() else { return };
        if principal.upstream_ends.is_some() && principal.upstream_ends <= old.token_ends() {
            return;
        }
        let Started { bridge, permit } = match self.replayed(session, principal).await {
            Ok(started) => started,
            Err(error) => {
                warn!(session = %id::tag(&session.digest), tenant = %session.tenant, error = %error, "no child with the new token");
                // The next request tries again; meanwhile nobody works with a token that ends.
                let _ = timeout(drain, old.quiet()).await;
                return Self::stop_child(session, &old, "token-rotated");
            }
        };
        {
            let mut child = session.child.lock();
            match &*child {
                Child::Live(live) if Arc::ptr_eq(live, &old) => {}
                // Stopped meanwhile, perhaps to make room for this one.
                Child::Cold => {}
                // Ended, or somebody else was faster: their child has the new token as well.
                Child::Live(_) | Child::Starting(_) | Child::Ended => return,
            }
            *child = Child::Live(Arc::clone(&bridge));
        }
        self.watch(session, bridge, permit);
        info!(session = %id::tag(&session.digest), tenant = %session.tenant, reason = "token-rotated", "child replaced");
        let _ = timeout(drain, old.quiet()).await;
        old.stop();
    }

    /// A child that has been through the recorded handshake.
    pub(crate) async fn replayed(&self, session: &Session, principal: &Principal) -> Result<Started, SessionError> {
        let record = self.0.records.find(&session.digest).await.map_err(|e| {
            error!(error = %e, "a session's record could not be read");
            SessionError::Storage
        })?;
        let record = record.ok_or(SessionError::Unknown)?;
        let started = self.start(principal, Arc::clone(&session.get_stream)).await?;
        let limit = self.0.config.start_timeout;
        let settings = {
            let mut settings = session.settings.lock();
            settings.restore(&record.settings);
            settings.requests()
        };
        let (initialize, answer) = (&record.initialize, &record.answer);
        handshake::replay(&started.bridge, initialize, answer, &settings, &session.get_stream, limit).await?;
        Ok(started)
    }

    /// Watches a child until it is gone; its permit is given back then, and not before.
    pub(crate) fn watch(&self, session: &Arc<Session>, bridge: Arc<Bridge>, permit: Permit) {
        if self.0.closing.is_cancelled() {
            // It was being started when the shutdown looked for children to stop.
            bridge.stop();
        }
        let (registry, session) = (self.clone(), Arc::clone(session));
        self.0.tasks.spawn(async move {
            let outcome = bridge.ended().await;
            let served = session.detach(&bridge);
            drop(bridge);
            drop(permit);
            if served && outcome.is_childs_doing() {
                registry.failed(&session);
            }
        });
    }

    /// What becomes of a session whose child has ended on its own.
    fn failed(&self, session: &Arc<Session>) {
        if !self.0.config.respawn {
            self.end(session, "child-ended");
        } else if !session.restart_backoff.lock().failed(Instant::now()) {
            self.end(session, "child-ended-too-often");
        }
    }

    /// Stops the session's child and keeps the session.
    pub(crate) fn stop_child(session: &Session, bridge: &Arc<Bridge>, reason: &'static str) {
        if session.detach(bridge) {
            info!(session = %id::tag(&session.digest), tenant = %session.tenant, reason, "child stopped");
            bridge.stop();
        }
    }
}

impl Inner {
    /// The child that has been without requests for longest, of the user or of anybody.
    fn longest_idle_child(&self, principal: &Principal, full: Full) -> Option<(Arc<super::Session>, Arc<Bridge>)> {
        let sessions: Vec<_> = self.sessions.lock().values().cloned().collect();
        let candidates =
            sessions.into_iter().filter(|session| full == Full::Total || session.tenant == principal.tenant);
        let idle = candidates.filter_map(|session| {
            let bridge = session.live()?;
            let since = bridge.idle_since()?;
            Some((since, session, bridge))
        });
        idle.min_by_key(|(since, ..)| *since).map(|(_, session, bridge)| (session, bridge))
    }
}
