//! The operator's door: HTTP over a Unix socket, for `forgejo-mcp-brokerctl`.
//!
//! Whoever can connect may do everything here, so the socket's mode (0600) and the peer's uid (`SO_PEERCRED`: the
//! broker's own, or root) decide, and nothing in a request does. A Forgejo token comes in in a body, never in an
//! address, and goes out never.

pub mod api;
pub(crate) mod doctor;
pub mod inspected;
mod keys;
mod listener;
mod lists;
mod tokens;

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use tokio::sync::Mutex;
use tracing::error;

use crate::admin::api::{EndedSession, EndedUser, Problem, StatusView, SupervisorView};
use crate::admin::doctor::Surroundings;
pub(crate) use crate::admin::listener::{AdminError, serve};
use crate::auth::restriction::RestrictionError;
use crate::auth::revocation::Revocation;
use crate::auth::token::NoRandomness;
use crate::chain::chain;
use crate::child::supervisor_client::SupervisorSpawner;
use crate::forge::access::AccessError;
use crate::forge::api::{Forgejo, UpstreamError};
use crate::forge::rotation::{ResealError, Rotation};
use crate::forge::vault::{Vault, VaultError};
use crate::session::id::{self, SessionName};
use crate::store::{Store, StoreError};
use wire::clock::Clock;
use wire::message::TenantId;

/// What the operator's requests act on.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    /// The store.
    pub(crate) store: Store,
    /// Where its file is: copies are made beside it.
    pub(crate) database: PathBuf,
    /// Held while a copy is being made.
    pub(crate) copying: Arc<Mutex<()>>,
    /// Seals what is stored.
    pub(crate) vault: Arc<Vault>,
    /// Says whose a token is.
    pub(crate) forgejo: Forgejo,
    /// Knows accounts, and who is let in at all.
    pub(crate) rotation: Rotation,
    /// Ends grants.
    pub(crate) revocation: Revocation,
    /// Says what separates the children.
    pub(crate) supervisor: SupervisorSpawner,
    /// The time.
    pub(crate) clock: Clock,
    /// What `doctor` looks at besides.
    pub(crate) surroundings: Surroundings,
}

/// Why an operator's request is not carried out.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Input(String),
    #[error("Forgejo's user of this token is `{actual}`, not `{asked}`: give the token of the user that you name")]
    OtherUser { asked: String, actual: String },
    #[error("{0}")]
    Restriction(#[from] RestrictionError),
    #[error("this grant is a client's login, which its user alone can change; see `forgejo-mcp-brokerctl grants`")]
    NotTheOperators,
    #[error("{0}")]
    Upstream(#[from] UpstreamError),
    #[error("there is no such token, or it is revoked already; see `forgejo-mcp-brokerctl grants`")]
    NoSuchToken,
    #[error("there is no such session, or it has ended already; see `forgejo-mcp-brokerctl sessions`")]
    NoSuchSession,
    #[error("nobody called `{0}` was ever here; see `forgejo-mcp-brokerctl users`")]
    NoSuchUser(String),
    #[error("the broker's storage failed; its log says how")]
    Store(#[from] StoreError),
    #[error("the broker cannot seal the token; its log says why")]
    Vault(#[from] VaultError),
    #[error("the system has no random bytes")]
    NoRandomness(#[from] NoRandomness),
    #[error("{0}")]
    Access(#[from] AccessError),
    #[error("{0}")]
    Reseal(#[from] ResealError),
    #[error("the copy cannot be made beside the database: {0}")]
    Copy(std::io::Error),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Input(_) | Self::Restriction(_) => StatusCode::BAD_REQUEST,
            Self::NoSuchToken | Self::NoSuchSession | Self::NoSuchUser(_) => StatusCode::NOT_FOUND,
            Self::Reseal(ResealError::UnderWay) | Self::NotTheOperators => StatusCode::CONFLICT,
            // In the operator's hands, with all that there is to say.
            Self::OtherUser { .. }
            | Self::Access(_)
            | Self::Reseal(ResealError::Key(_))
            | Self::Upstream(UpstreamError::BadToken | UpstreamError::Forbidden) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Upstream(_) => StatusCode::BAD_GATEWAY,
            Self::Store(_) | Self::Vault(_) | Self::NoRandomness(_) | Self::Reseal(_) | Self::Copy(_) => {
                error!(error = %self, cause = ?std::error::Error::source(&self), "an operator's request failed: {}", chain(&self));
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        (status, Json(Problem { error: self.to_string() })).into_response()
    }
}

/// The routes.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/tokens", post(tokens::create).get(lists::tokens))
        .route("/tokens/{grant}", delete(tokens::revoke).patch(tokens::change))
        .route("/sessions", get(lists::sessions))
        .route("/sessions/{name}", delete(end_session))
        .route("/clients", get(lists::clients))
        .route("/doctor", get(doctor::examine))
        .route("/users", get(lists::users))
        .route("/users/{login}", delete(end_user))
        .route("/status", get(status))
        .route("/key", get(keys::show))
        .route("/key/rotate", post(keys::rotate))
        .route("/backup", post(keys::backup))
        .with_state(admin)
}

/// One open session, by its id or by what the log shows of it.
async fn end_session(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Json<EndedSession>, Refused> {
    let parsed = SessionName::parse(&name).ok_or_else(|| {
        Refused::Input("that is neither a session's id nor at least eight digits of what `sessions` shows".to_owned())
    })?;
    let registry = &admin.revocation.registry;
    match registry.named(&parsed).as_slice() {
        [] => Err(Refused::NoSuchSession),
        [session] => {
            registry.end(session, "operator");
            Ok(Json(EndedSession { session: id::tag(&session.digest) }))
        }
        several => Err(Refused::Input(format!(
            "{} sessions begin like that: give more digits of `digest` (`sessions --json`)",
            several.len()
        ))),
    }
}

/// Whether an operator means this user: by the login, or as `id:NUMBER`.
fn is_called(named: &str, login: &str, number: TenantId) -> bool {
    login.eq_ignore_ascii_case(named) || format!("id:{number}").eq_ignore_ascii_case(named)
}

/// Everybody with this login, or who has the number.
async fn end_user(State(admin): State<Admin>, Path(login): Path<String>) -> Result<Json<Vec<EndedUser>>, Refused> {
    let accounts = admin.store.accounts_named(&login).await?;
    if accounts.is_empty() {
        return Err(Refused::NoSuchUser(login));
    }
    let mut ended = Vec::new();
    for account in accounts {
        let (grants, sessions) = admin.revocation.end_user(account.tenant, "operator").await?;
        let (number, login) = (account.tenant.get(), account.login.as_str().to_owned());
        ended.push(EndedUser { number, login, grants, sessions });
    }
    Ok(Json(ended))
}

async fn status(State(admin): State<Admin>) -> Json<StatusView> {
    let (sessions, children) = admin.revocation.registry.counts();
    let supervisor = match admin.supervisor.status().await {
        Ok(status) => Some(SupervisorView::new(&status, admin.supervisor.inspect_all().await)),
        Err(_) => None,
    };
    Json(StatusView { sessions, children, supervisor })
}
