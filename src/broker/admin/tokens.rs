//! Tokens without OAuth, for services: made, held to other lists, ended.
//!
//! Whoever has one reaches the broker without a login and without consent, so it says how long, from where and for which
//! tools it is good. What is changed of it holds at once: all that runs under it is ended, and begins anew as it may.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use rand::rngs::SysRng;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::info;
use wire::clock::UnixTime;
use zeroize::Zeroizing;

use crate::admin::api::{ChangeToken, CreateToken, CreatedToken, Expiry, NewList, RestrictedToken};
use crate::admin::{Admin, Refused, is_called};
use crate::auth::principal::{GrantId, Scopes};
use crate::auth::restriction::{AllowedNetworks, AllowedTools, RestrictionError, Restrictions};
use crate::auth::token::AccessToken;
use crate::forge::access::{AccessError, NotAdmitted};
use crate::forge::vault;
use crate::hex;
use crate::store::NewGrant;

/// Bytes of a request at most: a Forgejo token, two names and two lists. What holds it never moves.
const MAX_REQUEST: usize = 64 * 1024;
/// How long it may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Digits of a grant's id that are enough to name it.
const GRANT_DIGITS: usize = 8;
/// How long a token may be good at most.
const LONGEST: Duration = Duration::from_hours(24 * 3660);

/// Reads the body piece by piece, so that what holds it is cleared; a stranger to JSON is told no more than that.
async fn asked<T: DeserializeOwned>(request: Request) -> Result<T, Refused> {
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

fn tools(names: &[String]) -> Result<Arc<AllowedTools>, RestrictionError> {
    AllowedTools::new(names.iter().map(String::as_str)).map(Arc::new)
}

fn networks(texts: &[String]) -> Result<Arc<AllowedNetworks>, RestrictionError> {
    AllowedNetworks::new(texts.iter().map(String::as_str)).map(Arc::new)
}

/// A list in the place of another one, where another is asked for.
fn renewed<T>(
    before: Option<T>,
    asked: Option<&NewList>,
    parse: impl FnOnce(&[String]) -> Result<T, RestrictionError>,
) -> Result<Option<T>, RestrictionError> {
    match asked {
        None => Ok(before),
        Some(NewList::Any) => Ok(None),
        Some(NewList::Only(list)) => parse(list).map(Some),
    }
}

/// When a token ends.
fn end(expires: Expiry, now: UnixTime) -> Result<UnixTime, Refused> {
    let end = match expires {
        // Beyond all that is let in where it is too much for a number.
        Expiry::In(seconds) => now.plus(Duration::from_secs(seconds).min(LONGEST * 2)),
        Expiry::At(at) => UnixTime::from_secs(at),
    };
    if end <= now || end > now.plus(LONGEST) {
        return Err(Refused::Input("a token must be good for between one second and ten years".to_owned()));
    }
    Ok(end)
}

/// A token without OAuth: for services, and for a first step.
pub(super) async fn create(State(admin): State<Admin>, request: Request) -> Result<Json<CreatedToken>, Refused> {
    let asked: CreateToken = asked(request).await?;
    let named = |text: &str| !text.is_empty() && text.len() <= 200 && !text.contains(char::is_control);
    if !named(&asked.client) {
        return Err(Refused::Input("the client's name must have 1 to 200 characters".to_owned()));
    }
    let restrictions = Restrictions {
        tools: asked.tools.as_deref().map(tools).transpose()?,
        networks: asked.networks.as_deref().map(networks).transpose()?,
    };
    let expires_at = end(asked.expires, admin.clock.now())?;
    let user = admin.forgejo.whoami(&asked.forgejo_token).await?;
    if !is_called(&asked.user, user.login.as_str(), user.id) {
        return Err(Refused::OtherUser { asked: asked.user, actual: user.login.as_str().to_owned() });
    }
    admin.rotation.admits(&user, &asked.forgejo_token).await?;
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
        restrictions,
        credential_id,
        credential,
        token: token.hash(),
        created_at: now,
        expires_at,
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

/// The grant with an id, or with the first digits of one.
async fn named(admin: &Admin, digits: &str) -> Result<GrantId, Refused> {
    if digits.len() < GRANT_DIGITS {
        return Err(Refused::Input(format!("give at least {GRANT_DIGITS} digits of the grant's id")));
    }
    match admin.store.grants_beginning(digits).await?.as_slice() {
        [] => Err(Refused::NoSuchToken),
        [grant] => Ok(grant.clone()),
        _ => Err(Refused::Input("several grants begin like that: give more digits".to_owned())),
    }
}

/// Holds a token to other lists, or to another end. What is left out stays.
pub(super) async fn change(
    State(admin): State<Admin>,
    Path(grant): Path<String>,
    request: Request,
) -> Result<Json<RestrictedToken>, Refused> {
    let asked: ChangeToken = asked(request).await?;
    let grant = named(&admin, &grant).await?;
    let row = admin.store.find_grant(&grant).await?.filter(|row| !row.revoked).ok_or(Refused::NoSuchToken)?;
    let restrictions = Restrictions {
        tools: renewed(row.restrictions.tools, asked.tools.as_ref(), tools)?,
        networks: renewed(row.restrictions.networks, asked.networks.as_ref(), networks)?,
    };
    let expires_at = asked.expires.map(|expires| end(expires, admin.clock.now())).transpose()?;
    let sessions = admin.revocation.change_token(&grant, restrictions.clone(), expires_at).await?;
    let sessions = sessions.ok_or(Refused::NotTheOperators)?;
    info!(
        grant = %grant, tenant = %row.tenant, login = %row.login, client = %row.client_id, sessions,
        "token changed: {grant}; {sessions} sessions are ended"
    );
    Ok(Json(RestrictedToken {
        id: grant.as_str().to_owned(),
        tools: restrictions.tools.map(|tools| tools.names()),
        networks: restrictions.networks.map(|networks| networks.texts()),
        sessions,
    }))
}

/// Ends a grant of any kind.
pub(super) async fn revoke(State(admin): State<Admin>, Path(grant): Path<String>) -> Result<StatusCode, Refused> {
    let grant = named(&admin, &grant).await?;
    if admin.revocation.revoke(&grant, "operator").await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Refused::NoSuchToken)
    }
}
