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

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http_body_util::BodyExt;
use rand::rngs::SysRng;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::{error, info};

use crate::admin::api::{CreateToken, CreatedToken, EndedSession, EndedUser, Problem, StatusView, SupervisorView};
use crate::admin::doctor::Surroundings;
pub(crate) use crate::admin::listener::{AdminError, serve};
use crate::auth::principal::{GrantId, Scopes};
use crate::auth::revocation::Revocation;
use crate::auth::token::{AccessToken, NoRandomness};
use crate::chain::chain;
use crate::child::supervisor_client::SupervisorSpawner;
use crate::forge::access::{AccessError, NotAdmitted};
use crate::forge::api::{Forgejo, UpstreamError};
use crate::forge::rotation::{ResealError, Rotation};
use crate::forge::vault;
use crate::forge::vault::{Vault, VaultError};
use crate::hex;
use crate::session::id::{self, SessionName};
use crate::store::{NewGrant, Store, StoreError};
use wire::clock::Clock;
use zeroize::Zeroizing;

/// Bytes of a request at most: a Forgejo token and two names. What holds it never moves.
const MAX_REQUEST: usize = 16 * 1024;
/// Digits of a grant's id that are enough to name it.
const GRANT_DIGITS: usize = 8;
/// How long it may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

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
            Self::Input(_) => StatusCode::BAD_REQUEST,
            Self::NoSuchToken | Self::NoSuchSession | Self::NoSuchUser(_) => StatusCode::NOT_FOUND,
            Self::Reseal(ResealError::UnderWay) => StatusCode::CONFLICT,
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
        .route("/tokens", post(create).get(lists::tokens))
        .route("/tokens/{grant}", delete(revoke))
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

/// Reads the body piece by piece, so that what holds it is cleared; a stranger to JSON is told no more than that.
async fn asked(request: Request) -> Result<CreateToken, Refused> {
    let wrong =
        || Refused::Input("the request is none that this broker knows; is the tool of another version?".to_owned());
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_REQUEST));
    let mut body = request.into_body();
    let whole = async {
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.map_err(|_| wrong())?.into_data() else { continue };
            if text.len().saturating_add(piece.len()) > MAX_REQUEST {
                return Err(wrong());
            }
            text.extend_from_slice(&piece);
        }
        Ok(())
    };
    timeout(BODY_TIMEOUT, whole).await.map_err(|_| wrong())??;
    serde_json::from_slice(&text).map_err(|_| wrong())
}

/// A token without OAuth: for services, and for a first step.
async fn create(State(admin): State<Admin>, request: Request) -> Result<Json<CreatedToken>, Refused> {
    let asked = asked(request).await?;
    let named = |text: &str| !text.is_empty() && text.len() <= 200 && !text.contains(char::is_control);
    if !named(&asked.client) {
        return Err(Refused::Input("the client's name must have 1 to 200 characters".to_owned()));
    }
    let ttl = Duration::from_secs(asked.ttl_seconds);
    if ttl.is_zero() || ttl > Duration::from_hours(24 * 3660) {
        return Err(Refused::Input("the time to live must be between one second and ten years".to_owned()));
    }
    let user = admin.forgejo.whoami(&asked.forgejo_token).await?;
    if !user.login.as_str().eq_ignore_ascii_case(&asked.user) {
        return Err(Refused::OtherUser { asked: asked.user, actual: user.login.as_str().to_owned() });
    }
    admin.rotation.lists().now().verify(&admin.forgejo, &user, &asked.forgejo_token).await?;
    if !admin.rotation.recognise(&user).await? {
        return Err(AccessError::from(NotAdmitted::Successor).into());
    }
    let token = AccessToken::mint(&mut SysRng)?;
    let credential_id = hex::random_id(&mut SysRng)?;
    let storing = admin.rotation.storing().await;
    let credential = admin.vault.seal(&asked.forgejo_token, &vault::access_place(&credential_id), &mut SysRng)?;
    let now = admin.clock.now();
    let new = NewGrant {
        grant: GrantId::new(hex::random_id(&mut SysRng)?),
        client_id: asked.client,
        tenant: user.id,
        login: user.login,
        scopes: Scopes { write: !asked.read_only },
        credential_id,
        credential,
        token: token.hash(),
        created_at: now,
        expires_at: now.plus(ttl),
    };
    admin.store.insert_grant(&new).await?;
    drop(storing);
    admin.rotation.note_vouched(&new.credential_id, &asked.forgejo_token).await?;
    info!(grant = %new.grant, tenant = %new.tenant, login = %new.login, client = %new.client_id, "token created");
    Ok(Json(CreatedToken {
        id: new.grant.as_str().to_owned(),
        token: token.expose().to_owned(),
        expires_at: new.expires_at.secs(),
    }))
}

/// A grant by its id, or by the first digits of it.
async fn revoke(State(admin): State<Admin>, Path(grant): Path<String>) -> Result<StatusCode, Refused> {
    if grant.len() < GRANT_DIGITS {
        return Err(Refused::Input(format!("give at least {GRANT_DIGITS} digits of the grant's id")));
    }
    let grant = match admin.store.grants_beginning(&grant).await?.as_slice() {
        [] => return Err(Refused::NoSuchToken),
        [grant] => grant.as_str().to_owned(),
        _ => return Err(Refused::Input("several grants begin like that: give more digits".to_owned())),
    };
    if admin.revocation.revoke(&GrantId::new(grant), "operator").await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Refused::NoSuchToken)
    }
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

/// Everybody with this login: it may have changed hands, and nobody is to be left.
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
