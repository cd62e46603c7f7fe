//! Forgejo's OAuth endpoints that programs talk to: token, userinfo, introspection, discovery.
//!
//! The error table of the token endpoint is Forgejo 16's, word for word: 400 for everything, and `unauthorized_client`
//! where the RFC would say `invalid_grant`. None of these endpoints looks at whether the user is still active.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::State as Extract;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::lost;
use super::state::{Code, Forge, State, Unreadable};

pub(crate) fn routes() -> Router<Forge> {
    Router::new()
        .route("/login/oauth/access_token", post(token))
        .route("/login/oauth/userinfo", get(userinfo).post(userinfo))
        .route("/login/oauth/introspect", post(introspect))
        .route("/login/oauth/keys", get(keys))
        .route("/.well-known/openid-configuration", get(discovery))
}

/// A refusal of the token endpoint: `error` and `error_description`.
struct Refusal(&'static str, String);

fn refuse<T>(error: &'static str, description: &str) -> Result<T, Refusal> {
    Err(Refusal(error, description.to_owned()))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, Json(json!({"error": self.0, "error_description": self.1}))).into_response()
    }
}

/// Form or JSON fields by name; what is missing is the empty text, as in Forgejo.
struct Fields(HashMap<String, String>);

impl Fields {
    fn parse(headers: &HeaderMap, body: &[u8]) -> Self {
        let json =
            headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        Self(if json {
            serde_json::from_slice(body).unwrap_or_default()
        } else {
            url::form_urlencoded::parse(body).into_owned().collect()
        })
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

/// The name and password of a Basic header.
pub(crate) fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let pair = String::from_utf8(STANDARD.decode(given).ok()?).ok()?;
    pair.split_once(':').map(|(name, word)| (name.to_owned(), word.to_owned()))
}

/// The credential of a Bearer header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

async fn token(Extract(forge): Extract<Forge>, headers: HeaderMap, body: Bytes) -> Response {
    if forge.with(|state| state.mode.fail_tokens) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    forge.held_back(|mode| mode.hold_first_exchange).await;
    let mut fields = Fields::parse(&headers, &body);
    let (outcome, lose) = forge.with(|state| (grant_tokens(state, &headers, &mut fields), state.mode.lose_answer));
    forge.held_back(|mode| mode.hold_first_pair).await;
    match outcome {
        _ if lose => lost(),
        Ok(body) => ([(header::CONTENT_TYPE, "application/json;charset=utf-8")], body).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

fn grant_tokens(state: &mut State, headers: &HeaderMap, fields: &mut Fields) -> Result<String, Refusal> {
    if let Some((id, secret)) = basic(headers) {
        for (name, value) in [("client_id", id), ("client_secret", secret)] {
            let given = fields.get(name);
            if !given.is_empty() && given != value {
                let description = format!("{name} in request body inconsistent with Authorization header");
                return Err(Refusal("invalid_request", description));
            }
            fields.0.insert(name.to_owned(), value);
        }
    }
    match fields.get("grant_type") {
        "authorization_code" => exchange(state, fields),
        "refresh_token" => refresh(state, fields),
        _ => refuse("unsupported_grant_type", "Only refresh_token or authorization_code grant type is supported"),
    }
}

fn exchange(state: &mut State, fields: &Fields) -> Result<String, Refusal> {
    let client = fields.get("client_id");
    let Some(app) = state.app_by_client(client) else {
        return Err(Refusal("invalid_client", format!("cannot load client with client id: '{client}'")));
    };
    let secret = fields.get("client_secret");
    if app.confidential && secret != app.secret {
        let description = if secret.is_empty() { "invalid empty client secret" } else { "invalid client secret" };
        return refuse("unauthorized_client", description);
    }
    let redirect = fields.get("redirect_uri");
    if !redirect.is_empty() && !app.takes_redirect(redirect) {
        return refuse("unauthorized_client", "unexpected redirect URI");
    }
    let app_id = app.id;
    let word = fields.get("code").to_owned();
    let Some(code) = state.codes.get(&word) else { return refuse("unauthorized_client", "client is not authorized") };
    if code.redirect_uri != redirect {
        return refuse("unauthorized_client", "redirect_uri does not match the authorization request");
    }
    if !proves(code, fields.get("code_verifier")) {
        return refuse("unauthorized_client", "failed PKCE code challenge");
    }
    let grant = code.grant;
    if state.grant(grant).is_none_or(|grant| grant.app != app_id) {
        return refuse("invalid_grant", "invalid grant");
    }
    state.codes.remove(&word);
    state.issue_pair(grant).map_or_else(|| refuse("invalid_grant", "invalid grant"), Ok)
}

/// Whether the verifier fits the code's challenge; a code without one needs none.
fn proves(code: &Code, verifier: &str) -> bool {
    match code.method.as_str() {
        "S256" => URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes())) == code.challenge,
        "plain" => verifier == code.challenge,
        _ => code.challenge.is_empty(),
    }
}

fn refresh(state: &mut State, fields: &Fields) -> Result<String, Refusal> {
    let client = fields.get("client_id");
    let Some(app) = state.app_by_client(client) else {
        return Err(Refusal("invalid_client", format!("cannot load client with client id: \"{client}\"")));
    };
    if app.confidential && fields.get("client_secret") != app.secret {
        return refuse("invalid_client", "invalid client secret");
    }
    let app_id = app.id;
    let Ok(claims) = state.claims(fields.get("refresh_token")) else {
        return refuse("unauthorized_client", "unable to parse refresh token");
    };
    if claims.tt != 1 {
        return refuse("unauthorized_client", "token is not a refresh token");
    }
    let Some(grant) = state.grant(claims.gnt) else { return refuse("invalid_grant", "grant does not exist") };
    if grant.app != app_id {
        return refuse("invalid_grant", "refresh token was not issued to this client");
    }
    if claims.cnt != Some(grant.counter) {
        return refuse("unauthorized_client", "token was already used");
    }
    state.issue_pair(claims.gnt).map_or_else(|| refuse("invalid_grant", "grant does not exist"), Ok)
}

async fn userinfo(Extract(forge): Extract<Forge>, headers: HeaderMap) -> Response {
    let Some(token) = bearer(&headers) else {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer realm=\"\"")];
        return (StatusCode::UNAUTHORIZED, challenge, "no valid authorization\n").into_response();
    };
    let told = forge.with(|state| {
        let claims = state.claims(token).ok().filter(|claims| claims.tt == 0)?;
        let user = state.grant(claims.gnt)?.user;
        let root = state.root.clone();
        let user = state.user(user)?;
        let mut told = json!({"sub": user.id.to_string(), "name": user.login, "preferred_username": user.login,
            "email": user.email(), "picture": format!("{root}/avatars/{}", user.id)});
        // Whatever the scope, as everything here.
        let mut groups: Vec<String> =
            user.teams.iter().flat_map(|(org, team)| [org.clone(), format!("{org}:{team}")]).collect();
        groups.sort();
        groups.dedup();
        if let (Some(told), false) = (told.as_object_mut(), groups.is_empty()) {
            told.insert("groups".to_owned(), json!(groups));
        }
        Some(told)
    });
    match told {
        Some(told) => Json(told).into_response(),
        None => (StatusCode::UNAUTHORIZED, "Credentials are incorrect or have expired. Check and try again.\n")
            .into_response(),
    }
}

