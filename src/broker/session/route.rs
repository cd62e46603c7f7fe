//! What one child at a time serves: a session, or the stateless requests of a grant.
//!
//! Both kinds are started, stopped, replaced and watched alike, by one machine each ([`Machine`]). What else belongs to a
//! session is in `record.rs` beside this file, what else to a grant in `registry/grants.rs`.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::auth::principal::GrantId;
use crate::child::abilities::Abilities;
use crate::child::bridge::Bridge;
use crate::child::get_stream::GetStream;
use crate::session::error::SessionError;
use crate::session::id;
use crate::session::machine::{ChildNumber, Effect, Event, Machine};
use crate::store::SessionDigest;
use wire::message::TenantId;

/// Whose requests go to one child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RouteKey {
    /// Those of a session.
    Session(SessionDigest),
    /// The stateless ones of a grant whose client can be asked for this much. A child of the session era is told of it once,
    /// when it starts, so that clients who say otherwise need another child.
    Grant(GrantId, Abilities),
}

impl std::fmt::Display for RouteKey {
    /// As people and the journal name it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Session(digest) => write!(f, "session {}", id::tag(digest)),
            Self::Grant(grant, _) => write!(f, "grant {grant}"),
        }
    }
}

/// How a start ends, for all that wait for it.
pub(crate) type StartOutcome = watch::Receiver<Option<Result<Arc<Bridge>, SessionError>>>;

/// What one child at a time serves.
#[derive(Debug)]
pub(crate) struct Route {
    /// Whose requests.
    pub(crate) key: RouteKey,
    /// The user.
    pub(crate) tenant: TenantId,
    /// Where a session's client listens; nobody does at a grant's.
    pub(crate) get_stream: Arc<GetStream>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    machine: Machine<Arc<Bridge>>,
    /// Of the start that is under way.
    outcome: Option<StartOutcome>,
}

impl Route {
    /// With what its machine knows.
    pub(crate) fn new(
        key: RouteKey,
        tenant: TenantId,
        get_stream: Arc<GetStream>,
        machine: Machine<Arc<Bridge>>,
    ) -> Self {
        Self { key, tenant, get_stream, state: Mutex::new(State { machine, outcome: None }) }
    }

    /// The session that it is, where it is one's, as the log names it.
    pub(crate) fn session_tag(&self) -> Option<String> {
        match &self.key {
            RouteKey::Session(digest) => Some(id::tag(digest)),
            RouteKey::Grant(..) => None,
        }
    }

    /// Takes one event and says what is to be done.
    pub(crate) fn step(&self, event: Event<Arc<Bridge>>) -> Effect<Arc<Bridge>> {
        let mut state = self.state.lock();
        let effect = state.machine.step(event, Instant::now());
        // Whoever waits for a start has its outcome; kept here, it would keep the child's bridge long after the child.
        if !state.machine.is_starting() {
            state.outcome = None;
        }
        effect
    }

    /// A request needs the child: what is to be done, and where the outcome of a start will be told. `begin` makes the
    /// place for a new start's outcome.
    pub(crate) fn want(&self, begin: impl FnOnce() -> StartOutcome) -> (Effect<Arc<Bridge>>, Option<StartOutcome>) {
        let mut state = self.state.lock();
        let effect = state.machine.step(Event::Wanted, Instant::now());
        if matches!(effect, Effect::Start(_)) {
            state.outcome = Some(begin());
        }
        (effect, state.outcome.clone())
    }

    /// Is over if it has no child and none is being started; whether it is over now. In one step, so that no request starts
    /// a child for what nobody looks after any more.
    pub(crate) fn end_if_cold(&self) -> bool {
        self.state.lock().machine.end_if_cold()
    }

    /// The running child, if one runs, with its number.
    pub(crate) fn child(&self) -> Option<(ChildNumber, Arc<Bridge>)> {
        self.state.lock().machine.child().map(|(number, child)| (number, Arc::clone(child)))
    }

    /// The running child, if one runs.
    pub(crate) fn live(&self) -> Option<Arc<Bridge>> {
        self.child().map(|(_, bridge)| bridge)
    }

    /// Whether requests are in flight or a child is being started.
    pub(crate) fn is_busy(&self) -> bool {
        let state = self.state.lock();
        state.machine.is_starting() || state.machine.child().is_some_and(|(_, bridge)| bridge.in_flight() > 0)
    }
}
