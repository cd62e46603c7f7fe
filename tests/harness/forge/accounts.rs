//! Accounts by their logins: as strangers see them, and as an administrator changes them.

use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::api::{Refusal, not_found, signed_in, user_json};
use super::state::{Forge, State};

pub(crate) fn routes() -> Router<Forge> {
    Router::new()
        .route("/api/v1/users/{login}", get(named))
        .route("/api/v1/admin/users", post(make))
        .route("/api/v1/admin/users/{login}", patch(edit).delete(delete))
        .route("/api/v1/admin/users/{login}/rename", post(rename))
}

/// Open to strangers, whom it tells neither the address nor the state. A login that was given up leads to the one that its
/// account has now.
async fn named(Extract(forge): Extract<Forge>, Path(login): Path<String>) -> Response {
    forge.with(|state| {
        if let Some(user) = state.user_by_login(&login) {
            let mut told = user_json(&state.root, user);
            for (member, value) in [
                ("email", json!(format!("{}@noreply.localhost", user.login))),
                ("is_admin", json!(false)),
                ("active", json!(false)),
                ("restricted", json!(false)),
                ("prohibit_login", json!(false)),
            ] {
                if let Some(place) = told.get_mut(member) {
                    *place = value;
                }
            }
            return Json(told).into_response();
        }
        if let Some(user) = state.former_login(&login) {
            let to = format!("/api/v1/users/{}", user.login);
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response();
        }
        let why = format!("user redirect does not exist [name: {login}]");
        let body = json!({"errors": [why], "message": "GetUserByName", "url": format!("{}/api/swagger", state.root)});
        (StatusCode::NOT_FOUND, Json(body)).into_response()
    })
}

#[derive(Deserialize)]
struct NewUser {
    username: String,
    password: String,
}

async fn make(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri, Json(new): Json<NewUser>) -> Response {
    signed_in(&forge, &headers, &uri, &["write:admin"], |state, caller| {
        admin_only(state, caller)?;
        if state.user_by_login(&new.username).is_some() {
            return Err(Refusal(StatusCode::UNPROCESSABLE_ENTITY, "user already exists".to_owned()));
        }
        let id = state.add_user(&new.username, &new.password, false);
        let made = state.user(id).map(|user| user_json(&state.root, user));
        Ok((StatusCode::CREATED, Json(made)).into_response())
    })
}

#[derive(Deserialize)]
struct UserEdit {
    active: Option<bool>,
    prohibit_login: Option<bool>,
}

fn admin_only(state: &State, caller: i64) -> Result<(), Refusal> {
    match state.user(caller) {
        Some(user) if user.admin => Ok(()),
        _ => Err(Refusal(StatusCode::FORBIDDEN, "user should be an admin".to_owned())),
    }
}

async fn edit(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    uri: Uri,
    Path(login): Path<String>,
    Json(edit): Json<UserEdit>,
) -> Response {
    signed_in(&forge, &headers, &uri, &["write:admin"], |state, caller| {
        admin_only(state, caller)?;
        let root = state.root.clone();
        let Some(user) = state.users.iter_mut().find(|user| user.login == login) else {
            return not_found("user redirect does not exist");
        };
        user.active = edit.active.unwrap_or(user.active);
        user.prohibit_login = edit.prohibit_login.unwrap_or(user.prohibit_login);
        Ok(Json(user_json(&root, user)).into_response())
    })
}

#[derive(Deserialize)]
struct Renamed {
    new_username: String,
}

async fn rename(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    uri: Uri,
    Path(login): Path<String>,
    Json(new): Json<Renamed>,
) -> Response {
    signed_in(&forge, &headers, &uri, &["write:admin"], |state, caller| {
        admin_only(state, caller)?;
        if state.rename_user(&login, &new.new_username) {
            Ok(StatusCode::NO_CONTENT.into_response())
        } else {
            Err(Refusal(StatusCode::UNPROCESSABLE_ENTITY, "user already exists".to_owned()))
        }
    })
}

async fn delete(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri, Path(login): Path<String>) -> Response {
    signed_in(&forge, &headers, &uri, &["write:admin"], |state, caller| {
        admin_only(state, caller)?;
        match state.user_by_login(&login).map(|user| user.id) {
            Some(id) => {
                state.remove_user(id);
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            None => not_found("user redirect does not exist"),
        }
    })
}
