//! The supervisor's loop: accepts, hands events to [`Core`], carries out what it decides.
//!
//! One thread runs all of it, in a `LocalSet`; nothing here blocks but the fork itself and `/proc` when a uid is
//! cleaned. Everything that can pile up is bounded: connections, events, answers, children.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tracing::{error, info, info_span, warn};

use super::cgroup::Root;
use super::child::{self, Follow, Handle};
use super::config::Config;
use super::connection::{self, Outgoing};
use super::core::{ConnectionId, Core, Effect, Event, Start};
use super::sandbox;
use super::spawn::{self, Cage, Confinement, Pipes, StartError};
use super::uid::{ChildUid, Pool};
use crate::ipc::message::{ChildId, Farewell, Isolation, Refusal, Reply, StartStep, TenantId};
use crate::ipc::socket::{Connection, Listener, SocketError};
use crate::lifecycle::{self, Stop};
use crate::limits::MAX_QUEUED_REPLIES;

/// Events that wait for the loop; senders wait when it is full.
const EVENTS: usize = 64;
/// When a uid that was not clean is looked at again.
const CLEAN_AGAIN: Duration = Duration::from_secs(2);
/// `MESSAGE_ID` of a refusal in the journal (journal-fields: systemd.journal-fields(7)).
const REFUSED: &str = "5f8d3a0e9c1b4e7f8a2d6c4b1e90f753";
/// `MESSAGE_ID` of a closed connection.
const HUNG_UP: &str = "c2a7b94d6e0f4d158b3e7a9f20c4d681";

