//! The strings of the puppet: everything under `/stub/`, which no Forgejo has and no mode affects.

use axum::extract::{Path, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

use super::state::{Forge, Grant, Mode, Seen};

pub(crate) fn routes() -> Router<Forge> {
    Router::new()
        .route("/stub/users", post(add_user))
        .route("/stub/users/{login}", post(change_user).delete(delete_user))
        .route("/stub/tokens", post(add_token))
        .route("/stub/tokens/{token}", axum::routing::delete(delete_token))
        .route("/stub/apps", post(add_app))
        .route("/stub/pairs", post(add_pair).get(unused_pairs))
        .route("/stub/grants/{login}", axum::routing::delete(revoke_grants))
        .route("/stub/mode", post(set_mode))
        .route("/stub/requests", get(requests).delete(forget_requests))
        .route("/stub/clock", post(advance))
        .route("/stub/reset", post(reset))
}

#[derive(Deserialize)]
struct NewUser {
    login: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    admin: bool,
}

async fn add_user(Extract(forge): Extract<Forge>, Json(new): Json<NewUser>) -> Json<Value> {
    let id = forge.with(|state| match state.users.iter_mut().find(|user| user.login == new.login) {
        Some(known) => {
            if !new.password.is_empty() {
                known.password.clone_from(&new.password);
            }
            known.id
        }
        None => state.add_user(&new.login, &new.password, new.admin),
    });
    Json(json!({"id": id}))
}

#[derive(Deserialize)]
struct UserChange {
    /// Another login.
    login: Option<String>,
    active: Option<bool>,
    prohibit_login: Option<bool>,
    must_change_password: Option<bool>,
    restricted: Option<bool>,
    /// `org/team`.
    teams: Option<Vec<String>>,
}

async fn change_user(
    Extract(forge): Extract<Forge>,
    Path(login): Path<String>,
    Json(change): Json<UserChange>,
) -> StatusCode {
    forge.with(|state| match state.users.iter_mut().find(|user| user.login == login) {
        Some(user) => {
            user.active = change.active.unwrap_or(user.active);
            user.prohibit_login = change.prohibit_login.unwrap_or(user.prohibit_login);
            user.must_change_password = change.must_change_password.unwrap_or(user.must_change_password);
            user.restricted = change.restricted.unwrap_or(user.restricted);
            if let Some(teams) = change.teams {
                let split = |path: String| path.split_once('/').map(|(org, team)| (org.to_owned(), team.to_owned()));
                user.teams = teams.into_iter().filter_map(split).collect();
            }
            if change.login.is_some_and(|new| !state.rename_user(&login, &new)) {
                return StatusCode::CONFLICT;
            }
            StatusCode::NO_CONTENT
        }
        None => StatusCode::NOT_FOUND,
    })
}

/// The user, their tokens and their grants, as Forgejo's purge.
async fn delete_user(Extract(forge): Extract<Forge>, Path(login): Path<String>) -> StatusCode {
    forge.with(|state| {
        let Some(id) = state.user_by_login(&login).map(|user| user.id) else { return StatusCode::NOT_FOUND };
        state.remove_user(id);
        StatusCode::NO_CONTENT
    })
}

#[derive(Deserialize)]
struct NewToken {
    login: String,
    #[serde(default)]
    scopes: Scopes,
}

/// Space-separated or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scopes {
    Text(String),
    List(Vec<String>),
}

impl Default for Scopes {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

async fn add_token(Extract(forge): Extract<Forge>, Json(new): Json<NewToken>) -> Response {
    let scopes = match new.scopes {
        Scopes::Text(text) => text,
        Scopes::List(list) => list.join(" "),
    };
    match forge.with(|state| state.add_token(&new.login, &scopes)) {
        Some(token) => Json(json!({"token": token})).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// As its user does it at Settings, Applications.
async fn delete_token(Extract(forge): Extract<Forge>, Path(token): Path<String>) -> StatusCode {
    forge.with(|state| match state.tokens.remove(&token) {
        Some(_) => StatusCode::NO_CONTENT,
        None => StatusCode::NOT_FOUND,
    })
}

#[derive(Deserialize)]
struct NewApp {
    name: String,
    redirect_uris: Vec<String>,
    #[serde(default = "yes")]
    confidential: bool,
}

fn yes() -> bool {
    true
}

/// An application of the whole instance (Forgejo: /admin/applications), so it has no owner.
async fn add_app(Extract(forge): Extract<Forge>, Json(new): Json<NewApp>) -> Json<Value> {
    forge.with(|state| {
        let id = state.add_app(0, &new.name, new.confidential, new.redirect_uris);
        let app = state.app(id);
        Json(json!({"client_id": app.map(|app| &app.client_id), "client_secret": app.map(|app| &app.secret)}))
    })
}

#[derive(Deserialize)]
struct NewPair {
    login: String,
    client_id: String,
    scope: String,
}

/// What a user's login through an application ends in, without the way there: the token endpoint's answer.
async fn add_pair(Extract(forge): Extract<Forge>, Json(new): Json<NewPair>) -> Response {
    let pair = forge.with(|state| {
        let user = state.user_by_login(&new.login)?.id;
        let app = state.app_by_client(&new.client_id)?.id;
        let known = state.grants.iter().find(|grant| grant.user == user && grant.app == app).map(|grant| grant.id);
        let id = known.unwrap_or_else(|| state.grants.iter().map(|grant| grant.id).max().unwrap_or_default() + 1);
        if known.is_none() {
            state.grants.push(Grant {
                id,
                user,
                app,
                scope: new.scope,
                nonce: String::new(),
                counter: 0,
                unused: None,
            });
        }
        state.issue_pair(id)
    });
    pair.map_or_else(|| StatusCode::NOT_FOUND.into_response(), IntoResponse::into_response)
}

/// How many users' newest pairs nobody has used yet.
async fn unused_pairs(Extract(forge): Extract<Forge>) -> Json<Value> {
    Json(json!(forge.with(|state| state.grants.iter().filter(|grant| grant.unused.is_some()).count())))
}

async fn revoke_grants(Extract(forge): Extract<Forge>, Path(login): Path<String>) -> StatusCode {
    forge.with(|state| {
        let Some(id) = state.user_by_login(&login).map(|user| user.id) else { return StatusCode::NOT_FOUND };
        state.grants.retain(|grant| grant.user != id);
        StatusCode::NO_CONTENT
    })
}

/// Replaces the whole mode: what is left out is off.
async fn set_mode(Extract(forge): Extract<Forge>, Json(mode): Json<Mode>) -> Json<Mode> {
    forge.set_mode(mode);
    Json(mode)
}

async fn requests(Extract(forge): Extract<Forge>) -> Json<Vec<Seen>> {
    Json(forge.with(|state| state.requests.clone()))
}

async fn forget_requests(Extract(forge): Extract<Forge>) -> StatusCode {
    forge.with(|state| state.requests.clear());
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Advance {
    /// Seconds.
    advance: u64,
}

async fn advance(Extract(forge): Extract<Forge>, Json(step): Json<Advance>) -> Json<Value> {
    forge.with(|state| {
        state.advance(Duration::from_secs(step.advance));
        Json(json!({"now": state.now()}))
    })
}

/// Sets the forge up anew, with another key for its tokens.
async fn reset(Extract(forge): Extract<Forge>) -> StatusCode {
    forge.with(|state| state.reset(true));
    StatusCode::NO_CONTENT
}
