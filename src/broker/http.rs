//! Connections of clients, and the program put together.
//!
//! [`listener`] is where they come in, [`accept`] serves them, [`shares`] says how many of whom. Ahead of every room,
//! [`host`] looks at whom a request is for, [`origin`] at which page sends it, both by [`names`], and [`codings`] at how
//! its body comes; [`unread`] settles what a refusal left of it, [`traced`] keeps a request's lines together. [`health`]
//! answers probes, [`metrics_page`] Prometheus, [`server`] reads the configuration, builds every other room, and stops
//! them in order; [`reload`] reads it again, [`once`] does what only the operator can decide. Nothing here trusts a
//! request.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;

pub(crate) mod accept;
pub(crate) mod codings;
pub(crate) mod health;
pub(crate) mod host;
pub(crate) mod listener;
pub(crate) mod metrics_page;
pub(crate) mod names;
mod once;
pub(crate) mod origin;
pub(crate) mod reload;
pub(crate) mod server;
pub(crate) mod shares;
pub(crate) mod status;
pub(crate) mod traced;
pub(crate) mod unread;

/// A refusal of before anything of a message was read, in words for people: no JSON-RPC error, because clients hang on one
/// without an id.
pub(crate) fn said(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