/// Why the supervisor cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Neither a socket from the service manager nor `--listen`.
    #[error("there is nothing to listen on: start it by its socket unit, or say --listen PATH")]
    NoSocket,
    /// The inherited socket is not what it should be.
    #[error("the inherited socket cannot be used")]
    Inherited(#[source] std::io::Error),
    /// The socket failed.
    #[error("the socket cannot be used")]
    Socket(#[from] SocketError),
    /// The sandbox cannot be prepared.
    #[error("the sandbox cannot be prepared")]
    Sandbox(#[from] sandbox::SandboxError),
    /// The configured cgroup cannot be used.
    #[error("the cgroup cannot be used")]
    Cgroup(#[source] std::io::Error),
    /// The uid range could not be cleaned.
    #[error("the processes of the uid range cannot be listed")]
    Uids(#[source] std::io::Error),
}

impl ServerError {
    /// What lies behind it, for the log.
    pub fn cause(&self) -> String {
        std::error::Error::source(self).map(ToString::to_string).unwrap_or_default()
    }
}

struct Server {
    config: Config,
    core: Core,
    cage: Cage,
    cgroups: Option<Root>,
    connections: HashMap<ConnectionId, mpsc::Sender<Outgoing>>,
    children: HashMap<ChildId, Handle>,
    /// Of a child that was started, until its `Spawned` is sent.
    pipes: HashMap<ChildId, Pipes>,
    events: mpsc::Sender<Event>,
}

/// Serves until asked to stop; then stops every child and returns.
pub async fn run(config: Config, inherited: ListenFd, listen: Option<PathBuf>, stop: Stop) -> Result<(), ServerError> {
    LocalSet::new().run_until(serve(config, inherited, listen, stop)).await
}

async fn serve(
    config: Config,
    mut inherited: ListenFd,
    listen: Option<PathBuf>,
    stop: Stop,
) -> Result<(), ServerError> {
    let listener = listener(&mut inherited, listen, config.broker)?;
    let (sender, mut events) = mpsc::channel(EVENTS);
    let mut server = Server::prepare(config, sender)?;
    let signals = tokio::task::spawn_local(stop.clone().on_signals());
    tokio::task::spawn_local(lifecycle::watchdog());
    lifecycle::ready();
    let mut next_connection = 0;
    let mut clean_again = tokio::time::interval(CLEAN_AGAIN);
    loop {
        tokio::select! {
            biased;
            () = stop.asked() => break,
            event = events.recv() => if let Some(event) = event { server.on(event) },
            accepted = listener.accept() => {
                next_connection += 1;
                server.accept(ConnectionId(next_connection), accepted?);
            }
            // Only while something is unclean: otherwise there is nothing to look at.
            _ = clean_again.tick(), if !server.core.unclean().is_empty() => server.clean(&server.core.unclean()),
        }
    }
    lifecycle::stopping();
    server.on(Event::Drain);
    while !server.core.is_empty() && !signals.is_finished() {
        if let Some(event) = events.recv().await {
            server.on(event);
        }
    }
    info!("no child is left; the supervisor ends");
    Ok(())
}

fn listener(inherited: &mut ListenFd, path: Option<PathBuf>, broker: u32) -> Result<Listener, ServerError> {
    let hint = "a SOCK_SEQPACKET socket (ListenSequentialPacket=)";
    let socket = inherited.take_custom(0, libc::AF_UNIX, libc::SOCK_SEQPACKET, hint).map_err(ServerError::Inherited)?;
    match (socket, path) {
        (Some(socket), _) => Ok(Listener::adopt(socket)?),
        (None, Some(path)) => Ok(Listener::bind(&path, broker)?),
        (None, None) => Err(ServerError::NoSocket),
    }
}

impl Server {
    fn prepare(config: Config, events: mpsc::Sender<Event>) -> Result<Self, ServerError> {
        let landlock = if config.sandbox.landlock {
            sandbox::landlock(&config.profile.program, &config.sandbox.read)?
        } else {
            None
        };
        let seccomp = if config.sandbox.seccomp { sandbox::seccomp()? } else { Vec::new() };
        let cgroups = if config.privileged {
            Root::find(config.cgroup_root.as_deref()).map_err(ServerError::Cgroup)?
        } else {
            None
        };
        let isolation = Isolation {
            own_uid: config.privileged,
            cgroup: cgroups.is_some(),
            landlock: landlock.is_some(),
            seccomp: !seccomp.is_empty(),
        };
        say(isolation);
        let pool = if config.privileged {
            Some(Pool::new(config.uids, &spawn::uids_in_use(config.uids).map_err(ServerError::Uids)?))
        } else {
            None
        };
        let core = Core::new(config.caps, config.broker, isolation, pool, Instant::now());
        let cage = Cage { landlock, seccomp };
        let (connections, children, pipes) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut server = Self { config, core, cage, cgroups, connections, children, pipes, events };
        server.clean(&server.core.unclean());
        Ok(server)
    }

    fn accept(&mut self, id: ConnectionId, connection: Connection) {
        let uid = match connection.peer() {
            Ok(peer) => peer.uid(),
            Err(e) => {
                warn!(error = %e, "a connection without credentials is closed");
                return;
            }
        };
        let (send, outgoing) = mpsc::channel(MAX_QUEUED_REPLIES);
        self.connections.insert(id, send);
        tokio::task::spawn_local(connection::converse(id, connection, outgoing, self.events.clone()));
        self.on(Event::Connected { connection: id, uid });
    }

    fn on(&mut self, event: Event) {
        if let Event::Disconnected { connection } = &event {
            self.connections.remove(connection);
        }
        if let Event::Exited { child, .. } = &event {
            self.children.remove(child);
        }
        for effect in self.core.on(event, Instant::now()) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Reply(connection, reply) => self.reply(connection, reply),
            Effect::Close(connection, reason) => self.close(connection, reason),
            Effect::Start(start) => self.start(start),
            Effect::Stop(child) => {
                if let Some(handle) = self.children.get_mut(&child) {
                    handle.stop();
                }
            }
            Effect::Clean(uid) => self.clean(&[uid]),
            Effect::Refused { tenant, refusal } => log_refusal(tenant, refusal),
        }
    }

    fn reply(&mut self, connection: ConnectionId, reply: Reply) {
        let descriptors = match &reply {
            Reply::Spawned { child, .. } => self.pipes.remove(child).map(|pipes| pipes.0.into()).unwrap_or_default(),
            _ => Vec::new(),
        };
        let Some(queue) = self.connections.get(&connection) else { return };
        if queue.try_send(Outgoing { reply, descriptors }).is_err() {
            self.close(connection, Farewell::NotReading);
        }
    }

    /// The last packet, if there is room for it; dropping the queue ends the connection's task either way.
    fn close(&mut self, connection: ConnectionId, reason: Farewell) {
        warn!(MESSAGE_ID = HUNG_UP, connection = connection.0, reason = reason.code(), "connection closed");
        if let Some(queue) = self.connections.remove(&connection) {
            let _ = queue.try_send(Outgoing { reply: Reply::Goodbye { reason }, descriptors: Vec::new() });
        }
    }

    fn start(&mut self, start: Start) {
        let Start { child, tenant, label, token, uid } = start;
        let began = Instant::now();
        let event = match self.fork(tenant, &token, uid) {
            Ok((process, pipes)) => {
                let pid = process.id();
                let shown = uid.map_or_else(|| nix::unistd::geteuid().as_raw(), ChildUid::get);
                let span = info_span!("child", tenant = %tenant, login = %label, uid = shown, child_pid = pid);
                let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                span.in_scope(|| info!(duration_us = micros, "child started"));
                let events = self.events.clone();
                let graces = self.config.graces;
                self.children.insert(child, child::follow(Follow { child, process, graces, events, span }));
                self.pipes.insert(child, pipes);
                Event::Started { child, pid }
            }
            Err(StartError { step, source }) => {
                error!(tenant = %tenant, step = ?step, error = %source, "a child could not be started");
                Event::NotStarted { child, step, errno: source.raw_os_error().unwrap_or_default() }
            }
        };
        self.on(event);
    }

    fn fork(
        &self,
        tenant: TenantId,
        token: &crate::secret::UpstreamToken,
        uid: Option<ChildUid>,
    ) -> Result<(spawn::Process, Pipes), StartError> {
        let limits = self.config.limits_for(tenant);
        let cgroup = match (&self.cgroups, uid) {
            (Some(root), Some(uid)) => {
                let entered = root.enter(uid, limits);
                Some(entered.map_err(|source| StartError { step: StartStep::Cgroup, source })?)
            }
            _ => None,
        };
        let hold = Confinement { uid, resources: limits.resources(), cgroup };
        spawn::start(&self.config.profile, token, &self.cage, hold)
    }

    /// Kills everything under the uids; those under which nothing is left may be leased again.
    fn clean(&mut self, uids: &[ChildUid]) {
        if uids.is_empty() {
            return;
        }
        for &uid in uids {
            if let Err(e) = spawn::kill_all_of(uid) {
                error!(uid = %uid, error = %e, "the processes of a uid cannot be killed");
            }
            if let Some(root) = &self.cgroups {
                root.clear(uid);
            }
        }
        match spawn::uids_in_use(self.config.uids) {
            Ok(in_use) => {
                for &uid in uids.iter().filter(|uid| !in_use.contains(uid)) {
                    self.on(Event::Cleaned { uid });
                }
            }
            Err(e) => error!(error = %e, "the processes of the uid range cannot be listed"),
        }
    }
}

fn log_refusal(tenant: Option<TenantId>, refusal: Refusal) {
    let tenant = tenant.map(|tenant| tenant.to_string()).unwrap_or_default();
    warn!(MESSAGE_ID = REFUSED, tenant, reason = refusal.code(), "request refused");
}

/// Says at start what is not isolated; `status` says it again.
fn say(isolation: Isolation) {
    let Isolation { own_uid, cgroup, landlock, seccomp } = isolation;
    if !own_uid {
        warn!("NOT ISOLATED: children run under this process's own uid and can read each other's tokens");
    }
    info!(own_uid, cgroup, landlock, seccomp, "isolation of children");
}
