//! Logging in: the authorization server that MCP clients talk to, and the pages that their users see.
//!
//! A stranger may send anything here. A client is believed nothing but what it proves (a secret, a verifier, a token);
//! a browser is known by its cookie; a person by what Forgejo says after a login that this browser began. The path of a
//! login: [`authorize`] (is the request good) → [`consent`] (what was agreed to before; the page that asks) → [`login`]
//! → Forgejo → [`callback`] (who is it, are they let in) → the client → [`tokens`].

mod account;
mod authorize;
pub mod browser;
mod callback;
pub mod client;
pub mod clients;
mod consent;
pub mod document;
mod error;
mod login;
mod metadata;
mod page;
mod params;
pub mod policy;
pub mod redirect;
mod register;
mod request;
mod tokens;
mod welcome;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderName, Method};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;
use tower_http::cors::{Any, CorsLayer};
use tracing::error;

use self::browser::Cookies;
use self::clients::Clients;
use self::document::{Library, LibraryError};
use self::policy::Policy;
use super::limiter::Limits;
use super::principal::Scopes;
use super::revocation::Revocation;
use super::rotation::Rotation;
use super::store::{Store, StoreError};
use super::upstream::Forgejo;
use super::upstream::tokens::Application;
use crate::clock::Clock;

/// How long a login at Forgejo may take.
const LOGIN_TTL: Duration = Duration::from_mins(10);
/// Bytes of a form or of a client's metadata.
const MAX_BODY: usize = 64 * 1024;
/// How long such a body may take: whoever opens a connection and sends nothing must not keep it.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Logins under way, of everybody.
const MAX_LOGINS: i64 = 20_000;

/// What logging in is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Where clients and browsers reach the broker: the issuer.
    pub public_url: String,
    /// The operator's word.
    pub policy: Policy,
    /// The broker's registration at Forgejo; without it nobody can log in, and only the front page is there.
    pub application: Option<Application>,
    /// Where everything is kept.
    pub store: Store,
    /// The forge.
    pub forgejo: Forgejo,
    /// Turns logins into credentials.
    pub rotation: Rotation,
    /// Ends grants.
    pub revocation: Revocation,
    /// How often strangers may ask.
    pub limits: Arc<Limits>,
    /// The time.
    pub clock: Clock,
}

/// Everything the handlers share.
#[derive(Debug)]
struct Parts {
    public_url: String,
    resource: String,
    /// Where Forgejo sends browsers back to; registered there.
    callback: String,
    policy: Policy,
    application: Option<Application>,
    cookies: Cookies,
    clients: Clients,
    store: Store,
    forgejo: Forgejo,
    rotation: Rotation,
    revocation: Revocation,
    limits: Arc<Limits>,
    clock: Clock,
}

/// The authorization server and the pages. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OAuth(Arc<Parts>);

impl OAuth {
    /// Puts it together; nothing is asked of anybody yet.
    pub fn new(setup: Setup) -> Result<Self, LibraryError> {
        let Setup { public_url, policy, application, store, forgejo, rotation, revocation, limits, clock } = setup;
        let library = Library::new(policy.documents.clone(), Arc::clone(&limits), clock.clone())?;
        Ok(Self(Arc::new(Parts {
            resource: format!("{public_url}/mcp"),
            callback: format!("{public_url}/oauth/callback"),
            cookies: Cookies::new(&public_url),
            clients: Clients::new(store.clone(), library),
            public_url,
            policy,
            application,
            store,
            forgejo,
            rotation,
            revocation,
            limits,
            clock,
        })))
    }

    /// The routes. What programs call may be called from any page (CORS); what browsers visit may not.
    pub fn routes(&self) -> Router {
        let parts = &self.0;
        let offer = parts.application.as_ref().map(|application| (application.offers(), parts.policy.documents.fetch));
        let mut programs = metadata::routes(&parts.public_url, offer);
        let mut pages = Router::new().route("/", get(welcome::show)).route(page::STYLE, get(page::style));
        if parts.application.is_some() {
            programs = programs
                .route("/oauth/register", post(register::register))
                .route("/oauth/token", post(tokens::token))
                .route("/oauth/revoke", post(tokens::revoke));
            pages = pages
                .route("/oauth/authorize", get(authorize::show))
                .route("/oauth/consent", post(authorize::decide))
                .route("/oauth/callback", get(callback::back))
                .route("/account", get(account::show))
                .route("/account/login", post(account::log_in))
                .route("/account/logout", post(account::log_out))
                .route("/account/disconnect", post(account::disconnect));
        }
        let cors = CorsLayer::new().allow_origin(Any).allow_methods([Method::GET, Method::POST]).allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            HeaderName::from_static("mcp-protocol-version"),
        ]);
        programs.layer(cors).merge(pages).with_state(Arc::clone(parts))
    }

    /// Removes what is over; called now and then.
    pub async fn tidy(&self) {
        let parts = &self.0;
        parts.limits.forget();
        if let Err(e) = parts.tidied().await {
            error!(error = %e, "what has expired could not be removed");
        }
    }
}

impl Parts {
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
        for grant in self.store.tidy(now).await? {
            self.revocation.end(&grant, "expired");
        }
        self.store.forget_logins(now.minus(LOGIN_TTL)).await?;
        self.store.forget_unused_clients(now.minus(self.policy.keep_unused)).await?;
        Ok(())
    }
}

/// The body of a small request did not come, or not within its bound.
struct NoBody;

async fn body(request: Request) -> Result<Bytes, NoBody> {
    let collected = timeout(BODY_WITHIN, Limited::new(request.into_body(), MAX_BODY).collect()).await;
    Ok(collected.map_err(|_| NoBody)?.map_err(|_| NoBody)?.to_bytes())
}
