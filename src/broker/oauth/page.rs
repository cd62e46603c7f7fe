//! The pages: rendered here, without scripts, readable on a phone and in the dark.
//!
//! Every page says in its headers that it must not be framed (clickjacking), cached, or named to other sites. There is no
//! `form-action` in the policy: browsers apply it to the whole chain of redirects behind a form, and ours ends at the
//! client's address.
//!
//! `/` and `/account` also cut the tie to whatever window opened them (`Cross-Origin-Opener-Policy`). The pages on the way
//! of a login do not: clients in browsers open it in a window of theirs, which tells them its outcome through that tie,
//! and a browser that has cut it on the way does not tie it again (HTML, section Cross-origin opener policies).

use crate::chain::chain;
use askama::Template;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, RETRY_AFTER, SET_COOKIE,
    STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tracing::error;

/// Where the one style sheet is.
pub(crate) const STYLE: &str = "/style.css";

/// A page of its own kind.
pub(crate) fn respond(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => {
            let mut response = (status, text).into_response();
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
            guard(response.headers_mut());
            response
        }
        Err(e) => {
            error!(error = %e, "a page cannot be rendered: {}", chain(&e));
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Sends the browser elsewhere with GET, and never with the form that it has just sent (303; RFC 9700 section 4.12).
pub(crate) fn redirect(to: &str) -> Response {
    let Ok(location) = HeaderValue::try_from(to) else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let mut response = StatusCode::SEE_OTHER.into_response();
    response.headers_mut().insert(LOCATION, location);
    guard(response.headers_mut());
    response
}

/// With cookies to be set.
pub(crate) fn with_cookies(mut response: Response, cookies: impl IntoIterator<Item = HeaderValue>) -> Response {
    for cookie in cookies {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response
}

/// What a page of this service may do to a browser: nothing of what a page may ask for.
const PERMISSIONS: &str = "accelerometer=(), autoplay=(), camera=(), display-capture=(), encrypted-media=(), \
    fullscreen=(), geolocation=(), gyroscope=(), magnetometer=(), microphone=(), midi=(), payment=(), \
    picture-in-picture=(), publickey-credentials-get=(), screen-wake-lock=(), usb=(), web-share=(), xr-spatial-tracking=()";
const OPENER: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// Cuts the tie to the window that opened this one.
pub(crate) async fn apart(mut response: Response) -> Response {
    response.headers_mut().insert(OPENER, HeaderValue::from_static("same-origin"));
    response
}

/// For a year this host is reached over TLS only (RFC 6797); neighbours below the same domain are their operators' matter.
pub(crate) async fn over_tls(mut response: Response) -> Response {
    response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    response
}

fn guard(headers: &mut HeaderMap) {
    const POLICY: &str = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'";
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (HeaderName::from_static("permissions-policy"), PERMISSIONS),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (X_FRAME_OPTIONS, "DENY"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// The style sheet.
pub(crate) async fn style() -> Response {
    let mut response = include_str!("pages/style.css").into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/css; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Something to be told, and where to go from here.
#[derive(Debug, Template)]
#[template(path = "message.html", config = ".askama.toml")]
pub(crate) struct Message<'a> {
    /// What happened.
    pub(crate) title: &'a str,
    /// To what, and what to do.
    pub(crate) text: &'a str,
    /// A way on: address and words.
    pub(crate) way: Option<(&'a str, &'a str)>,
}

impl Message<'_> {
    /// The page.
    pub(crate) fn respond(&self, status: StatusCode) -> Response {
        let mut response = respond(status, self);
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("30"));
        }
        response
    }
}

/// The broker itself failed; its log says how.
pub(crate) fn trouble() -> Response {
    let text = "The service has a problem of its own; its log says which. Try again in a moment, and tell the operator if it stays.";
    Message { title: "This did not work", text, way: None }.respond(StatusCode::SERVICE_UNAVAILABLE)
}

/// Forgejo does not answer.
pub(crate) fn forgejo_away(way: Option<(&str, &str)>) -> Response {
    let text = "Forgejo does not answer at the moment, so nobody can log in. What is connected stays connected. Try again in a few minutes.";
    Message { title: "Forgejo cannot be reached", text, way }.respond(StatusCode::SERVICE_UNAVAILABLE)
}

/// Too many from one address.
pub(crate) fn too_many() -> Response {
    let text = "Too many logins were begun from your network within a minute. Wait a moment and try again.";
    Message { title: "Too many at once", text, way: None }.respond(StatusCode::TOO_MANY_REQUESTS)
}
