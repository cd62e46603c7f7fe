//! Logging in: the authorization server that MCP clients talk to, and the pages that their users see.
//!
//! A stranger may send anything here. A client is believed nothing but what it proves (a secret, a verifier, a token);
//! a browser is known by its cookie; a person by what Forgejo says after a login that this browser began. The path of a
//! login: [`authorize`] (is the request good) → [`consent`] (what was agreed to before; the page that asks) → [`login`]
//! → Forgejo → [`callback`] (who is it, are they let in) → the client → [`tokens`].

mod account;
mod arrivals;
mod assertion;
mod authorize;
pub(crate) mod browser;
mod callback;
pub(crate) mod client;
mod client_authentication;
pub(crate) mod client_name;
pub(crate) mod clients;
pub(crate) mod config;
mod consent;
pub(crate) mod document;
mod error;
pub(crate) mod families;
mod front_page;
pub(crate) mod keys;
mod login;
mod metadata;
mod page;
mod params;
pub(crate) mod redirect;
mod register;
mod request;
pub(crate) mod site;
mod tokens;
mod used_assertions;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, Method};
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;
use tower_http::cors::{Any, CorsLayer};
use tracing::error;

use crate::auth::principal::Scopes;
use crate::auth::rates::RateLimits;
use crate::auth::revocation::Revocation;
use crate::chain::chain;
use crate::forge::api::Forgejo;
use crate::forge::application::Application;
use crate::forge::rotation::Rotation;
use crate::http::origin::REMEMBERED;
use crate::mcp::writes::RecentWrites;
use crate::oauth::arrivals::Arrivals;
use crate::oauth::browser::Cookies;
use crate::oauth::clients::Clients;
use crate::oauth::config::OAuthConfig;
use crate::oauth::document::{DocumentCache, DocumentCacheError};
use crate::oauth::site::Site;
use crate::oauth::used_assertions::UsedAssertions;
use crate::store::{Store, StoreError};
use crate::trace;
use wire::clock::Clock;

/// Forgejo tokens that were not used for so long have no grant any more; one that comes again gets a new one.
const UNUSED_TOKENS: Duration = Duration::from_hours(30 * 24);
/// How long a login at Forgejo may take.
const LOGIN_TTL: Duration = Duration::from_mins(10);
/// Bytes of a form or of a client's metadata.
const MAX_BODY: usize = 64 * 1024;
/// How long such a body may take: whoever opens a connection and sends nothing must not keep it.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What logging in is made of.
#[derive(Debug, Clone)]
pub(crate) struct Dependencies {
    /// Where clients and browsers reach the broker: the issuer.
    pub(crate) public_url: String,
    /// The operator's word.
    pub(crate) policy: OAuthConfig,
    /// What the pages say of the service.
    pub(crate) site: Site,
    /// The broker's registration at Forgejo; without it nobody can log in, and only the front page is there.
    pub(crate) application: Option<Application>,
    /// Where everything is kept.
    pub(crate) store: Store,
    /// The forge.
    pub(crate) forgejo: Forgejo,
    /// Turns logins into credentials.
    pub(crate) rotation: Rotation,
    /// Ends grants.
    pub(crate) revocation: Revocation,
    /// How often strangers may ask.
    pub(crate) limits: Arc<RateLimits>,
    /// The time.
    pub(crate) clock: Clock,
    /// The last writes, which wait to be kept.
    pub(crate) writes: RecentWrites,
}

/// Everything the handlers share.
#[derive(Debug)]
struct Context {
    public_url: String,
    resource: String,
    /// Where Forgejo sends browsers back to; registered there.
    callback: String,
    policy: OAuthConfig,
    site: Site,
    application: Option<Application>,
    cookies: Cookies,
    clients: Clients,
    store: Store,
    forgejo: Forgejo,
    rotation: Rotation,
    revocation: Revocation,
    limits: Arc<RateLimits>,
    clock: Clock,
    writes: RecentWrites,
    arrivals: Arrivals,
    used_assertions: UsedAssertions,
}

/// The authorization server and the pages. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct OAuth(Arc<Context>);

impl OAuth {
    /// Puts it together; nothing is asked of anybody yet.
    pub(crate) fn new(setup: Dependencies) -> Result<Self, DocumentCacheError> {
        let Dependencies {
            public_url,
            policy,
            site,
            application,
            store,
            forgejo,
            rotation,
            revocation,
            limits,
            clock,
            writes,
        } = setup;
        let documents = DocumentCache::new(policy.documents.clone(), Arc::clone(&limits), clock.clone())?;
        Ok(Self(Arc::new(Context {
            resource: format!("{public_url}/mcp"),
            callback: format!("{public_url}/oauth/callback"),
            cookies: Cookies::new(&public_url),
            clients: Clients::new(store.clone(), documents),
            public_url,
            policy,
            site,
            application,
            store,
            forgejo,
            rotation,
            revocation,
            limits,
            clock,
            writes,
            arrivals: Arrivals::default(),
            used_assertions: UsedAssertions::default(),
        })))
    }

