//! One running child and the traffic with it.
//!
//! Three tasks a child: one reads its standard output and routes what it says, one drains its standard error into the
//! log, one feeds its standard input what did not fit at once. A request costs a place among those in flight, one entry
//! in the table and one line on the pipe; no task is started for it. Everything that comes out of the child is redacted
//! before it is looked at, and capped.

mod inlet;
mod stderr;
mod toolbox;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Mutex as TurnMutex, Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, info, warn};

use self::inlet::Inlet;
use self::toolbox::Toolbox;
use super::calls::{Calls, Entry, Event, Route};
use super::lines::{LineError, Lines, Overlong};
use super::listener::Listener;
use super::redact::Redactor;
use super::spawner::{Backend, Ended, ReadEnd, Stopper};
use crate::clock::UnixTime;
use crate::frontend::jsonrpc::{Message, RawId, Spliced};
use crate::frontend::principal::Principal;
use crate::ipc::message::Exit;
use crate::limits::{MAX_IN_FLIGHT, MAX_STREAM_BACKLOG};
use crate::secret::UpstreamToken;

/// How long after the end of its output a child's exit status is waited for, and the other way round.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the bridge needs to know besides the backend.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Bytes in one line of the child.
    pub max_line: usize,
    /// Where its numbers start, see [`Calls::new`].
    pub first_number: u64,
    /// When the token that it was given ends, where it does.
    pub token_ends: Option<UnixTime>,
    /// The log's context.
    pub span: Span,
}

/// How a bridge came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The child ended on its own.
    Exited(Exit),
    /// The child ended its output, or broke the rules, and was stopped for it.
    Misbehaved(&'static str),
    /// The broker stopped it.
    Stopped,
    /// The supervisor is gone, and the child with it.
    SupervisorLost,
}

impl Outcome {
    /// Whether the child is to blame, so that its session ends with it.
    pub const fn is_childs_doing(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Misbehaved(_))
    }

    /// What the client of a pending request is told.
    pub fn explain(self) -> String {
        match self {
            Self::Exited(exit) => format!("the forgejo-mcp process ended ({exit}) before it answered"),
            Self::Misbehaved(what) => format!("the forgejo-mcp process was stopped: {what}"),
            Self::Stopped => "the forgejo-mcp process was stopped before it answered".to_owned(),
            Self::SupervisorLost => "the supervisor of the forgejo-mcp process is gone; try again".to_owned(),
        }
    }
}

/// The bridge is closed; its outcome says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the child is gone")]
pub struct Closed;

/// A request on its way: what the client gets, and the number to give it up by.
#[derive(Debug)]
pub struct Pending {
    /// The broker's number of the request.
    pub number: u64,
    /// Ends after [`Event::Answer`] or [`Event::Cancelled`]; without either when the stream was dropped.
    pub events: mpsc::Receiver<Event>,
}

/// A running child. Dropping the last handle stops it.
#[derive(Debug)]
pub struct Bridge {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    outcome: watch::Receiver<Option<Outcome>>,
    /// Its `serverInfo.name`, once it has answered `initialize`.
    program: OnceLock<Box<str>>,
    toolbox: TurnMutex<Toolbox>,
    token_ends: Option<UnixTime>,
    /// The process, for the log and the operator only.
    pub pid: u32,
}

