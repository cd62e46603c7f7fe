//! Carries out what [`core`](super::core) decides and tells it what happened. Decides nothing itself.
//!
//! Everything runs on one thread, so the state is in a cell and each event is taken to its end before the next; no
//! borrow is held over an await.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use nix::unistd::Uid;
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use crate::cgroup::Cgroups;
use crate::cgroup::leaf;
use crate::cgroup::leaf::Leaf;
use crate::children::{End, StopOrder, attend, await_exec};
use crate::core::{ConnId, Core, Effect, Event, StartOrder};
use crate::inspect;
use crate::log_limit::{Line, LogLimit};
use crate::policy::InForce;
use crate::reaper::Reaper;
use crate::rlimit::ChildLimits;
use crate::spawn;
use crate::spawn::{HalfMade, Launch, Pipes, StartError};
use crate::stuck;
use crate::stuck::Stuck;
use crate::sweep::Sweeper;
use crate::uid::{ChildUid, UidRange};
use wire::codec;
use wire::message::MAX_QUEUED_REPLIES;
use wire::message::{ChildId, Farewell, Isolation, Label, Refusal, Reply, StartStep, Status, TenantId, Ticket};
use wire::telemetry::message_id;

/// What is fixed for the life of the supervisor.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Of the children; `None` where they keep the supervisor's.
    pub(crate) uids: Option<UidRange>,
    /// Of the machine, if it has any.
    pub(crate) cgroups: Option<Cgroups>,
}

/// A packet on its way to the broker.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The frame.
    pub(crate) frame: Zeroizing<Vec<u8>>,
    /// What rides on it.
    pub(crate) fds: Vec<OwnedFd>,
}

/// What waits for one connection, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// At most [`MAX_QUEUED_REPLIES`], and a goodbye.
    pub(crate) queue: RefCell<VecDeque<Outgoing>>,
    /// The goodbye is in the queue: close when it is sent.
    pub(crate) leaving: Cell<bool>,
    /// `StopStep` when either has changed.
    pub(crate) changed: Notify,
}

#[derive(Debug)]
struct Running {
    stop_order: watch::Sender<StopOrder>,
    tenant: TenantId,
    label: Label,
    pid: i32,
    since: Instant,
    leaf: Option<Rc<Leaf>>,
    limits: ChildLimits,
}

#[derive(Debug)]
struct State {
    core: Core,
    policy: Rc<InForce>,
    conns: HashMap<ConnId, Rc<Outbox>>,
    next_conn: u64,
    children: HashMap<ChildId, Running>,
    log_limit: LogLimit,
}

/// A handle; clones share the executor.
#[derive(Debug, Clone)]
pub(crate) struct Executor {
    setup: Rc<Setup>,
    state: Rc<RefCell<State>>,
    reaper: Reaper,
    /// `None` where children keep the supervisor's uid.
    sweeper: Option<Sweeper>,
    stuck: Stuck,
    idle: Rc<Notify>,
    changed: Rc<Notify>,
}

impl Executor {
    /// Nothing is connected, nothing runs. Must be used within a `LocalSet`.
    pub(crate) fn new(setup: Setup, policy: InForce, core: Core) -> Self {
        let policy = Rc::new(policy);
        let log_limit = LogLimit::default();
        let state = State { core, policy, conns: HashMap::new(), next_conn: 1, children: HashMap::new(), log_limit };
        let sweeper = setup.uids.map(Sweeper::new);
        Self {
            setup: Rc::new(setup),
            state: Rc::new(RefCell::new(state)),
            reaper: Reaper::default(),
            sweeper,
            stuck: Stuck::default(),
            idle: Rc::default(),
            changed: Rc::default(),
        }
    }

    /// The policy that the next child is started with.
    pub(crate) fn policy(&self) -> Rc<InForce> {
        Rc::clone(&self.state.borrow().policy)
    }

    /// Goes on with another policy.
    pub(crate) fn change_policy(&self, policy: InForce, isolation: Isolation) {
        let mut state = self.state.borrow_mut();
        state.core.change_policy(policy.config.caps, policy.config.limits.children(), isolation);
        state.policy = Rc::new(policy);
    }

    /// The cgroups of the machine, if it has any.
    pub(crate) fn cgroups(&self) -> Option<&Cgroups> {
        self.setup.cgroups.as_ref()
    }

    /// The numbers.
    pub(crate) fn status(&self) -> Status {
        let state = self.state.borrow();
        let cgroups = self.setup.cgroups.as_ref();
        Status {
            enforced: cgroups.map(Cgroups::enforced).unwrap_or_default(),
            all: cgroups.map(Cgroups::look),
            landlock_abi: state.policy.sandbox.landlock_abi(),
            ..state.core.status()
        }
    }

