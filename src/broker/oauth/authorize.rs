//! `/oauth/authorize` and the consent page: is the request good, and does the person agree?
//!
//! The broker has one registration at Forgejo for all clients, and Forgejo asks its users once. So it is here that each
//! user agrees to each client, before anything goes to Forgejo; without that any client could ride on the consent that
//! was given to another (confused deputy; MCP revision 2025-11-25, security best practices).

use std::sync::Arc;

use askama::Template;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use tracing::{error, info, warn};

use crate::auth::principal::Scopes;
use crate::auth::source::Source;
use crate::auth::token::NoRandomness;
use crate::chain::chain;
use crate::oauth::browser::{Browser, NotOurs};
use crate::oauth::clients::ClientError;
use crate::oauth::document::DocumentError;
use crate::oauth::login::NotBegun;
use crate::oauth::page;
use crate::oauth::page::Message;
use crate::oauth::params::Params;
use crate::oauth::request;
use crate::oauth::request::{AuthorizationRequest, WayBack};
use crate::oauth::site::Site;
use crate::oauth::{Context, body, consent, login};
use crate::store::{StoreError, Visitor};

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
                error!(error = %e, "a login failed: {}", chain(&e));
                page::store_failed(&e, &[])
            }
            Self::NoRandomness => {
                error!("a login failed: no random bytes");
                page::trouble(&[])
            }
        }
    }
}

/// GET `/oauth/authorize`.
pub(crate) async fn show(State(context): State<Arc<Context>>, RawQuery(query): RawQuery, request: Request) -> Response {
    let (source, headers) = (context.limits.source(&request), request.headers());
    let outcome = async {
        let query = query.unwrap_or_default();
        let asked = read(&context, &query, source).await?;
        let browser = context.cookies.browser(headers)?;
        let visitor = visitor(&context, headers).await?;
        if let Some(visitor) = &visitor
            && consent::remembered(&context, visitor.tenant, &asked).await?.is_some()
        {
            return to_forgejo(&context, browser, &asked, query, None, source).await;
        }
        Ok(consent::page(&context, &asked, &query, browser, visitor.as_ref(), false).await?)
    };
    outcome.await.unwrap_or_else(Trouble::respond)
}

/// POST `/oauth/consent`.
pub(crate) async fn decide(State(context): State<Arc<Context>>, request: Request) -> Response {
    let (source, headers) = (context.limits.source(&request), request.headers().clone());
    let outcome = async {
        let text = body(request).await.map_err(|_| Trouble::Page(forged()))?;
        let form = Params::parse(&text).map_err(|_| Trouble::Page(forged()))?;
        let query = form.get("query").unwrap_or_default();
        let sender = context.cookies.sender(&headers, &consent::form(query), form.get("token"));
        let browser = match sender {
            Ok(browser) => browser,
            Err(NotOurs::OtherSite) => return Ok(forged()),
            Err(NotOurs::NoCookie) => {
                read(&context, query, source).await?;
                return Ok(no_cookies(&context, query));
            }
            Err(NotOurs::OtherForm(browser)) => return asked_anew(&context, query, browser, &headers, source).await,
        };
        let asked = read(&context, query, source).await?;
        if form.get("decision") != Some("approve") {
            info!(client = %asked.client.id, "consent denied");
            return Ok(page::redirect(&asked.back.refusing(request::DENIED, &context.public_url)));
        }
        // Never more than was asked for, whatever the form says.
        let scopes = Scopes { write: asked.scopes.write && form.get("access") == Some("write") };
        to_forgejo(&context, browser, &asked, query.to_owned(), Some(scopes), source).await
    };
    outcome.await.unwrap_or_else(Trouble::respond)
}

/// The form is no form, or another site's.
fn forged() -> Response {
    let text = "This form was not made here. Nothing was changed. Start again from your MCP client.";
    Message { title: "This form cannot be used", text, ways: &[] }.respond(StatusCode::FORBIDDEN)
}

