//! The broker's side of the wire: a [`Spawner`] that asks the supervisor for children.
//!
//! One connection, made when it is first needed and again when it was lost; nothing runs in the background to keep
//! it up. The supervisor is trusted with what it says about children, but a frame that is not of the contract ends the
//! connection. Losing it ends all its children (the supervisor stops them), which reads as
//! [`Ended::SupervisorLost`]; and so does every end of a child after the supervisor has said that it stops.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use nix::unistd::Uid;
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::child::greeting::greet;
use crate::child::spawner::{Backend, Ended, SpawnError, SpawnRequest, Spawner, Stopper};
use wire::codec;
use wire::inspection::Inspection;
use wire::message::{ChildId, Refusal, Reply, Request, Status, Ticket};
use wire::socket::{Packet, Socket};
use wire::telemetry::message_id;

/// How long the supervisor may take for an answer before the connection counts as lost: a start takes milliseconds.
const REPLY_TIMEOUT: Duration = Duration::from_secs(15);
/// Requests without an answer at once; the supervisor reads no faster than it answers.
const MAX_REQUESTS: usize = 256;
/// Of them, for the operator's look at all children: starts have the rest.
const INSPECTIONS_AT_ONCE: usize = 16;

/// Asks the supervisor at a path for children. Cheap to clone; clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct SupervisorSpawner(Arc<Shared>);

/// Whether the supervisor was there when it was last needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contact {
    /// Nobody has needed it.
    NotYet,
    /// It is connected.
    Connected,
    /// It was not there, or has gone.
    Away,
}

#[derive(Debug)]
struct Shared {
    contact: watch::Sender<Contact>,
    path: PathBuf,
    served_by: Uid,
    /// Held while connecting, so that one connection is made however many ask.
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    in_flight: Semaphore,
}

impl SupervisorSpawner {
    /// Does nothing yet: the connection is made by the first request. Nobody but root and `served_by` is spoken to.
    pub(crate) fn new(path: PathBuf, served_by: Uid) -> Self {
        Self(Arc::new(Shared {
            contact: watch::Sender::new(Contact::NotYet),
            path,
            served_by,
            link: tokio::sync::Mutex::new(None),
            in_flight: Semaphore::new(MAX_REQUESTS),
        }))
    }

    /// Whether it is there.
    pub(crate) fn contact(&self) -> watch::Receiver<Contact> {
        self.0.contact.subscribe()
    }

    /// The supervisor's numbers.
    pub(crate) async fn status(&self) -> Result<Status, SpawnError> {
        match self.0.ask(|ticket| Request::Status { ticket }).await? {
            Granted::Status(status) => Ok(*status),
            Granted::Arrived(_) | Granted::Inspected(_) => Err(SpawnError::Unreachable),
        }
    }

    /// What the kernel says of each child that runs now, by process number. A child that ends meanwhile is left out.
    pub(crate) async fn inspect_all(&self) -> Vec<Inspection> {
        let children = self.0.link().await.map(|link| link.children()).unwrap_or_default();
        let inspect = async |child| match self.0.ask(|ticket| Request::Inspect { ticket, child }).await {
            Ok(Granted::Inspected(inspection)) => Some(*inspection),
            _ => None,
        };
        let asked = stream::iter(children).map(inspect).buffer_unordered(INSPECTIONS_AT_ONCE);
        let mut all: Vec<_> = asked.filter_map(std::future::ready).collect().await;
        all.sort_unstable_by_key(|seen| seen.pid);
        all
    }
}

impl Spawner for SupervisorSpawner {
    fn spawn(&self, order: SpawnRequest) -> BoxFuture<'_, Result<Backend, SpawnError>> {
        async move {
            let SpawnRequest { tenant, label, token } = order;
            match self.0.ask(|ticket| Request::Spawn { ticket, tenant, label, token }).await? {
                Granted::Arrived(arrival) => arrival.unpack(),
                Granted::Status(_) | Granted::Inspected(_) => Err(SpawnError::Unreachable),
            }
        }
        .boxed()
    }
}

