//! `/mcp`: what a client may send, in which order it is checked, and what becomes of it.
//!
//! The order: bearer (a layer in front, so that a bad token learns nothing else), `Origin`, media types, size, JSON,
//! scope as far as the message says it, session, revision, scope as far as the child's tools say it. Only then does a
//! child see anything.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use crate::auth::principal::Principal;
use crate::child::bridge::{Bridge, Pending};
use crate::child::handshake::HandshakeError;
use crate::jsonrpc::{Kind, Message, RawId, Spliced, empty_result};
use crate::mcp::answer;
use crate::mcp::headers::{Accept, Revision, is_json};
use crate::mcp::refusal::{Refusal, UnknownSession};
use crate::mcp::scope::{Need, Scope};
use crate::session::error::SessionError;
use crate::session::record::Session;
use crate::session::registry::Registry;

/// Bytes in one JSON-RPC message of a client. Forgejo attachments travel as base64 inside tool arguments.
pub(crate) const DEFAULT_MAX_BODY: usize = 16 * 1024 * 1024;

/// The header that carries a session's id.
const SESSION_ID: &str = "mcp-session-id";
/// How long a message may take to arrive: attachments over a slow line, but nobody who sends nothing.
const BODY_TIMEOUT: Duration = Duration::from_mins(2);
/// How often a request is sent again because its child was stopped just before: once for the child that idled out
/// in that moment, once more for the bad luck of its successor.
const MAX_ATTEMPTS: usize = 3;

/// What the endpoint needs.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    registry: Registry,
    max_body: usize,
    unknown: UnknownSession,
    origins: Vec<String>,
    scope: Scope,
}

impl Endpoint {
    /// Bodies of at most `max_body` bytes; browsers only from `origins` (scheme, host and port as in `Origin`).
    pub(crate) fn new(
        registry: Registry,
        max_body: usize,
        unknown: UnknownSession,
        origins: Vec<String>,
        scope: Scope,
    ) -> Self {
        Self(Arc::new(Parts { registry, max_body, unknown, origins, scope }))
    }

    /// The handlers of `/mcp`; they expect a [`Principal`] in the request's extensions.
    pub(crate) fn routes(self) -> MethodRouter {
        post(receive).get(listen).delete(end).with_state(self)
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let known = |origin: &HeaderValue| self.0.origins.iter().any(|known| origin == known.as_str());
        if headers.get_all(ORIGIN).iter().all(known) { Ok(()) } else { Err(Refusal::origin()) }
    }

    fn session(&self, headers: &HeaderMap, principal: &Principal) -> Result<Option<Arc<Session>>, Refusal> {
        let Some(id) = headers.get(SESSION_ID) else { return Ok(None) };
        let revision = Revision::of(headers);
        let found = self.0.registry.find(id.to_str().unwrap_or_default(), principal);
        let session = found.map_err(|error| self.refuse(&error, revision))?;
        if revision.is_spoken() { Ok(Some(session)) } else { Err(Refusal::revision()) }
    }

    fn refuse(&self, error: &SessionError, revision: Revision) -> Refusal {
        Refusal::session(error, revision, self.0.unknown)
    }
}

/// POST: one message.
async fn receive(
    State(endpoint): State<Endpoint>,
    Extension(caller): Extension<Principal>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let outcome = async {
        endpoint.check_origin(&head.headers)?;
        if !is_json(&head.headers) {
            return Err(Refusal::content_type());
        }
        let accept = Accept::of(&head.headers);
        if !accept.json && !accept.events {
            return Err(Refusal::not_acceptable("application/json or text/event-stream"));
        }
        let message = read(body, endpoint.0.max_body).await?;
        let id = match message.kind() {
            Kind::Request { id, .. } => Some(id.clone()),
            Kind::Notification { .. } | Kind::Response { .. } => None,
        };
        let answered = async {
            let need = endpoint.0.scope.need(&caller, &message)?;
            dispatch(&endpoint, &caller, &head.headers, accept, message, need).await
        };
        answered.await.map_err(|refusal: Refusal| refusal.of(id.as_ref()))
    };
    outcome.await.unwrap_or_else(IntoResponse::into_response)
}

async fn read(body: Body, limit: usize) -> Result<Message, Refusal> {
    let collected = timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
    let collected = collected.map_err(|_| Refusal::body_unreadable())?.map_err(|error| {
        if error.is::<LengthLimitError>() { Refusal::body_too_large(limit) } else { Refusal::body_unreadable() }
    })?;
    Message::parse(collected.to_bytes()).map_err(Refusal::message)
}

