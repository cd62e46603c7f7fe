//! What a person agrees to: asked on a page of our own, and remembered.
//!
//! What was agreed to is remembered for web sites. Programs on the person's machine are asked for each time, because
//! nothing tells one that listens on localhost from another (RFC 8252 section 8.6).

use askama::Template;
use axum::http::StatusCode;
use axum::response::Response;

use super::browser::Browser;
use super::client::{Client, Origin};
use super::redirect::Place;
use super::request::AuthorizationRequest;
use super::{Parts, page};
use crate::frontend::principal::Scopes;
use crate::frontend::store::{StoreError, Visitor};
use crate::frontend::upstream::scopes::Reach;
use crate::ipc::message::TenantId;

/// The consent page.
#[derive(Debug, Template)]
#[template(path = "consent.html", config = ".askama.toml")]
struct ConsentPage<'a> {
    client: &'a Client,
    /// Where the code goes, in words.
    goes_to: String,
    /// Whether that is a program on the person's machine, which nobody can vouch for.
    is_local: bool,
    /// The host of the client's metadata document.
    vouched_by: Option<&'a str>,
    is_configured: bool,
    /// Whether writing is asked for.
    asks_to_write: bool,
    /// What of Forgejo the broker's own rights there let a client change.
    changes: String,
    /// And what they let it read only.
    only_reads: String,
    /// All of it.
    reads: String,
    /// Who is logged in here, if anybody.
    login: Option<&'a str>,
    forgejo: &'a str,
    query: &'a str,
    token: String,
}

/// What the form of the page is about: this request and no other.
pub(super) fn form(query: &str) -> String {
    format!("consent|{query}")
}

/// The page that asks; `visitor` is who is logged in here. Forgejo holds a user to the scopes of their first login, so
/// what those reach is said to who is known, and what the configured ones reach to who is not.
pub(super) async fn page(
    parts: &Parts,
    asked: &AuthorizationRequest,
    query: &str,
    browser: Browser,
    visitor: Option<&Visitor>,
) -> Result<Response, StoreError> {
    let granted = match visitor {
        Some(visitor) => parts.store.granted_scopes_of(visitor.tenant).await?,
        None => None,
    };
    let reach = Reach::of(granted.as_deref().unwrap_or(parts.scopes_at_forgejo()));
    let place = asked.back.redirect.place();
    let host = asked.back.redirect.host();
    let shown = ConsentPage {
        client: &asked.client,
        goes_to: match place {
            Place::Web => host.to_owned(),
            Place::Loopback => format!("a program on this computer ({host})"),
            Place::Program => format!("the program on this computer that opens {host}: links"),
        },
        is_local: place != Place::Web,
        vouched_by: match &asked.client.origin {
            Origin::Document { host } => Some(host),
            Origin::Configured | Origin::Registered => None,
        },
        is_configured: asked.client.origin == Origin::Configured,
        asks_to_write: asked.scopes.write && !reach.changes.is_empty(),
        changes: listed(&reach.changes),
        only_reads: listed(&reach.reads),
        reads: listed(&[reach.changes.as_slice(), &reach.reads].concat()),
        login: visitor.map(|visitor| visitor.login.as_str()),
        forgejo: parts.forgejo.url(),
        query,
        token: browser.form_token(&form(query)),
    };
    Ok(page::with_cookies(page::respond(StatusCode::OK, &shown), browser.set))
}

/// Things as a sentence lists them.
fn listed(things: &[&str]) -> String {
    match things {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{}, and {last}", first.join(", ")),
    }
}

/// Whether the client's place can be told from another, so that what was agreed to can be remembered.
pub(super) fn is_remembered_at(asked: &AuthorizationRequest) -> bool {
    asked.back.redirect.place() == Place::Web
}

/// What this user agreed to before, if that covers the request.
pub(super) async fn remembered(
    parts: &Parts,
    tenant: TenantId,
    asked: &AuthorizationRequest,
) -> Result<Option<Scopes>, StoreError> {
    if asked.must_ask || !is_remembered_at(asked) {
        return Ok(None);
    }
    let agreed = parts.store.find_consent(tenant, &asked.client.id, asked.back.redirect.as_str()).await?;
    Ok(agreed.filter(|agreed| agreed.write || !asked.scopes.write).map(|_| asked.scopes))
}
