//! `/mcp`: what a client may send, in which order it is checked, and what becomes of it.
//!
//! The order: `Origin` and bearer (layers in front, so that neither a foreign page nor a bad token learns anything
//! else), headers that must not be there twice, media types, size, JSON,
//! scope as far as the message says it, session, revision, scope as far as the child's tools say it. Only then does a
//! child see anything.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use tokio::time::{Instant, timeout_at};

use crate::auth::bearer::Principals;
use crate::auth::principal::Principal;
use crate::child::bridge::SendError;
use crate::child::handshake::HandshakeError;
use crate::deadline::Deadline;
use crate::jsonrpc::{Kind, Message, MessageError, RawId, Spliced, empty_result};
use crate::live::Live;
use crate::mcp::answer::{self, AnswerForm, Asked, Sent};
use crate::mcp::batch;
use crate::mcp::body;
use crate::mcp::doubt::Doubt;
use crate::mcp::era::Era;
use crate::mcp::headers::{Accept, Revision, SESSION_ID, is_json, names_revision};
use crate::mcp::observed::{Observed, Observer};
use crate::mcp::refusal::{Refusal, UnknownSession};
use crate::mcp::scope::{Need, Scope};
use crate::mcp::single::require_single;
use crate::mcp::stateless;
use crate::metrics::CallOutcome;
use crate::session::error::SessionError;
use crate::session::machine::Event;
use crate::session::record::Session;
use crate::session::registry::Registry;
use crate::trace::Trace;

/// Bytes in one JSON-RPC message of a client. Forgejo attachments travel as base64 inside tool arguments.
pub(crate) const DEFAULT_MAX_BODY: usize = 16 * 1024 * 1024;

/// What the endpoint needs.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    registry: Registry,
    max_body: usize,
    unknown: Live<UnknownSession>,
    scope: Scope,
    observer: Observer,
    /// Asked about a caller whose child died at its start; none where nobody's account can be asked about.
    principals: Option<Principals>,
}

impl Endpoint {
    /// Bodies of at most `max_body` bytes.
    pub(crate) fn new(
        registry: Registry,
        max_body: usize,
        unknown: Live<UnknownSession>,
        scope: Scope,
        observer: Observer,
        principals: Option<Principals>,
    ) -> Self {
        Self(Arc::new(Parts { registry, max_body, unknown, scope, observer, principals }))
    }

    /// What the caller is told where their child died at its start: a token that Forgejo does not take any more is 401, so
    /// that the client logs in again; anything else is the program's own doing.
    pub(crate) async fn start_failed(&self, error: &SessionError, said: &Said) -> Refusal {
        if let (SessionError::Start(_), Some(principals)) = (error, &self.0.principals)
            && let Ok(Some(response)) = timeout_at(said.deadline, principals.refusal_of(&said.caller)).await
        {
            return Refusal::unauthorized(response);
        }
        self.refuse(error, said.revision)
    }

    /// The handlers of `/mcp`; they expect a [`Principal`] in the request's extensions.
    pub(crate) fn routes(self) -> MethodRouter {
        // HEAD would run the handler of GET and take the session's stream away from who reads it.
        let methods = post(receive).get(listen).delete(end).head(async || Refusal::method());
        methods.layer(from_fn_with_state(self.0.observer.clone(), require_single)).with_state(self)
    }

    pub(super) fn session(&self, headers: &HeaderMap, principal: &Principal) -> Result<Option<Arc<Session>>, Refusal> {
        let Some(id) = headers.get(SESSION_ID) else { return Ok(None) };
        let revision = Revision::of(headers);
        let found = self.0.registry.find(id.to_str().unwrap_or_default(), principal);
        let session = found.map_err(|error| self.refuse(&error, revision))?;
        // What the child agreed to with this client is right for it, whether it is known here or not.
        let is_right = revision.is_spoken() || names_revision(headers, &session.version);
        if is_right { Ok(Some(session)) } else { Err(Refusal::revision()) }
    }

    /// Answers a request that is not carried out, where nothing else counts it.
    fn refused(&self, refusal: Refusal) -> Response {
        self.0.observer.refused(&refusal);
        refusal.into_response()
    }

