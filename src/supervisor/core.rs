//! Every refusal of the supervisor, in one state machine without I/O.
//!
//! `server` tells it what has happened and carries out what it answers: `(state, event, now) -> effects`. It assumes
//! that the broker is fully compromised; what keeps that harmless is that no [`Request`] can say more than its type
//! allows, and that everything it can say is bounded here.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::uid::{ChildUid, Pool};
use crate::ipc::message::{
    ChildId, Exit, Farewell, Isolation, Label, PROTOCOL, Refusal, Reply, Request, StartStep, Status, TenantId, Ticket,
};
use crate::limits::MAX_SUPERVISOR_CONNECTIONS;
use crate::secret::UpstreamToken;

/// Caps on children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// In total.
    pub children: usize,
    /// Of one tenant.
    pub children_per_tenant: usize,
    /// Starts a second, sustained.
    pub spawns_per_second: u32,
    /// Starts at once after a rest.
    pub spawn_burst: u32,
}

/// A connection, as `server` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody connected.
    Connected {
        /// From now on.
        connection: ConnectionId,
        /// By `SO_PEERCRED`.
        uid: u32,
    },
    /// A frame that decoded and carried no descriptors.
    Received {
        /// On which connection.
        connection: ConnectionId,
        /// What it says.
        request: Request,
    },
    /// A packet that is no frame, or no `Hello` in time.
    Misused {
        /// On which connection.
        connection: ConnectionId,
        /// How.
        how: Farewell,
    },
    /// The connection is gone.
    Disconnected {
        /// Which.
        connection: ConnectionId,
    },
    /// A child runs.
    Started {
        /// Which.
        child: ChildId,
        /// For the answer's log fields.
        pid: u32,
    },
    /// A child could not be started.
    NotStarted {
        /// Which.
        child: ChildId,
        /// What failed.
        step: StartStep,
        /// Of the system call, 0 for none.
        errno: i32,
    },
    /// A child was reaped.
    Exited {
        /// Which.
        child: ChildId,
        /// How.
        exit: Exit,
    },
    /// Nothing runs under the uid any more.
    Cleaned {
        /// Which.
        uid: ChildUid,
    },
    /// The supervisor is to stop.
    Drain,
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a reply; `Spawned` carries the child's pipes.
    Reply(ConnectionId, Reply),
    /// Send the last packet and close.
    Close(ConnectionId, Farewell),
    /// Start a child, then report [`Event::Started`] or [`Event::NotStarted`].
    Start(Start),
    /// Begin the stop ladder.
    Stop(ChildId),
    /// Kill everything under the uid, then report [`Event::Cleaned`] once nothing is left.
    Clean(ChildUid),
    /// Log a refusal.
    Refused {
        /// Whose request.
        tenant: Option<TenantId>,
        /// Why.
        refusal: Refusal,
    },
}

/// A start that is allowed.
#[derive(Debug, PartialEq, Eq)]
pub struct Start {
    /// The child's number.
    pub child: ChildId,
    /// Whose.
    pub tenant: TenantId,
    /// For the log.
    pub label: Label,
    /// For the environment.
    pub token: UpstreamToken,
    /// The uid to run under; `None` keeps the supervisor's (`--unprivileged`).
    pub uid: Option<ChildUid>,
}

#[derive(Debug)]
struct Peer {
    greeted: bool,
    children: HashSet<ChildId>,
}

#[derive(Debug)]
struct Child {
    connection: ConnectionId,
    ticket: Ticket,
    tenant: TenantId,
    uid: Option<ChildUid>,
    stopping: bool,
}

/// The state.
#[derive(Debug)]
pub struct Core {
    caps: Caps,
    broker: u32,
    isolation: Isolation,
    peers: HashMap<ConnectionId, Peer>,
    children: HashMap<ChildId, Child>,
    of_tenant: HashMap<TenantId, usize>,
    /// `None` where children keep the supervisor's uid.
    pool: Option<Pool>,
    starts: Bucket,
    next_child: u64,
    draining: bool,
}

impl Core {
    /// Nobody connected, nothing running.
    pub fn new(caps: Caps, broker: u32, isolation: Isolation, pool: Option<Pool>, now: Instant) -> Self {
        Self {
            caps,
            broker,
            isolation,
            peers: HashMap::new(),
            children: HashMap::new(),
            of_tenant: HashMap::new(),
            pool,
            starts: Bucket::full(caps.spawns_per_second, caps.spawn_burst, now),
            next_child: 0,
            draining: false,
        }
    }

