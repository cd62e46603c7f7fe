//! `/`: what this is, and how each well-known client is connected.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use crate::oauth::{Context, page};

#[derive(Debug, Template)]
#[template(path = "front_page.html", config = ".askama.toml")]
struct FrontPagePage<'a> {
    endpoint: &'a str,
    forgejo: &'a str,
    can_log_in: bool,
}

/// GET.
pub(crate) async fn show(State(context): State<Arc<Context>>) -> Response {
    let page = FrontPagePage {
        endpoint: &context.resource,
        forgejo: context.forgejo.url(),
        can_log_in: context.application.is_some(),
    };
    page::respond(StatusCode::OK, &page)
}
