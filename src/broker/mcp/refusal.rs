//! How the endpoint says no: one place that maps every reason to a status, headers and a JSON-RPC error.
//!
//! The body is a JSON-RPC error with the request's id, where that could be found in what was read. Where it could not, it
//! is JSON that is no JSON-RPC message: rmcp takes an error with `id: null` for an answer to nothing, and waits on.
//!
//! A session lives on while its child cannot be had, a quota is used up, the store fails or the broker is restarted, and its
//! client must live on too: the Python SDK 1.x ends whole at any status but 404. So there the answer is 200 and a JSON-RPC
//! error ([`Refusal::in_session`]).

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::budget::OverBudget;
use crate::child::spawner::SpawnError;
use crate::jsonrpc;
use crate::jsonrpc::batch::BatchError;
use crate::jsonrpc::{MessageError, RawId, code};
use crate::mcp::headers::Revision;
use crate::mcp::sought_id;
use crate::session::error::SessionError;
use wire::message::Refusal as SupervisorRefusal;

/// When a refusal that has no better idea suggests to try again.
const RETRY_SOON: Duration = Duration::from_secs(5);

/// What an unknown session is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum UnknownSession {
    /// 404 where the request's revision demands it, else 410.
    #[default]
    Auto,
    /// Always 404.
    NotFound,
    /// Always 410.
    Gone,
}

/// A request that is not carried out.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: i32,
    message: Box<str>,
    /// What the error says beside its message, for programs.
    data: Option<Box<str>>,
    retry_after: Option<Duration>,
    challenge: Option<Box<HeaderValue>>,
    id: Option<RawId>,
    /// The bearer layer's own answer, instead of one made here.
    unauthorized: Option<Box<Response>>,
    reason: &'static str,
    /// Whether it is the child's, a quota's, the store's or a stop's doing, and no fault of the request.
    passes: bool,
}

