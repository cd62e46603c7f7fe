//! A child's standard output: read line by line, redacted, and routed to whoever waits for it.
//!
//! Nothing in it is trusted. What it costs in memory is held against the child's user; a child whose user has no memory
//! left is kept waiting, and stopped if that does not end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::budget::counted;
use crate::chain::chain;
use crate::child::bridge::{Outcome, Shared};
use crate::child::calls::Route;
use crate::child::lines::{Line, LineError, Lines};
use crate::child::misread::{Meant, Misread, Misreader};
use crate::child::overlong::Overlong;
use crate::child::pace::Pace;
use crate::child::spawner::{Ended, ReadEnd};
use wire::telemetry::message_id;

/// How long after the end of its output a child's exit status is waited for, and the other way round.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// How long a child that broke the rules may take to be gone. By then the supervisor has told of its own stop, if that is
/// what closed the pipes.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);

/// Reads one child's output.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    misreader: Misreader,
    /// The line that is being dropped, as long as nobody has been told.
    overlong: Option<Overlong>,
    pace: Pace,
    max_line: usize,
}

impl Reader {
    /// For the child of this bridge, whose lines have so many bytes at most.
    pub(crate) fn new(shared: Arc<Shared>, max_line: usize) -> Self {
        Self { shared, misreader: Misreader::default(), overlong: None, pace: Pace::default(), max_line }
    }

