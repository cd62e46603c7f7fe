//! `/oauth/register`: clients that introduce themselves (RFC 7591).
//!
//! Anybody may, so it must cost little: two public clients that say exactly the same are one client (section 3.2.1
//! allows it), which is also why a hosted client that registers for each of its users is never held back.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use crate::auth::source::Source;
use crate::auth::token::ClientSecret;
use crate::hex;
use crate::oauth::client_name::ClientName;
use crate::oauth::error::{OAuthError, uncached};
use crate::oauth::redirect::{RedirectError, RedirectUri};
use crate::oauth::{Context, body, is_of};
use crate::store::RegisteredClient;

/// Addresses of one client.
const MAX_REDIRECTS: usize = 20;
/// Bytes of all of them.
const MAX_REDIRECT_BYTES: usize = 4000;
/// A client that has not completed its login may still be at it for so long; no other of its network takes its place.
const IN_USE_FOR: std::time::Duration = std::time::Duration::from_mins(30);

/// What a client says; members that mean nothing here are ignored (RFC 7591 section 2).
#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default)]
    redirect_uris: Vec<String>,
    client_name: Option<String>,
    token_endpoint_auth_method: Option<String>,
    grant_types: Option<Vec<String>>,
    response_types: Option<Vec<String>>,
    application_type: Option<String>,
    client_uri: Option<String>,
}

