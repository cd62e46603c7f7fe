//! What is different where the clients have no session (revision 2026-07-28).
//!
//! A message of the child belongs to one request or to those who listen, and where it cannot be told to which request, it
//! goes nowhere: another request may be of another conversation. A client that hangs up has cancelled its request. A client
//! is asked nothing directly: what the child asks becomes an answer of the request that it most likely belongs to, and the
//! request goes on when its client has come back with what was asked for.

use bytes::Bytes;
use serde::Deserialize;
use tokio::time::Instant;

use super::{Asked, Call, Calls, Event, MAX_ASKS, Mode, Question, Route, Stateless, deliver};
use crate::child::calls::form::Form;
use crate::child::calls::numbers::number_in;
use crate::child::calls::time::{FIRST_SILENCE, cancelled};
use crate::child::listens::{Filter, Heard, TooManyListens};
use crate::child::log_level::LogLevel;
use crate::jsonrpc::{self, Message, RawId, Spliced};

/// JSON-RPC's «method not found» (section 5.1).
const METHOD_NOT_FOUND: i32 = -32_601;

/// Why a listen was not entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenRefused {
    /// The child takes nothing any more.
    Closed,
    /// There are too many.
    TooMany(TooManyListens),
}

impl Calls {
    /// What the child turned out to speak.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Whether the child knows what its successor could not: an open task, or a call that waits for its client.
    pub(crate) fn holds_state(&self, now: Instant) -> bool {
        self.mode != Mode::Session && (self.tasks.any(now) || !self.asks.is_empty())
    }

    /// Until when a task keeps the child, if nothing more is heard of it.
    pub(crate) fn kept_until(&self) -> Option<Instant> {
        self.tasks.until()
    }

    /// A client has hung up: its request is cancelled. What the child is to be told, if the request was still open.
    pub(crate) fn abandon(&mut self, number: u64, now: Instant) -> Option<Spliced> {
        self.open.remove(&number)?;
        self.touched = now;
        Some(cancelled(number, "the client has hung up"))
    }

