//! Carries out what [`core`](super::core) decides and tells it what happened. Decides nothing itself.
//!
//! Everything runs on one thread, so the state is in a cell and each event is taken to its end before the next; no
//! borrow is held over an await.

pub(crate) mod life;
pub(crate) mod outbox;
pub(crate) mod replacement;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Instant;

use nix::unistd::Uid;
use tokio::sync::Notify;

use crate::cgroup::Cgroups;
use crate::children::StopOrder;
use crate::core::{ConnId, Core, Effect, Event};
use crate::inspect;
use crate::log_limit::{Line, LogLimit};
use crate::policy::InForce;
use crate::proc_view;
use crate::reaper::Reaper;
use crate::stuck;
use crate::stuck::Stuck;
use crate::sweep::Sweeper;
use crate::uid::{ChildUid, UidRange};
use life::Running;
use outbox::Outbox;
use wire::message::{ChildId, Isolation, Refusal, Reply, Status, Ticket};

/// What is fixed for the life of the supervisor.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Of the children; `None` where they keep the supervisor's.
    pub(crate) uids: Option<UidRange>,
    /// Of the machine, if it has any.
    pub(crate) cgroups: Option<Cgroups>,
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
    /// The program, or the policy that names it, is another: whoever watches it looks at once.
    look_again: Rc<Notify>,
}

impl Executor {
    /// Nothing is connected, nothing runs. Must be used within a `LocalSet`.
    pub(crate) fn new(setup: Setup, policy: InForce, core: Core) -> Self {
        let sweeper = setup.uids.map(Sweeper::new);
        if let Some(sweeper) = sweeper.as_ref().filter(|_| policy.sandbox.allows_sysv_ipc()) {
            sweeper.expect_ipc();
        }
        let policy = Rc::new(policy);
        let log_limit = LogLimit::default();
        let state = State { core, policy, conns: HashMap::new(), next_conn: 1, children: HashMap::new(), log_limit };
        Self {
            setup: Rc::new(setup),
            state: Rc::new(RefCell::new(state)),
            reaper: Reaper::default(),
            sweeper,
            stuck: Stuck::default(),
            idle: Rc::default(),
            changed: Rc::default(),
            look_again: Rc::default(),
        }
    }

    /// The policy that the next child is started with.
    pub(crate) fn policy(&self) -> Rc<InForce> {
        Rc::clone(&self.state.borrow().policy)
    }

    /// Goes on with another policy.
    pub(crate) fn change_policy(&self, policy: InForce, isolation: Isolation) {
        let mut state = self.state.borrow_mut();
        if let Some(sweeper) = self.sweeper.as_ref().filter(|_| policy.sandbox.allows_sysv_ipc()) {
            sweeper.expect_ipc();
        }
        state.core.change_policy(policy.config.caps, policy.config.limits.children(), isolation);
        state.policy = Rc::new(policy);
        self.look_again.notify_one();
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
            proc_hidden: proc_view::is_small(),
            undumpable: state.policy.makes_undumpable(),
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
        if let Some(sweeper) = &self.sweeper {
            if !dirty.is_empty() {
                // Their policy is not known.
                sweeper.expect_ipc();
            }
            match sweeper.remove_old_ipc() {
                Ok(0) => {}
                Ok(objects) => {
                    tracing::warn!(objects, "objects of System V IPC of uids of the range were there and are removed");
                }
                Err(error) => {
                    sweeper.expect_ipc();
                    tracing::error!(
                        reason = "ipc-stays", %error,
                        "objects of System V IPC that earlier children left cannot be removed: {error}"
                    );
                }
            }
        }
        let effects = self.state.borrow_mut().core.found_dirty(&dirty);
        self.carry_out(effects.into());
        // Where the range was another before, nothing else tells of what is left.
        let left = self.setup.cgroups.as_ref().map_or(Ok(Vec::new()), Cgroups::leftovers).map_err(io::Error::other)?;
        tokio::task::spawn_local(stuck::remove_leftovers(left));
        tokio::task::spawn_local(self.clone().tell_of_replacements());
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
}