impl Shared {
    async fn ask(&self, request: impl FnOnce(Ticket) -> Request) -> Result<Granted, SpawnError> {
        let _permit = self.in_flight.acquire().await.map_err(|_| SpawnError::Unreachable)?;
        let link = self.link().await?;
        let (ticket, answer) = link.expect_answer().ok_or(SpawnError::Unreachable)?;
        // If this future is dropped, so is the receiver of the answer, and a child that comes is stopped.
        let _ = link.outbox.send(request(ticket));
        match timeout(REPLY_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer.map_err(SpawnError::Refused),
            Ok(Err(_lost)) => Err(SpawnError::Unreachable),
            Err(_late) => {
                tracing::warn!(reason = "no answer", "the supervisor does not answer; the connection is given up");
                link.hang_up.notify_one();
                Err(SpawnError::Unreachable)
            }
        }
    }

    /// The connection that is there, else a new one.
    async fn link(&self) -> Result<Arc<Link>, SpawnError> {
        let mut slot = self.link.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| link.is_open()) {
            return Ok(Arc::clone(link));
        }
        match greet(&self.path, self.served_by).await {
            Ok((socket, isolation)) => {
                tracing::info!(MESSAGE_ID = message_id::SUPERVISOR_BACK, ?isolation, "connected to the supervisor");
                let link = Link::start(socket, self.contact.clone());
                *slot = Some(Arc::clone(&link));
                Ok(link)
            }
            Err(error) => {
                let (path, reason) = (self.path.display(), error.to_string());
                tracing::warn!(
                    MESSAGE_ID = message_id::SUPERVISOR_LOST,
                    %path,
                    reason,
                    "no connection to the supervisor at {path}: {reason}; no child can be started"
                );
                note(&self.contact, Contact::Away);
                Err(SpawnError::Unreachable)
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Nobody can ask any more; the supervisor stops what still runs.
        if let Some(link) = self.link.get_mut() {
            link.hang_up.notify_one();
        }
    }
}

/// A connection that has been greeted.
#[derive(Debug)]
struct Link {
    /// Unbounded, but what goes in is: one request a permit, and one `Stop` a child.
    outbox: mpsc::UnboundedSender<Request>,
    tickets: AtomicU64,
    hang_up: tokio::sync::Notify,
    /// The supervisor has said that it stops: children end because of that from now on.
    leaving: CancellationToken,
    /// `None` once the connection is lost; dropping the table tells everybody who waits.
    table: Mutex<Option<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    answers: HashMap<Ticket, oneshot::Sender<Result<Granted, Refusal>>>,
    children: HashMap<ChildId, Running>,
    /// Children with smaller numbers run a program that was replaced.
    outdated_below: Option<ChildId>,
}

#[derive(Debug)]
struct Running {
    ended: oneshot::Sender<Ended>,
    outdated: CancellationToken,
}

#[derive(Debug)]
enum Granted {
    Arrived(Arrival),
    Status(Box<Status>),
    Inspected(Box<Inspection>),
}

impl Link {
    fn start(socket: Socket, contact: watch::Sender<Contact>) -> Arc<Self> {
        note(&contact, Contact::Connected);
        let (outbox, requests) = mpsc::unbounded_channel();
        let link = Arc::new(Self {
            outbox,
            tickets: AtomicU64::new(1),
            hang_up: tokio::sync::Notify::new(),
            leaving: CancellationToken::new(),
            table: Mutex::new(Some(Table::default())),
        });
        tokio::spawn(Arc::clone(&link).run(socket, requests, contact));
        link
    }

    fn is_open(&self) -> bool {
        locked(&self.table).is_some()
    }

    /// Those that run, as far as is known here.
    fn children(&self) -> Vec<ChildId> {
        locked(&self.table).as_ref().map(|table| table.children.keys().copied().collect()).unwrap_or_default()
    }