    /// What its client is told of a request whatever happens.
    pub(crate) fn asked(&self, said: &Said, id: RawId, observed: Option<Observed>) -> Asked {
        let limit = self.0.registry.config().request_timeout;
        let budget = self.0.registry.budgets().of(said.caller.tenant);
        let doubt = |principals: &Principals| Doubt {
            principals: principals.clone(),
            caller: said.caller.clone(),
            deadline: said.deadline,
        };
        Asked { id, form: said.form.clone(), limit, budget, observed, doubt: self.0.principals.as_ref().map(doubt) }
    }

    /// The sessions and children.
    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// What grants let through.
    pub(crate) fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// The refusal for what the registry refused.
    pub(crate) fn refuse(&self, error: &SessionError, revision: Revision) -> Refusal {
        Refusal::session(error, revision, *self.0.unknown.get())
    }
}

/// POST: one message, or a batch of them.
async fn receive(
    State(endpoint): State<Endpoint>,
    Extension(caller): Extension<Principal>,
    Extension(deadline): Extension<Deadline>,
    request: Request,
) -> Response {
    // Every wait counts against it: the look at the token, the body, a turn, a child, the pipe, the answer.
    let (received, deadline) = (deadline.received(), deadline.at());
    let (head, body) = request.into_parts();
    let trace = Trace::of(&head.extensions, &head.headers);
    let outcome = async {
        if !is_json(&head.headers) {
            return Err(Refusal::content_type());
        }
        let accept = Accept::of(&head.headers);
        if !accept.json && !accept.events {
            return Err(Refusal::not_acceptable("application/json or text/event-stream"));
        }
        let budget = endpoint.0.registry.budgets().of(caller.tenant);
        let seeks_id = head.headers.contains_key(SESSION_ID);
        let bounds = body::Bounds { limit: endpoint.0.max_body, deadline, seeks_id };
        let body = match body::read(body, &head.headers, bounds, &budget).await {
            Ok(body) => body,
            Err(refusal) if refusal.has_id() && endpoint.session(&head.headers, &caller)?.is_some() => {
                return Err(refusal.in_session());
            }
            Err(refusal) => return Err(refusal),
        };
        let revision = Revision::of(&head.headers);
        let post = Post { headers: &head.headers, trace, caller, revision, accept, received, deadline };
        match Message::parse(body.clone()) {
            Ok(message) => {
                drop(body);
                one(&endpoint, post, message).await
            }
            Err(MessageError::Batch) => batch::receive(&endpoint, post, body).await,
            Err(error) => Err(Refusal::message(error, &body)),
        }
    };
    outcome.await.unwrap_or_else(|refusal| endpoint.refused(refusal))
}

/// What a POST says beside its messages.
pub(super) struct Post<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) trace: Trace,
    pub(super) caller: Principal,
    pub(super) revision: Revision,
    pub(super) accept: Accept,
    pub(super) received: Instant,
    pub(super) deadline: Instant,
}

impl Post<'_> {
    /// Counts a message from now on, if it is a request or calls a tool.
    pub(super) fn begin(&self, endpoint: &Endpoint, message: &Message) -> Option<Observed> {
        endpoint.0.observer.begin(message, &self.trace, &self.caller, self.received)
    }

    /// A message of it.
    pub(super) fn says(&self, message: Message, need: Need, form: AnswerForm) -> Said {
        let (caller, revision, accept) = (self.caller.clone(), self.revision, self.accept);
        Said { caller, revision, accept, form, message, need, deadline: self.deadline }
    }
}

/// Answers a POST of one message.
async fn one(endpoint: &Endpoint, post: Post<'_>, message: Message) -> Result<Response, Refusal> {
    let message = traced(message, &post.trace);
    let id = match message.kind() {
        Kind::Request { id, .. } => Some(id.clone()),
        Kind::Notification { .. } | Kind::Response { .. } => None,
    };
    let mut observed = post.begin(endpoint, &message);
    let is_observed = observed.is_some();
    let answered = async {
        let need = endpoint.0.scope.need(&post.caller, &message)?;
        let said = post.says(message, need, AnswerForm::of(post.accept));
        match Era::of(post.headers, &said.message) {
            Era::Session => dispatch(endpoint, post.headers, said, &mut observed).await,
            Era::Stateless => stateless::receive(endpoint, post.headers, said, &mut observed).await,
        }
    };
    match answered.await {
        Err(refusal) if is_observed => {
            // Unless the answer has it, and knows.
            if let Some(observed) = &mut observed {
                observed.refused(&refusal);
            }
            Ok(refusal.of(id.as_ref()).into_response())
        }
        answered => answered.map_err(|refusal: Refusal| refusal.of(id.as_ref())),
    }
}