async fn introspect(Extract(forge): Extract<Forge>, headers: HeaderMap, body: Bytes) -> Response {
    let fields = Fields::parse(&headers, &body);
    let client = basic(&headers);
    let told = forge.with(|state| {
        let (id, secret) = client?;
        state.app_by_client(&id).filter(|app| app.secret == secret)?;
        Some(introspected(state, fields.get("token")).unwrap_or_else(|| json!({"active": false})))
    });
    match told {
        Some(told) => Json(told).into_response(),
        None => (StatusCode::UNAUTHORIZED, "no valid authorization\n").into_response(),
    }
}

fn introspected(state: &mut State, token: &str) -> Option<Value> {
    let claims = state.claims(token).map_err(|reason: Unreadable| reason).ok()?;
    let grant = state.grant(claims.gnt)?;
    let (user, app, scope) = (grant.user, grant.app, grant.scope.clone());
    Some(json!({"active": true, "scope": scope, "username": state.user(user)?.login, "iss": state.root,
        "sub": user.to_string(), "aud": [state.app(app)?.client_id]}))
}

/// A key of the right shape; the stub's signatures are hashes and verify under none.
async fn keys(Extract(forge): Extract<Forge>) -> Json<Value> {
    let modulus = URL_SAFE_NO_PAD.encode([forge.with(|state| state.signing_key); 256]);
    Json(json!({"keys": [{"alg": "RS256", "e": "AQAB", "kid": "stub", "kty": "RSA", "n": modulus, "use": "sig"}]}))
}

async fn discovery(Extract(forge): Extract<Forge>) -> Json<Value> {
    let root = forge.with(|state| state.root.clone());
    Json(json!({
        "issuer": root,
        "authorization_endpoint": format!("{root}/login/oauth/authorize"),
        "token_endpoint": format!("{root}/login/oauth/access_token"),
        "jwks_uri": format!("{root}/login/oauth/keys"),
        "userinfo_endpoint": format!("{root}/login/oauth/userinfo"),
        "introspection_endpoint": format!("{root}/login/oauth/introspect"),
        "response_types_supported": ["code", "id_token"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "subject_types_supported": ["public"],
        "scopes_supported": ["openid", "profile", "email", "groups"],
        "claims_supported": ["aud", "exp", "iat", "iss", "sub", "name", "preferred_username", "profile", "picture",
            "website", "locale", "updated_at", "email", "email_verified", "groups"],
        "code_challenge_methods_supported": ["plain", "S256"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
    }))
}
