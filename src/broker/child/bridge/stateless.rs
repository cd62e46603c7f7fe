//! A bridge's side towards clients without a session (revision 2026-07-28).

use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{Bridge, Pending, SendError, Shared};
use crate::child::calls::form::Form;
use crate::child::calls::stateless::{ListenRefused, Resumed};
use crate::child::calls::{Ending, Event, Mode, Question, Stateless};
use crate::child::era::{ChildEra, Server};
use crate::child::listens::{Filter, Heard};
use crate::child::log_level::LogLevel;
use crate::child::parked::{About, Brought, RequestState, Waiting, input_required};
use crate::jsonrpc::{self, Message, RawId, Spliced, code};

/// A stateless request that the child has not answered. Dropped, it is cancelled: its client has hung up (basic/transports,
/// streamable HTTP, section Cancellation), and the child must hear of it (stdio, section Cancellation).
#[derive(Debug)]
pub(super) struct OpenRequest {
    shared: Weak<Shared>,
    number: u64,
    id: RawId,
    about: About,
    is_over: bool,
}

impl OpenRequest {
    pub(super) fn new(shared: &Arc<Shared>, number: u64, id: RawId, about: About) -> Self {
        Self { shared: Arc::downgrade(shared), number, id, about, is_over: false }
    }

    /// It has its answer.
    pub(super) fn close(mut self) {
        self.is_over = true;
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade().filter(|_| !self.is_over) else { return };
        let line = shared.calls.lock().abandon(self.number, Instant::now());
        shared.notify_if_quiet();
        if let Some(line) = line {
            // A child that does not read is not told; the answer it may still give is dropped.
            shared.stdin.try_send(line);
        }
    }
}

impl Pending {
    /// One whose only event is this answer.
    pub(crate) fn answered(answer: Spliced, ending: Ending) -> Self {
        let (to, events) = mpsc::channel(1);
        let _ = to.try_send(Event::Answer(answer, ending));
        Self { events, open: None }
    }

    /// The child asks: its client gets the question, and the request waits.
    pub(super) fn ask(&mut self, question: Question) -> Option<Event> {
        let mut open = self.open.take()?;
        let shared = open.shared.upgrade()?;
        let Ok(state) = RequestState::mint(&mut rand::rngs::SysRng) else {
            let text = jsonrpc::error_text(Some(&open.id), code::INTERNAL_ERROR, "the broker has no random bytes");
            return Some(Event::Gone(Spliced::whole(text)));
        };
        let answer = input_required(&open.id, &question, &state);
        let until = shared.calls.lock().park(open.number, Instant::now());
        let events = std::mem::replace(&mut self.events, mpsc::channel(1).1);
        let about = open.about.clone();
        open.is_over = false;
        let waiting = Waiting { pending: Self { events, open: Some(open) }, question, about, until };
        shared.parked.lock().insert(state, waiting);
        Some(Event::Answer(answer, Ending::Result))
    }
}

/// A listen as its client hears it. Dropped, it is over.
#[derive(Debug)]
pub(crate) struct Listening {
    heard: mpsc::Receiver<Heard>,
    shared: Weak<Shared>,
    number: u64,
}

impl Listening {
    /// What comes next; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let lines = shared.calls.lock().stop_listening(self.number);
        for line in lines {
            shared.stdin.try_send(line);
        }
    }
}

impl Bridge {
    /// Notes what the child speaks; the first time counts.
    pub(crate) fn speaks(&self, server: Server) {
        let name = serde_json::from_str::<serde_json::Value>(server.info.get()).unwrap_or_default();
        self.set_program(name.get("name").and_then(serde_json::Value::as_str).unwrap_or_default());
        let mode = match server.era {
            ChildEra::Session => Mode::Translation,
            ChildEra::Stateless => Mode::Relay,
        };
        self.shared.calls.lock().set_mode(mode);
        let _ = self.server.set(server);
    }

    /// What the child has said of itself, if it serves stateless requests.
    pub(crate) fn server(&self) -> Option<&Server> {
        self.server.get()
    }

    /// Whether stateless requests go to it as they are.
    pub(crate) fn relays(&self) -> bool {
        self.server().is_some_and(|server| server.era == ChildEra::Stateless)
    }