/// Settles to which trace the message belongs, and lets a request take along what only its headers say. Not `initialize`,
/// which is recorded and replayed to other children.
pub(super) fn traced(message: Message, trace: &Trace) -> Message {
    trace.settle(message.traceparent().as_ref());
    match (message.kind(), trace.carried()) {
        (Kind::Request { method, .. }, Some(carried)) if method != "initialize" => message.carrying(carried),
        _ => message,
    }
}

/// What a client has said, and by when it is to be answered.
pub(crate) struct Said {
    /// Who.
    pub(crate) caller: Principal,
    /// In which revision, as a header.
    pub(crate) revision: Revision,
    /// The forms of an answer that are taken.
    pub(crate) accept: Accept,
    /// The form of the answer.
    pub(crate) form: AnswerForm,
    /// What.
    pub(crate) message: Message,
    /// What remains to be known before a child may hear it.
    pub(crate) need: Need,
    /// By when.
    pub(crate) deadline: Instant,
}

/// Takes `observed` along with what has an answer of a child.
async fn dispatch(
    endpoint: &Endpoint,
    headers: &HeaderMap,
    said: Said,
    observed: &mut Option<Observed>,
) -> Result<Response, Refusal> {
    if let Kind::Request { method, .. } = said.message.kind()
        && method == "initialize"
    {
        // Always a new session, whatever id the client still carries along.
        return open(endpoint, &said, observed).await;
    }
    let Some(session) = endpoint.session(headers, &said.caller)? else { return Err(Refusal::no_session_id()) };
    if let Some(observed) = observed {
        observed.of_session(session.digest);
    }
    match said.message.kind().clone() {
        Kind::Request { id, method } if method == "ping" => {
            came_to(observed, CallOutcome::Ok);
            Ok(answer::json(Spliced::whole(empty_result(&id))))
        }
        Kind::Request { id, .. } => {
            let (sending, asked) = request(endpoint, session, said, id, observed.take());
            answer::respond(sending, asked).await.map_err(Refusal::in_session)
        }
        Kind::Notification { .. } | Kind::Response { .. } => {
            pass_on(&session, &said.message, said.deadline).await;
            Ok(StatusCode::ACCEPTED.into_response())
        }
    }
}

/// A request of a session: what brings it to the child, and what is to be known for its answer.
pub(super) fn request(
    endpoint: &Endpoint,
    session: Arc<Session>,
    said: Said,
    id: RawId,
    observed: Option<Observed>,
) -> (impl Future<Output = Result<Sent, Refusal>> + Send + use<>, Asked) {
    let tool = observed.as_ref().and_then(|observed| observed.tool().map(str::to_owned));
    let asked = endpoint.asked(&said, id.clone(), observed);
    let endpoint = endpoint.clone();
    (async move { send(&endpoint, &session, &said, &id, tool.as_deref()).await }, asked)
}

/// Passes on what wants no answer. To a session without a child there is nothing to say: a new child gets its own
/// `initialized`, and nothing is in flight that could be cancelled or answered.
pub(super) async fn pass_on(session: &Session, message: &Message, deadline: Instant) {
    let Some(bridge) = session.live() else { return };
    match message.kind() {
        Kind::Request { .. } => {}
        Kind::Notification { .. } => drop(bridge.notify(message, deadline).await),
        Kind::Response { .. } => drop(bridge.answer(message, deadline).await),
    }
}

fn came_to(observed: &mut Option<Observed>, outcome: CallOutcome) {
    if let Some(observed) = observed {
        observed.came_to(outcome);
    }
}