    /// Reads the child until it is gone, then answers what is pending and tells the outcome, in this order.
    pub(crate) async fn keep(
        mut self,
        stdout: ReadEnd,
        mut ended: tokio::sync::oneshot::Receiver<Ended>,
        errors: tokio::task::JoinHandle<()>,
        tell: watch::Sender<Option<Outcome>>,
    ) {
        let mut lines = Lines::counted(stdout, self.max_line, self.shared.budget.clone());
        let mut exit = None;
        let misbehaved = loop {
            let line = tokio::select! {
                biased;
                line = async { self.pace.turn().await; lines.next().await } => line,
                () = self.shared.stdin.broken() => {
                    warn!(reason = "input-closed", "the child closed its input and lives on; it is stopped");
                    break Some("it closed its input");
                }
                end = &mut ended => {
                    exit = Some(end.unwrap_or(Ended::SupervisorLost));
                    // What it wrote before it ended is in the pipe; a descendant may hold the pipe open for ever.
                    let rest = async { while let Ok(Some(line)) = lines.next().await { self.take(line); } };
                    let _ = timeout(EXIT_GRACE, rest).await;
                    break None;
                }
            };
            match line {
                Ok(Some(line)) => self.take(line),
                Ok(None) => break Some("it closed its output"),
                Err(error @ LineError::Endless) => {
                    warn!(reason = "endless-line", "the child is stopped: {error}");
                    break Some("it wrote a message without an end");
                }
                Err(error) => {
                    warn!(error = %error, "the child's output cannot be read; it is stopped: {}", chain(&error));
                    break Some("its output could not be read");
                }
            }
        };
        let asked = self.shared.stop.is_cancelled();
        if exit.is_none() {
            exit = timeout(EXIT_GRACE, &mut ended).await.ok().map(|end| end.unwrap_or(Ended::SupervisorLost));
        }
        // A busy supervisor that stops tells of each end late.
        let leaves = || self.shared.leaving.is_cancelled().then_some(Ended::SupervisorLost);
        exit = exit.or_else(leaves);
        let mut failed: usize = 0;
        if let (None, false, Some(what)) = (exit, asked, misbehaved) {
            // It lives on, or its end is told late: pipes close before a busy supervisor has said that it stops. Whose doing
            // it was decides over the session, and only the supervisor knows; whoever waits for an answer need not.
            self.shared.stop();
            failed = self.shared.calls.lock().fail_all(&Outcome::Misbehaved(what).explain());
            self.shared.notify_if_quiet();
            let told = timeout(STOPPED_WITHIN, &mut ended).await.map(|end| end.unwrap_or(Ended::SupervisorLost));
            // Any other end is that of the stop just asked for.
            let tells = |end: &Ended| {
                matches!(end, Ended::SupervisorLost) || matches!(end, Ended::Exit(ending) if ending.limit.is_some())
            };
            exit = told.ok().filter(tells).or_else(leaves);
        }
        // Its standard error explains the end; it is read out first, but not waited for without bound.
        let _ = timeout(EXIT_GRACE, errors).await;
        let outcome = match (asked, exit, misbehaved) {
            (true, _, _) => Outcome::Stopped,
            (false, Some(Ended::SupervisorLost), _) => Outcome::SupervisorLost,
            // Its pipes were closed by its own end, and nobody had stopped it.
            (false, Some(Ended::Exit(ending)), None | Some("it closed its output" | "it closed its input")) => {
                Outcome::Exited(ending)
            }
            // Its pipes closed because it was killed, and not the other way round.
            (false, Some(Ended::Exit(ending)), _) if ending.limit.is_some() => Outcome::Exited(ending),
            (false, _, Some(what)) => Outcome::Misbehaved(what),
            (false, None, None) => Outcome::Misbehaved("it closed its output"),
        };
        self.shared.stop();
        failed = failed.saturating_add({
            // Under the lock, so that no request enters the table after it was emptied.
            let mut calls = self.shared.calls.lock();
            tell.send_replace(Some(outcome));
            calls.fail_all(&outcome.explain())
        });
        self.shared.notify_if_quiet();
        let code = outcome.code();
        if outcome.is_childs_doing() {
            let why = outcome.explain();
            warn!(MESSAGE_ID = message_id::CHILD_GONE, reason = code, failed_requests = failed, "child ended: {why}");
        } else {
            info!(reason = code, failed_requests = failed, "child ended, as it was to ({code})");
        }
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Whole(line) => self.route(line),
            Line::Begun(head, why) => {
                let line = Overlong::begun(&head, why);
                match line.meant() {
                    Some(meant) => self.dropped(&line, meant),
                    None => self.overlong = Some(line),
                }
            }
            Line::Ended(tail) => {
                self.pace.note(self.max_line);
                if let Some(line) = self.overlong.take() {
                    self.dropped(&line, line.meant_by(&tail));
                }
            }
        }
    }

    /// A line that is not kept: tells it, and answers the request whose answer it was.
    fn dropped(&mut self, line: &Overlong, meant: Meant) {
        let failed = self.fail_meant(meant, &line.to_string());
        self.tell(line.code(), failed, None, &line.to_string());
    }

    fn fail_meant(&mut self, meant: Meant, message: &str) -> usize {
        let failed = self.shared.calls.lock().fail_meant(meant, message, Instant::now());
        self.shared.notify_if_quiet();
        failed
    }

    /// One line of the log in a while.
    fn tell(&mut self, reason: &'static str, failed: usize, bytes: Option<usize>, message: &str) {
        if let Some(left_out) = self.misreader.may_tell(Instant::now()) {
            let left_out = Some(left_out).filter(|count| *count > 0);
            warn!(
                MESSAGE_ID = message_id::CHILD_MISREAD,
                reason,
                bytes,
                failed_requests = failed,
                left_out,
                "{message}"
            );
        }
    }

    /// The line without the token. A copy that this makes is held against the budget like the line itself.
    fn redacted(&self, line: Bytes) -> Option<Bytes> {
        let before = line.as_ptr();
        let clean = self.shared.redactor.clean(line);
        if clean.as_ptr() == before {
            return Some(clean);
        }
        match self.shared.budget.hold(clean.len()) {
            Ok(held) => Some(counted(clean, held)),
            Err(over) => {
                warn!(error = %over, reason = "over-budget", "a message that repeats the token was dropped: {over}");
                None
            }
        }
    }

    /// A line, or several, that is no message: tells it, and answers the request that it was meant for.
    fn misread(&mut self, misread: Misread, bytes: usize) {
        let Misread { cause, meant, is_told } = misread;
        let message = format!("the forgejo-mcp process wrote what is no JSON-RPC message: {}", cause.words());
        let failed = self.fail_meant(meant, &message);
        if !is_told || failed > 0 {
            self.tell(cause.code(), failed, Some(bytes), &message);
        }
    }

    fn route(&mut self, line: Bytes) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let Some(line) = self.redacted(line) else { return };
        let length = line.len();
        // A second handle, in case that it is none.
        let route = self.shared.calls.lock().route(line.clone(), Instant::now());
        self.shared.notify_if_quiet();
        if let Some(misread) =
            if route == Route::NoMessage { self.misreader.look_at(&line) } else { self.misreader.well_read() }
        {
            self.misread(misread, length);
        }
        if route != Route::Answered {
            self.pace.note(length);
        }
        match route {
            Route::Answered | Route::Delivered | Route::Listens | Route::NoMessage => {}
            Route::GetStream(message) => self.shared.get_stream.send(message),
            Route::Listener(message) => self.shared.get_stream.send_to_listener(message),
            // Not awaited: a child that floods pings without reading must not stop its own reader.
            Route::Child(message) => self.shared.stdin.try_send(message),
            Route::Dropped(reason) => debug!(reason, "a message of the child was dropped"),
        }
    }
}
