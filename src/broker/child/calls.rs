//! The table of what is in flight between one child and its clients: that of a session, or the stateless ones of a grant.
//!
//! Clients choose their ids freely (one hosted client sends 1 for everything), so nothing is keyed by them: each
//! request gets a number of the broker's own towards the child, which is its progress token too, and its own id
//! back on the answer. Requests of the child towards the client are numbered the same way.
//!
//! Who the clients are ([`Mode`]) and in which [`form`] their answers go out decide where the child's own messages go;
//! [`stateless`] has what is different without a session, [`time`] what the time brings.
//!
//! No I/O and no await: the table takes a message, changes itself and says where the message goes.

mod failing;
pub(crate) mod form;
pub(crate) mod numbers;
pub(crate) mod stateless;
mod time;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::child::abilities::{Abilities, Asked};
use crate::child::activity::{Active, Activity};
use crate::child::calls::form::Form;
use crate::child::calls::numbers::number_in;
use crate::child::calls::time::{FIRST_SILENCE, SILENCE};
use crate::child::listed::{Listed, ToolSet};
use crate::child::listens::Listens;
use crate::child::log_level::LogLevel;
use crate::child::stamp::Stamp;
use crate::child::tasks::Tasks;
use crate::jsonrpc;
use crate::jsonrpc::{Kind, Message, RawId, Spliced, code};

/// What the client that waits for one request gets.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message ahead of the answer.
    Note(Spliced),
    /// The child of a stateless client asks for something and waits; [`Pending`](crate::child::bridge::Pending) makes an
    /// answer of it.
    Ask(Question),
    /// The answer, the last event, and what it is.
    Answer(Spliced, Ending),
    /// The child is gone or lost, and gives no answer any more; this error stands for it. The last event.
    Gone(Spliced),
    /// The client cancelled the request; nothing more comes.
    Cancelled,
    /// Nothing was to be said for a while. From now on the answer has this form.
    Silence(Form),
    /// The request's deadline has passed; nothing more comes.
    TimedOut,
}

/// What a child asks of a stateless client.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// The broker's number for it.
    pub(crate) number: u64,
    /// The method.
    pub(crate) method: Box<str>,
    /// Its parameters, as the child spelled them; empty where it gave none.
    pub(crate) params: Bytes,
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A result.
    Result,
    /// A result of a tool that says that it failed.
    ToolError,
    /// A JSON-RPC error of the child, with this code where it could be read.
    Error(Option<i32>),
}

/// Whose requests a child serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Those of one session: its client hears everything and is asked everything.
    Session,
    /// Stateless ones, by a child of the session era.
    Translation,
    /// Stateless ones, by a child that speaks that era.
    Relay,
}

/// What a stateless request says of its client and asks for beside an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stateless {
    /// What is done to the answer.
    pub(crate) stamp: Option<Stamp>,
    /// What its client may be asked.
    pub(crate) abilities: Abilities,
    /// The log messages that its client wants.
    pub(crate) logs: Option<LogLevel>,
}

/// Requests of a child that its client may leave unanswered; real children ask one thing at a time.
const MAX_ASKS: usize = 64;

/// The table is closed: the child is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableClosed;

/// A request that the child has not answered.
#[derive(Debug)]
struct Call {
    id: RawId,
    progress: Option<Bytes>,
    for_tool: bool,
    /// Whether its answer names the child's tools.
    for_tools: bool,
    form: Form,
    /// None in a session.
    stateless: Option<Box<Stateless>>,
    to: mpsc::Sender<Event>,
    deadline: Instant,
    /// When the client hears of silence, if nothing else is said before.
    silent_at: Instant,
    _permit: OwnedSemaphorePermit,
    _active: Active,
}

/// A request of the child that the client has not answered.
#[derive(Debug)]
struct Ask {
    id: RawId,
    deadline: Instant,
    /// Its deadline is looked at, too, when nothing else is in flight.
    _active: Active,
}