async fn open(endpoint: &Endpoint, said: &Said, observed: &mut Option<Observed>) -> Result<Response, Refusal> {
    let opened = match endpoint.0.registry.open(&said.caller, &said.message, said.deadline).await {
        Ok(opened) => opened,
        Err(error) => return Err(endpoint.start_failed(&error, said).await),
    };
    came_to(observed, if opened.id.is_some() { CallOutcome::Ok } else { CallOutcome::Error });
    let mut response = if said.accept.json { answer::json(opened.answer) } else { answer::single_event(opened.answer) };
    if let Some(value) = opened.id.and_then(|id| HeaderValue::from_str(id.as_str()).ok()) {
        response.headers_mut().insert(SESSION_ID, value);
    }
    Ok(response)
}

/// Sends a request to the session's child, starting one if there is none; unless the caller's grant keeps it out. A child
/// that is stopped before it takes the request is no reason to fail: the next one gets it.
async fn send(
    endpoint: &Endpoint,
    session: &Arc<Session>,
    said: &Said,
    id: &RawId,
    tool: Option<&str>,
) -> Result<Sent, Refusal> {
    let refuse = |error: SessionError| endpoint.refuse(&error, said.revision);
    let Said { caller, message, need, deadline, .. } = said;
    loop {
        let bridge = match endpoint.0.registry.bridge(&session.route, caller, *deadline).await {
            Ok(bridge) => bridge,
            Err(error) => return Err(endpoint.start_failed(&error, said).await),
        };
        if !endpoint.0.scope.allows(need, &bridge, *deadline).await {
            return Err(endpoint.0.scope.insufficient());
        }
        match bridge.request(message, id.clone(), said.form.get(), *deadline).await {
            Ok(pending) => {
                session.note(message);
                let view = endpoint.0.scope.view(caller, &bridge, message);
                let effect = tool.and_then(|tool| endpoint.0.scope.effect(tool, &bridge));
                return Ok(Sent { pending, view, effect });
            }
            Err(SendError::Deadline) => return Err(refuse(SessionError::Deadline)),
            Err(SendError::Closed) => {}
        }
        // The child takes no requests any more. Where it is still the session's, it has ended or is about to.
        if let Some((number, current)) = session.child()
            && Arc::ptr_eq(&current, &bridge)
        {
            drop(current);
            let outcome = timeout_at(*deadline, bridge.ended()).await;
            let outcome = outcome.map_err(|_| refuse(SessionError::Deadline))?;
            if outcome.is_childs_doing() {
                return Err(refuse(SessionError::Start(HandshakeError::new(&outcome.explain(), ""))));
            }
            session.route.step(Event::Gone(number, false));
        }
    }
}

/// GET: the session's own stream.
async fn listen(
    State(endpoint): State<Endpoint>,
    Extension(caller): Extension<Principal>,
    headers: HeaderMap,
) -> Response {
    let open = || {
        // 405 is the one refusal that every client takes for «no such stream here».
        if !headers.contains_key(SESSION_ID) {
            return Err(Refusal::method());
        }
        if !Accept::of(&headers).events {
            return Err(Refusal::not_acceptable("text/event-stream"));
        }
        let session = endpoint.session(&headers, &caller)?.ok_or_else(Refusal::no_session_id)?;
        Ok(answer::listen(session.get_stream.open()))
    };
    open().unwrap_or_else(|refusal| endpoint.refused(refusal))
}

/// DELETE: the client ends its session.
async fn end(
    State(endpoint): State<Endpoint>,
    Extension(caller): Extension<Principal>,
    headers: HeaderMap,
) -> Response {
    let end = async {
        // There is nothing to end without sessions (2026-07-28, streamable HTTP, section Earlier Revisions).
        if Era::of_headers(&headers) == Era::Stateless {
            return Err(Refusal::method());
        }
        let session = endpoint.session(&headers, &caller)?.ok_or_else(Refusal::no_session_id)?;
        let ended = endpoint.0.registry.end_for_client(&session).await;
        ended.map_err(|error| endpoint.refuse(&error, Revision::of(&headers)))?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    end.await.unwrap_or_else(|refusal| endpoint.refused(refusal))
}