    /// Resolves when the numbers may have changed since it resolved last. For one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether a line about something of this class may be written now: what a peer can cause is told once a second.
    pub(crate) fn may_log(&self, class: &'static str) -> Option<Line> {
        self.state.borrow_mut().log_limit.admit(class, Instant::now())
    }

    /// Tells what [`Executor::may_log`] left out of classes of which nothing has happened since.
    pub(crate) fn tell_left_out(&self) {
        for (reason, left_out) in self.state.borrow_mut().log_limit.due(Instant::now()) {
            tracing::info!(reason, left_out, "the same happened again, and was not logged each time");
        }
    }

    /// How many connections are open, those that are being closed among them.
    pub(crate) fn connections(&self) -> usize {
        self.state.borrow().conns.len()
    }

    /// Begins to reap, and kills what an earlier supervisor left in the range. Before the first child.
    pub(crate) fn begin(&self) -> io::Result<()> {
        let sweeper = self.sweeper.clone();
        self.reaper.begin(move |uid| {
            if let Some(sweeper) = &sweeper {
                sweeper.nudge(uid);
            }
        })?;
        let dirty = self.sweeper.as_ref().map(Sweeper::dirty).unwrap_or_default();
        if !dirty.is_empty() {
            tracing::warn!(uids = dirty.len(), "something still runs under uids of the range; it is killed");
        }
        let effects = self.state.borrow_mut().core.found_dirty(&dirty);
        self.carry_out(effects.into());
        let left = self.setup.cgroups.as_ref().map(Cgroups::leftovers).unwrap_or_default();
        tokio::task::spawn_local(stuck::remove_leftovers(left));
        Ok(())
    }

    /// Takes in a new connection; its task sends what comes into the outbox.
    pub(crate) fn connected(&self, peer: Uid) -> (ConnId, Rc<Outbox>) {
        let outbox = Rc::<Outbox>::default();
        let conn = {
            let mut state = self.state.borrow_mut();
            let conn = ConnId(state.next_conn);
            state.next_conn += 1;
            state.conns.insert(conn, Rc::clone(&outbox));
            conn
        };
        self.feed(Event::Connected(conn, peer));
        (conn, outbox)
    }

    /// The connection is closed.
    pub(crate) fn gone(&self, conn: ConnId) {
        self.state.borrow_mut().conns.remove(&conn);
        self.feed(Event::Gone(conn));
    }

    /// Takes one event and carries out what follows from it.
    pub(crate) fn feed(&self, event: Event) {
        let effects = self.step(event);
        self.carry_out(effects.into());
    }

    /// Waits until the core is drained, every connection has its goodbye, and the cgroups are gone.
    pub(crate) async fn idle(&self) {
        loop {
            // Created before the look, so that a ring in between is not missed.
            let step = self.idle.notified();
            if self.is_idle() {
                return;
            }
            step.await;
        }
    }

    fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.core.drained() && state.conns.is_empty()
    }

    /// Ends all graces.
    pub(crate) fn kill_all(&self) {
        for running in self.state.borrow().children.values() {
            running.stop_order.send_replace(StopOrder::Kill);
        }
    }

    fn carry_out(&self, mut effects: VecDeque<Effect>) {
        while let Some(effect) = effects.pop_front() {
            let events = match effect {
                Effect::Send(conn, reply) => self.send(conn, &reply, Vec::new()),
                Effect::HangUp(conn, reason) => {
                    self.hang_up(conn, reason);
                    None
                }
                Effect::Start(order) => {
                    effects.extend(self.start(*order));
                    None
                }
                Effect::Stop(child, step) => {
                    if let Some(running) = self.state.borrow().children.get(&child) {
                        running.stop_order.send_replace(StopOrder::Stop(step));
                    }
                    None
                }
                Effect::Clean(uid) => {
                    self.clean(uid);
                    None
                }
                Effect::Tell(conn, ticket) => {
                    self.send(conn, &Reply::Status { ticket, status: Box::new(self.status()) }, Vec::new())
                }
                Effect::Inspect(conn, ticket, child) => self.send(conn, &self.inspect(ticket, child), Vec::new()),
            };
            if let Some(event) = events {
                effects.extend(self.step(event));
            }
        }
        self.changed.notify_one();
        if self.is_idle() {
            self.idle.notify_one();
        }
    }

    fn step(&self, event: Event) -> Vec<Effect> {
        self.state.borrow_mut().core.step(event, Instant::now())
    }

    fn send(&self, conn: ConnId, reply: &Reply, fds: Vec<OwnedFd>) -> Option<Event> {
        if let Reply::Refused { refusal, .. } = reply
            && let Some(Line { left_out }) = self.may_log(refusal.code())
        {
            let reason = refusal.code();
            tracing::warn!(
                MESSAGE_ID = message_id::REFUSED,
                reason,
                ?refusal,
                left_out,
                "a request of the broker was refused: {refusal}"
            );
        }
        let outbox = self.state.borrow().conns.get(&conn).cloned()?;
        if outbox.leaving.get() {
            return None;
        }
        if outbox.queue.borrow().len() >= MAX_QUEUED_REPLIES {
            return Some(Event::Backlogged(conn));
        }
        match codec::encode(reply) {
            Ok(frame) => outbox.queue.borrow_mut().push_back(Outgoing { frame, fds }),
            // No reply comes near a frame's size; a new one that does must be seen.
            Err(error) => tracing::error!(%error, "a reply was lost"),
        }
        outbox.changed.notify_one();
        None
    }

    fn hang_up(&self, conn: ConnId, reason: Farewell) {
        if let Some(Line { left_out }) = self.may_log(reason.code()) {
            let reason = reason.code();
            tracing::info!(
                MESSAGE_ID = message_id::HUNG_UP,
                reason,
                left_out,
                "connection closed by the supervisor ({reason})"
            );
        }
        let Some(outbox) = self.state.borrow().conns.get(&conn).cloned() else { return };
        if reason == Farewell::NotReading {
            outbox.queue.borrow_mut().clear();
        }
        if let Ok(frame) = codec::encode(&Reply::Goodbye { reason }) {
            outbox.queue.borrow_mut().push_back(Outgoing { frame, fds: Vec::new() });
        }
        outbox.leaving.set(true);
        outbox.changed.notify_one();
    }

    /// Forks a child and leaves it to a task of its own, which tells the core and the broker how it gets on.
    fn start(&self, order: StartOrder) -> Vec<Effect> {
        let StartOrder { child: id, tenant, label, token, uid } = order;
        let policy = self.policy();
        let config = &policy.config;
        let limits = config.limits_of(tenant);
        let ruleset = match policy.prepare() {
            Ok(ruleset) => ruleset,
            Err(error) => {
                let start_error = error.start_error();
                return self.step(self.not_started(id, tenant, &label, start_error, &error));
            }
        };
        let forked = (|| {
            let what = "making the child's cgroup";
            let leaf = self.setup.cgroups.as_ref().map(|cgroups| cgroups.leaf(tenant, id, limits));
            let leaf = leaf.transpose().map_err(|error| {
                tracing::error!(%tenant, %error, "a child's cgroup cannot be made for user {tenant}: {error}");
                StartError { step: StartStep::Cgroup, what, errno: error.errno() }
            })?;
            let procs = leaf.as_ref().map(Leaf::procs).transpose().map_err(StartError::at(StartStep::Cgroup, what))?;
            let half_made = spawn::start(&Launch {
                profile: &config.profile,
                extras: &limits.environment,
                token: &token,
                uid,
                rlimits: limits.rlimits(uid.is_some()),
                procs,
                ruleset,
                filters: Arc::clone(&policy.sandbox.filters),
            })?;
            Ok((leaf.map(Rc::new), half_made))
        })();
        let (leaf, HalfMade { pid, pipes, mut news }) = match forked {
            Ok(forked) => forked,
            Err(error) => return self.step(self.not_started(id, tenant, &label, error, &error)),
        };
        let mut child = self.reaper.attend(pid);
        let (stop_order, mut stop_orders) = watch::channel(StopOrder::Run);
        let running = Running {
            stop_order,
            tenant,
            label,
            pid: pid.as_raw(),
            since: Instant::now(),
            leaf: leaf.clone(),
            limits: limits.clone(),
        };
        self.state.borrow_mut().children.insert(id, running);
        let (executor, ladder) = (self.clone(), config.stop);
        tokio::task::spawn_local(async move {
            if let Err(error) = await_exec(&mut news, &mut child, &mut stop_orders).await {
                if let Some(leaf) = leaf {
                    let emptied = leaf.empty().await;
                    executor.stuck.remove(leaf, uid, emptied);
                }
                return executor.failed(id, error);
            }
            drop(news);
            executor.started(id, uid, pipes);
            let end = attend(&mut child, leaf.as_deref(), ladder, stop_orders).await;
            // A stop whose signal came at the same time is heard first: the signal is looked for before this goes on, so
            // that its announcement comes before this end.
            tokio::task::yield_now().await;
            executor.ended(id, uid, end);
        });
        Vec::new()
    }

    /// The child runs its program.
    fn started(&self, id: ChildId, uid: Option<ChildUid>, pipes: Pipes) {
        let mut pid = 0;
        if let Some(Running { tenant, label, pid: known, .. }) = self.state.borrow().children.get(&id) {
            pid = *known;
            let (uid, started) = (uid.map(ChildUid::get), message_id::CHILD_STARTED);
            tracing::info!(
                MESSAGE_ID = started, %tenant, login = %label, child_uid = uid, child_pid = pid,
                "child {pid} started for {label}, user {tenant}"
            );
        }
        let mut pipes = Some(Vec::from(pipes));
        let mut rest = VecDeque::new();
        for effect in self.step(Event::Started(id, pid.unsigned_abs())) {
            match effect {
                // The one reply that carries descriptors.
                Effect::Send(conn, reply @ Reply::Spawned { .. }) => {
                    if let Some(event) = self.send(conn, &reply, pipes.take().unwrap_or_default()) {
                        rest.extend(self.step(event));
                    }
                }
                other => rest.push_back(other),
            }
        }
        self.carry_out(rest);
    }

    /// It did not come that far, and is gone.
    fn failed(&self, id: ChildId, error: StartError) {
        let running = self.state.borrow_mut().children.remove(&id);
        if let Some(Running { tenant, label, .. }) = running {
            self.feed(self.not_started(id, tenant, &label, error, &error));
        }
    }

    fn ended(&self, id: ChildId, uid: Option<ChildUid>, end: End) {
        let Some(running) = self.state.borrow_mut().children.remove(&id) else { return };
        let Running { tenant, label, pid, since, leaf, limits, .. } = running;
        let End { reaped, stopped, emptied } = end;
        let ending = match &leaf {
            Some(leaf) => leaf.ending(reaped, &limits, stopped),
            None => leaf::ending_without(reaped, &limits, stopped),
        };
        if let Some(leaf) = leaf {
            self.stuck.remove(leaf, uid, emptied);
        }
        let duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let usage = ending.usage;
        let throttled_ms = usage.throttled_usec.map(|usec| usec / 1000);
        tracing::info!(
            MESSAGE_ID = message_id::CHILD_ENDED, %tenant, login = %label, child_uid = uid.map(ChildUid::get),
            child_pid = pid, duration_ms, memory_peak = usage.memory_peak, cpu_ms = usage.cpu_usec / 1000,
            throttled_ms, reason = %ending, "child {pid} of {label}, user {tenant}, ended: {ending}"
        );
        self.feed(Event::Ended(id, ending));
    }

    /// What the kernel says of a child; a child that is just ending is none any more.
    fn inspect(&self, ticket: Ticket, child: ChildId) -> Reply {
        let state = self.state.borrow();
        let running = state.children.get(&child);
        let seen = running.and_then(|it| inspect::child(it.tenant, it.pid, it.leaf.as_deref()).ok());
        match seen {
            Some(inspection) => Reply::Inspected { ticket, inspection: Box::new(inspection) },
            None => Reply::Refused { ticket, refusal: Refusal::NoSuchChild },
        }
    }

    /// Cleans a uid, or has another try at once where that is under way.
    fn clean(&self, uid: ChildUid) {
        let Some(sweeper) = self.sweeper.clone() else { return };
        if sweeper.nudge(uid.get()) {
            return;
        }
        let executor = self.clone();
        tokio::task::spawn_local(async move {
            sweeper.clean(uid, || executor.feed(Event::Cleaned(uid, false))).await;
            executor.stuck.gone(uid, || executor.feed(Event::Cleaned(uid, false))).await;
            executor.feed(Event::Cleaned(uid, true));
        });
    }

    /// Says in the log why a child could not be started, and makes the event of it.
    fn not_started(
        &self,
        id: ChildId,
        tenant: TenantId,
        label: &Label,
        StartError { step, errno, .. }: StartError,
        error: &dyn Display,
    ) -> Event {
        if let Some(Line { left_out }) = self.may_log("not-started") {
            tracing::error!(
                %tenant, login = %label, ?step, errno, %error, left_out,
                "a child could not be started for {label}, user {tenant}: {error}"
            );
        }
        Event::NotStarted(id, step, errno)
    }
}
