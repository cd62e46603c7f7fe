//! The pages: rendered here, without scripts, readable on a phone and in the dark.
//!
//! Every page says in its headers that it must not be framed (clickjacking), cached, or named to other sites. There is no
//! `form-action` in the policy: browsers apply it to the whole chain of redirects behind a form, and ours ends at the
//! client's address.
//!
//! `/` and `/account` also cut the tie to whatever window opened them (`Cross-Origin-Opener-Policy`). The pages on the way
//! of a login do not: clients in browsers open it in a window of theirs, which tells them its outcome through that tie,
//! and a browser that has cut it on the way does not tie it again (HTML, section Cross-origin opener policies).

use std::sync::Arc;

use askama::Template;
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, REFRESH, RETRY_AFTER, SET_COOKIE,
    STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rand::rngs::SysRng;
use tracing::{Instrument, error, info, info_span, warn};

use crate::chain::chain;
use crate::hex;
use crate::oauth::Context;
use crate::oauth::site::Site;
use crate::store::StoreError;

/// Where the one style sheet is.
pub(crate) const STYLE: &str = "/style.css";

/// A way on from a page: its address, and the words that lead there.
pub(crate) type Way<'a> = (&'a str, &'a str);

/// To the page that this one is, with all that its address says.
pub(crate) const TRY_AGAIN: Way<'static> = ("", "Try again");

/// Where the operator's logo is, if there is one.
pub(crate) const LOGO: &str = "/logo";

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
    const POLICY: &str =
        "default-src 'none'; style-src 'self'; img-src 'self'; frame-ancestors 'none'; base-uri 'none'";
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

/// The logo, where the operator has one. An SVG that is opened by itself is a document: it may do nothing.
pub(crate) async fn logo(State(context): State<Arc<Context>>) -> Response {
    let Some(logo) = &context.site.logo else { return StatusCode::NOT_FOUND.into_response() };
    let mut response = logo.image.clone().into_response();
    let headers = response.headers_mut();
    guard(headers);
    for (name, value) in [
        (CONTENT_TYPE, logo.media_type),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
        (CACHE_CONTROL, "public, max-age=3600"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Something to be told, and where to go from here.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    /// What happened.
    pub(crate) title: &'a str,
    /// To what, and what to do.
    pub(crate) text: &'a str,
    /// The ways on, the first one first: address and words.
    pub(crate) ways: &'a [Way<'a>],
}

/// A message in a response that [`with_reference`] makes a page of.
#[derive(Debug, Clone)]
struct Told {
    title: String,
    text: String,
    ways: Vec<(String, String)>,
}

#[derive(Debug, Template)]
#[template(path = "message.html", config = ".askama.toml")]
struct MessagePage<'a> {
    site: &'a Site,
    title: &'a str,
    text: &'a str,
    ways: &'a [(String, String)],
    reference: Option<&'a str>,
}

impl Message<'_> {
    /// A response that becomes the page.
    pub(crate) fn respond(&self, status: StatusCode) -> Response {
        let mut response = status.into_response();
        let ways = self.ways.iter().map(|(address, words)| ((*address).to_owned(), (*words).to_owned())).collect();
        let told = Told { title: self.title.to_owned(), text: self.text.to_owned(), ways };
        response.extensions_mut().insert(told);
        response
    }
}

/// Gives messages a page with a number by which the operator finds them in the journal, together with every line that was
/// written on the way to it. Where one address gets so many of them that they would fill the journal, theirs have none.
pub(crate) async fn with_reference(State(context): State<Arc<Context>>, request: Request, next: Next) -> Response {
    let source = context.limits.unseen_source(&request);
    let path = request.uri().path().to_owned();
    // 32 bits: enough to be found by, and short enough to be read out.
    let reference = hex::random_id(&mut SysRng).ok().and_then(|id| id.get(..8).map(str::to_owned)).unwrap_or_default();
    let response = next.run(request).instrument(info_span!("page", reference)).await;
    let Some(Told { title, text, ways }) = response.extensions().get().cloned() else { return response };
    let status = response.status();
    let is_told = !reference.is_empty() && context.limits.may_tell_page(source);
    if is_told && status.is_server_error() {
        warn!(reference, %source, path, status = status.as_u16(), "told somebody: {title} (reference {reference})");
    } else if is_told {
        info!(reference, %source, path, status = status.as_u16(), "told somebody: {title} (reference {reference})");
    }
    let page = MessagePage {
        site: &context.site,
        title: &title,
        text: &text,
        ways: &ways,
        reference: is_told.then_some(&reference),
    };
    let mut page = respond(status, &page);
    // Cookies, and what stands on every page there.
    page.headers_mut().extend(response.into_parts().0.headers);
    if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
        page.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("30"));
    }
    page
}

/// The broker itself failed; its log says how.
pub(crate) fn trouble(ways: &[Way<'_>]) -> Response {
    let text = "The service has a problem of its own; its log says which. Try again in a moment, and tell the operator if it stays.";
    Message { title: "This did not work", text, ways }.respond(StatusCode::SERVICE_UNAVAILABLE)
}

/// The store failed; where it is full, that is what is told.
pub(crate) fn store_failed(e: &StoreError, ways: &[Way<'_>]) -> Response {
    if e.is_full() { not_kept(ways) } else { trouble(ways) }
}

/// The store takes nothing.
pub(crate) fn not_kept(ways: &[Way<'_>]) -> Response {
    let text = "What this service has to remember cannot be written at the moment, as on a full disk. What is connected stays connected. Try again in a minute, and tell the operator if it stays.";
    Message { title: "This service cannot keep anything now", text, ways }.respond(StatusCode::SERVICE_UNAVAILABLE)
}

/// Forgejo does not answer.
pub(crate) fn forgejo_away(ways: &[Way<'_>]) -> Response {
    let text = "Forgejo does not answer at the moment, so nobody can log in. What is connected stays connected. Try again in a few minutes.";
    Message { title: "Forgejo cannot be reached", text, ways }.respond(StatusCode::SERVICE_UNAVAILABLE)
}

#[derive(Debug, Template)]
#[template(path = "waiting.html", config = ".askama.toml")]
struct WaitingPage<'a> {
    site: &'a Site,
}

/// A login goes on. The browser asks again by itself, without a script.
pub(crate) fn waiting(site: &Site) -> Response {
    let mut response = respond(StatusCode::ACCEPTED, &WaitingPage { site });
    response.headers_mut().insert(REFRESH, HeaderValue::from_static("1"));
    response
}

/// Too many from one address.
pub(crate) fn too_many() -> Response {
    let text = "Too many logins were begun from your network within a minute. Wait a moment and try again.";
    Message { title: "Too many at once", text, ways: &[] }.respond(StatusCode::TOO_MANY_REQUESTS)
}