/// What was registered. Nothing is null: strict clients refuse that.
#[derive(Debug, Clone, Serialize)]
struct Registered {
    client_id: String,
    client_id_issued_at: i64,
    client_name: String,
    redirect_uris: Vec<String>,
    token_endpoint_auth_method: &'static str,
    grant_types: Vec<&'static str>,
    response_types: [&'static str; 1],
    scope: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret_expires_at: Option<i64>,
}

/// POST.
pub(crate) async fn register(State(context): State<Arc<Context>>, request: Request) -> Response {
    let source = context.limits.source(&request);
    let outcome = async {
        if !is_of(request.headers(), "application/json") {
            return Err(OAuthError::MediaType("a registration is application/json (RFC 7591 section 3.1)"));
        }
        let text = body(request).await.map_err(|_| invalid("the body is too long or broke off"))?;
        add(&context, source, &text).await
    };
    match outcome.await {
        Ok(registered) => {
            let mut response = (StatusCode::CREATED, Json(registered)).into_response();
            uncached(&mut response);
            response
        }
        Err(error) => error.into_response(),
    }
}

const fn invalid(description: &'static str) -> OAuthError {
    OAuthError::Bad("invalid_client_metadata", description)
}

async fn add(context: &Context, source: Source, text: &Bytes) -> Result<Registered, OAuthError> {
    let asked: Asked =
        serde_json::from_slice(text).map_err(|_| invalid("the body is no JSON object with redirect_uris"))?;
    let redirects = redirects(context, &asked)?;
    let (method, confidential) = match asked.token_endpoint_auth_method.as_deref() {
        Some("none") => ("none", false),
        // The default of RFC 7591 section 2.
        None | Some("client_secret_basic") => ("client_secret_basic", true),
        Some("client_secret_post") => ("client_secret_post", true),
        Some(_) => {
            return Err(invalid("token_endpoint_auth_method must be none, client_secret_basic or client_secret_post"));
        }
    };
    let wants =
        |list: &Option<Vec<String>>, what: &str| list.as_ref().is_none_or(|list| list.iter().any(|one| one == what));
    if !wants(&asked.grant_types, "authorization_code") || !wants(&asked.response_types, "code") {
        return Err(invalid("grant_types must hold authorization_code, and response_types code"));
    }
    let bounded = |text: Option<String>| text.filter(|text| !text.is_empty() && text.len() <= 2000);
    let name = ClientName::of(asked.client_name.as_deref().unwrap_or_default()).to_string();
    let now = context.clock.now();
    let mut registered = Registered {
        client_id: String::new(),
        client_id_issued_at: now.secs(),
        client_name: name,
        redirect_uris: redirects,
        token_endpoint_auth_method: method,
        // What there is, whatever else was asked for; every client gets refresh tokens.
        grant_types: vec!["authorization_code", "refresh_token"],
        response_types: ["code"],
        scope: context.offered().as_str(),
        application_type: bounded(asked.application_type),
        client_uri: bounded(asked.client_uri),
        client_secret: None,
        client_secret_expires_at: None,
    };
    let alike = alike(&registered);
    // Public ones only: nobody is given a client whose secret somebody else has.
    if let Some(known) = context.store.find_client_alike(&alike).await? {
        context.store.renew_client(&known.client_id, now).await?;
        registered.client_id = known.client_id;
        return Ok(registered);
    }
    context.limits.registrations.count(&source).map_err(OAuthError::TooMany)?;
    make_room(context, source).await?;
    let secret = if confidential { Some(ClientSecret::mint(&mut SysRng)?) } else { None };
    registered.client_id = format!("mcp-{}", hex::random_id(&mut SysRng)?);
    let client = RegisteredClient {
        client_id: registered.client_id.clone(),
        name: registered.client_name.clone(),
        redirects: registered.redirect_uris.clone(),
        secret: secret.as_ref().map(ClientSecret::hash),
    };
    context.store.insert_client(&client, &alike, source, now).await?;
    info!(client = %client.client_id, name = %client.name, source = %source, "client registered");
    registered.client_secret_expires_at = secret.as_ref().map(|_| 0);
    registered.client_secret = secret.map(|secret| secret.expose().to_owned());
    Ok(registered)
}

fn redirects(context: &Context, asked: &Asked) -> Result<Vec<String>, OAuthError> {
    let refuse = |description| Err(OAuthError::Bad("invalid_redirect_uri", description));
    let bytes: usize = asked.redirect_uris.iter().map(String::len).sum();
    if asked.redirect_uris.is_empty() || asked.redirect_uris.len() > MAX_REDIRECTS || bytes > MAX_REDIRECT_BYTES {
        return refuse("redirect_uris must name one to twenty addresses, with 4000 bytes together");
    }
    for text in &asked.redirect_uris {
        match RedirectUri::parse(text, &context.policy.schemes) {
            Ok(_) => {}
            Err(RedirectError::NotHttps) => return refuse("a redirect address must be https, or http on this machine"),
            Err(RedirectError::Scheme) => return refuse("the scheme of a redirect address is not allowed here"),
            Err(RedirectError::Fragment) => return refuse("a redirect address must have no fragment"),
            Err(RedirectError::NoHost) => return refuse("a redirect address must name its host: https://HOST/..."),
            Err(RedirectError::Port) => return refuse("a redirect address must not have port 0"),
            Err(RedirectError::Query) => {
                return refuse("a redirect address must not have code, state, iss, or an error in its query");
            }
            Err(RedirectError::UserInfo | RedirectError::NotAnAddress) => return refuse("a redirect address is none"),
        }
    }
    Ok(asked.redirect_uris.clone())
}

/// SHA-256 of all that was said; the time and what is made here are left out.
fn alike(registered: &Registered) -> [u8; 32] {
    let said = Registered { client_id_issued_at: 0, ..registered.clone() };
    Sha256::digest(serde_json::to_vec(&said).unwrap_or_default()).into()
}

/// Keeps the clients that nobody has logged in with within their bound.
async fn make_room(context: &Context, asking: Source) -> Result<(), OAuthError> {
    if context.store.unused_clients().await? < context.policy.bounds.unused_clients {
        return Ok(());
    }
    let has_room = context.store.make_room_for_client(asking, context.clock.now().minus(IN_USE_FOR)).await?;
    if context.limits.may_tell_full() {
        let network = asking.network();
        warn!(
            network,
            has_room,
            reason = "too-many-unused",
            "too many clients have registered that never completed a login: the network with the most of them loses its oldest"
        );
    }
    if has_room { Ok(()) } else { Err(OAuthError::NotNow) }
}
