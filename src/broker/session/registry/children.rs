//! The children of sessions and grants: started in turn, watched until they are gone, started again on demand.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{Instrument, error, info_span};

use crate::chain::chain;
use crate::child::bridge::{Bridge, BridgeConfig};
use crate::child::calls::Mode;
use crate::child::get_stream::GetStream;
use crate::child::handshake::{self, HandshakeError, Predecessor};
use crate::child::spawner::{Backend, SpawnError, SpawnRequest};
use crate::session::machine::{ChildNumber, Effect, Event};
use crate::session::quota::Full;
use crate::session::registry::{Inner, Permit, Principal, Registry, SessionError, lines};
use crate::session::route::{Route, RouteKey};
use crate::store::SessionDigest;
use wire::message::Refusal;

/// A child that runs and has said nothing yet.
pub(crate) struct Started {
    pub(crate) bridge: Arc<Bridge>,
    pub(crate) number: ChildNumber,
    pub(crate) permit: Permit,
}

impl Registry {
    /// Starts a child for a user when it is their turn and there is room. Waits for both, and for a supervisor that says
    /// when to come back, until `deadline`; only what would not be had by then is refused.
    pub(crate) async fn start(
        &self,
        principal: &Principal,
        get_stream: Arc<GetStream>,
        mode: Mode,
        deadline: Instant,
    ) -> Result<Started, SessionError> {
        let inner = &self.0;
        let turn = timeout_at(deadline, inner.start_queue.own(principal.tenant)).await;
        let mut turn = turn.map_err(|_| SessionError::Deadline)?.map_err(|_| SessionError::StartsWaiting)?;
        let mut permit = self.child_permit(principal, deadline).await?;
        let mut pace = None;
        let backend = loop {
            if inner.closing.is_cancelled() {
                return Err(SessionError::ShuttingDown);
            }
            timeout_at(deadline, turn.common()).await.map_err(|_| SessionError::Deadline)?;
            let (back, spawned) = self.spawn(principal, permit, deadline).await?;
            permit = back;
            let error = match spawned {
                Ok(backend) => break backend,
                Err(error) => error,
            };
            let again = error.retry_after().and_then(|wait| Instant::now().checked_add(wait));
            let Some(again) = again.filter(|again| *again < deadline) else { return Err(SessionError::Spawn(error)) };
            // The rate is everybody's: those whom it has refused once come back one by one, in the order of their asking.
            // Any other refusal is about this user, so the others go on meanwhile.
            let by_rate = matches!(error, SpawnError::Refused(Refusal::SpawnRate { .. }));
            if by_rate && pace.is_none() {
                let waiting = timeout_at(deadline, Arc::clone(&inner.pace).lock_owned()).await;
                pace = Some(waiting.map_err(|_| SessionError::Spawn(error))?);
            } else if !by_rate {
                pace = None;
                turn.step_back();
            }
            tokio::select! {
                () = sleep_until(again) => {}
                () = inner.closing.cancelled() => return Err(SessionError::ShuttingDown),
            }
        };
        drop(pace);
        // It outlives the request that it is started for, whose trace is none of its own.
        let span = info_span!(
            parent: None, "child", tenant = %principal.tenant, login = %principal.login, grant = %principal.grant,
            child_pid = backend.pid, child_uid = backend.uid, session = tracing::field::Empty
        );
        let now = self.config();
        let config = BridgeConfig {
            mode,
            max_line: now.max_line,
            // Below 2^48, so that no JSON reader loses digits; far from the numbers of an earlier child.
            first_number: u64::from(rand::rng().next_u32()) << 16,
            token_ends: principal.upstream_ends,
            ask_timeout: now.request_timeout,
            budget: inner.budgets.of(principal.tenant),
            activity: Arc::clone(&inner.activity),
            span,
        };
        let bridge = Arc::new(Bridge::start(backend, &principal.upstream, get_stream, &config));
        inner.running.lock().push(Arc::downgrade(&bridge));
        Ok(Started { bridge, number: inner.next_number(), permit })
    }