/// How a request is to be entered.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// Where its events go.
    pub(crate) to: mpsc::Sender<Event>,
    /// The form of its answer.
    pub(crate) form: Form,
    /// What it says of itself, where it has no session.
    pub(crate) stateless: Option<Box<Stateless>>,
    /// Its permit among the requests in flight.
    pub(crate) permit: OwnedSemaphorePermit,
    /// When it is given up.
    pub(crate) deadline: Instant,
}

/// Where a message of the child goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The answer to a request, with the client that waits for it.
    Answered,
    /// It is with the client that waits for an answer.
    Delivered,
    /// To the session's own stream.
    GetStream(Spliced),
    /// To who listens to the session's own stream now, if anybody does: it is of no use later.
    Listener(Spliced),
    /// To the stateless clients that listen, as far as they want to hear of it.
    Listens,
    /// Back to the child: the broker answers it.
    Child(Spliced),
    /// Nowhere: it is none.
    NoMessage,
    /// Nowhere, and why.
    Dropped(&'static str),
}

/// The table.
#[derive(Debug)]
pub(crate) struct Calls {
    next: u64,
    open: HashMap<u64, Call>,
    asks: HashMap<u64, Ask>,
    touched: Instant,
    tools_changed: u64,
    listed: Listed,
    closed: bool,
    mode: Mode,
    /// What the session's client can be asked for.
    abilities: Abilities,
    listens: Listens,
    tasks: Tasks,
    /// How long a client may take to answer the child.
    ask_timeout: Duration,
    activity: Arc<Activity>,
}

impl Calls {
    /// An empty table whose numbers start at `first`. Tables of one session must not reuse each other's numbers, or
    /// a late answer to an earlier child's request would reach the next child.
    pub(crate) fn new(first: u64, mode: Mode, ask_timeout: Duration, activity: Arc<Activity>, now: Instant) -> Self {
        Self {
            next: first,
            open: HashMap::new(),
            asks: HashMap::new(),
            touched: now,
            tools_changed: 0,
            listed: Listed::default(),
            closed: false,
            mode,
            abilities: Abilities::default(),
            listens: Listens::default(),
            tasks: Tasks::default(),
            ask_timeout,
            activity,
        }
    }