    /// The one way in.
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::Connected { connection, uid } => self.connected(connection, uid),
            Event::Received { connection, request } => self.received(connection, request, now),
            Event::Misused { connection, how } => vec![Effect::Close(connection, how)],
            Event::Disconnected { connection } => self.disconnected(connection),
            Event::Started { child, pid } => self.started(child, pid),
            Event::NotStarted { child, step, errno } => self.not_started(child, step, errno),
            Event::Exited { child, exit } => self.exited(child, exit),
            Event::Cleaned { uid } => {
                if let Some(pool) = &mut self.pool {
                    pool.cleaned(uid);
                }
                Vec::new()
            }
            Event::Drain => self.drain(),
        }
    }

    /// Whether no child is left.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Uids that wait to be clean.
    pub fn unclean(&self) -> Vec<ChildUid> {
        self.pool.as_ref().map(Pool::unclean).unwrap_or_default()
    }

    fn connected(&mut self, connection: ConnectionId, uid: u32) -> Vec<Effect> {
        // Root may connect too: it could do everything that it could ask for.
        let farewell = if uid != self.broker && uid != 0 {
            Some(Farewell::PeerNotAllowed)
        } else if self.draining {
            Some(Farewell::ShuttingDown)
        } else if self.peers.len() >= MAX_SUPERVISOR_CONNECTIONS {
            Some(Farewell::TooManyConnections)
        } else {
            None
        };
        if let Some(farewell) = farewell {
            return vec![Effect::Close(connection, farewell)];
        }
        self.peers.insert(connection, Peer { greeted: false, children: HashSet::new() });
        Vec::new()
    }

    fn received(&mut self, connection: ConnectionId, request: Request, now: Instant) -> Vec<Effect> {
        let Some(peer) = self.peers.get_mut(&connection) else { return Vec::new() };
        match request {
            Request::Hello { .. } if peer.greeted => vec![Effect::Close(connection, Farewell::HelloRepeated)],
            Request::Hello { protocol: PROTOCOL } => {
                peer.greeted = true;
                let welcome = Reply::Welcome { protocol: PROTOCOL, isolation: self.isolation };
                vec![Effect::Reply(connection, welcome)]
            }
            Request::Hello { .. } => {
                vec![Effect::Close(connection, Farewell::UnsupportedProtocol { speaks: PROTOCOL })]
            }
            _ if !peer.greeted => vec![Effect::Close(connection, Farewell::HelloExpected)],
            Request::Spawn { ticket, tenant, label, token } => match self.admit(connection, ticket, tenant, now) {
                Ok((child, uid)) => vec![Effect::Start(Start { child, tenant, label, token, uid })],
                Err(refusal) => refused(connection, ticket, Some(tenant), refusal),
            },
            Request::Stop { ticket, child } => match self.children.get_mut(&child) {
                Some(entry) if entry.connection == connection => {
                    let stop = (!entry.stopping).then_some(Effect::Stop(child));
                    entry.stopping = true;
                    let stopping = Effect::Reply(connection, Reply::Stopping { ticket });
                    std::iter::once(stopping).chain(stop).collect()
                }
                _ => refused(connection, ticket, None, Refusal::NoSuchChild),
            },
            Request::Status { ticket } => {
                vec![Effect::Reply(connection, Reply::Status { ticket, status: self.status() })]
            }
        }
    }

    /// Decides on a start and books it, or says why not.
    fn admit(
        &mut self,
        connection: ConnectionId,
        ticket: Ticket,
        tenant: TenantId,
        now: Instant,
    ) -> Result<(ChildId, Option<ChildUid>), Refusal> {
        // Children end at their own pace; a second is when a look is worth it.
        const LATER: u32 = 1000;
        if self.draining {
            return Err(Refusal::ShuttingDown);
        }
        let count = self.of_tenant.get(&tenant).copied().unwrap_or_default();
        if count >= self.caps.children_per_tenant {
            return Err(Refusal::ChildrenOfTenant { retry_after_ms: LATER });
        }
        if self.children.len() >= self.caps.children {
            return Err(Refusal::ChildrenTotal { retry_after_ms: LATER });
        }
        self.starts.take(now).map_err(|wait| Refusal::SpawnRate { retry_after_ms: millis(wait) })?;
        let uid = match &mut self.pool {
            Some(pool) => Some(pool.lease(tenant).ok_or(Refusal::NoFreeUid { retry_after_ms: LATER })?),
            None => None,
        };
        self.next_child = self.next_child.saturating_add(1);
        let child = ChildId(self.next_child);
        self.children.insert(child, Child { connection, ticket, tenant, uid, stopping: false });
        self.of_tenant.insert(tenant, count.saturating_add(1));
        if let Some(peer) = self.peers.get_mut(&connection) {
            peer.children.insert(child);
        }
        Ok((child, uid))
    }

    fn started(&mut self, child: ChildId, pid: u32) -> Vec<Effect> {
        let Some(entry) = self.children.get(&child) else { return Vec::new() };
        // Without a uid of its own the child has the supervisor's, which the log of the start names.
        let uid = entry.uid.map_or(u32::MAX, ChildUid::get);
        let spawned = Reply::Spawned { ticket: entry.ticket, child, pid, uid };
        vec![Effect::Reply(entry.connection, spawned)]
    }

    fn not_started(&mut self, child: ChildId, step: StartStep, errno: i32) -> Vec<Effect> {
        let Some(entry) = self.children.get(&child) else { return Vec::new() };
        let (connection, ticket, tenant) = (entry.connection, entry.ticket, entry.tenant);
        let mut effects = refused(connection, ticket, Some(tenant), Refusal::StartFailed { step, errno });
        effects.extend(self.forget(child));
        effects
    }

    fn exited(&mut self, child: ChildId, exit: Exit) -> Vec<Effect> {
        let Some(entry) = self.children.get(&child) else { return Vec::new() };
        let mut effects = Vec::new();
        if self.peers.contains_key(&entry.connection) {
            effects.push(Effect::Reply(entry.connection, Reply::Exited { child, exit }));
        }
        effects.extend(self.forget(child));
        effects
    }

    /// Takes a child off the books; its uid is cleaned if it was the tenant's last.
    fn forget(&mut self, child: ChildId) -> Option<Effect> {
        let entry = self.children.remove(&child)?;
        if let Some(peer) = self.peers.get_mut(&entry.connection) {
            peer.children.remove(&child);
        }
        if let Some(count) = self.of_tenant.get_mut(&entry.tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of_tenant.remove(&entry.tenant);
            }
        }
        entry.uid?;
        self.pool.as_mut()?.release(entry.tenant).map(Effect::Clean)
    }

    fn disconnected(&mut self, connection: ConnectionId) -> Vec<Effect> {
        let Some(peer) = self.peers.remove(&connection) else { return Vec::new() };
        let mut children: Vec<ChildId> = peer.children.into_iter().collect();
        children.sort();
        children.into_iter().filter_map(|child| self.stop(child)).collect()
    }

    fn drain(&mut self) -> Vec<Effect> {
        self.draining = true;
        let mut children: Vec<ChildId> = self.children.keys().copied().collect();
        children.sort();
        children.into_iter().filter_map(|child| self.stop(child)).collect()
    }

    fn stop(&mut self, child: ChildId) -> Option<Effect> {
        let entry = self.children.get_mut(&child)?;
        (!std::mem::replace(&mut entry.stopping, true)).then_some(Effect::Stop(child))
    }

    fn status(&self) -> Status {
        let (_, free, unclean) = self.pool.as_ref().map(Pool::counts).unwrap_or_default();
        Status {
            isolation: self.isolation,
            children: count(self.children.len()),
            max_children: count(self.caps.children),
            tenants: count(self.of_tenant.len()),
            uids_free: count(free),
            uids_unclean: count(unclean),
        }
    }
}

fn refused(connection: ConnectionId, ticket: Ticket, tenant: Option<TenantId>, refusal: Refusal) -> Vec<Effect> {
    vec![Effect::Refused { tenant, refusal }, Effect::Reply(connection, Reply::Refused { ticket, refusal })]
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis().saturating_add(1)).unwrap_or(u32::MAX)
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    every: Duration,
    burst: u32,
    /// When the bucket will be full again; the further ahead, the emptier it is.
    full_at: Instant,
}

impl Bucket {
    fn full(a_second: u32, burst: u32, now: Instant) -> Self {
        let every = Duration::from_secs(1).checked_div(a_second.max(1)).unwrap_or(Duration::from_secs(1));
        Self { every, burst: burst.max(1), full_at: now }
    }

    /// Takes one, or says how long until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.max(now);
        let room = self.every.saturating_mul(self.burst.saturating_sub(1));
        let ahead = full_at.saturating_duration_since(now);
        match ahead.checked_sub(room) {
            Some(wait) if wait > Duration::ZERO => Err(wait),
            _ => {
                self.full_at = full_at.checked_add(self.every).unwrap_or(full_at);
                Ok(())
            }
        }
    }
}
