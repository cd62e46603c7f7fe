//! The sessions of the broker: opening, finding, waking, ending.
//!
//! Trusts a [`Principal`], because only the bearer layer makes one, and nothing else: an id in a header is looked up
//! and then checked against the user and the client that it belongs to. Knows the [`Spawner`] trait, not the supervisor. Decides nothing
//! about a session's child: that is the session's machine ([`Event`] in, [`Effect`] out), which this carries out.
//!
//! Where a request waits, at most until its deadline: for its turn to start a child ([`StartQueue`]), for a permit, for
//! the child's handshake. Never under a lock.

mod changes;
mod children;
mod ends;
pub(crate) mod grants;
mod lines;
mod open;
mod sweep;
mod table;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::auth::principal::{GrantId, Principal};
use crate::budget::Budgets;
use crate::child::activity::Activity;
use crate::child::bridge::Bridge;
use crate::child::era::Probing;
use crate::child::spawner::Spawner;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::session::config::SessionConfig;
use crate::session::error::SessionError;
use crate::session::id::{self, SessionId, SessionName};
use crate::session::machine::{ChildNumber, Effect, Event, Machine};
use crate::session::quota::{Permit, Quota};
use crate::session::record::{Admitted, Record, Session};
use crate::session::record_store::Records;
use crate::session::registry::changes::Change;
use crate::session::registry::grants::OfGrant;
use crate::session::registry::table::Table;
use crate::session::route::Route;
use crate::session::settings::Settings;
use crate::session::start_queue::StartQueue;
use crate::store::{SessionDigest, StoreError};
use wire::clock::{Clock, UnixTime};

/// Starts of children that run at once.
const STARTS_AT_ONCE: usize = 16;
/// Starts of one user that may wait: as many as a user may have sessions by default.
const STARTS_WAITING: usize = 100;
/// How often deadlines are looked at while anything is in flight; they are met to this precision.
const TICK: Duration = Duration::from_secs(1);
/// How long children may take to go at a shutdown, in all: the stop ladder, and a child that is just being started. What
/// is left then goes with the connection to the supervisor.
const LAST_CHILDREN: Duration = Duration::from_secs(10);

/// How much there is of what is bounded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoadNow {
    /// Open sessions.
    pub(crate) sessions: usize,
    /// The cap on them.
    pub(crate) sessions_max: usize,
    /// Live children.
    pub(crate) children: usize,
    /// The cap on them.
    pub(crate) children_max: usize,
    /// Starts that run or wait for their turn.
    pub(crate) starts_waiting: usize,
    /// Starts that wait for a place of a child.
    pub(crate) children_awaited: usize,
    /// Requests that children have not answered.
    pub(crate) requests: usize,
    /// Bytes held for users.
    pub(crate) memory: usize,
    /// The cap on them.
    pub(crate) memory_max: usize,
}

