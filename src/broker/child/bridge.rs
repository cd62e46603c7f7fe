//! One running child and the traffic with it.
//!
//! Three tasks a child: one reads its standard output and routes what it says, one drains its standard error into the
//! log, one feeds its standard input what did not fit at once. A request costs a permit among those in flight, one entry
//! in the table and one line on the pipe; no task is started for it. Everything that comes out of the child is redacted
//! before it is looked at, and capped.

pub(crate) mod stateless;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::budget::Budget;
use crate::child::abilities::Abilities;
use crate::child::activity::Activity;
use crate::child::bridge::stateless::OpenRequest;
use crate::child::calls::form::Form;
use crate::child::calls::{Calls, Event, InFlight, Mode, Stateless};
use crate::child::era::Server;
use crate::child::get_stream::GetStream;
use crate::child::get_stream::MAX_STREAM_BACKLOG;
use crate::child::listed::Listed;
use crate::child::parked::{About, Parked};
use crate::child::redact::Redactor;
use crate::child::spawner::{Backend, Stopper};
use crate::child::stdin::{Slot, StdinWriter};
use crate::child::{stderr, stdout};
use crate::jsonrpc::{Message, RawId, Spliced};
use wire::clock::UnixTime;
use wire::ending::Ending;
use wire::secret::UpstreamToken;

/// Requests of one session that a child may hold unanswered. `forgejo-mcp` works on five at once and queues the rest.
pub(crate) const MAX_IN_FLIGHT: usize = 64;

/// What the bridge needs to know besides the backend.
#[derive(Debug, Clone)]
pub(crate) struct BridgeConfig {
    /// Whose requests it will serve.
    pub(crate) mode: Mode,
    /// Bytes in one line of the child.
    pub(crate) max_line: usize,
    /// Where its numbers start, see [`Calls::new`].
    pub(crate) first_number: u64,
    /// When the token that it was given ends, where it does.
    pub(crate) token_ends: Option<UnixTime>,
    /// How long a client may take to answer a request of the child.
    pub(crate) ask_timeout: Duration,
    /// Of the child's user: what it writes is held against it.
    pub(crate) budget: Budget,
    /// Shared by all children.
    pub(crate) activity: Arc<Activity>,
    /// The log's context.
    pub(crate) span: Span,
}

/// How a bridge came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The child ended on its own.
    Exited(Ending),
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

    /// The stable name that the log and the metrics use.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Exited(_) => "exited",
            Self::Misbehaved(_) => "misbehaved",
            Self::Stopped => "stopped",
            Self::SupervisorLost => "supervisor-lost",
        }
    }

    /// What the client of a pending request is told.
    pub(crate) fn explain(self) -> String {
        match self {
            Self::Exited(ending) => format!("the forgejo-mcp process ended ({ending}) before it answered"),
            Self::Misbehaved(what) => format!("the forgejo-mcp process was stopped: {what}"),
            Self::Stopped => "the forgejo-mcp process was stopped before it answered".to_owned(),
            Self::SupervisorLost => "the supervisor of the forgejo-mcp process is gone; try again".to_owned(),
        }
    }
}

/// Why a message did not go to the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The child is being stopped or gone; its outcome says why.
    #[error("the child is gone")]
    Closed,
    /// It had too much to do to take the message before the deadline.
    #[error("the forgejo-mcp process has too much to do to take the request in time")]
    Deadline,
}

/// A request on its way: what the client gets.
#[derive(Debug)]
pub(crate) struct Pending {
    events: mpsc::Receiver<Event>,
    /// Of a stateless request, which is cancelled when this is dropped before its end.
    open: Option<OpenRequest>,
}

impl Pending {
    /// What comes next. Ends after [`Event::Answer`], [`Event::Gone`], [`Event::Cancelled`] or [`Event::TimedOut`]; without
    /// them when the client read too slowly.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        match event {
            Some(Event::Note(_) | Event::Silence(_)) => event,
            Some(Event::Ask(question)) => self.ask(question),
            ended => {
                if let Some(open) = self.open.take() {
                    open.close();
                }
                ended
            }
        }
    }
}

/// A running child. Dropping the last handle stops it.
#[derive(Debug)]
pub(crate) struct Bridge {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    outcome: watch::Receiver<Option<Outcome>>,
    /// Its `serverInfo.name`, once it has answered `initialize`.
    program: OnceLock<Box<str>>,
    /// What else it has said of itself, where it serves stateless requests.
    server: OnceLock<Server>,
    token_ends: Option<UnixTime>,
    /// The process, for the log and the operator only.
    pub(crate) pid: u32,
    /// Its uid, for the log only.
    pub(crate) uid: u32,
    /// The log's context.
    span: Span,
}

