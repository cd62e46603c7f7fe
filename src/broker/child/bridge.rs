//! One running child and the traffic with it.
//!
//! Three tasks a child: one reads its standard output and routes what it says, one drains its standard error into the
//! log, one feeds its standard input what did not fit at once. A request costs a permit among those in flight, one entry
//! in the table and one line on the pipe; no task is started for it. Everything that comes out of the child is redacted
//! before it is looked at, and capped.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, info, warn};

use crate::child::calls::{Calls, Event, InFlight, Route};
use crate::child::get_stream::GetStream;
use crate::child::get_stream::MAX_STREAM_BACKLOG;
use crate::child::lines::{LineError, Lines, Overlong};
use crate::child::redact::Redactor;
use crate::child::spawner::{Backend, Ended, ReadEnd, Stopper};
use crate::child::stderr;
use crate::child::stdin::StdinWriter;
use crate::jsonrpc::{Message, RawId, Spliced};
use wire::clock::UnixTime;
use wire::message::Exit;
use wire::secret::UpstreamToken;

/// Requests of one session that a child may hold unanswered. `forgejo-mcp` works on five at once and queues the rest.
pub(crate) const MAX_IN_FLIGHT: usize = 64;

/// How long after the end of its output a child's exit status is waited for, and the other way round.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// What the bridge needs to know besides the backend.
#[derive(Debug, Clone)]
pub(crate) struct BridgeConfig {
    /// Bytes in one line of the child.
    pub(crate) max_line: usize,
    /// Where its numbers start, see [`Calls::new`].
    pub(crate) first_number: u64,
    /// When the token that it was given ends, where it does.
    pub(crate) token_ends: Option<UnixTime>,
    /// The log's context.
    pub(crate) span: Span,
}