/// The registry. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Live<SessionConfig>,
    spawner: Arc<dyn Spawner>,
    records: Arc<dyn Records>,
    clock: Clock,
    sessions: Mutex<Table>,
    /// What the store has not taken yet of what became of sessions.
    unstored: Mutex<HashMap<SessionDigest, Change>>,
    /// What serves stateless requests. No records: a client of that era knows of nothing that could be lost.
    grants: Mutex<HashMap<GrantId, OfGrant>>,
    /// Whether children can be asked for their era; see [`grants`].
    probing: Probing,
    session_quota: Quota,
    child_quota: Quota,
    start_queue: StartQueue,
    /// Held by who comes back to a supervisor that starts only so many children a second.
    pace: Arc<tokio::sync::Mutex<()>>,
    budgets: Budgets,
    /// Rung when the numbers may have changed.
    changed: Arc<Notify>,
    activity: Arc<Activity>,
    children_started: AtomicU64,
    metrics: Metrics,
    /// The children that run, for deadlines.
    running: Mutex<Vec<Weak<Bridge>>>,
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
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        let changed = Arc::<Notify>::default();
        let session_quota = Quota::ringing(config.sessions, Arc::clone(&changed));
        let mut sessions = Table::default();
        for live in records.live().await? {
            let record = Record {
                digest: live.digest,
                holder: live.holder,
                given: live.given,
                version: live.protocol_version,
                get_stream: Arc::default(),
                last_used: live.last_used_at,
            };
            let machine = Machine::cold(config.respawn);
            let permit = session_quota.take_existing(record.holder.tenant);
            let session = Session::new(record, Settings::default(), machine, permit);
            sessions.insert(Arc::new(session));
        }
        info!(sessions = sessions.len(), "sessions loaded");
        let inner = Arc::new(Inner {
            budgets: Budgets::new(config.memory),
            activity: Arc::default(),
            pace: Arc::default(),
            children_started: AtomicU64::new(1),
            metrics,
            running: Mutex::default(),
            child_quota: Quota::ringing(config.children, Arc::clone(&changed)),
            changed,
            start_queue: StartQueue::new(STARTS_AT_ONCE, STARTS_WAITING),
            config: Live::new(config),
            spawner,
            records,
            clock,
            sessions: Mutex::new(sessions),
            unstored: Mutex::default(),
            grants: Mutex::default(),
            probing: Probing::default(),
            session_quota,
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        });
        tokio::spawn(tick(Arc::clone(&inner.activity), Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// The session that `id` names, if it is the caller's; notes the use.
    pub(crate) fn find(&self, id: &str, principal: &Principal) -> Result<Arc<Session>, SessionError> {
        let digest = SessionId::parse(id).ok_or(SessionError::Unknown)?.digest();
        let (session, admitted) = self.0.sessions.lock().admit(&digest, principal).ok_or(SessionError::Unknown)?;
        match admitted {
            Admitted::Yes => {}
            Admitted::Moved { from } => {
                lines::moved(&session, &from, principal);
                let registry = self.clone();
                self.0.tasks.spawn(async move { registry.store_change(digest, Change::Moved).await });
            }
            Admitted::No => {
                info!(session = %id::tag(&digest), tenant = %principal.tenant, reason = "foreign-session", "request refused");
                return Err(SessionError::Foreign);
            }
        }
        session.touch(self.0.clock.now());
        Ok(session)
    }

    /// Stops a grant's children at once, with what they have in flight; how many. Its sessions go on.
    pub(crate) fn suspend_grant(&self, grant: &GrantId) -> usize {
        let mut stopped = 0_usize;
        for route in self.all_routes_of(grant) {
            if let Some((number, _)) = route.child()
                && let Effect::Stop(bridge) = route.step(Event::Stopped(number))
            {
                lines::stopped(&route, &bridge, "account-barred");
                bridge.stop();
                stopped = stopped.saturating_add(1);
            }
        }
        stopped
    }

    /// Gives the running children of a grant's sessions a new token, by giving the sessions new children: each is
    /// started and led through the recorded handshake, then takes over; the old one finishes what it has, for at most
    /// `drain`, and is stopped. Its token stays good until it ends by itself. A child that is only being started is
    /// replaced at the next request.
    pub(crate) fn rotate(&self, principal: &Principal, drain: Duration) {
        for route in self.all_routes_of(&principal.grant) {
            self.renew(&route, principal, drain);
        }
    }

    /// What serves a grant: its sessions' routes, and those of its stateless requests.
    fn all_routes_of(&self, grant: &GrantId) -> Vec<Arc<Route>> {
        let sessions = self.0.sessions.lock().of_grant(grant).into_iter().map(|session| Arc::clone(&session.route));
        sessions.chain(self.routes_of(grant)).collect()
    }

    /// How many children serve stateless requests of a grant; to its user each is like a session.
    pub(crate) fn stateless_of(&self, grant: &GrantId) -> usize {
        self.routes_of(grant).into_iter().filter(|route| route.live().is_some()).count()
    }

    /// The open sessions that a name fits.
    pub(crate) fn named(&self, name: &SessionName) -> Vec<Arc<Session>> {
        self.0.sessions.lock().values().filter(|session| name.names(&session.digest)).cloned().collect()
    }

    /// An open session, as the operator sees it: when it was last used, its child, and how much that has to do.
    pub(crate) fn look_at(&self, digest: &SessionDigest) -> Option<(UnixTime, Option<(u32, usize)>)> {
        let session = self.0.sessions.lock().get(digest).cloned()?;
        let child = session.live().map(|bridge| (bridge.pid, bridge.in_flight()));
        Some((session.last_used(), child))
    }

    /// Sessions, and live children.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.0.sessions.lock().len(), self.0.child_quota.taken())
    }

    /// Users with a session.
    pub(crate) fn users(&self) -> usize {
        self.0.session_quota.users()
    }

    /// Resolves when any of those numbers may have changed since it resolved last. For one waiter.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What the operator has decided, as of now.
    pub(crate) fn config(&self) -> Arc<SessionConfig> {
        self.0.config.get()
    }

    /// Goes on with other decisions. Caps and budgets hold at once, and end nothing that is there; who waits in line gets
    /// what has become free. Times hold for what begins from now on, idle times from the next sweep on.
    pub(crate) fn reconfigure(&self, config: SessionConfig) {
        let inner = &self.0;
        let (sessions, children, memory) = (config.sessions, config.children, config.memory);
        inner.config.replace(config);
        inner.session_quota.change_caps(sessions);
        inner.child_quota.change_caps(children);
        inner.budgets.change_caps(memory);
    }

    /// What there is now, beside what there may be.
    pub(crate) fn load_now(&self) -> LoadNow {
        let (inner, config) = (&self.0, self.config());
        LoadNow {
            sessions: inner.sessions.lock().len(),
            sessions_max: config.sessions.total,
            children: inner.child_quota.taken(),
            children_max: config.children.total,
            starts_waiting: inner.start_queue.waiting(),
            children_awaited: inner.child_quota.waiting(),
            requests: inner.activity.calls(),
            memory: inner.budgets.used(),
            memory_max: config.memory.total,
        }
    }

    /// What may be held in memory for each user.
    pub(crate) fn budgets(&self) -> &Budgets {
        &self.0.budgets
    }

    /// Waits until no client waits any more for what was in flight when this was called, at most so long; whether it was
    /// in time. Everything goes on being served meanwhile, what comes in later included.
    pub(crate) async fn drain(&self, limit: Duration) -> bool {
        let running = self.0.running();
        let settled = join_all(running.iter().map(|bridge| bridge.settled()));
        timeout(limit, settled).await.is_ok()
    }

    /// Stops: starts nothing any more, waits up to `drain` for what is in flight, then stops every child and waits
    /// until all are gone, the ones that are just being started included; at most [`LAST_CHILDREN`]. The records stay:
    /// after a restart the sessions go on.
    pub(crate) async fn shut_down(&self, drain: Duration) {
        self.0.closing.cancel();
        let in_time = self.drain(drain).await;
        let sessions: Vec<_> = self.0.sessions.lock().values().cloned().collect();
        for session in &sessions {
            session.get_stream.close();
        }
        for route in self.0.routes() {
            if let Effect::Stop(bridge) = route.step(Event::Closing) {
                bridge.stop();
            }
        }
        self.save().await;
        self.0.tasks.close();
        if timeout(LAST_CHILDREN, self.0.tasks.wait()).await.is_err() {
            warn!(
                reason = "stop-timeout",
                "children are left to the supervisor, which stops them when the broker is gone"
            );
        }
        info!(sessions = sessions.len(), drained = in_time, "all children are stopped");
    }
}

impl Inner {
    /// All that children serve.
    fn routes(&self) -> Vec<Arc<Route>> {
        let mut routes: Vec<_> = self.sessions.lock().values().map(|session| Arc::clone(&session.route)).collect();
        routes.extend(self.grants.lock().values().flat_map(OfGrant::routes));
        routes
    }

    /// The children that run.
    fn running(&self) -> Vec<Arc<Bridge>> {
        let mut running = self.running.lock();
        running.retain(|bridge| bridge.strong_count() > 0);
        running.iter().filter_map(Weak::upgrade).collect()
    }

    fn next_number(&self) -> ChildNumber {
        ChildNumber(self.children_started.fetch_add(1, Ordering::Relaxed))
    }
}

/// Looks at deadlines once every [`TICK`] while anything is in flight: one timer for all requests. Ends with the registry.
async fn tick(activity: Arc<Activity>, inner: Weak<Inner>) {
    loop {
        activity.any().await;
        sleep(TICK).await;
        let Some(inner) = inner.upgrade() else { return };
        for bridge in inner.running() {
            bridge.tick();
        }
    }
}