    /// The routes. What programs call may be called from any page (CORS); what browsers visit may not.
    pub(crate) fn routes(&self) -> Router {
        let context = &self.0;
        let offer =
            context.application.as_ref().map(|application| (application.offers(), context.policy.documents.fetch));
        let mut programs = metadata::routes(&context.public_url, offer);
        let mut pages = Router::new().route("/", get(front_page::show)).route(page::STYLE, get(page::style));
        if context.site.logo.is_some() {
            pages = pages.route(page::LOGO, get(page::logo));
        }
        let mut way = Router::new();
        if context.application.is_some() {
            programs = programs
                .route("/oauth/register", post(register::register))
                .route("/oauth/token", post(tokens::token))
                // Where revision 2025-03-26 has it for servers without metadata: the Python SDK refreshes here when it begins
                // with the tokens of an earlier run, before it has read any metadata.
                .route("/token", post(tokens::token))
                .route("/oauth/revoke", post(tokens::revoke));
            way = way
                .route("/oauth/authorize", get(authorize::show))
                .route("/oauth/consent", post(authorize::decide))
                .route("/oauth/callback", get(callback::back));
            pages = pages
                .route("/account", get(account::show))
                .route("/account/login", post(account::log_in))
                .route("/account/logout", post(account::log_out))
                .route("/account/disconnect", post(account::disconnect))
                .route("/account/reduce", post(account::reduce));
        }
        let header = HeaderName::from_static;
        let (parent, state) = (header(trace::TRACEPARENT), header(trace::TRACESTATE));
        let cors = CorsLayer::new()
            .allow_origin(Any)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([AUTHORIZATION, CONTENT_TYPE, header("mcp-protocol-version"), parent, state])
            .max_age(REMEMBERED);
        let pages = way.merge(pages.layer(map_response(page::apart)));
        let told = from_fn_with_state(Arc::clone(context), page::with_reference);
        let all = programs.layer(cors).merge(pages.layer(told));
        let all =
            if context.public_url.starts_with("https://") { all.layer(map_response(page::over_tls)) } else { all };
        all.with_state(Arc::clone(context))
    }

    /// Removes what is over; called now and then.
    pub(crate) async fn tidy(&self) {
        let context = &self.0;
        context.limits.forget();
        context.used_assertions.forget(context.clock.now());
        context.arrivals.forget_old(context.clock.now().minus(LOGIN_TTL));
        if let Err(e) = context.tidied().await {
            error!(error = %e, "what has expired could not be removed: {}", chain(&e));
        }
    }
}

impl Context {
    /// The most that a client can be given.
    fn offered(&self) -> Scopes {
        self.application.as_ref().map_or(Scopes { write: false }, Application::offers)
    }

    /// What Forgejo is asked for.
    fn scopes_at_forgejo(&self) -> &[String] {
        self.application.as_ref().map(|application| &*application.scopes).unwrap_or_default()
    }

    async fn tidied(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        loop {
            let expired = self.store.expire_grants(now).await?;
            if expired.is_empty() {
                break;
            }
            for grant in expired {
                self.revocation.end(&grant, "expired");
            }
        }
        for grant in self.store.end_unused_shown(now.minus(UNUSED_TOKENS), now).await? {
            self.revocation.end(&grant, "unused");
        }
        self.store.tidy(now).await?;
        self.store.forget_logins(now.minus(LOGIN_TTL)).await?;
        self.store.forget_unused_clients(now.minus(self.policy.keep_unused)).await?;
        Ok(())
    }
}

/// The body of a small request did not come, or not within its bound.
struct NoBody;

/// Whether a body is of this media type, whatever its parameters (RFC 9110 section 8.3.1).
fn is_of(headers: &HeaderMap, kind: &str) -> bool {
    let said = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    said.split(';').next().is_some_and(|said| said.trim().eq_ignore_ascii_case(kind))
}

async fn body(request: Request) -> Result<Bytes, NoBody> {
    let collected = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MAX_BODY).collect()).await;
    Ok(collected.map_err(|_| NoBody)?.map_err(|_| NoBody)?.to_bytes())
}