pub(crate) struct Shared {
    pub(crate) calls: Mutex<Calls>,
    /// Requests that wait for their client.
    pub(crate) parked: Mutex<Parked>,
    pub(crate) get_stream: Arc<GetStream>,
    pub(crate) redactor: Redactor,
    pub(crate) stopper: Box<dyn Stopper>,
    /// Cancelled when the supervisor has said that it stops: an end of the child from then on is its doing.
    pub(crate) leaving: CancellationToken,
    /// Cancelled when another program than the child's is installed.
    pub(crate) outdated: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) stdin: StdinWriter,
    pub(crate) tail: stderr::Tail,
    /// Rung when nothing is in flight any more.
    pub(crate) quiet: Notify,
    pub(crate) budget: Budget,
    pub(crate) activity: Arc<Activity>,
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
        let Backend { stdin, stdout, stderr, ended, leaving, outdated, stopper, pid, uid } = backend;
        let (tell, outcome) = watch::channel(None);
        let shared = Arc::new(Shared {
            calls: Mutex::new(Calls::new(
                config.first_number,
                config.mode,
                config.ask_timeout,
                Arc::clone(&config.activity),
                Instant::now(),
            )),
            parked: Mutex::default(),
            get_stream,
            redactor: Redactor::new(token),
            stopper,
            leaving,
            outdated,
            stop: CancellationToken::new(),
            stdin: StdinWriter::new(stdin),
            tail: stderr::Tail::default(),
            quiet: Notify::new(),
            budget: config.budget.clone(),
            activity: Arc::clone(&config.activity),
        });
        let span = config.span.clone();
        let feeding = Arc::clone(&shared);
        tokio::spawn(async move { feeding.stdin.feed(&feeding.stop).await }.instrument(span.clone()));
        let errors = tokio::spawn(stderr::drain(stderr, Arc::clone(&shared)).instrument(span.clone()));
        let reader = stdout::Reader::new(Arc::clone(&shared), config.max_line);
        tokio::spawn(reader.keep(stdout, ended, errors, tell).instrument(span));
        let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let (program, server) = (OnceLock::new(), OnceLock::new());
        let (token_ends, span) = (config.token_ends, config.span.clone());
        Self { shared, permits, outcome, program, server, token_ends, pid, uid, span }
    }

    /// What is logged of the child from now on names this session.
    pub(crate) fn serves(&self, session: &str) {
        self.span.record("session", session);
    }

    /// When the token that the child was given ends, where it does.
    pub(crate) fn token_ends(&self) -> Option<UnixTime> {
        self.token_ends
    }

    /// How often the child has said that its tools have changed.
    pub(crate) fn tools_changed(&self) -> u64 {
        self.shared.calls.lock().tools_changed()
    }

    /// The tools that the child was asked for last.
    pub(crate) fn listed(&self) -> Listed {
        self.shared.calls.lock().listed().clone()
    }

    /// Notes what the child calls itself; the first time counts.
    pub(crate) fn set_program(&self, program: &str) {
        let _ = self.program.set(program.into());
    }

    /// Notes what the session's client can be asked for.
    pub(crate) fn set_abilities(&self, abilities: Abilities) {
        self.shared.calls.lock().set_abilities(abilities);
    }

    /// What the child calls itself (`serverInfo.name`).
    pub(crate) fn program(&self) -> &str {
        self.program.get().map_or("", |program| program)
    }

    /// Sends a request; waits for a permit among those in flight and for the child to read, until `deadline`. At the
    /// deadline a request that was sent ends as well.
    pub(crate) async fn request(
        &self,
        request: &Message,
        id: RawId,
        form: Form,
        deadline: Instant,
    ) -> Result<Pending, SendError> {
        self.enter(request, id, form, None, deadline).await
    }

    async fn enter(
        &self,
        request: &Message,
        id: RawId,
        form: Form,
        stateless: Option<Box<Stateless>>,
        deadline: Instant,
    ) -> Result<Pending, SendError> {
        let now = (Arc::clone(&self.permits).try_acquire_owned(), self.shared.stdin.try_slot());
        // A slot on the pipe first: once the request is in the table it is on the pipe too, whatever becomes of the
        // caller in between.
        let (permit, slot) = match now {
            (Ok(permit), Some(slot)) => (permit, slot),
            _ => timeout_at(deadline, self.room()).await.map_err(|_| SendError::Deadline)?.ok_or(SendError::Closed)?,
        };
        let (to, events) = mpsc::channel(MAX_STREAM_BACKLOG);
        let about = stateless.as_ref().map(|_| (id.clone(), About::of(request)));
        let entry = InFlight { to, form, stateless, permit, deadline };
        let (number, line) = {
            let mut calls = self.shared.calls.lock();
            calls.enter(request, id, entry, Instant::now()).map_err(|_| SendError::Closed)?
        };
        let open = about.map(|(id, about)| OpenRequest::new(&self.shared, number, id, about));
        self.shared.stdin.send(line, slot);
        Ok(Pending { events, open })
    }

    /// Waits until there is room for one more request; `None` when the child takes none any more.
    async fn room(&self) -> Option<(OwnedSemaphorePermit, Slot)> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        Some((permit, self.shared.stdin.slot().await?))
    }

    /// Sends a client's notification. A cancellation is renumbered; one that names nothing in flight goes nowhere.
    pub(crate) async fn notify(&self, notification: &Message, deadline: Instant) -> Result<(), SendError> {
        let line = if notification.method() == Some("notifications/cancelled") {
            let line = self.shared.calls.lock().cancel(notification, Instant::now());
            self.shared.notify_if_quiet();
            match line {
                Some(line) => line,
                None => return Ok(()),
            }
        } else {
            Spliced::whole(notification.text().clone())
        };
        self.write(line, deadline).await
    }

    async fn write(&self, line: Spliced, deadline: Instant) -> Result<(), SendError> {
        let slot = if let Some(slot) = self.shared.stdin.try_slot() {
            slot
        } else {
            let waiting = timeout_at(deadline, self.shared.stdin.slot()).await;
            waiting.map_err(|_| SendError::Deadline)?.ok_or(SendError::Closed)?
        };
        self.shared.stdin.send(line, slot);
        Ok(())
    }

    /// Sends a client's answer to a request of the child; `false` where the child asked nothing of the kind.
    pub(crate) async fn answer(&self, response: &Message, deadline: Instant) -> Result<bool, SendError> {
        let line = self.shared.calls.lock().answer(response);
        match line {
            Some(line) => self.write(line, deadline).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// What the time brings: deadlines, and silence that clients are told of. Called once a second while anything is in
    /// flight anywhere.
    pub(crate) fn tick(&self) {
        let now = Instant::now();
        let lines = self.shared.calls.lock().tick(now, self.shared.get_stream.is_listened_to());
        let expired = self.shared.parked.lock().expired(now);
        drop(expired);
        self.shared.notify_if_quiet();
        for line in lines {
            // A child that does not read is not told; the answer it may still give is dropped.
            self.shared.stdin.try_send(line);
        }
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.calls.lock().in_flight()
    }

    /// Resolves when nothing is in flight.
    pub(crate) async fn quiet(&self) {
        self.until(|calls| calls.in_flight() == 0).await;
    }

    /// Resolves when no client waits any more for what was in flight when this was called; what came later does not
    /// count.
    pub(crate) async fn settled(&self) {
        let newest = self.shared.calls.lock().newest_number();
        self.until(|calls| !calls.is_awaited(newest)).await;
    }

    async fn until(&self, done: impl Fn(&Calls) -> bool) {
        loop {
            // Made before the look, so that an answer in between is not missed.
            let answered = self.shared.quiet.notified();
            if done(&self.shared.calls.lock()) {
                return;
            }
            answered.await;
        }
    }

    /// Since when nothing has been in flight; `None` while something is.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        self.shared.calls.lock().idle_since(Instant::now())
    }

    /// Takes no request any more, if none has been in flight since `since`; whether it takes none. Then it can be stopped
    /// without harm to anybody.
    pub(crate) fn close_if_idle(&self, since: Instant) -> bool {
        self.shared.calls.lock().close_if_idle(since, Instant::now())
    }

    /// Takes no request any more; what is in flight goes on.
    pub(crate) fn close(&self) {
        self.shared.calls.lock().close();
    }

    /// Resolves when the supervisor has said that it stops.
    pub(crate) async fn leaving(&self) {
        self.shared.leaving.cancelled().await;
    }

    /// Resolves when another program than the child's is installed.
    pub(crate) async fn outdated(&self) {
        self.shared.outdated.cancelled().await;
    }

    /// Whether another program than the child's is installed.
    pub(crate) fn is_outdated(&self) -> bool {
        self.shared.outdated.is_cancelled()
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
    /// Wakes those who wait for answers or for an idle child.
    pub(crate) fn notify_if_quiet(&self) {
        self.quiet.notify_waiters();
        if self.calls.lock().in_flight() == 0 {
            self.activity.became_idle();
        }
    }

    pub(crate) fn stop(&self) {
        if !self.stop.is_cancelled() {
            self.calls.lock().close();
            self.stop.cancel();
            self.stopper.stop();
        }
    }
}
