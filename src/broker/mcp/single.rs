//! Headers that decide for whom a message is, or how it is read: said twice they could be read in two ways, by a proxy in
//! one and by the broker in the other.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use crate::http::said;
use crate::mcp::observed::Observer;

/// At most once each (RFC 9110 section 5.3: only what is defined as a list may be repeated).
const SINGLE: [&str; 2] = ["mcp-session-id", "mcp-protocol-version"];

/// Refuses a request that has one of them twice, whether or not both say the same; for
/// [`axum::middleware::from_fn_with_state`].
pub(crate) async fn require_single(State(observer): State<Observer>, request: Request, next: Next) -> Response {
    let twice = SINGLE.into_iter().find(|name| request.headers().get_all(*name).iter().nth(1).is_some());
    match twice {
        None => next.run(request).await,
        Some(name) => {
            observer.refused_early("repeated-header");
            said(StatusCode::BAD_REQUEST, format!("Bad Request: the header {name} is there twice"))
        }
    }
}
