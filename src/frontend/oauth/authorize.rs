//! `/oauth/authorize` and the consent page: is the request good, and does the person agree?
//!
//! The broker has one registration at Forgejo for all clients, and Forgejo asks its users once. So it is here that each
//! user agrees to each client, before anything goes to Forgejo; without that any client could ride on the consent that
//! was given to another (confused deputy; MCP revision 2025-11-25, security best practices).

use std::sync::Arc;

use axum::extract::{RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use tracing::{error, info, warn};

use super::browser::Browser;
use super::clients::ClientError;
use super::document::DocumentError;
use super::login::NotBegun;
use super::page::{self, Message};
use super::params::Params;
use super::request::{self, AuthorizationRequest, WayBack};
use super::{Parts, body, consent, login};
use crate::frontend::limiter::Source;
use crate::frontend::principal::Scopes;
use crate::frontend::store::StoreError;
use crate::frontend::token::NoRandomness;

/// Bytes of an authorization request: it is kept while somebody logs in.
const MAX_QUERY: usize = 8 * 1024;

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
            && consent::remembered(&parts, visitor.tenant, &asked).await?.is_some()
        {
            return to_forgejo(&parts, browser, &asked, query, None, source).await;
        }
        Ok(consent::page(&parts, &asked, &query, browser, visitor.as_ref()).await?)
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
        let sender = parts.cookies.sender(&headers, &consent::form(query), form.get("token"));
        let browser = sender.ok_or_else(|| Trouble::Page(forged()))?;
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
            let id = shown_id(id);
            warn!(client = id, error = ?e, source = %source, "a client's metadata document cannot be used");
            return Err(wrong(&format!(
                "Your MCP client describes itself at {id}, and that description cannot be used: {e}."
            )));
        }
    };
    let redirect = client.redirect(params.get("redirect_uri"), &parts.policy.schemes).ok_or_else(|| {
        warn!(client = id, source = %source, reason = "redirect-mismatch", "an authorization request was refused");
        wrong("The address to go back to is not one that this client has registered. If you did not expect that, somebody may be after your access: do not go on.")
    })?;
    let is_vouched_for = client.is_vouched_for(&redirect);
    let back = WayBack { redirect, state: params.get("state").map(ToOwned::to_owned), is_vouched_for };
    request::check(client, back, &params, &parts.resource, parts.offered()).map_err(|(back, refused)| {
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

/// As much of a client's id as belongs into a log line or on a page; anybody may ask with any.
fn shown_id(id: &str) -> &str {
    id.get(..id.floor_char_boundary(200)).unwrap_or_default()
}

/// Reads a request that was good when its login began; it may have become bad since.
pub(super) async fn read_again(parts: &Parts, query: &str, source: Source) -> Result<AuthorizationRequest, Response> {
    read(parts, query, source).await.map_err(Trouble::respond)
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
    login::begin(parts, browser, Some(query), consented, source).await.map_err(|e| match e {
        NotBegun::TooMany => Trouble::Page(page::too_many()),
        NotBegun::ForgejoAway => {
            let back = asked.back.refusing(request::NOT_NOW, &parts.public_url);
            Trouble::Page(page::forgejo_away(Some((&back, "Back to the client"))))
        }
        NotBegun::Store(e) => Trouble::Store(e),
        NotBegun::NoRandomness => Trouble::NoRandomness,
    })
}
