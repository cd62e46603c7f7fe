//! `/oauth/authorize` and the consent page: is the request good, and does the person agree?
//!
//! The broker has one registration at Forgejo for all clients, and Forgejo asks its users once. So it is here that each
//! user agrees to each client, before anything goes to Forgejo; without that any client could ride on the consent that
//! was given to another (confused deputy; MCP revision 2025-11-25, security best practices).
//!
//! What was agreed to is remembered for web sites. Programs on the person's machine are asked for each time, because
//! nothing tells one that listens on localhost from another (RFC 8252 section 8.6).

use std::sync::Arc;

use askama::Template;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};
use tracing::{error, info, warn};

use super::browser::Browser;
use super::client::{Client, ClientError, Origin};
use super::document::DocumentError;
use super::page::{self, Message};
use super::params::Params;
use super::redirect::Place;
use super::request::{self, AuthorizationRequest, WayBack};
use super::{MAX_LOGINS, Parts, body};
use crate::frontend::limiter::Source;
use crate::frontend::principal::Scopes;
use crate::frontend::store::{Login, StoreError};
use crate::frontend::token::{LoginState, NoRandomness};

/// Bytes of an authorization request: it is kept while somebody logs in.
const MAX_QUERY: usize = 8 * 1024;

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
    /// Who is logged in here, if anybody.
    login: Option<&'a str>,
    forgejo: &'a str,
    query: &'a str,
    token: String,
}

/// Why no page about the request can be shown.
enum Trouble {
    Page(Response),
    Store(StoreError),
    NoRandomness,
}