/// The person is asked once more, under the key that the browser has now. Nothing else is done with the form: it could be
/// anybody's.
async fn asked_anew(
    context: &Context,
    query: &str,
    browser: Browser,
    headers: &HeaderMap,
    source: Source,
) -> Result<Response, Trouble> {
    let asked = read(context, query, source).await?;
    let visitor = visitor(context, headers).await?;
    let mut page = consent::page(context, &asked, query, browser, visitor.as_ref(), true).await?;
    *page.status_mut() = StatusCode::FORBIDDEN;
    Ok(page)
}

async fn visitor(context: &Context, headers: &HeaderMap) -> Result<Option<Visitor>, StoreError> {
    match context.cookies.visit(headers) {
        Some(visit) => context.store.find_visit(&visit, context.clock.now()).await,
        None => Ok(None),
    }
}

/// A window inside of another program: what was decided there cannot be tied to whoever logs in.
#[derive(Debug, Template)]
#[template(path = "no_cookies.html", config = ".askama.toml")]
struct NoCookiesPage<'a> {
    site: &'a Site,
    request: &'a str,
}

fn no_cookies(context: &Context, query: &str) -> Response {
    let request = format!("{}/oauth/authorize?{query}", context.public_url);
    page::respond(StatusCode::FORBIDDEN, &NoCookiesPage { site: &context.site, request: &request })
}

/// Reads a request; what is wrong with it goes to the person or back to the client.
async fn read(context: &Context, query: &str, source: Source) -> Result<AuthorizationRequest, Trouble> {
    let wrong = |text: &str| {
        let message = Message { title: "This login link cannot be used", text, ways: &[] };
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
    let client = match context.clients.find(id, &context.policy, source).await {
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
    let redirect = client.redirect(params.get("redirect_uri"), &context.policy.schemes).ok_or_else(|| {
        warn!(client = id, source = %source, reason = "redirect-mismatch", "an authorization request was refused");
        wrong("The address to go back to is not one that this client has registered. If you did not expect that, somebody may be after your access: do not go on.")
    })?;
    let is_vouched_for = client.is_vouched_for(&redirect);
    let back = WayBack { redirect, state: params.get("state").map(ToOwned::to_owned), is_vouched_for };
    request::check(client, back, &params, &context.resource, context.offered()).map_err(|(back, refused)| {
        let to = back.refusing(refused, &context.public_url);
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
            ways: &[(&to, "Back to the client")],
        };
        Trouble::Page(message.respond(StatusCode::BAD_REQUEST))
    })
}

/// As much of a client's id as belongs into a log line or on a page; anybody may ask with any.
fn shown_id(id: &str) -> &str {
    id.get(..id.floor_char_boundary(200)).unwrap_or_default()
}

/// Reads a request that was good when its login began; it may have become bad since.
pub(crate) async fn read_again(
    context: &Context,
    query: &str,
    source: Source,
) -> Result<AuthorizationRequest, Response> {
    read(context, query, source).await.map_err(Trouble::respond)
}

/// Sends the browser to Forgejo. The login is written down only now, after the person agreed or had agreed before.
async fn to_forgejo(
    context: &Context,
    browser: Browser,
    asked: &AuthorizationRequest,
    query: String,
    consented: Option<Scopes>,
    source: Source,
) -> Result<Response, Trouble> {
    let again = login::again(Some(&query));
    login::begin(context, browser, Some(query), consented, source).await.map_err(|e| match e {
        NotBegun::TooMany => Trouble::Page(page::too_many()),
        NotBegun::ForgejoAway => {
            let back = asked.back.refusing(request::NOT_NOW, &context.public_url);
            Trouble::Page(page::forgejo_away(&[(&again, "Try again"), (&back, "Back to the client")]))
        }
        NotBegun::Store(e) => Trouble::Store(e),
        NotBegun::NoRandomness => Trouble::NoRandomness,
    })
}