    /// A new ticket and where its answer will come; `None` if the connection is lost.
    fn expect_answer(&self) -> Option<(Ticket, oneshot::Receiver<Result<Granted, Refusal>>)> {
        let ticket = self.next_ticket();
        let (sender, receiver) = oneshot::channel();
        locked(&self.table).as_mut()?.answers.insert(ticket, sender);
        Some((ticket, receiver))
    }

    fn next_ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    async fn run(
        self: Arc<Self>,
        socket: Socket,
        requests: mpsc::UnboundedReceiver<Request>,
        contact: watch::Sender<Contact>,
    ) {
        let reason = tokio::select! {
            reason = self.read(&socket) => reason,
            reason = write(&socket, requests) => reason,
            () = self.hang_up.notified() => "given up".to_owned(),
        };
        // Before anybody can see that it is lost and make another.
        note(&contact, Contact::Away);
        let lost = locked(&self.table).take();
        let children = lost.as_ref().map_or(0, |table| table.children.len());
        tracing::warn!(
            MESSAGE_ID = message_id::SUPERVISOR_LOST,
            reason,
            children,
            "the connection to the supervisor is lost ({reason}), and {children} children with it; their sessions go on"
        );
    }

    async fn read(self: &Arc<Self>, socket: &Socket) -> String {
        loop {
            let packet = match socket.receive().await {
                Ok(Some(packet)) => packet,
                Ok(None) => return "closed".to_owned(),
                Err(e) => return e.to_string(),
            };
            if let Err(reason) = self.heard(packet) {
                return reason;
            }
        }
    }

