//! Every decision of the supervisor, and so every refusal: `(state, event, now) -> effects`, without I/O.
//!
//! It trusts that its caller carries out the effects in order and reports what really happened; it trusts nothing
//! that a connection says. A child belongs to the connection that asked for it: no other can name it, and when the
//! connection goes, its children are stopped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use nix::unistd::Uid;

use crate::config::Caps;
use crate::uid::{ChildUid, Pool};
use wire::ending::Ending;
use wire::message::{
    ChildId, Enforced, Farewell, Isolation, Label, PROTOCOL, Refusal, Reply, Request, StartStep, Status, TenantId,
    Ticket,
};
use wire::secret::UpstreamToken;

/// When asking again makes sense where a child has to end first, in milliseconds.
const RETRY_CHILDREN_MS: u32 = 1000;
/// When asking again makes sense where a uid has to be cleaned first: cleaning takes milliseconds.
const RETRY_UID_MS: u32 = 250;

/// The supervisor's number for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId(pub(crate) u64);

/// What is allowed.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// The uid that may connect.
    pub(crate) broker: Uid,
    /// The supervisor's own uid, which children keep where they get none of their own.
    pub(crate) own: Uid,
    /// Connections at once.
    pub(crate) connections: usize,
    /// How many children, and how often they are started.
    pub(crate) caps: Caps,
    /// Who may have another number of children than `caps` says.
    pub(crate) children_of: HashMap<TenantId, u32>,
    /// What is really done to separate children; reported as it is.
    pub(crate) isolation: Isolation,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody connected; the kernel says it is this uid.
    Connected(ConnId, Uid),
    /// A frame that decoded.
    Said(ConnId, Request),
    /// A packet that was too long, did not decode, or had bytes behind the message.
    Garbled(ConnId),
    /// A packet that carried descriptors (they are closed already).
    Smuggled(ConnId),
    /// No `Hello` came in time.
    HelloOverdue(ConnId),
    /// Too many answers wait for this connection.
    Backlogged(ConnId),
    /// The connection is closed.
    Gone(ConnId),
    /// The child of [`Effect::Start`] runs its program, with this pid.
    Started(ChildId, u32),
    /// It could not be started, and is not there any more.
    NotStarted(ChildId, StartStep, i32),
    /// A child ended and was reaped.
    Ended(ChildId, Ending),
    /// Nothing is left under the uid of [`Effect::Clean`]; with `false`, that takes too long, and is tried on.
    Cleaned(ChildUid, bool),
    /// Children with a smaller number run a program that is not the policy's any more.
    ProgramReplaced(ChildId),
    /// The supervisor is to stop: say so, and let what runs go on for the grace.
    Drain,
    /// The grace is over.
    GraceOver,
}

/// Which step of the stop ladder comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopStep {
    /// Standard input is closed: give the child time to notice.
    Eof,
    /// Nobody closed standard input: begin with SIGTERM.
    Term,
}

/// A child to start.
#[derive(Debug)]
pub(crate) struct StartOrder {
    /// Its number.
    pub(crate) child: ChildId,
    /// Whose it is.
    pub(crate) tenant: TenantId,
    /// For the log.
    pub(crate) label: Label,
    /// For its environment.
    pub(crate) token: UpstreamToken,
    /// Its uid; `None`: the supervisor's own.
    pub(crate) uid: Option<ChildUid>,
}

/// What is to be done, in order.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send this; a `Spawned` takes the child's pipes with it.
    Send(ConnId, Reply),
    /// Send `Goodbye` with this reason and close.
    HangUp(ConnId, Farewell),
    /// Start a child and report [`Event::Started`] or [`Event::NotStarted`].
    Start(Box<StartOrder>),
    /// Begin the stop ladder of a child.
    Stop(ChildId, StopStep),
    /// A lease is over: kill all that is left under the uid and report [`Event::Cleaned`]. If that is being done
    /// already, try again at once.
    Clean(ChildUid),
    /// Send [`Core::status`], with what the kernel says.
    Tell(ConnId, Ticket),
    /// Look at a running child and send what the kernel says of it.
    Inspect(ConnId, Ticket, ChildId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Connected, has not said `Hello`.
    Greeting,
    /// May ask.
    Ready,
    /// Was told goodbye; whatever it still says is not heard.
    Leaving,
}