impl Refusal {
    pub(crate) fn new(reason: &'static str, status: StatusCode, code: i32, message: impl Into<Box<str>>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            data: None,
            retry_after: None,
            challenge: None,
            id: None,
            unauthorized: None,
            reason,
            passes: false,
        }
    }

    /// With something for programs.
    #[must_use]
    pub(crate) fn with_data(mut self, data: &Value) -> Self {
        self.data = Some(data.to_string().into());
        self
    }

    /// A JSON-RPC error where the id is known. Clients wait for ever after one whose id is null, so that without an id it
    /// is no JSON-RPC message.
    fn body(&self) -> Bytes {
        match &self.id {
            Some(id) => jsonrpc::error_with(Some(id), self.code, &self.message, self.data.as_deref()),
            None => json!({"error": {"code": self.code, "message": self.message}}).to_string().into(),
        }
    }

    /// What the operator should hear of, in words: there is no room, or no right. What clients do wrong is their business.
    pub(crate) fn worth_a_line(&self) -> Option<&str> {
        let of_room = [StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        let child_failed = self.status == StatusCode::OK;
        (of_room.contains(&self.status) || child_failed).then_some(&self.message)
    }

    /// The stable name of the reason, for the log and the metrics.
    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }

    /// The caller's grant is over: what the bearer layer answers then.
    pub(crate) fn unauthorized(response: Response) -> Self {
        let message = "Unauthorized: Forgejo does not let this account in any more; log in again";
        let mut refusal = Self::new("account-refused", StatusCode::UNAUTHORIZED, code::BAD_TRANSPORT, message);
        refusal.unauthorized = Some(Box::new(response));
        refusal
    }

    /// The body is not `application/json`.
    pub(crate) fn content_type() -> Self {
        let message = "Unsupported Media Type: Content-Type must be application/json";
        Self::new("content-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, code::BAD_TRANSPORT, message)
    }

    /// The client takes no form of answer that exists here.
    pub(crate) fn not_acceptable(wanted: &str) -> Self {
        Self::new(
            "not-acceptable",
            StatusCode::NOT_ACCEPTABLE,
            code::BAD_TRANSPORT,
            format!("Not Acceptable: Accept must allow {wanted}"),
        )
    }

    /// The body is longer than allowed.
    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("Payload Too Large: a message may have at most {limit} bytes");
        Self::new("body-too-large", StatusCode::PAYLOAD_TOO_LARGE, code::BAD_TRANSPORT, message)
    }

    /// The body did not come in time (RFC 9110 section 15.5.9).
    pub(crate) fn body_timeout() -> Self {
        Self::new(
            "body-timeout",
            StatusCode::REQUEST_TIMEOUT,
            code::BAD_TRANSPORT,
            "Request Timeout: the body did not come in time",
        )
    }

    /// The body could not be read to its end.
    pub(crate) fn body_unreadable() -> Self {
        Self::new("body-unreadable", StatusCode::BAD_REQUEST, code::PARSE_ERROR, "Parse error: the body ended early")
    }

    /// More waits in memory for this user, or for all, than may.
    pub(crate) fn over_budget(over: OverBudget) -> Self {
        Self::session(&over.into(), Revision::Absent, UnknownSession::Auto)
    }

    /// The body is no message; the id is looked for in it all the same.
    pub(crate) fn message(error: MessageError, text: &[u8]) -> Self {
        Self::new("bad-message", StatusCode::BAD_REQUEST, error.code(), error.to_string())
            .of(sought_id::in_text(text).as_ref())
    }

    /// The body is no batch that is carried out.
    pub(crate) fn batch(error: &BatchError) -> Self {
        Self::new("bad-batch", StatusCode::BAD_REQUEST, error.code(), error.to_string())
    }

    /// A message that needs a session came without one. The wording is what clients look for.
    pub(crate) fn no_session_id() -> Self {
        let message = "Bad Request: Mcp-Session-Id header is required";
        Self::new("no-session-id", StatusCode::BAD_REQUEST, code::BAD_TRANSPORT, message)
    }

    /// The session cannot go on under the named revision.
    pub(crate) fn revision() -> Self {
        let message = "Bad Request: Unsupported protocol version (supported versions: 2024-11-05, 2025-03-26, 2025-06-18, 2025-11-25)";
        Self::new("revision", StatusCode::BAD_REQUEST, code::BAD_TRANSPORT, message)
    }

    /// A method that the endpoint does not offer in this form.
    pub(crate) fn method() -> Self {
        let message = "Method Not Allowed: a stream needs a session; start with POST";
        Self::new("method", StatusCode::METHOD_NOT_ALLOWED, code::BAD_TRANSPORT, message)
    }

    /// A grant that may not do everything, and a message that readers of JSON could disagree on.
    pub(crate) fn ambiguous() -> Self {
        let message =
            "Invalid Request: names outside of JSON-RPC, or the tool named twice; a restricted grant needs it plain";
        Self::new("ambiguous", StatusCode::BAD_REQUEST, code::INVALID_REQUEST, message)
    }

    /// The grant does not reach that far (RFC 6750 section 3.1). `challenge` says which scopes would.
    pub(crate) fn insufficient_scope(challenge: HeaderValue) -> Self {
        let message = "Forbidden: this needs the scope forgejo:write, which the user has not given to this client";
        let mut refusal = Self::new("insufficient-scope", StatusCode::FORBIDDEN, code::BAD_TRANSPORT, message);
        refusal.challenge = Some(Box::new(challenge));
        refusal
    }

    /// No grant here reaches that far: the operator asks Forgejo for no right to write. No challenge, because a client would
    /// ask its user for scopes that nobody can give, again and again.
    pub(crate) fn no_writing() -> Self {
        let message = "Forbidden: the operator of this service allows no writing";
        Self::new("no-writing", StatusCode::FORBIDDEN, code::BAD_TRANSPORT, message)
    }

    /// A tool that the caller's token has no right to, whatever its scopes. No challenge, because no scope would do.
    pub(crate) fn other_tool(tool: &str) -> Self {
        // As long as the name of a tool may be, so that nobody has a long one repeated.
        let tool: String = tool.chars().filter(|c| !c.is_control()).take(128).collect();
        let message =
            format!("Forbidden: this token is not for the tool {tool}; tools/list shows those that it is for");
        Self::new("other-tool", StatusCode::FORBIDDEN, code::BAD_TRANSPORT, message)
    }

    /// Something else than a tool, asked for with a token that is for certain tools.
    pub(crate) fn no_tool() -> Self {
        let message = "Forbidden: this token is for the tools that tools/list shows, and for nothing else";
        Self::new("other-tool", StatusCode::FORBIDDEN, code::BAD_TRANSPORT, message)
    }

    /// What the registry refused.
    pub(crate) fn session(error: &SessionError, revision: Revision, unknown: UnknownSession) -> Self {
        let (status, code, retry_after) = match error {
            SessionError::Unknown => {
                let found = match unknown {
                    UnknownSession::Auto => revision.demands_404(),
                    UnknownSession::NotFound => true,
                    UnknownSession::Gone => false,
                };
                let status = if found { StatusCode::NOT_FOUND } else { StatusCode::GONE };
                (status, code::SESSION_NOT_FOUND, None)
            }
            SessionError::Foreign | SessionError::GrantRevoked => (StatusCode::FORBIDDEN, code::BAD_TRANSPORT, None),
            SessionError::SessionsOfUser { retry_after } => {
                (StatusCode::TOO_MANY_REQUESTS, code::BAD_TRANSPORT, Some(*retry_after))
            }
            SessionError::ChildrenOfUser
            | SessionError::StartsWaiting
            | SessionError::OverBudget(OverBudget::User(_)) => {
                (StatusCode::TOO_MANY_REQUESTS, code::BAD_TRANSPORT, Some(RETRY_SOON))
            }
            SessionError::SessionsTotal
            | SessionError::ChildrenTotal
            | SessionError::Deadline
            | SessionError::OverBudget(OverBudget::Total) => {
                (StatusCode::SERVICE_UNAVAILABLE, code::BAD_TRANSPORT, Some(RETRY_SOON))
            }
            SessionError::InitializeTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, code::BAD_TRANSPORT, None),
            SessionError::ShuttingDown | SessionError::Storage => {
                (StatusCode::SERVICE_UNAVAILABLE, code::INTERNAL_ERROR, Some(RETRY_SOON))
            }
            // The program is at fault, not the transport: clients survive a JSON-RPC error, some not a status.
            SessionError::Start(_)
            | SessionError::Spawn(SpawnError::Refused(SupervisorRefusal::StartFailed { .. })) => {
                (StatusCode::OK, code::INTERNAL_ERROR, None)
            }
            SessionError::Spawn(spawn) => {
                let status = match spawn {
                    SpawnError::Refused(SupervisorRefusal::ChildrenOfTenant { .. }) => StatusCode::TOO_MANY_REQUESTS,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                };
                (status, code::INTERNAL_ERROR, Some(spawn.retry_after().unwrap_or(RETRY_SOON)))
            }
        };
        let mut refusal = Self::new(error.code(), status, code, error.to_string());
        refusal.retry_after = retry_after;
        refusal.passes = matches!(
            error,
            SessionError::ChildrenTotal
                | SessionError::ChildrenOfUser
                | SessionError::StartsWaiting
                | SessionError::Deadline
                | SessionError::OverBudget(_)
                | SessionError::Spawn(_)
                | SessionError::ShuttingDown
                | SessionError::Storage
        );
        refusal
    }

    /// As a request of a session that lives on is told of it.
    #[must_use]
    pub(crate) fn in_session(mut self) -> Self {
        if self.passes && self.status != StatusCode::OK {
            self.status = StatusCode::OK;
            if let Some(wait) = self.retry_after.take() {
                self.message = format!("{}; try again in {} s", self.message, whole_seconds(wait)).into();
            }
        }
        self
    }

    /// Whether the request's id is known.
    pub(crate) fn has_id(&self) -> bool {
        self.id.is_some()
    }

    /// With the id of the request that is refused.
    #[must_use]
    pub(crate) fn of(mut self, id: Option<&RawId>) -> Self {
        if let Some(id) = id {
            self.id = Some(id.clone());
        }
        self
    }
}

impl Refusal {
    /// As a JSON-RPC error, for a stream that has begun.
    pub(crate) fn into_text(self) -> Bytes {
        self.body()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if let Some(response) = self.unauthorized {
            return *response;
        }
        let body = self.body();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, *challenge);
        }
        if [StatusCode::REQUEST_TIMEOUT, StatusCode::PAYLOAD_TOO_LARGE].contains(&self.status) {
            // The rest of the body is not read (RFC 9110 sections 15.5.9 and 15.5.14).
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("POST, DELETE"));
        }
        response
    }
}

/// Whole seconds (RFC 9110 section 10.2.3), rounded up, never «now».
fn whole_seconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis().div_ceil(1000).max(1)).unwrap_or(u64::MAX)
}