    fn number(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// What the session's client has said that it can be asked for.
    pub(crate) fn set_abilities(&mut self, abilities: Abilities) {
        self.abilities = abilities;
    }

    /// Requests without an answer, those whose client has hung up included.
    pub(crate) fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// Since when nothing has been in flight; `None` while something is, or the child has a task.
    pub(crate) fn idle_since(&self, now: Instant) -> Option<Instant> {
        (self.open.is_empty() && !self.tasks.any(now)).then_some(self.touched)
    }

    /// Takes no request any more if nothing has been in flight since `idle_since` or earlier; whether it is closed now.
    /// The look and the end are one step: a request is either in the table before, or is told that it is closed.
    pub(crate) fn close_if_idle(&mut self, idle_since: Instant, now: Instant) -> bool {
        self.closed |= self.idle_since(now).is_some_and(|since| since <= idle_since);
        self.closed
    }

    /// Takes no request any more; what is in flight goes on.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether a client still waits for a request with this number or a lower one.
    pub(crate) fn is_awaited(&self, number: u64) -> bool {
        self.open.iter().any(|(&open, call)| open <= number && !call.to.is_closed())
    }

    /// The highest number given so far.
    pub(crate) fn newest_number(&self) -> u64 {
        self.next
    }

    /// How often the child has said that its tools have changed.
    pub(crate) fn tools_changed(&self) -> u64 {
        self.tools_changed
    }

    /// The tools that the child was asked for last.
    pub(crate) fn listed(&self) -> &Listed {
        &self.listed
    }

    /// Enters a client's request and gives it the form in which the child sees it; with its number.
    pub(crate) fn enter(
        &mut self,
        request: &Message,
        id: RawId,
        entry: InFlight,
        now: Instant,
    ) -> Result<(u64, Spliced), TableClosed> {
        if self.closed {
            return Err(TableClosed);
        }
        let number = self.number();
        let digits = Bytes::from(number.to_string());
        let progress = request.asked_progress_token();
        let part = progress.as_ref().map(|old| (old, digits.clone()));
        let out = request.rewritten(Some(digits.clone()), part);
        let call = Call {
            id,
            // Copied, because a slice would keep the whole request alive.
            progress: progress.map(|token| Bytes::copy_from_slice(&token)),
            for_tool: request.method() == Some("tools/call"),
            for_tools: lists_tools(request),
            form: entry.form,
            stateless: entry.stateless,
            to: entry.to,
            deadline: entry.deadline,
            silent_at: now + FIRST_SILENCE,
            _permit: entry.permit,
            _active: self.activity.begin(),
        };
        self.open.insert(number, call);
        self.touched = now;
        Ok((number, out))
    }

    /// A client's `notifications/cancelled`: the form in which the child sees it, if it names exactly one request in
    /// flight. The request is over: its stream ends, its place is free, and a late answer is dropped (MCP, basic
    /// utilities, cancellation: a receiver need not answer what was cancelled).
    pub(crate) fn cancel(&mut self, notification: &Message, now: Instant) -> Option<Spliced> {
        let named = notification.cancelled_id()?;
        let mut matching = self.open.iter().filter(|(_, call)| *call.id.json() == named && !call.to.is_closed());
        let number = matching.next().map(|(&number, _)| number)?;
        if matching.next().is_some() {
            return None;
        }
        if let Some(call) = self.open.remove(&number) {
            let _ = call.to.try_send(Event::Cancelled);
        }
        self.touched = now;
        Some(notification.rewritten(None, Some((&named, number.to_string().into()))))
    }

    /// The child has asked its client something, under this number.
    fn note_ask(&mut self, number: u64, id: &RawId, now: Instant) {
        let ask = Ask { id: id.clone(), deadline: now + self.ask_timeout, _active: self.activity.begin() };
        self.asks.insert(number, ask);
    }

    /// A client's answer to a request of the child: the form in which the child sees it, if it asked.
    pub(crate) fn answer(&mut self, response: &Message) -> Option<Spliced> {
        let number = number_in(response.id()?.json())?;
        let ask = self.asks.remove(&number)?;
        Some(response.rewritten(Some(ask.id.json().clone()), None))
    }

    /// Routes a line that the child wrote.
    pub(crate) fn route(&mut self, line: Bytes, now: Instant) -> Route {
        let Ok(message) = Message::parse(line) else {
            return Route::NoMessage;
        };
        match message.kind() {
            Kind::Response { id, is_error } => self.answered(&message, id, *is_error, now),
            Kind::Request { id, method } if method == "ping" => Route::Child(Spliced::whole(jsonrpc::empty_result(id))),
            Kind::Request { id, .. } if self.asks.len() >= MAX_ASKS => {
                let text = jsonrpc::error_text(Some(id), code::INTERNAL_ERROR, "too many requests wait for the client");
                Route::Child(Spliced::whole(text))
            }
            Kind::Request { id, method } if self.mode != Mode::Session => self.asked(&message, id, method, now),
            Kind::Request { id, .. } => {
                let number = self.number();
                let out = message.rewritten(Some(number.to_string().into()), None);
                self.note_ask(number, id, now);
                match self.newest() {
                    Some(call) => deliver(call, out, now),
                    None => Route::GetStream(out),
                }
            }
            Kind::Notification { method } if method == "notifications/progress" => self.progressed(&message, now),
            Kind::Notification { method } if method == "notifications/cancelled" => self.child_cancelled(&message, now),
            Kind::Notification { method } => {
                if method == "notifications/tools/list_changed" {
                    self.tools_changed = self.tools_changed.wrapping_add(1);
                }
                if self.mode != Mode::Session {
                    return self.told(&message, method, now);
                }
                let out = message.rewritten(None, None);
                match self.only() {
                    Some(call) => deliver(call, out, now),
                    None => Route::GetStream(out),
                }
            }
        }
    }

    fn answered(&mut self, message: &Message, id: &RawId, is_error: bool, now: Instant) -> Route {
        let number = number_in(id.json());
        let Some(call) = number.and_then(|number| self.open.remove(&number)) else {
            if number.is_some_and(|number| self.listens.answered(number, message)) {
                return Route::Answered;
            }
            return Route::Dropped("an answer to nothing in flight");
        };
        self.touched = now;
        if call.for_tools
            && let Some(tools) = message.result().and_then(ToolSet::of)
        {
            self.listed.set(tools);
        }
        if self.mode == Mode::Relay {
            self.tasks.note(message, now);
        }
        let id = call.id.json().clone();
        let out = match call.stateless.as_ref().and_then(|stateless| stateless.stamp.as_ref()) {
            Some(stamp) => stamp.apply(message, id),
            None => message.rewritten(Some(id), None),
        };
        let ending = match is_error {
            true => Ending::Error(message.error_code()),
            false if call.for_tool && message.says_tool_failed() => Ending::ToolError,
            false => Ending::Result,
        };
        match call.to.try_send(Event::Answer(out, ending)) {
            Ok(()) => Route::Answered,
            Err(_) => Route::Dropped("an answer that nobody waits for"),
        }
    }

    fn progressed(&mut self, message: &Message, now: Instant) -> Route {
        let Some(token) = message.progress_token() else { return Route::Dropped("progress without a token") };
        let number = number_in(&token);
        let call = number.and_then(|number| self.open.get_mut(&number));
        match call.and_then(|call| call.progress.clone().map(|asked| (call, asked))) {
            Some((call, asked)) if call.form.takes_notes() => {
                deliver(call, message.rewritten(None, Some((&token, asked))), now)
            }
            Some((_, asked)) if self.mode == Mode::Session => {
                Route::Listener(message.rewritten(None, Some((&token, asked))))
            }
            Some(_) => Route::Dropped("progress for an answer that has no room for it"),
            None => Route::Dropped("progress of nothing in flight"),
        }
    }

    fn child_cancelled(&mut self, message: &Message, now: Instant) -> Route {
        let Some(named) = message.cancelled_id() else { return Route::Dropped("a cancellation of nothing") };
        if self.mode == Mode::Relay {
            return self.listen_cancelled(&named);
        }
        let number = self.asks.iter().find(|(_, ask)| *ask.id.json() == named).map(|(&number, _)| number);
        let Some(number) = number else { return Route::Dropped("a cancellation of nothing asked") };
        self.asks.remove(&number);
        if self.mode != Mode::Session {
            return Route::Dropped("a cancellation of what was asked; whoever answers it is not heard");
        }
        let out = message.rewritten(None, Some((&named, number.to_string().into())));
        match self.newest() {
            Some(call) => deliver(call, out, now),
            None => Route::GetStream(out),
        }
    }

    /// The newest request whose client takes messages ahead of the answer, a tool call where there is one: what a
    /// request of the child most likely belongs to.
    fn newest(&mut self) -> Option<&mut Call> {
        let open = self.open.iter_mut().filter(|(_, call)| call.form.takes_notes() && !call.to.is_closed());
        open.max_by_key(|(number, call)| (call.for_tool, **number)).map(|(_, call)| call)
    }

    /// The only request in flight, if its client takes messages ahead of the answer.
    fn only(&mut self) -> Option<&mut Call> {
        if self.open.len() != 1 {
            return None;
        }
        self.open.values_mut().next().filter(|call| call.form.takes_notes() && !call.to.is_closed())
    }
}

/// Whether a request is for the tools from the first on. A name that looks like a cursor elsewhere in it only leaves the
/// answer out of [`Listed`].
fn lists_tools(request: &Message) -> bool {
    request.method() == Some("tools/list") && !request.params().is_some_and(|params| params.contains("\"cursor\""))
}

/// Hands a message to the client that waits for `call`. A client that reads too slowly loses the stream: its end of
/// the channel sees the sender go.
fn deliver(call: &mut Call, message: Spliced, now: Instant) -> Route {
    call.silent_at = now + SILENCE;
    if call.to.try_send(Event::Note(message)).is_ok() {
        if call.form == Form::Open {
            call.form = Form::Events;
        }
        return Route::Delivered;
    }
    call.to = mpsc::channel(1).0;
    Route::Dropped("the client reads its stream too slowly")
}