    /// A request that waits for what the child has asked for goes on for a request that brings it: whether it was still
    /// open, and the line with the answer to the child.
    pub(crate) fn resume(
        &mut self,
        number: u64,
        question: u64,
        request: &Message,
        id: RawId,
        entry: Resumed,
        result: &str,
    ) -> (bool, Option<Spliced>) {
        let call = self.open.get_mut(&number);
        let is_open = call.is_some();
        if let Some(call) = call {
            call.id = id;
            call.progress = request.asked_progress_token().map(|token| Bytes::copy_from_slice(&token));
            call.form = entry.form;
            call.silent_at = entry.now + FIRST_SILENCE;
            call.stateless = Some(Box::new(entry.stateless));
            call.deadline = entry.deadline;
        }
        let line = self.asks.remove(&question).map(|ask| {
            let id = String::from_utf8_lossy(ask.id.json()).into_owned();
            Spliced::whole(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#).into())
        });
        (is_open, line)
    }

    /// A request whose client was asked for something waits for it without being heard; until when.
    pub(crate) fn park(&mut self, number: u64, now: Instant) -> Instant {
        let until = now + self.ask_timeout;
        if let Some(call) = self.open.get_mut(&number) {
            call.form = Form::Json;
            // Nobody is there to be told of silence.
            call.silent_at = until;
            call.progress = None;
            call.deadline = until;
        }
        until
    }

    /// A line that sets the level of what the child logs, for a request that is about to be sent.
    pub(crate) fn log_level(&mut self, level: LogLevel) -> Spliced {
        let (number, level) = (self.number(), level.as_str());
        let text =
            format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"logging/setLevel","params":{{"level":"{level}"}}}}"#);
        Spliced::whole(text.into())
    }

    /// Enters a listen: its number, where it is heard, and the lines for the child. `filter` is what the broker keeps of it
    /// for a child that does not know of listens.
    pub(crate) fn listen(
        &mut self,
        request: &Message,
        id: RawId,
        filter: Option<Filter>,
    ) -> Result<(u64, tokio::sync::mpsc::Receiver<Heard>, Vec<Spliced>), ListenRefused> {
        if self.closed {
            return Err(ListenRefused::Closed);
        }
        let number = self.number();
        let relayed = filter.is_none().then(|| request.rewritten(Some(number.to_string().into()), None));
        let next = &mut self.next;
        let entered = self.listens.enter(number, id, filter, || {
            *next = next.wrapping_add(1);
            *next
        });
        let (heard, mut lines) = entered.map_err(ListenRefused::TooMany)?;
        lines.extend(relayed);
        Ok((number, heard, lines))
    }

    /// The client of a listen has hung up.
    pub(crate) fn stop_listening(&mut self, number: u64) -> Vec<Spliced> {
        let next = &mut self.next;
        self.listens.leave(number, || {
            *next = next.wrapping_add(1);
            *next
        })
    }

    /// The child ends a listen with the notification that one page of the revision wants (patterns/cancellation).
    pub(super) fn listen_cancelled(&mut self, number: &Bytes) -> Route {
        let ended = number_in(number).is_some_and(|number| self.listens.end(number));
        if ended { Route::Delivered } else { Route::Dropped("a cancellation of no listen") }
    }

    /// A request of the child.
    pub(super) fn asked(&mut self, message: &Message, id: &RawId, method: &str, now: Instant) -> Route {
        let asked = Asked::of(method, message.params()).filter(|_| self.mode == Mode::Translation);
        let target = asked.and_then(|asked| self.asked_client(asked));
        let Some(target) = target.filter(|_| self.asks.len() < MAX_ASKS) else {
            let text = jsonrpc::error_text(Some(id), METHOD_NOT_FOUND, "no client here can be asked for this");
            return Route::Child(Spliced::whole(text));
        };
        let number = self.number();
        let params = message.params().map(|text| message.text().slice_ref(text.as_bytes())).unwrap_or_default();
        let question = Question { number, method: method.into(), params };
        self.note_ask(number, id, now);
        match self.open.get_mut(&target).map(|call| call.to.try_send(Event::Ask(question))) {
            Some(Ok(())) => Route::Delivered,
            _ => Route::Dropped("a question to a client that reads too slowly"),
        }
    }

    /// The newest request whose client can be asked for it, a tool call where there is one: what the child's question most
    /// likely belongs to.
    fn asked_client(&self, asked: Asked) -> Option<u64> {
        let can = |call: &Call| call.stateless.as_ref().is_some_and(|stateless| stateless.abilities.allow(asked));
        let open = self.open.iter().filter(|(_, call)| can(call) && !call.to.is_closed());
        open.max_by_key(|(number, call)| (call.for_tool, **number)).map(|(&number, _)| number)
    }

    /// A notification of the child that is neither progress nor a cancellation.
    pub(super) fn told(&mut self, message: &Message, method: &str, now: Instant) -> Route {
        if method == "notifications/message" {
            return self.logged(message, now);
        }
        if self.mode == Mode::Relay {
            return if self.listens.tagged(message) {
                Route::Delivered
            } else {
                Route::Dropped("a notification that belongs to no request and no listen")
            };
        }
        self.listens.changed(message, method);
        Route::Listens
    }

    /// A line of the child's log, for the one request that wants it. A child of the session era logs for all that it has in
    /// flight, so there has to be only that one.
    fn logged(&mut self, message: &Message, now: Instant) -> Route {
        #[derive(Deserialize)]
        struct Logged {
            level: LogLevel,
        }
        let level =
            message.params().and_then(|text| serde_json::from_str::<Logged>(text).ok()).map(|logged| logged.level);
        let alone = self.mode == Mode::Relay || self.open.len() == 1;
        let wants = |call: &&mut Call| {
            let least = call.stateless.as_ref().and_then(|stateless| stateless.logs);
            call.form.takes_notes()
                && !call.to.is_closed()
                && least.is_some_and(|least| level.is_none_or(|level| level >= least))
        };
        let mut wanting = self.open.values_mut().filter(wants);
        match (wanting.next(), wanting.next()) {
            (Some(call), None) if alone => deliver(call, message.rewritten(None, None), now),
            (None, _) => Route::Dropped("a log message that no request asked for"),
            _ => Route::Dropped("a log message that could be of several requests"),
        }
    }
}

/// What a request that brings an answer says of its client.
#[derive(Debug)]
pub(crate) struct Resumed {
    /// As in [`InFlight`].
    pub(crate) form: Form,
    /// As in [`InFlight`].
    pub(crate) stateless: Stateless,
    /// Since when it is there.
    pub(crate) now: Instant,
    /// When it is given up.
    pub(crate) deadline: Instant,
}
