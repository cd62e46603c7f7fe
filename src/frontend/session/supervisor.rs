//! The broker's side of the wire: a [`Spawner`] that asks the supervisor.
//!
//! One connection, made when it is first needed and made anew when it is lost; nothing polls for it. The supervisor
//! is trusted no further than `ipc` lets it speak: what does not fit the contract ends the connection. When the
//! connection is lost every child of it is being stopped by the supervisor, so all of them count as gone.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex as TurnMutex, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{info, warn};

use super::spawner::{Backend, Ended, Order, SpawnError, Spawner, Stopper};
use crate::ipc::message::{ChildId, Isolation, PROTOCOL, Reply, Request, Status, Ticket};
use crate::ipc::socket::{Connection, Packet, SocketError};

/// How long the supervisor may take to say `Welcome`.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Requests that wait for a supervisor that does not read.
const OUTGOING: usize = 256;

/// Asks the supervisor at one socket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SupervisorSpawner(Arc<Client>);

#[derive(Debug)]
struct Client {
    path: PathBuf,
    /// The live connection; the lock is held while one is made, so that only one is.
    link: TurnMutex<Option<Link>>,
}

/// One connection, for those who ask.
#[derive(Debug, Clone)]
struct Link {
    requests: mpsc::Sender<Request>,
    waiting: Arc<Mutex<Waiting>>,
    isolation: Isolation,
}

/// Who waits for what from the supervisor.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    spawns: HashMap<Ticket, oneshot::Sender<Result<Spawned, SpawnError>>>,
    statuses: HashMap<Ticket, oneshot::Sender<Status>>,
    ended: HashMap<ChildId, oneshot::Sender<Ended>>,
}

#[derive(Debug)]
struct Spawned {
    child: ChildId,
    pid: u32,
    uid: u32,
    pipes: [OwnedFd; 3],
    ended: oneshot::Receiver<Ended>,
}

impl SupervisorSpawner {
    /// For the supervisor that listens at `path`; connects when first asked for something.
    pub fn new(path: PathBuf) -> Self {
        Self(Arc::new(Client { path, link: TurnMutex::new(None) }))
    }

    /// The supervisor's numbers.
    pub async fn status(&self) -> Result<Status, SpawnError> {
        let link = self.link().await?;
        let (tell, status) = oneshot::channel();
        let ticket = {
            let mut waiting = link.waiting.lock();
            let ticket = waiting.ticket();
            waiting.statuses.insert(ticket, tell);
            ticket
        };
        link.requests.send(Request::Status { ticket }).await.map_err(|_| SpawnError::Unreachable)?;
        match timeout(HANDSHAKE, status).await {
            Ok(Ok(status)) => Ok(status),
            _ => Err(SpawnError::Unreachable),
        }
    }

    /// The live connection, or a new one.
    async fn link(&self) -> Result<Link, SpawnError> {
        let mut link = self.0.link.lock().await;
        if let Some(link) = link.as_ref().filter(|link| !link.requests.is_closed()) {
            return Ok(link.clone());
        }
        let fresh = timeout(HANDSHAKE, connect(&self.0.path)).await;
        let fresh = fresh.unwrap_or(Err(LinkError::Silent));
        match fresh {
            Ok(fresh) => {
                info!(isolation = ?fresh.isolation, "connected to the supervisor");
                Ok(link.insert(fresh).clone())
            }
            Err(e) => {
                warn!(socket = %self.0.path.display(), error = %e, "the supervisor cannot be reached");
                *link = None;
                Err(SpawnError::Unreachable)
            }
        }
    }

    async fn ask(&self, order: Order) -> Result<Backend, SpawnError> {
        let link = self.link().await?;
        let (tell, spawned) = oneshot::channel();
        let ticket = {
            let mut waiting = link.waiting.lock();
            let ticket = waiting.ticket();
            waiting.spawns.insert(ticket, tell);
            ticket
        };
        let Order { tenant, label, token } = order;
        let request = Request::Spawn { ticket, tenant, label, token };
        if link.requests.send(request).await.is_err() {
            return Err(SpawnError::Unreachable);
        }
        let spawned = spawned.await.unwrap_or(Err(SpawnError::Unreachable))?;
        let stop = Stop { child: spawned.child, requests: link.requests, waiting: link.waiting };
        let [stdin, stdout, stderr] = spawned.pipes;
        let wrapped = || -> std::io::Result<_> {
            let stdin = pipe::Sender::from_owned_fd(stdin)?;
            Ok((stdin, pipe::Receiver::from_owned_fd(stdout)?, pipe::Receiver::from_owned_fd(stderr)?))
        };
        let (stdin, stdout, stderr) = wrapped().map_err(|e| {
            warn!(error = %e, "the supervisor sent descriptors that are no pipes");
            stop.stop();
            SpawnError::Unreachable
        })?;
        Ok(Backend {
            stdin: Box::pin(stdin),
            stdout: Box::pin(stdout),
            stderr: Box::pin(stderr),
            ended: spawned.ended,
            stopper: Box::new(stop),
            pid: spawned.pid,
            uid: spawned.uid,
        })
    }
}