#[derive(Debug)]
struct Child {
    conn: ConnId,
    ticket: Ticket,
    tenant: TenantId,
    uid: Option<ChildUid>,
    /// It runs its program and its connection knows its number.
    started: bool,
    stopping: bool,
}

/// The state.
#[derive(Debug)]
pub(crate) struct Core {
    policy: Policy,
    conns: BTreeMap<ConnId, Phase>,
    children: BTreeMap<ChildId, Child>,
    next_child: u64,
    /// `None`: everybody runs under the supervisor's uid.
    pool: Option<Pool>,
    /// When the bucket of starts will be full again (the virtual scheduling form of the leaky bucket, ITU-T I.371).
    bucket_full_at: Instant,
    draining: bool,
}

impl Core {
    /// Nothing is connected and nothing runs.
    pub(crate) fn new(policy: Policy, pool: Option<Pool>, now: Instant) -> Self {
        Self {
            policy,
            conns: BTreeMap::new(),
            children: BTreeMap::new(),
            next_child: 1,
            pool,
            bucket_full_at: now,
            draining: false,
        }
    }

    /// Takes one event and says what is to be done.
    pub(crate) fn step(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::Connected(conn, peer) => self.connected(conn, peer),
            Event::Said(conn, request) => self.said(conn, request, now),
            Event::Garbled(conn) => self.part(conn, Farewell::BadFrame),
            Event::Smuggled(conn) => self.part(conn, Farewell::UnexpectedDescriptors),
            Event::HelloOverdue(conn) => match self.conns.get(&conn) {
                Some(Phase::Greeting) => self.part(conn, Farewell::HelloExpected),
                _ => Vec::new(),
            },
            Event::Backlogged(conn) => self.part(conn, Farewell::NotReading),
            Event::Gone(conn) => {
                self.conns.remove(&conn);
                self.stop_all(StopStep::Eof, |child| child.conn == conn)
            }
            Event::Started(child, pid) => self.started(child, pid),
            Event::NotStarted(child, step, errno) => self.not_started(child, step, errno),
            Event::Ended(child, ending) => self.ended(child, ending),
            Event::Cleaned(uid, clean) => {
                if let Some(pool) = &mut self.pool {
                    pool.cleaned(uid, clean);
                }
                self.when_drained()
            }
            Event::ProgramReplaced(below) => self.program_replaced(below),
            Event::Drain => self.drain(),
            Event::GraceOver => {
                let mut effects = self.stop_all(StopStep::Term, |_| true);
                effects.extend(self.when_drained());
                effects
            }
        }
    }

    /// Goes on with other caps, and with what separates children from now on. What runs already is not touched.
    pub(crate) fn change_policy(&mut self, caps: Caps, children_of: HashMap<TenantId, u32>, isolation: Isolation) {
        self.policy.caps = caps;
        self.policy.children_of = children_of;
        self.policy.isolation = isolation;
    }

    /// Notes at start that something runs under these uids of the range; returns the effects that clean them.
    pub(crate) fn found_dirty(&mut self, uids: &[ChildUid]) -> Vec<Effect> {
        if let Some(pool) = &mut self.pool {
            pool.found_dirty(uids);
        }
        uids.iter().copied().map(Effect::Clean).collect()
    }

    /// Whether the supervisor was told to stop and nothing is left to wait for.
    pub(crate) fn drained(&self) -> bool {
        self.draining && self.children.is_empty() && self.pool.as_ref().is_none_or(Pool::settled)
    }

    /// The numbers; what only the kernel knows is not in them.
    pub(crate) fn status(&self) -> Status {
        let tenants: BTreeSet<_> = self.children.values().map(|child| child.tenant).collect();
        Status {
            isolation: self.policy.isolation,
            children: count(self.children.len()),
            max_children: self.policy.caps.children,
            tenants: count(tenants.len()),
            uids_free: self.pool.as_ref().map_or(0, Pool::free),
            uids_unclean: self.pool.as_ref().map_or(0, Pool::unclean),
            enforced: Enforced::default(),
            all: None,
            landlock_abi: 0,
            proc_hidden: false,
            undumpable: false,
        }
    }

    fn connected(&mut self, conn: ConnId, peer: Uid) -> Vec<Effect> {
        let refusal = if peer != self.policy.broker {
            Some(Farewell::PeerNotAllowed)
        } else if self.draining {
            Some(Farewell::ShuttingDown)
        } else if self.conns.len() >= self.policy.connections {
            Some(Farewell::TooManyConnections)
        } else {
            None
        };
        if let Some(reason) = refusal {
            // Never in `conns`: it owns nothing and can say nothing.
            return vec![Effect::HangUp(conn, reason)];
        }
        self.conns.insert(conn, Phase::Greeting);
        Vec::new()
    }

    /// Tells it to each connection that has such a child: only the broker knows when nobody has a call.
    fn program_replaced(&self, below: ChildId) -> Vec<Effect> {
        let old: BTreeSet<_> = self.children.range(..below).map(|(_, child)| child.conn).collect();
        let ready = old.into_iter().filter(|conn| self.conns.get(conn) == Some(&Phase::Ready));
        ready.map(|conn| Effect::Send(conn, Reply::ProgramReplaced { below })).collect()
    }

    /// Announces the end to every connection before anything is stopped, so that no exit that follows is taken for the
    /// child's own.
    fn drain(&mut self) -> Vec<Effect> {
        if std::mem::replace(&mut self.draining, true) {
            return Vec::new();
        }
        let mut effects = Vec::new();
        for (conn, phase) in self.conns.clone() {
            match phase {
                Phase::Ready => effects.push(Effect::Send(conn, Reply::Draining)),
                Phase::Greeting => effects.extend(self.part(conn, Farewell::ShuttingDown)),
                Phase::Leaving => {}
            }
        }
        effects.extend(self.when_drained());
        effects
    }

    /// Says goodbye once; the children are stopped now and not when the peer deigns to read it.
    fn part(&mut self, conn: ConnId, reason: Farewell) -> Vec<Effect> {
        match self.conns.get_mut(&conn) {
            None | Some(Phase::Leaving) => Vec::new(),
            Some(phase) => {
                *phase = Phase::Leaving;
                let mut effects = vec![Effect::HangUp(conn, reason)];
                effects.extend(self.stop_all(StopStep::Eof, |child| child.conn == conn));
                effects
            }
        }
    }

    fn said(&mut self, conn: ConnId, request: Request, now: Instant) -> Vec<Effect> {
        let Some(&phase) = self.conns.get(&conn) else { return Vec::new() };
        match (phase, request) {
            (Phase::Leaving, _) => Vec::new(),
            (Phase::Greeting, Request::Hello { protocol: PROTOCOL }) => {
                self.conns.insert(conn, Phase::Ready);
                let isolation = self.policy.isolation;
                vec![Effect::Send(conn, Reply::Welcome { protocol: PROTOCOL, isolation })]
            }
            (Phase::Greeting, Request::Hello { .. }) => {
                self.part(conn, Farewell::UnsupportedProtocol { speaks: PROTOCOL })
            }
            (Phase::Greeting, _) => self.part(conn, Farewell::HelloExpected),
            (Phase::Ready, Request::Hello { .. }) => self.part(conn, Farewell::HelloRepeated),
            (Phase::Ready, Request::Spawn { ticket, tenant, label, token }) => {
                match self.admit(conn, ticket, tenant, now) {
                    Ok((child, uid)) => {
                        vec![Effect::Start(Box::new(StartOrder { child, tenant, label, token, uid }))]
                    }
                    Err(refusal) => {
                        let mut effects = vec![Effect::Send(conn, Reply::Refused { ticket, refusal })];
                        if let (Refusal::NoFreeUid { .. }, Some(pool)) = (refusal, &self.pool) {
                            effects.extend(pool.quarantined().map(Effect::Clean));
                        }
                        effects
                    }
                }
            }
            (Phase::Ready, Request::Stop { ticket, child }) => match self.children.get_mut(&child) {
                Some(entry) if entry.conn == conn && entry.started => {
                    let mut effects = vec![Effect::Send(conn, Reply::Stopping { ticket })];
                    if !std::mem::replace(&mut entry.stopping, true) {
                        effects.push(Effect::Stop(child, StopStep::Eof));
                    }
                    effects
                }
                _ => vec![Effect::Send(conn, Reply::Refused { ticket, refusal: Refusal::NoSuchChild })],
            },
            (Phase::Ready, Request::Status { ticket }) => {
                vec![Effect::Tell(conn, ticket)]
            }
            (Phase::Ready, Request::Inspect { ticket, child }) => match self.children.get(&child) {
                Some(entry) if entry.conn == conn && entry.started => vec![Effect::Inspect(conn, ticket, child)],
                _ => vec![Effect::Send(conn, Reply::Refused { ticket, refusal: Refusal::NoSuchChild })],
            },
        }
    }

    /// Decides on a start, the dear checks last: only an admitted start counts against the rate.
    fn admit(
        &mut self,
        conn: ConnId,
        ticket: Ticket,
        tenant: TenantId,
        now: Instant,
    ) -> Result<(ChildId, Option<ChildUid>), Refusal> {
        if self.draining {
            return Err(Refusal::ShuttingDown);
        }
        if count(self.children.len()) >= self.policy.caps.children {
            return Err(Refusal::ChildrenTotal { retry_after_ms: RETRY_CHILDREN_MS });
        }
        let of_tenant = self.children.values().filter(|child| child.tenant == tenant).count();
        let most = self.policy.children_of.get(&tenant).unwrap_or(&self.policy.caps.children_per_tenant);
        if count(of_tenant) >= *most {
            return Err(Refusal::ChildrenOfTenant { retry_after_ms: RETRY_CHILDREN_MS });
        }
        let full_at = self.bucket_full_at.max(now);
        let interval = Duration::from_secs(1) / self.policy.caps.spawns_per_second.max(1);
        let latest = now + interval * (self.policy.caps.spawn_burst.max(1) - 1);
        if let Some(wait) = full_at.checked_duration_since(latest).filter(|wait| !wait.is_zero()) {
            let retry_after_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).saturating_add(1);
            return Err(Refusal::SpawnRate { retry_after_ms });
        }
        let uid = match &mut self.pool {
            None => None,
            Some(pool) => Some(pool.lease().ok_or(Refusal::NoFreeUid { retry_after_ms: RETRY_UID_MS })?),
        };
        self.bucket_full_at = full_at + interval;
        let child = ChildId(self.next_child);
        self.next_child += 1;
        self.children.insert(child, Child { conn, ticket, tenant, uid, started: false, stopping: false });
        Ok((child, uid))
    }

    fn started(&mut self, id: ChildId, pid: u32) -> Vec<Effect> {
        let Some(child) = self.children.get_mut(&id) else { return Vec::new() };
        child.started = true;
        let uid = child.uid.map_or(self.policy.own.as_raw(), ChildUid::get);
        vec![Effect::Send(child.conn, Reply::Spawned { ticket: child.ticket, child: id, pid, uid })]
    }

    fn not_started(&mut self, id: ChildId, step: StartStep, errno: i32) -> Vec<Effect> {
        let Some(child) = self.children.remove(&id) else { return Vec::new() };
        // The grace was over before it was made.
        let cut_short = child.stopping && self.draining;
        let refusal = if cut_short { Refusal::ShuttingDown } else { Refusal::StartFailed { step, errno } };
        let mut effects = vec![Effect::Send(child.conn, Reply::Refused { ticket: child.ticket, refusal })];
        effects.extend(self.end_lease(&child));
        effects
    }

    fn ended(&mut self, id: ChildId, ending: Ending) -> Vec<Effect> {
        let Some(child) = self.children.remove(&id) else { return Vec::new() };
        let mut effects = Vec::new();
        if self.conns.get(&child.conn) == Some(&Phase::Ready) {
            effects.push(Effect::Send(child.conn, Reply::Exited { child: id, ending }));
        }
        effects.extend(self.end_lease(&child));
        effects
    }

    /// Gives back what a child had that is not there any more.
    fn end_lease(&mut self, child: &Child) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let (Some(uid), Some(pool)) = (child.uid, &mut self.pool) {
            pool.release(uid);
            effects.push(Effect::Clean(uid));
        }
        effects.extend(self.when_drained());
        effects
    }

    fn stop_all(&mut self, step: StopStep, which: impl Fn(&Child) -> bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (&id, child) in &mut self.children {
            if which(child) && !std::mem::replace(&mut child.stopping, true) {
                effects.push(Effect::Stop(id, step));
            }
        }
        effects
    }

    fn when_drained(&mut self) -> Vec<Effect> {
        if !self.drained() {
            return Vec::new();
        }
        let conns: Vec<_> = self.conns.keys().copied().collect();
        conns.into_iter().flat_map(|conn| self.part(conn, Farewell::ShuttingDown)).collect()
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