    /// Asks the supervisor for a child, in a task of its own: a child that comes too late keeps its permit until it is
    /// gone again, so that nobody counts on its place before. Gives the permit back with the outcome.
    async fn spawn(
        &self,
        principal: &Principal,
        permit: Permit,
        deadline: Instant,
    ) -> Result<(Permit, Result<Backend, SpawnError>), SessionError> {
        let request = SpawnRequest {
            tenant: principal.tenant,
            label: principal.login.clone(),
            token: principal.upstream.clone(),
        };
        let (tell, told) = oneshot::channel();
        let inner = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            let outcome = inner.spawner.spawn(request).await;
            if let Err((_permit, Ok(backend))) = tell.send((permit, outcome)) {
                let Backend { stdin, ended, stopper, .. } = backend;
                drop(stdin);
                stopper.stop();
                // An error means that the supervisor is gone, and the child with it.
                let _ = ended.await;
            }
        });
        let by = deadline.min(Instant::now() + self.config().start_timeout);
        match timeout_at(by, told).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(SessionError::ShuttingDown),
            Err(_) => Err(HandshakeError::new("the supervisor did not start it in time", "").into()),
        }
    }

    /// A permit for one more child. A user at their cap loses their own longest-idle child; at the cap on all, the
    /// longest-idle child of anybody goes. Only children go, never sessions, and only idle ones: while none is, the request
    /// waits in line, and who waits longest is served first.
    async fn child_permit(&self, principal: &Principal, deadline: Instant) -> Result<Permit, SessionError> {
        let inner = &self.0;
        let (full, mut place_in_line) = match inner.child_quota.take_or_wait(principal.tenant) {
            Ok(permit) => return Ok(permit),
            Err(full) => full,
        };
        let mut making_room: Option<Arc<Bridge>> = None;
        loop {
            // Made before the look, so that a child that becomes idle in between is not missed.
            let idle = inner.activity.idle();
            if making_room.is_none() {
                making_room = inner.stop_longest_idle(principal, full);
            }
            let gone = async {
                match &making_room {
                    Some(bridge) => drop(bridge.ended().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                permit = place_in_line.permit() => return permit.ok_or(SessionError::ShuttingDown),
                // Its permit went to somebody who was before us in line: room is made again.
                () = gone => making_room = None,
                () = idle, if making_room.is_none() => {}
                () = inner.closing.cancelled() => return Err(SessionError::ShuttingDown),
                () = sleep_until(deadline) => {
                    return Err(match full {
                        Full::User => SessionError::ChildrenOfUser,
                        Full::Total => SessionError::ChildrenTotal,
                    });
                }
            }
        }
    }

    /// The child that serves a session or a grant: the running one, or a new one that has been through its handshake. Of
    /// many callers one starts it, in a task of its own, and all wait for it, each until its deadline.
    pub(crate) async fn bridge(
        &self,
        route: &Arc<Route>,
        principal: &Principal,
        deadline: Instant,
    ) -> Result<Arc<Bridge>, SessionError> {
        let mut tell = None;
        let (effect, outcome) = route.want(|| {
            let (sender, outcome) = watch::channel(None);
            tell = Some(sender);
            outcome
        });
        match effect {
            Effect::Serve(bridge) => {
                if principal.upstream_ends > bridge.token_ends() || bridge.is_outdated() {
                    // It was being started when the token changed, and what it has is good for a while yet; or it has
                    // calls without a pause since its program was replaced.
                    self.renew(route, principal, self.config().request_timeout);
                }
                return Ok(bridge);
            }
            Effect::Start(due) => {
                let (registry, route, principal) = (self.clone(), Arc::clone(route), principal.clone());
                let waking = async move {
                    if let Some(due) = due {
                        sleep_until(due.min(deadline)).await;
                    }
                    let woken = registry.wake(&route, &principal, deadline).await;
                    if let Some(tell) = tell {
                        tell.send_replace(Some(woken));
                    }
                };
                self.0.tasks.spawn(waking.in_current_span());
            }
            Effect::Wait => {}
            Effect::ShuttingDown => return Err(SessionError::ShuttingDown),
            _ => return Err(SessionError::Unknown),
        }
        let Some(mut outcome) = outcome else { return Err(SessionError::ShuttingDown) };
        let woken = timeout_at(deadline, outcome.wait_for(Option::is_some)).await;
        let woken = woken.map_err(|_| SessionError::Deadline)?.map_err(|_| SessionError::ShuttingDown)?;
        woken.clone().unwrap_or(Err(SessionError::ShuttingDown))
    }

    /// Starts a child where there is none and puts it in place, unless what it was to serve has ended meanwhile.
    async fn wake(
        &self,
        route: &Arc<Route>,
        principal: &Principal,
        deadline: Instant,
    ) -> Result<Arc<Bridge>, SessionError> {
        match self.ready(route, principal, deadline).await {
            Ok(Started { bridge, number, permit }) => {
                let effect = route.step(Event::Started(number, Arc::clone(&bridge)));
                if let Effect::Stop(bridge) = &effect {
                    bridge.stop();
                }
                self.watch(route, number, Arc::clone(&bridge), permit);
                match effect {
                    Effect::Serve(bridge) => Ok(bridge),
                    _ if self.0.closing.is_cancelled() => Err(SessionError::ShuttingDown),
                    _ => Err(SessionError::Unknown),
                }
            }
            Err(error) => {
                route.step(Event::NotStarted);
                lines::no_child(route, "no child", &error);
                Err(error)
            }
        }
    }

    /// Starts a child with the caller's token in the place of the running one, in a task of its own, unless that has the
    /// token and is of the program that is installed, or is still good and holds what its successor could not know, or this
    /// is being done.
    pub(crate) fn renew(&self, route: &Arc<Route>, principal: &Principal, drain: Duration) {
        let newer = |bridge: Arc<Bridge>| {
            let ends = bridge.token_ends();
            let is_newer = principal.upstream_ends.is_none() || principal.upstream_ends > ends;
            let is_good = ends.is_none_or(|ends| self.0.clock.now() < ends);
            (is_newer || bridge.is_outdated()) && !(is_good && bridge.holds_state())
        };
        if !route.live().is_some_and(newer) || !matches!(route.step(Event::RenewalWanted), Effect::Renew(_)) {
            return;
        }
        let (registry, route, principal) = (self.clone(), Arc::clone(route), principal.clone());
        self.0.tasks.spawn(async move { registry.replace(&route, &principal, drain).await });
    }

    /// Puts a new child in the place of the running one.
    async fn replace(&self, route: &Arc<Route>, principal: &Principal, drain: Duration) {
        let deadline = Instant::now() + self.config().request_timeout;
        let effect = match self.ready(route, principal, deadline).await {
            Ok(Started { bridge, number, permit }) => {
                let effect = route.step(Event::Renewed(number, Arc::clone(&bridge)));
                self.watch(route, number, bridge, permit);
                effect
            }
            Err(error) => {
                lines::no_child(route, "no child in the place of the running one", &error);
                // The next request tries again; meanwhile nobody works with a token that ends, or an old program.
                route.step(Event::NotRenewed)
            }
        };
        match effect {
            Effect::Drain(old) => {
                lines::stopped(route, &old, if old.is_outdated() { "program-replaced" } else { "token-rotated" });
                old.close();
                tokio::select! {
                    _ = timeout(drain, old.quiet()) => {}
                    () = self.0.closing.cancelled() => {}
                }
                old.stop();
            }
            Effect::Stop(bridge) => bridge.stop(),
            _ => {}
        }
    }

    /// A child that has been through its handshake.
    async fn ready(&self, route: &Route, principal: &Principal, deadline: Instant) -> Result<Started, SessionError> {
        match &route.key {
            RouteKey::Session(digest) => self.replayed(digest, route, principal, deadline).await,
            RouteKey::Grant(grant, abilities) => self.asked(grant, *abilities, route, principal, deadline).await,
        }
    }

    /// A child that has been through a session's recorded handshake.
    async fn replayed(
        &self,
        digest: &SessionDigest,
        route: &Route,
        principal: &Principal,
        deadline: Instant,
    ) -> Result<Started, SessionError> {
        let record = self.0.records.find(digest).await.map_err(|e| {
            error!(error = %e, "a session's record could not be read: {}", chain(&e));
            SessionError::Storage
        })?;
        let record = record.ok_or(SessionError::Unknown)?;
        let session = self.0.sessions.lock().get(digest).cloned().ok_or(SessionError::Unknown)?;
        let started = async {
            let started = self.start(principal, Arc::clone(&route.get_stream), Mode::Session, deadline).await?;
            let by = deadline.min(Instant::now() + self.config().start_timeout);
            let (settings, tools, answer) = session.restored_settings(&record.settings);
            let (initialize, answer) = (&record.initialize, answer.as_deref().unwrap_or(&record.answer));
            let before = Predecessor { initialize, answer, tools, settings };
            if let Some(answer) = handshake::replay(&started.bridge, before, &route.get_stream, by).await? {
                session.answered(answer);
            }
            Ok(started)
        };
        self.counted(started).await
    }

    /// Counts and times what brings a child through its handshake.
    pub(crate) async fn counted<T>(
        &self,
        start: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, SessionError> {
        let asked = Instant::now();
        let started = start.await;
        match &started {
            Ok(_) => self.0.metrics.child_started(asked.elapsed()),
            Err(error) => self.0.metrics.child_not_started(error.code()),
        }
        started
    }

    /// Watches a child until it is gone; its permit is given back then, and not before.
    pub(crate) fn watch(&self, route: &Arc<Route>, number: ChildNumber, bridge: Arc<Bridge>, permit: Permit) {
        lines::serves(route, &bridge);
        if let RouteKey::Session(digest) = &route.key
            && let Some(session) = self.0.sessions.lock().get(digest)
        {
            session.follows(bridge.listed());
        }
        let (registry, route) = (self.clone(), Arc::clone(route));
        self.0.tasks.spawn(async move {
            let outcome = tokio::select! {
                outcome = bridge.ended() => outcome,
                () = given_back(&route, number, &bridge) => bridge.ended().await,
            };
            registry.0.metrics.child_ended(outcome.code());
            let effect = route.step(Event::Gone(number, outcome.is_childs_doing()));
            drop(bridge);
            drop(permit);
            if let Effect::End(reason) = effect {
                registry.end_route(&route, reason);
            }
        });
    }

    /// Ends what a route belongs to, because of its child.
    fn end_route(&self, route: &Arc<Route>, reason: &'static str) {
        match &route.key {
            RouteKey::Session(digest) => {
                let session = self.0.sessions.lock().get(digest).cloned();
                if let Some(session) = session {
                    self.end(&session, reason);
                }
            }
            RouteKey::Grant(grant, _) => self.forget_route(grant, route),
        }
    }
}

/// Stops a child as soon as it is idle whose supervisor has said that it stops (it would go anyway, and the supervisor
/// need not wait for its grace to be over if nobody has a call), or whose program was replaced.
async fn given_back(route: &Route, number: ChildNumber, bridge: &Bridge) {
    let reason = tokio::select! {
        () = bridge.leaving() => "supervisor-stops",
        () = bridge.outdated() => "program-replaced",
    };
    loop {
        bridge.quiet().await;
        if bridge.close_if_idle(Instant::now()) {
            break;
        }
        // A task is in the way. It goes with a supervisor that stops.
        tokio::select! {
            () = bridge.leaving() => break bridge.close(),
            () = bridge.tasks_over() => {}
        }
    }
    if let Effect::Stop(bridge) = route.step(Event::Stopped(number)) {
        lines::stopped(route, &bridge, reason);
        bridge.stop();
    }
}

impl Inner {
    /// Stops the child that has been without requests for longest, of the user or of anybody, and gives it back while it
    /// goes; none where all are busy.
    fn stop_longest_idle(&self, principal: &Principal, full: Full) -> Option<Arc<Bridge>> {
        let candidates =
            self.routes().into_iter().filter(|route| full == Full::Total || route.tenant == principal.tenant);
        let mut idle: Vec<_> = candidates
            .filter_map(|route| {
                let (number, bridge) = route.child()?;
                Some((bridge.idle_since()?, number, route, bridge))
            })
            .collect();
        idle.sort_by_key(|(since, ..)| *since);
        idle.into_iter().find_map(|(since, number, route, bridge)| {
            if !bridge.close_if_idle(since) {
                return None;
            }
            let Effect::Stop(bridge) = route.step(Event::Stopped(number)) else { return None };
            lines::stopped(&route, &bridge, "made-room");
            bridge.stop();
            Some(bridge)
        })
    }
}