impl Spawner for SupervisorSpawner {
    fn spawn(&self, order: Order) -> BoxFuture<'_, Result<Backend, SpawnError>> {
        Box::pin(self.ask(order))
    }
}

struct Stop {
    child: ChildId,
    requests: mpsc::Sender<Request>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Stopper for Stop {
    fn stop(&self) {
        let ticket = self.waiting.lock().ticket();
        let request = Request::Stop { ticket, child: self.child };
        // A full queue means a supervisor that hangs: a task waits for it. A closed one means that the child is
        // being stopped already.
        if let Err(mpsc::error::TrySendError::Full(request)) = self.requests.try_send(request) {
            let requests = self.requests.clone();
            tokio::spawn(async move { requests.send(request).await });
        }
    }
}

impl Waiting {
    fn ticket(&mut self) -> Ticket {
        self.next = self.next.wrapping_add(1);
        Ticket(self.next)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Socket(#[from] SocketError),
    #[error("it does not answer")]
    Silent,
    #[error("it answered out of turn: {0}")]
    OutOfTurn(String),
}

async fn connect(path: &std::path::Path) -> Result<Link, LinkError> {
    let connection = Connection::connect(path)?;
    connection.send(&Request::Hello { protocol: PROTOCOL }, &[]).await?;
    let welcome: Packet<Reply> = connection.receive().await?;
    let isolation = match welcome.message {
        Reply::Welcome { protocol: PROTOCOL, isolation } => isolation,
        Reply::Goodbye { reason } => return Err(LinkError::OutOfTurn(reason.code().to_owned())),
        other => return Err(LinkError::OutOfTurn(format!("{other:?}"))),
    };
    let (requests, outgoing) = mpsc::channel(OUTGOING);
    let waiting = Arc::new(Mutex::new(Waiting::default()));
    tokio::spawn(converse(connection, outgoing, requests.downgrade(), Arc::clone(&waiting)));
    Ok(Link { requests, waiting, isolation })
}

/// Runs one connection to its end. What waited on it is told by the drop of its senders.
async fn converse(
    connection: Connection,
    mut outgoing: mpsc::Receiver<Request>,
    requests: mpsc::WeakSender<Request>,
    waiting: Arc<Mutex<Waiting>>,
) {
    // Side by side: a supervisor that waits for us to read must not wait for one that waits for it to read.
    let sending = async {
        while let Some(request) = outgoing.recv().await {
            if let Err(e) = connection.send(&request, &[]).await {
                return e.to_string();
            }
        }
        "nobody needs it any more".to_owned()
    };
    let receiving = async {
        loop {
            let heard = match connection.receive::<Reply>().await {
                Ok(packet) => heard(packet, &waiting, &requests),
                Err(e) => Err(e.to_string()),
            };
            if let Err(reason) = heard {
                return reason;
            }
        }
    };
    let reason = tokio::select! {
        reason = sending => reason,
        reason = receiving => reason,
    };
    outgoing.close();
    warn!(reason, "the connection to the supervisor has ended, and with it its children");
    let lost = std::mem::take(&mut *waiting.lock());
    drop(lost);
}

fn heard(packet: Packet<Reply>, waiting: &Mutex<Waiting>, requests: &mpsc::WeakSender<Request>) -> Result<(), String> {
    match packet.message {
        Reply::Spawned { ticket, child, pid, uid } => {
            let pipes = <[OwnedFd; 3]>::try_from(packet.descriptors).map_err(|_| "not three descriptors".to_owned())?;
            let (tell, ended) = oneshot::channel();
            let asked = {
                let mut waiting = waiting.lock();
                waiting.ended.insert(child, tell);
                waiting.spawns.remove(&ticket)
            };
            let spawned = Ok(Spawned { child, pid, uid, pipes, ended });
            if asked.is_none_or(|asked| asked.send(spawned).is_err()) {
                // Whoever asked has given up; the pipes are closed by now.
                let ticket = waiting.lock().ticket();
                if let Some(requests) = requests.upgrade() {
                    let _ = requests.try_send(Request::Stop { ticket, child });
                }
            }
        }
        Reply::Refused { ticket, refusal } => {
            if let Some(asked) = waiting.lock().spawns.remove(&ticket) {
                let _ = asked.send(Err(SpawnError::Refused(refusal)));
            }
        }
        Reply::Exited { child, exit } => {
            if let Some(watched) = waiting.lock().ended.remove(&child) {
                let _ = watched.send(Ended::Exit(exit));
            }
        }
        Reply::Status { ticket, status } => {
            if let Some(asked) = waiting.lock().statuses.remove(&ticket) {
                let _ = asked.send(status);
            }
        }
        Reply::Stopping { .. } => {}
        Reply::Goodbye { reason } => return Err(format!("it says goodbye: {}", reason.code())),
        Reply::Welcome { .. } => return Err("it says welcome twice".to_owned()),
    }
    Ok(())
}