/// How a bridge came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
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
    pub(crate) const fn is_childs_doing(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Misbehaved(_))
    }

    /// What the client of a pending request is told.
    pub(crate) fn explain(self) -> String {
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
pub(crate) struct Closed;

/// A request on its way: what the client gets, and the number to give it up by.
#[derive(Debug)]
pub(crate) struct Pending {
    /// The broker's number of the request.
    pub(crate) number: u64,
    /// Ends after [`Event::Answer`] or [`Event::Cancelled`]; without either when the stream was dropped.
    pub(crate) events: mpsc::Receiver<Event>,
}

/// A running child. Dropping the last handle stops it.
#[derive(Debug)]
pub(crate) struct Bridge {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    outcome: watch::Receiver<Option<Outcome>>,
    /// Its `serverInfo.name`, once it has answered `initialize`.
    program: OnceLock<Box<str>>,
    token_ends: Option<UnixTime>,
    /// The process, for the log and the operator only.
    pub(crate) pid: u32,
}

pub(crate) struct Shared {
    calls: Mutex<Calls>,
    get_stream: Arc<GetStream>,
    pub(crate) redactor: Redactor,
    stopper: Box<dyn Stopper>,
    stop: CancellationToken,
    stdin: StdinWriter,
    pub(crate) tail: stderr::Tail,
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
    pub(crate) fn start(
        backend: Backend,
        token: &UpstreamToken,
        get_stream: Arc<GetStream>,
        config: &BridgeConfig,
    ) -> Self {
        let Backend { stdin, stdout, stderr, ended, stopper, pid, .. } = backend;
        let (tell, outcome) = watch::channel(None);
        let shared = Arc::new(Shared {
            calls: Mutex::new(Calls::new(config.first_number, Instant::now())),
            get_stream,
            redactor: Redactor::new(token),
            stopper,
            stop: CancellationToken::new(),
            stdin: StdinWriter::new(stdin),
            tail: stderr::Tail::default(),
            quiet: Notify::new(),
        });
        let span = config.span.clone();
        let feeding = Arc::clone(&shared);
        tokio::spawn(async move { feeding.stdin.feed(&feeding.stop).await }.instrument(span.clone()));
        let errors = tokio::spawn(stderr::drain(stderr, Arc::clone(&shared)).instrument(span.clone()));
        let reader = Reader { shared: Arc::clone(&shared) };
        tokio::spawn(reader.keep(stdout, ended, errors, config.max_line, tell).instrument(span));
        let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let program = OnceLock::new();
        Self { shared, permits, outcome, program, token_ends: config.token_ends, pid }
    }

    /// When the token that the child was given ends, where it does.
    pub(crate) fn token_ends(&self) -> Option<UnixTime> {
        self.token_ends
    }

    /// How often the child has said that its tools have changed.
    pub(crate) fn tools_changed(&self) -> u64 {
        self.shared.calls.lock().tools_changed()
    }

    /// Notes what the child calls itself; the first time counts.
    pub(crate) fn set_program(&self, program: &str) {
        let _ = self.program.set(program.into());
    }

    /// What the child calls itself (`serverInfo.name`).
    pub(crate) fn program(&self) -> &str {
        self.program.get().map_or("", |program| program)
    }

    /// Sends a request; waits for a permit among those in flight and for the child to read.
    pub(crate) async fn request(&self, request: &Message, id: RawId, takes_notes: bool) -> Result<Pending, Closed> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Closed)?;
        // Room on the pipe first: once the request is in the table it is on the pipe too, whatever becomes of the
        // caller in between.
        let slot = self.shared.stdin.slot().await.ok_or(Closed)?;
        let (to, events) = mpsc::channel(MAX_STREAM_BACKLOG);
        let (number, line) = {
            let mut calls = self.shared.calls.lock();
            if self.outcome.borrow().is_some() {
                return Err(Closed);
            }
            calls.enter(request, id, InFlight { to, takes_notes, permit }, Instant::now())
        };
        self.shared.stdin.send(line, slot);
        Ok(Pending { number, events })
    }

    /// Sends a client's notification. A cancellation is renumbered; one that names nothing in flight goes nowhere.
    pub(crate) async fn notify(&self, notification: &Message) -> Result<(), Closed> {
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
        let slot = self.shared.stdin.slot().await.ok_or(Closed)?;
        self.shared.stdin.send(line, slot);
        Ok(())
    }

    /// Sends a client's answer to a request of the child; `false` where the child asked nothing of the kind.
    pub(crate) async fn answer(&self, response: &Message) -> Result<bool, Closed> {
        let line = self.shared.calls.lock().answer(response);
        match line {
            Some(line) => self.write(line).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Gives up on a request and tells the child so.
    pub(crate) fn abandon(&self, number: u64, why: &'static str) {
        let line = self.shared.calls.lock().abandon(number, why);
        self.shared.notify_if_quiet();
        if let Some(line) = line {
            // A child that does not read is not told; the answer it may still give is dropped.
            self.shared.stdin.try_send(line);
        }
    }

    /// Gives up on all requests older than `deadline`.
    pub(crate) fn expire(&self, deadline: Duration) {
        let lines = self.shared.calls.lock().expire(deadline, Instant::now());
        self.shared.notify_if_quiet();
        for line in lines {
            self.shared.stdin.try_send(line);
        }
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.calls.lock().in_flight()
    }

    /// Resolves when nothing is in flight.
    pub(crate) async fn quiet(&self) {
        loop {
            // Made before the look, so that an answer in between is not missed.
            let notified = self.shared.quiet.notified();
            if self.in_flight() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Since when nothing has been in flight; `None` while something is.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let calls = self.shared.calls.lock();
        (calls.in_flight() == 0).then(|| calls.touched())
    }

    /// Closes the child's standard input and begins its stop ladder.
    pub(crate) fn stop(&self) {
        self.shared.stop();
    }

    /// Resolves when the child is gone.
    pub(crate) async fn ended(&self) -> Outcome {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.unwrap_or(Outcome::SupervisorLost),
            Err(_) => Outcome::SupervisorLost,
        }
    }

    /// The end of what the child wrote on standard error, redacted.
    pub(crate) fn last_words(&self) -> String {
        self.shared.tail.text()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Shared {
    fn notify_if_quiet(&self) {
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
                    let _ = timeout(EXIT_GRACE, rest).await;
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
            exit = timeout(EXIT_GRACE, &mut ended).await.ok().map(|end| end.unwrap_or(Ended::SupervisorLost));
        }
        // Its standard error explains the end; it is read out first, but not waited for without bound.
        let _ = timeout(EXIT_GRACE, errors).await;
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
        self.shared.notify_if_quiet();
        info!(outcome = ?outcome, failed_requests = failed, "child ended");
    }

    fn route(&self, line: Bytes) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let line = self.shared.redactor.clean(line);
        let (route, quiet) = {
            let mut calls = self.shared.calls.lock();
            (calls.route(line, Instant::now()), calls.in_flight() == 0)
        };
        if quiet {
            self.shared.quiet.notify_waiters();
        }
        match route {
            Route::Delivered => {}
            Route::GetStream(message) => self.shared.get_stream.send(message),
            // Not awaited: a child that floods pings without reading must not stop its own reader.
            Route::Child(message) => self.shared.stdin.try_send(message),
            Route::Dropped(reason) => debug!(reason, "a message of the child was dropped"),
        }
    }
}