    /// Whether it knows what its successor could not.
    pub(crate) fn holds_state(&self) -> bool {
        self.shared.calls.lock().holds_state(Instant::now())
    }

    /// Resolves when no task keeps the child any more.
    pub(crate) async fn tasks_over(&self) {
        loop {
            let answered = self.shared.quiet.notified();
            let until = self.shared.calls.lock().kept_until();
            let Some(until) = until.filter(|until| Instant::now() < *until) else { return };
            tokio::select! {
                () = answered => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// As [`Bridge::request`], for a client without a session, which has hung up when the outcome is dropped.
    pub(crate) async fn request_stateless(
        &self,
        request: &Message,
        id: RawId,
        form: Form,
        stateless: Stateless,
        deadline: Instant,
    ) -> Result<Pending, SendError> {
        self.enter(request, id, form, Some(Box::new(stateless)), deadline).await
    }

    /// Has the child log from this level on.
    pub(crate) async fn log_from(&self, level: LogLevel, deadline: Instant) -> Result<(), SendError> {
        let line = self.shared.calls.lock().log_level(level);
        self.write(line, deadline).await
    }

    /// Whether a request waits with this state.
    pub(crate) fn knows(&self, state: &RequestState) -> bool {
        self.shared.parked.lock().knows(state)
    }

    /// A request of the same client brings what another one waits for, which goes on for it; `None` where nothing waits
    /// with that state for such a request. What is missing is asked for again.
    pub(crate) async fn resume(
        &self,
        request: &Message,
        id: RawId,
        brought: &Brought,
        entry: Resumed,
    ) -> Option<Result<Pending, SendError>> {
        let Waiting { mut pending, question, .. } =
            self.shared.parked.lock().take(brought.state.as_ref()?, &About::of(request))?;
        let number = pending.open.as_ref()?.number;
        let Some(result) = brought.answer(&question) else {
            if let Some(open) = &mut pending.open {
                open.id = id;
            }
            return match pending.ask(question) {
                Some(Event::Answer(answer, ending)) => Some(Ok(Pending::answered(answer, ending))),
                _ => None,
            };
        };
        let deadline = entry.deadline;
        let resumed = self.shared.calls.lock().resume(number, question.number, request, id.clone(), entry, result);
        let (is_open, line) = resumed;
        if !is_open {
            return pending.with_id(id.json().clone()).map(Ok);
        }
        if let Some(open) = &mut pending.open {
            open.id = id;
        }
        if let Some(line) = line
            && let Err(error) = self.write(line, deadline).await
        {
            return Some(Err(error));
        }
        Some(Ok(pending))
    }

    /// Opens a listen; with a filter, the broker keeps it for a child that knows of none. The lines that tell the child go
    /// out in order, by `deadline`.
    pub(crate) async fn listen(
        &self,
        request: &Message,
        id: RawId,
        filter: Option<Filter>,
        deadline: Instant,
    ) -> Result<Result<Listening, SendError>, ListenRefused> {
        let (number, heard, lines) = self.shared.calls.lock().listen(request, id, filter)?;
        let listening = Listening { heard, shared: Arc::downgrade(&self.shared), number };
        for line in lines {
            if let Err(error) = self.write(line, deadline).await {
                return Ok(Err(error));
            }
        }
        Ok(Ok(listening))
    }
}

impl Pending {
    /// What has come of a request while it waited, for a request with another id.
    fn with_id(mut self, id: Bytes) -> Option<Self> {
        loop {
            match self.events.try_recv().ok()? {
                Event::Answer(text, ending) => {
                    let message = Message::parse(text.to_bytes()).ok()?;
                    return Some(Self::answered(message.edited(Some(id), Vec::new()), ending));
                }
                Event::Gone(text) => {
                    let message = Message::parse(text.to_bytes()).ok()?;
                    return Some(Self::answered(message.edited(Some(id), Vec::new()), Ending::Error(None)));
                }
                Event::Note(_) | Event::Ask(_) | Event::Silence(_) => {}
                Event::Cancelled | Event::TimedOut => return None,
            }
        }
    }
}