struct Shared {
    calls: Mutex<Calls>,
    listener: Arc<Listener>,
    redactor: Redactor,
    stopper: Box<dyn Stopper>,
    stop: CancellationToken,
    inlet: Inlet,
    tail: stderr::Tail,
    /// Rung when nothing is in flight any more.
    quiet: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Bridge {
    /// Takes over a backend.
    pub fn start(backend: Backend, token: &UpstreamToken, listener: Arc<Listener>, terms: &Terms) -> Self {
        let Backend { stdin, stdout, stderr, ended, stopper, pid, .. } = backend;
        let (tell, outcome) = watch::channel(None);
        let shared = Arc::new(Shared {
            calls: Mutex::new(Calls::new(terms.first_number, Instant::now())),
            listener,
            redactor: Redactor::new(token),
            stopper,
            stop: CancellationToken::new(),
            inlet: Inlet::new(stdin),
            tail: stderr::Tail::default(),
            quiet: Notify::new(),
        });
        let span = terms.span.clone();
        let feeding = Arc::clone(&shared);
        tokio::spawn(async move { feeding.inlet.feed(&feeding.stop).await }.instrument(span.clone()));
        let errors = tokio::spawn(stderr::drain(stderr, Arc::clone(&shared)).instrument(span.clone()));
        let reader = Reader { shared: Arc::clone(&shared) };
        tokio::spawn(reader.keep(stdout, ended, errors, terms.max_line, tell).instrument(span));
        let places = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let (program, toolbox) = (OnceLock::new(), TurnMutex::default());
        Self { shared, places, outcome, program, toolbox, token_ends: terms.token_ends, pid }
    }

    /// Whether the caller has a newer token of Forgejo's than the child was given.
    pub fn is_outdated(&self, caller: &Principal) -> bool {
        caller.upstream_ends > self.token_ends
    }

    /// Notes what the child calls itself; the first time counts.
    pub fn introduce(&self, program: &str) {
        let _ = self.program.set(program.into());
    }

    /// What the child calls itself (`serverInfo.name`).
    pub fn program(&self) -> &str {
        self.program.get().map_or("", |program| program)
    }

    /// Sends a request; waits for a place among those in flight and for the child to read.
    pub async fn request(&self, request: &Message, id: RawId, takes_notes: bool) -> Result<Pending, Closed> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Closed)?;
        // A place on the pipe first: once the request is in the table it is on the pipe too, whatever becomes of the
        // caller in between.
        let slot = self.shared.inlet.slot().await.ok_or(Closed)?;
        let (to, events) = mpsc::channel(MAX_STREAM_BACKLOG);
        let (number, line) = {
            let mut calls = self.shared.calls.lock();
            if self.outcome.borrow().is_some() {
                return Err(Closed);
            }
            calls.enter(request, id, Entry { to, takes_notes, place }, Instant::now())
        };
        self.shared.inlet.send(line, slot);
        Ok(Pending { number, events })
    }

    /// Sends a client's notification. A cancellation is renumbered; one that names nothing in flight goes nowhere.
    pub async fn notify(&self, notification: &Message) -> Result<(), Closed> {
        let line = if notification.method() == Some("notifications/cancelled") {
            match self.shared.calls.lock().cancel(notification) {
                Some(line) => line,
                None => return Ok(()),
            }
        } else {
            Spliced::whole(notification.text().clone())
        };
        self.write(line).await
    }

    async fn write(&self, line: Spliced) -> Result<(), Closed> {
        let slot = self.shared.inlet.slot().await.ok_or(Closed)?;
        self.shared.inlet.send(line, slot);
        Ok(())
    }

    /// Sends a client's answer to a request of the child; `false` where the child asked nothing of the kind.
    pub async fn answer(&self, response: &Message) -> Result<bool, Closed> {
        let line = self.shared.calls.lock().answer(response);
        match line {
            Some(line) => self.write(line).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Gives up on a request and tells the child so.
    pub fn abandon(&self, number: u64, why: &'static str) {
        let line = self.shared.calls.lock().abandon(number, why);
        self.shared.ring_if_quiet();
        if let Some(line) = line {
            // A child that does not read is not told; the answer it may still give is dropped.
            self.shared.inlet.try_send(line);
        }
    }

    /// Gives up on all requests older than `deadline`.
    pub fn expire(&self, deadline: Duration) {
        let lines = self.shared.calls.lock().expire(deadline, Instant::now());
        self.shared.ring_if_quiet();
        for line in lines {
            self.shared.inlet.try_send(line);
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.shared.calls.lock().in_flight()
    }

    /// Resolves when nothing is in flight.
    pub async fn quiet(&self) {
        loop {
            // Made before the look, so that an answer in between is not missed.
            let rung = self.shared.quiet.notified();
            if self.in_flight() == 0 {
                return;
            }
            rung.await;
        }
    }

    /// Since when nothing has been in flight; `None` while something is.
    pub fn idle_since(&self) -> Option<Instant> {
        let calls = self.shared.calls.lock();
        (calls.in_flight() == 0).then(|| calls.touched())
    }

    /// Closes the child's standard input and begins its stop ladder.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Resolves when the child is gone.
    pub async fn ended(&self) -> Outcome {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.unwrap_or(Outcome::SupervisorLost),
            Err(_) => Outcome::SupervisorLost,
        }
    }

    /// The end of what the child wrote on standard error, redacted.
    pub fn last_words(&self) -> String {
        self.shared.tail.text()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Shared {
    fn ring_if_quiet(&self) {
        if self.calls.lock().in_flight() == 0 {
            self.quiet.notify_waiters();
        }
    }

    fn stop(&self) {
        if !self.stop.is_cancelled() {
            self.stop.cancel();
            self.stopper.stop();
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    /// Reads the child until it is gone, then answers what is pending and tells the outcome, in this order.
    async fn keep(
        self,
        stdout: ReadEnd,
        mut ended: tokio::sync::oneshot::Receiver<Ended>,
        errors: tokio::task::JoinHandle<()>,
        max_line: usize,
        tell: watch::Sender<Option<Outcome>>,
    ) {
        let mut lines = Lines::new(stdout, max_line, Overlong::Fail);
        let mut exit = None;
        let misbehaved = loop {
            let line = tokio::select! {
                biased;
                line = lines.next() => line,
                end = &mut ended => {
                    exit = Some(end.unwrap_or(Ended::SupervisorLost));
                    // What it wrote before it ended is in the pipe; a descendant may hold the pipe open for ever.
                    let rest = async { while let Ok(Some(line)) = lines.next().await { self.route(line); } };
                    let _ = timeout(LAST_WORDS, rest).await;
                    break None;
                }
            };
            match line {
                Ok(Some(line)) => self.route(line),
                Ok(None) => break Some("it closed its output"),
                Err(LineError::TooLong(cap)) => {
                    warn!(cap, reason = "line-too-long", "the child wrote a line beyond the cap and is stopped");
                    break Some("it wrote a message beyond the size limit");
                }
                Err(error) => {
                    warn!(error = %error, "the child's output cannot be read; it is stopped");
                    break Some("its output could not be read");
                }
            }
        };
        let asked = self.shared.stop.is_cancelled();
        if exit.is_none() {
            exit = timeout(LAST_WORDS, &mut ended).await.ok().map(|end| end.unwrap_or(Ended::SupervisorLost));
        }
        // Its standard error explains the end; it is read out first, but not waited for without bound.
        let _ = timeout(LAST_WORDS, errors).await;
        let outcome = match (asked, exit, misbehaved) {
            (true, _, _) => Outcome::Stopped,
            (false, Some(Ended::SupervisorLost), _) => Outcome::SupervisorLost,
            (false, Some(Ended::Exit(exit)), None | Some("it closed its output")) => Outcome::Exited(exit),
            (false, _, Some(what)) => Outcome::Misbehaved(what),
            (false, None, None) => Outcome::Misbehaved("it closed its output"),
        };
        self.shared.stop();
        let failed = {
            // Under the lock, so that no request enters the table after it was emptied.
            let mut calls = self.shared.calls.lock();
            tell.send_replace(Some(outcome));
            calls.fail_all(&outcome.explain())
        };
        self.shared.ring_if_quiet();
        info!(outcome = ?outcome, failed_requests = failed, "child ended");
    }

    fn route(&self, line: Bytes) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let line = self.shared.redactor.clean(line);
        let (route, quiet) = {
            let mut calls = self.shared.calls.lock();
            (calls.from_child(line, Instant::now()), calls.in_flight() == 0)
        };
        if quiet {
            self.shared.quiet.notify_waiters();
        }
        match route {
            Route::Delivered => {}
            Route::Listener(message) => self.shared.listener.send(message),
            // Not awaited: a child that floods pings without reading must not stop its own reader.
            Route::Child(message) => self.shared.inlet.try_send(message),
            Route::Dropped(reason) => debug!(reason, "a message of the child was dropped"),
        }
    }
}