    /// Takes one packet; an error ends the connection.
    fn heard(self: &Arc<Self>, Packet { frame, fds }: Packet) -> Result<(), String> {
        let reply: Reply = codec::decode(&frame).map_err(|e| e.to_string())?;
        if let Reply::Spawned { ticket, child, pid, uid } = reply {
            let pipes = <[OwnedFd; 3]>::try_from(fds).map_err(|fds| format!("Spawned with {} pipes", fds.len()))?;
            let (sender, ended) = oneshot::channel();
            let stopper = ChildStopper { link: Arc::clone(self), child, asked: AtomicBool::new(false) };
            let outdated = CancellationToken::new();
            let running = Running { ended: sender, outdated: outdated.clone() };
            let arrival =
                Arrival { pipes: Some(pipes), ended: Some(ended), stopper: Some(stopper), outdated, pid, uid };
            let waiting = locked(&self.table).as_mut().and_then(|table| {
                if table.outdated_below.is_some_and(|below| child < below) {
                    running.outdated.cancel();
                }
                table.children.insert(child, running);
                table.answers.remove(&ticket)
            });
            // Whoever asked has given up: dropping the arrival stops the child.
            let given_up = waiting.map(|waiting| waiting.send(Ok(Granted::Arrived(arrival))));
            drop(given_up);
            return Ok(());
        }
        if !fds.is_empty() {
            return Err("descriptors on a packet that has none".to_owned());
        }
        let mut table = locked(&self.table);
        let Some(table) = table.as_mut() else { return Ok(()) };
        let (ticket, answer) = match reply {
            Reply::Refused { ticket, refusal } => (ticket, Err(refusal)),
            Reply::Status { ticket, status } => (ticket, Ok(Granted::Status(status))),
            Reply::Inspected { ticket, inspection } => (ticket, Ok(Granted::Inspected(inspection))),
            Reply::Exited { child, ending } => {
                let ended = if self.leaving.is_cancelled() { Ended::SupervisorLost } else { Ended::Exit(ending) };
                if let Some(running) = table.children.remove(&child) {
                    let _ = running.ended.send(ended);
                }
                return Ok(());
            }
            Reply::Draining => {
                let children = table.children.len();
                tracing::info!(
                    MESSAGE_ID = message_id::SUPERVISOR_LOST,
                    reason = "draining",
                    children,
                    "the supervisor stops; its {children} children end after a grace, and their sessions go on"
                );
                self.leaving.cancel();
                return Ok(());
            }
            Reply::ProgramReplaced { below } => {
                table.outdated_below = table.outdated_below.max(Some(below));
                for (_, running) in table.children.iter().filter(|(child, _)| **child < below) {
                    running.outdated.cancel();
                }
                return Ok(());
            }
            Reply::Stopping { .. } => return Ok(()),
            Reply::Goodbye { reason } => return Err(reason.code().to_owned()),
            Reply::Welcome { .. } | Reply::Spawned { .. } => return Err("a second Welcome".to_owned()),
        };
        // Nobody waits: it was a `Stop` of a child that had just ended, or whoever asked has given up.
        if let Some(waiting) = table.answers.remove(&ticket) {
            let _ = waiting.send(answer);
        }
        Ok(())
    }
}

fn note(contact: &watch::Sender<Contact>, now: Contact) {
    contact.send_if_modified(|contact| std::mem::replace(contact, now) != now);
}

async fn write(socket: &Socket, mut requests: mpsc::UnboundedReceiver<Request>) -> String {
    while let Some(request) = requests.recv().await {
        let sent = match codec::encode(&request) {
            Ok(frame) => socket.send(&frame, &[]).await.map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(reason) = sent {
            return reason;
        }
    }
    "nobody asks any more".to_owned()
}

/// A child that has come and that nobody has taken yet; stopped when dropped.
#[derive(Debug)]
struct Arrival {
    pipes: Option<[OwnedFd; 3]>,
    ended: Option<oneshot::Receiver<Ended>>,
    stopper: Option<ChildStopper>,
    outdated: CancellationToken,
    pid: u32,
    uid: u32,
}

impl Arrival {
    fn unpack(mut self) -> Result<Backend, SpawnError> {
        let Some([stdin, stdout, stderr]) = self.pipes.take() else { return Err(SpawnError::Unreachable) };
        let wrapped = (|| {
            let stdin = pipe::Sender::from_owned_fd(stdin)?;
            let stdout = pipe::Receiver::from_owned_fd(stdout)?;
            Ok::<_, std::io::Error>((stdin, stdout, pipe::Receiver::from_owned_fd(stderr)?))
        })();
        match (wrapped, self.ended.take()) {
            (Ok((stdin, stdout, stderr)), Some(ended)) => {
                let Some(stopper) = self.stopper.take() else { return Err(SpawnError::Unreachable) };
                Ok(Backend {
                    stdin: Arc::new(stdin),
                    stdout: Box::pin(stdout),
                    stderr: Box::pin(stderr),
                    ended,
                    leaving: stopper.link.leaving.clone(),
                    outdated: self.outdated.clone(),
                    stopper: Box::new(stopper),
                    pid: self.pid,
                    uid: self.uid,
                })
            }
            (Err(error), _) => {
                tracing::error!(child_pid = self.pid, %error, "what came with a child are no pipes");
                Err(SpawnError::Unreachable)
            }
            (Ok(_), None) => Err(SpawnError::Unreachable),
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // The supervisor expects standard input to be closed when it is asked to stop a child.
        drop(self.pipes.take());
        if let Some(stopper) = self.stopper.take() {
            stopper.stop();
        }
    }
}

#[derive(Debug)]
struct ChildStopper {
    link: Arc<Link>,
    child: ChildId,
    asked: AtomicBool,
}

impl Stopper for ChildStopper {
    fn stop(&self) {
        if !self.asked.swap(true, Ordering::Relaxed) {
            // A connection that is lost has stopped the child already.
            let _ = self.link.outbox.send(Request::Stop { ticket: self.link.next_ticket(), child: self.child });
        }
    }
}

/// No code panics while it holds one of these locks, so a poisoned one is as good as any.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
