//! The errors of the stateless revision (2026-07-28, basic/index, section Error Codes) and their statuses (streamable HTTP,
//! section Request Metadata).

use axum::http::StatusCode;

use crate::child::era::STATELESS;
use crate::jsonrpc::code;
use crate::mcp::refusal::Refusal;

/// JSON-RPC's «method not found» (section 5.1).
const METHOD_NOT_FOUND: i32 = -32_601;
/// JSON-RPC's «invalid params» (section 5.1).
pub(super) const INVALID_PARAMS: i32 = -32_602;
/// Headers and body differ, or a header is missing.
const HEADER_MISMATCH: i32 = -32_020;
/// The request needs something that its client has not declared.
const MISSING_CAPABILITY: i32 = -32_021;
/// The revision is not spoken here.
const UNSUPPORTED_VERSION: i32 = -32_022;

/// The status of an answer that is this error of a child.
pub(super) fn status_of(code: i32) -> StatusCode {
    match code {
        METHOD_NOT_FOUND => StatusCode::NOT_FOUND,
        HEADER_MISMATCH | MISSING_CAPABILITY | UNSUPPORTED_VERSION => StatusCode::BAD_REQUEST,
        // What the program says of its own work is no matter of HTTP.
        _ => StatusCode::OK,
    }
}

impl Refusal {
    /// A header is missing, is there twice, has characters that none may have, or says other than the body.
    pub(super) fn header_mismatch(what: &str) -> Self {
        Self::new("header-mismatch", StatusCode::BAD_REQUEST, HEADER_MISMATCH, format!("Header mismatch: {what}"))
    }

    /// The request does not say of itself what it must.
    pub(super) fn missing_meta(what: &str) -> Self {
        let message = format!("Invalid params: _meta must have {what}");
        Self::new("missing-meta", StatusCode::BAD_REQUEST, INVALID_PARAMS, message)
    }

    /// A parameter of a request that the broker answers or completes is none.
    pub(super) fn bad_params(what: &str) -> Self {
        Self::new("bad-params", StatusCode::BAD_REQUEST, INVALID_PARAMS, format!("Invalid params: {what}"))
    }

    /// A revision without sessions that is not spoken here.
    pub(super) fn unsupported_version(requested: &str) -> Self {
        let data = serde_json::json!({"supported": [STATELESS], "requested": requested});
        let message = "Unsupported protocol version";
        let refusal = Self::new("unsupported-version", StatusCode::BAD_REQUEST, UNSUPPORTED_VERSION, message);
        refusal.with_data(&data)
    }

    /// A method that the revision has not, or the program behind has not.
    pub(super) fn unknown_method(method: &str) -> Self {
        let message = format!("Method not found: {method} (this request is of revision {STATELESS})");
        Self::new("unknown-method", StatusCode::NOT_FOUND, METHOD_NOT_FOUND, message)
    }

    /// Answers travel in requests (patterns/mrtr), never alone.
    pub(super) fn response_from_client() -> Self {
        let message = "Invalid Request: in this revision a client sends no responses";
        Self::new("bad-message", StatusCode::BAD_REQUEST, code::INVALID_REQUEST, message)
    }

    /// What waits is not known by this state to this login, or waits for something else, or has ended.
    pub(super) fn request_state() -> Self {
        let message = "Invalid params: requestState names nothing that waits for this request; call again without it";
        Self::new("request-state", StatusCode::BAD_REQUEST, INVALID_PARAMS, message)
    }

    /// One child has so many listens that another cannot be had.
    pub(super) fn too_many_listens(why: impl std::fmt::Display) -> Self {
        Self::new("listens", StatusCode::TOO_MANY_REQUESTS, code::BAD_TRANSPORT, why.to_string())
    }

    /// A child that serves without having said what it speaks; there is none.
    pub(super) fn no_era() -> Self {
        let message = "the forgejo-mcp process has not said what it speaks";
        Self::new("start-failed", StatusCode::OK, code::INTERNAL_ERROR, message)
    }
}
