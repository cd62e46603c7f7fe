//! What a person agrees to: asked on a page of our own, and remembered.
//!
//! What was agreed to is remembered for web sites. Programs on the person's machine are asked for each time, because
//! nothing tells one that listens on localhost from another (RFC 8252 section 8.6).

use askama::Template;
use axum::http::StatusCode;
use axum::response::Response;

use crate::auth::principal::Scopes;
use crate::forge::scopes::Reach;
use crate::oauth::browser::Browser;
use crate::oauth::client::{Client, Origin};
use crate::oauth::redirect::RedirectKind;
use crate::oauth::request::AuthorizationRequest;
use crate::oauth::site::Site;
use crate::oauth::{Context, page};
use crate::store::{StoreError, Visitor};
use wire::message::TenantId;

/// The consent page.
#[derive(Debug, Template)]
#[template(path = "consent.html", config = ".askama.toml")]
struct ConsentPage<'a> {
    site: &'a Site,
    client: &'a Client,
    /// Where the code goes, in words.
    goes_to: String,
    /// Whether that is a program on the person's machine, which nobody can vouch for.
    is_local: bool,
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
    /// Whether the person has decided already, on a page that this browser's key does not fit any more.
    is_asked_anew: bool,
}

/// What the form of the page is about: this request and no other.
pub(crate) fn form(query: &str) -> String {
    format!("consent|{query}")
}

/// The page that asks; `visitor` is who is logged in here. Forgejo holds a user to the scopes of their first login, so
/// what those reach is said to who is known, and what the configured ones reach to who is not.
pub(crate) async fn page(
    context: &Context,
    asked: &AuthorizationRequest,
    query: &str,
    browser: Browser,
    visitor: Option<&Visitor>,
    is_asked_anew: bool,
) -> Result<Response, StoreError> {
    let granted = match visitor {
        Some(visitor) => context.store.granted_scopes_of(visitor.tenant).await?,
        None => None,
    };
    let reach = Reach::of(granted.as_deref().unwrap_or(context.scopes_at_forgejo()));
    let kind = asked.back.redirect.kind();
    let host = asked.back.redirect.host();
    let shown = ConsentPage {
        site: &context.site,
        client: &asked.client,
        goes_to: match kind {
            RedirectKind::Web => host.to_owned(),
            RedirectKind::Loopback => format!("a program on this computer ({host})"),
            RedirectKind::Program => format!("the program on this computer that opens {host}: links"),
        },
        is_local: kind != RedirectKind::Web,
        asks_to_write: asked.scopes.write && !reach.changes.is_empty(),
        changes: listed(&reach.changes),
        only_reads: listed(&reach.reads),
        reads: listed(&[reach.changes.as_slice(), &reach.reads].concat()),
        login: visitor.map(|visitor| visitor.login.as_str()),
        forgejo: context.forgejo.url(),
        query,
        token: browser.form_token(&form(query)),
        is_asked_anew,
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

/// Whether the client's receiver can be told from another, so that what was agreed to can be remembered.
pub(crate) fn is_remembered_at(asked: &AuthorizationRequest) -> bool {
    asked.back.redirect.kind() == RedirectKind::Web
}

/// What this user agreed to before, if that covers the request.
pub(crate) async fn remembered(
    context: &Context,
    tenant: TenantId,
    asked: &AuthorizationRequest,
) -> Result<Option<Scopes>, StoreError> {
    if asked.must_ask || !is_remembered_at(asked) {
        return Ok(None);
    }
    let agreed = context.store.find_consent(tenant, &asked.client.id, asked.back.redirect.as_str()).await?;
    Ok(agreed.filter(|agreed| agreed.write || !asked.scopes.write).map(|_| asked.scopes))
}
