//! `/`: what this is, and how each well-known client is connected.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::{Parts, page};

#[derive(Debug, Template)]
#[template(path = "welcome.html", config = ".askama.toml")]
struct WelcomePage<'a> {
    endpoint: &'a str,
    forgejo: &'a str,
    can_log_in: bool,
}

/// GET.
pub(super) async fn show(State(parts): State<Arc<Parts>>) -> Response {
    let page = WelcomePage {
        endpoint: &parts.resource,
        forgejo: parts.forgejo.url(),
        can_log_in: parts.application.is_some(),
    };
    page::respond(StatusCode::OK, &page)
}