impl From<StoreError> for Trouble {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl From<NoRandomness> for Trouble {
    fn from(_: NoRandomness) -> Self {
        Self::NoRandomness
    }
}

impl Trouble {
    fn respond(self) -> Response {
        match self {
            Self::Page(response) => response,
            Self::Store(e) => {
                error!(error = %e, "a login failed");
                page::trouble()
            }
            Self::NoRandomness => {
                error!("a login failed: no random bytes");
                page::trouble()
            }
        }
    }
}

/// GET `/oauth/authorize`.
pub(super) async fn show(State(parts): State<Arc<Parts>>, RawQuery(query): RawQuery, request: Request) -> Response {
    let (source, headers) = (parts.limits.source(&request), request.headers());
    let outcome = async {
        let query = query.unwrap_or_default();
        let asked = read(&parts, &query, source).await?;
        let browser = parts.cookies.browser(headers)?;
        let visitor = match parts.cookies.visit(headers) {
            Some(visit) => parts.store.find_visit(&visit, parts.clock.now()).await?,
            None => None,
        };
        if let Some(visitor) = &visitor
            && remembered(&parts, visitor.tenant, &asked).await?.is_some()
        {
            return to_forgejo(&parts, browser, &asked, query, None, source).await;
        }
        let login = visitor.as_ref().map(|visitor| visitor.login.as_str());
        Ok(consent_page(&parts, &asked, &query, browser, login))
    };
    outcome.await.unwrap_or_else(Trouble::respond)
}

/// POST `/oauth/consent`.
pub(super) async fn decide(State(parts): State<Arc<Parts>>, request: Request) -> Response {
    let (source, headers) = (parts.limits.source(&request), request.headers().clone());
    let outcome = async {
        let text = body(request).await.map_err(|_| Trouble::Page(forged()))?;
        let form = Params::parse(&text).map_err(|_| Trouble::Page(forged()))?;
        let query = form.get("query").unwrap_or_default();
        let browser = parts
            .cookies
            .known_browser(&headers)
            .filter(|browser| is_from_here(&headers) && browser.sent(&format!("consent|{query}"), form.get("token")));
        let browser = browser.ok_or_else(|| Trouble::Page(forged()))?;
        let asked = read(&parts, query, source).await?;
        if form.get("decision") != Some("approve") {
            info!(client = %asked.client.id, "consent denied");
            return Ok(page::redirect(&asked.back.refusing(request::DENIED, &parts.public_url)));
        }
        // Never more than was asked for, whatever the form says.
        let scopes = Scopes { write: asked.scopes.write && form.get("access") == Some("write") };
        to_forgejo(&parts, browser, &asked, query.to_owned(), Some(scopes), source).await
    };
    outcome.await.unwrap_or_else(Trouble::respond)
}

/// The form was not ours, not of this browser, or too old.
fn forged() -> Response {
    let text = "This form was not made for this browser, or it is too old. Nothing was changed. Start again from your MCP client, with cookies allowed.";
    Message { title: "This form cannot be used", text, way: None }.respond(StatusCode::FORBIDDEN)
}

/// Browsers that send `Sec-Fetch-Site` tell a form of ours from one of another site; the form's token does for all.
pub(super) fn is_from_here(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin")
}

/// Reads a request; what is wrong with it goes to the person or back to the client.
async fn read(parts: &Parts, query: &str, source: Source) -> Result<AuthorizationRequest, Trouble> {
    let wrong = |text: &str| {
        let message = Message { title: "This login link cannot be used", text, way: None };
        Trouble::Page(message.respond(StatusCode::BAD_REQUEST))
    };
    if query.len() > MAX_QUERY {
        return Err(wrong("It is too long. Start again from your MCP client."));
    }
    let params = Params::parse(query.as_bytes())
        .map_err(|_| wrong("A parameter is in it twice. Start again from your MCP client."))?;
    let id = params
        .get("client_id")
        .ok_or_else(|| wrong("It does not say which client sent you. Start again from your MCP client."))?;
    let client = match parts.clients.find(id, &parts.policy, source).await {
        Ok(Some(client)) => client,
        Ok(None) => {
            return Err(wrong(
                "Your MCP client is not registered here any more. Remove this server from the client and add it again, so that it registers anew.",
            ));
        }
        Err(ClientError::Store(e)) => return Err(Trouble::Store(e)),
        Err(ClientError::Document(DocumentError::TooMany(_))) => return Err(Trouble::Page(page::too_many())),
        Err(ClientError::Document(e)) => {
            warn!(client = id, error = %e, source = %source, "a client's metadata document cannot be used");
            return Err(wrong(&format!(
                "Your MCP client describes itself at {id}, and that description cannot be used: {e}."
            )));
        }
    };
    let redirect = client.redirect(params.get("redirect_uri"), &parts.policy).ok_or_else(|| {
        warn!(client = id, source = %source, reason = "redirect-mismatch", "an authorization request was refused");
        wrong("The address to go back to is not one that this client has registered. If you did not expect that, somebody may be after your access: do not go on.")
    })?;
    let is_vouched_for = client.is_vouched_for(&redirect);
    let back = WayBack { redirect, state: params.get("state").map(ToOwned::to_owned), is_vouched_for };
    request::check(client, back, &params, &parts.resource).map_err(|(back, refused)| {
        let to = back.refusing(refused, &parts.public_url);
        if back.is_vouched_for {
            return Trouble::Page(page::redirect(&to));
        }
        let text = format!(
            "Your MCP client made a mistake ({}). You can go back to it at {}.",
            refused.description,
            back.redirect.host()
        );
        let message = Message {
            title: "The client's request is not complete",
            text: &text,
            way: Some((&to, "Back to the client")),
        };
        Trouble::Page(message.respond(StatusCode::BAD_REQUEST))
    })
}

/// What this user agreed to before, if that covers the request and the client's place can be told from another.
pub(super) async fn remembered(
    parts: &Parts,
    tenant: crate::ipc::message::TenantId,
    asked: &AuthorizationRequest,
) -> Result<Option<Scopes>, StoreError> {
    if asked.must_ask || asked.back.redirect.place() != Place::Web {
        return Ok(None);
    }
    let agreed = parts.store.find_consent(tenant, &asked.client.id, &asked.back.redirect.remembered_as()).await?;
    Ok(agreed.filter(|agreed| agreed.write || !asked.scopes.write).map(|_| asked.scopes))
}

/// Reads a request that was good when its login began; it may have become bad since.
pub(super) async fn read_again(parts: &Parts, query: &str, source: Source) -> Result<AuthorizationRequest, Response> {
    read(parts, query, source).await.map_err(Trouble::respond)
}

pub(super) fn consent_page(
    parts: &Parts,
    asked: &AuthorizationRequest,
    query: &str,
    browser: Browser,
    login: Option<&str>,
) -> Response {
    let place = asked.back.redirect.place();
    let host = asked.back.redirect.host();
    let page = ConsentPage {
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
        asks_to_write: asked.scopes.write,
        login,
        forgejo: parts.forgejo.url(),
        query,
        token: browser.form_token(&format!("consent|{query}")),
    };
    page::with_cookies(page::respond(StatusCode::OK, &page), browser.set)
}

/// Sends the browser to Forgejo. The login is written down only now, after the person agreed or had agreed before.
async fn to_forgejo(
    parts: &Parts,
    browser: Browser,
    asked: &AuthorizationRequest,
    query: String,
    consented: Option<Scopes>,
    source: Source,
) -> Result<Response, Trouble> {
    begin(parts, browser, Some(query), consented, source).await.map_err(|e| match e {
        NotBegun::TooMany => Trouble::Page(page::too_many()),
        NotBegun::ForgejoAway => {
            let back = asked.back.refusing(request::NOT_NOW, &parts.public_url);
            Trouble::Page(page::forgejo_away(Some((&back, "Back to the client"))))
        }
        NotBegun::Store(e) => Trouble::Store(e),
        NotBegun::NoRandomness => Trouble::NoRandomness,
    })
}

/// Why no login was begun.
pub(super) enum NotBegun {
    TooMany,
    /// A browser that is sent to a forge that does not answer shows a page that helps nobody.
    ForgejoAway,
    Store(StoreError),
    NoRandomness,
}

/// Begins a login: written down, single-use, bound to this browser, with PKCE (RFC 7636) towards Forgejo too.
pub(super) async fn begin(
    parts: &Parts,
    browser: Browser,
    request: Option<String>,
    consented: Option<Scopes>,
    source: Source,
) -> Result<Response, NotBegun> {
    parts.limits.logins.count(&source).map_err(|_| NotBegun::TooMany)?;
    if parts.store.logins_under_way().await.map_err(NotBegun::Store)? >= MAX_LOGINS {
        return Err(NotBegun::TooMany);
    }
    if !parts.forgejo.answers().await {
        return Err(NotBegun::ForgejoAway);
    }
    let state = LoginState::mint(&mut SysRng).map_err(|_| NotBegun::NoRandomness)?;
    let login =
        Login { state: state.hash(), browser: browser.hash(), request, consented, created_at: parts.clock.now() };
    parts.store.insert_login(&login).await.map_err(NotBegun::Store)?;
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(browser.verifier(state.expose()).as_bytes()));
    let client_id = parts.application.as_ref().map_or("", |application| &application.client_id);
    let url = parts.forgejo.authorize_url(&[
        ("client_id", client_id),
        ("redirect_uri", &super::callback::address(parts)),
        ("response_type", "code"),
        ("state", state.expose()),
        // An empty scope would grant everything; the configuration does not let it be empty.
        ("scope", &parts.policy.scopes.join(" ")),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ]);
    Ok(page::with_cookies(page::redirect(&url), browser.set))
}