async fn dispatch(
    endpoint: &Endpoint,
    caller: &Principal,
    headers: &HeaderMap,
    accept: Accept,
    message: Message,
    need: Need,
) -> Result<Response, Refusal> {
    if let Kind::Request { method, .. } = message.kind()
        && method == "initialize"
    {
        // Always a new session, whatever id the client still carries along.
        return open(endpoint, caller, headers, accept, &message).await;
    }
    let Some(session) = endpoint.session(headers, caller)? else { return Err(Refusal::no_session_id()) };
    match message.kind().clone() {
        Kind::Request { id, method } if method == "ping" => Ok(answer::json(Spliced::whole(empty_result(&id)))),
        Kind::Request { id, .. } => {
            let sent = send(endpoint, &session, caller, &message, &id, accept, &need).await;
            let (bridge, pending) = sent.map_err(|unsent| match unsent {
                Unsent::Session(error) => endpoint.refuse(&error, Revision::of(headers)),
                Unsent::Scope => endpoint.0.scope.insufficient(),
            })?;
            let view = endpoint.0.scope.view(caller, &bridge, &message);
            Ok(answer::respond(bridge, pending, id, accept, endpoint.0.registry.request_timeout(), view).await)
        }
        // To a session without a child there is nothing to say: a new child gets its own `initialized`, and nothing
        // is in flight that could be cancelled or answered.
        Kind::Notification { .. } => {
            if let Some(bridge) = session.live() {
                let _ = bridge.notify(&message).await;
            }
            Ok(StatusCode::ACCEPTED.into_response())
        }
        Kind::Response { .. } => {
            if let Some(bridge) = session.live() {
                let _ = bridge.answer(&message).await;
            }
            Ok(StatusCode::ACCEPTED.into_response())
        }
    }
}

async fn open(
    endpoint: &Endpoint,
    caller: &Principal,
    headers: &HeaderMap,
    accept: Accept,
    message: &Message,
) -> Result<Response, Refusal> {
    let opened = endpoint.0.registry.open(caller, message).await;
    let opened = opened.map_err(|error| endpoint.refuse(&error, Revision::of(headers)))?;
    let mut response = if accept.json { answer::json(opened.answer) } else { answer::single_event(opened.answer) };
    if let Some(value) = opened.id.and_then(|id| HeaderValue::from_str(id.as_str()).ok()) {
        response.headers_mut().insert(SESSION_ID, value);
    }
    Ok(response)
}

/// Why a request was not sent.
enum Unsent {
    Session(SessionError),
    Scope,
}

/// Sends a request to the session's child, starting one if there is none; unless the caller's grant keeps it out.
async fn send(
    endpoint: &Endpoint,
    session: &Arc<Session>,
    caller: &Principal,
    message: &Message,
    id: &RawId,
    accept: Accept,
    need: &Need,
) -> Result<(Arc<Bridge>, Pending), Unsent> {
    for _ in 0..MAX_ATTEMPTS {
        let bridge = endpoint.0.registry.bridge(session, caller).await.map_err(Unsent::Session)?;
        if !endpoint.0.scope.allows(need, &bridge).await {
            return Err(Unsent::Scope);
        }
        if let Ok(pending) = bridge.request(message, id.clone(), accept.events).await {
            session.note(message);
            return Ok((bridge, pending));
        }
        let outcome = bridge.ended().await;
        if outcome.is_childs_doing() {
            return Err(Unsent::Session(SessionError::Start(HandshakeError::new(&outcome.explain(), ""))));
        }
        // Stopped under our hands: the session goes on with another child.
        session.detach(&bridge);
    }
    Err(Unsent::Session(SessionError::ShuttingDown))
}

/// GET: the session's own stream.
async fn listen(
    State(endpoint): State<Endpoint>,
    Extension(caller): Extension<Principal>,
    headers: HeaderMap,
) -> Response {
    let open = || {
        endpoint.check_origin(&headers)?;
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
    open().unwrap_or_else(IntoResponse::into_response)
}

/// DELETE: the client ends its session.
async fn end(
    State(endpoint): State<Endpoint>,
    Extension(caller): Extension<Principal>,
    headers: HeaderMap,
) -> Response {
    let end = || {
        endpoint.check_origin(&headers)?;
        let session = endpoint.session(&headers, &caller)?.ok_or_else(Refusal::no_session_id)?;
        endpoint.0.registry.end(&session, "client-ended");
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    end().unwrap_or_else(|refusal: Refusal| refusal.into_response())
}
