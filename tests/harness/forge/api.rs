//! The corner of Forgejo's REST API that the broker and the children of the tests touch.
//!
//! Refusals are word for word what Forgejo 16 says, the token it was shown included: redacting them is the broker's job.

use std::collections::HashMap;

use axum::extract::{Path, Query, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::oauth::basic;
use super::state::{App, Forge, Issue, State, Unreadable, User, allows, effective, hex};

pub(crate) fn routes() -> Router<Forge> {
    Router::new()
        .route("/api/v1/version", get(version))
        .route("/api/v1/user", get(me))
        .route("/api/v1/user/repos", get(my_repos))
        .route(super::state::MEMBERSHIPS, get(my_orgs))
        .route("/api/v1/user/teams", get(my_teams))
        .route("/api/v1/user/applications/oauth2", get(apps).post(register))
        .route("/api/v1/user/applications/oauth2/{id}", get(app).patch(change_app).delete(delete_app))
        .route("/api/v1/repos/search", get(search))
        .route("/api/v1/repos/{owner}/{repo}", get(repo))
        .route("/api/v1/repos/{owner}/{repo}/issues", get(issues).post(open_issue))
        .route("/api/v1/repos/{owner}/{repo}/contents/{*path}", get(contents))
        .route("/api/v1/repos/{owner}/{repo}/raw/{*path}", get(raw))
}

/// Who asks, and with which effective scopes.
pub(crate) struct Caller {
    pub user: i64,
    scopes: String,
}

/// A refusal in the API's clothes.
pub(crate) struct Refusal(pub(super) StatusCode, pub(super) String);

impl Refusal {
    fn answer(self, root: &str) -> Response {
        (self.0, Json(json!({"message": self.1, "url": format!("{root}/api/swagger")}))).into_response()
    }
}

/// The credential of a request: `Bearer`, `token`, Basic password, or the query; then who it is. `Ok(None)` is nobody.
pub(crate) fn caller(state: &mut State, headers: &HeaderMap, uri: &Uri) -> Result<Option<Caller>, Refusal> {
    if let Some((name, word)) = basic(headers) {
        let user =
            state.user_by_login(&name).filter(|user| !word.is_empty() && user.password == word).map(|user| user.id);
        return match user {
            Some(user) => Ok(Some(Caller { user, scopes: "all".to_owned() })),
            None => by_token(state, &word).map(Some),
        };
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' ')).and_then(|(scheme, token)| {
        ["bearer", "token"].iter().any(|known| scheme.eq_ignore_ascii_case(known)).then(|| token.to_owned())
    });
    let query = || {
        url::form_urlencoded::parse(uri.query()?.as_bytes())
            .find(|(name, _)| name == "token" || name == "access_token")
            .map(|(_, token)| token.into_owned())
    };
    given.or_else(query).map(|token| by_token(state, &token)).transpose()
}

fn by_token(state: &mut State, token: &str) -> Result<Caller, Refusal> {
    if let Some(known) = state.tokens.get(token) {
        return Ok(Caller { user: known.user, scopes: known.scopes.clone() });
    }
    let missing = format!("access token does not exist [sha: {token}]");
    let why = match state.claims(token) {
        Ok(claims) if claims.tt == 0 => match state.grant(claims.gnt) {
            Some(grant) => {
                let _ = grant.unused.take_if(|unused| unused == token);
                return Ok(Caller { user: grant.user, scopes: effective(&grant.scope) });
            }
            None => "grant does not exist",
        },
        Ok(_) => "token is not an access token",
        Err(Unreadable::Expired) => "token has invalid claims: token is expired",
        Err(Unreadable::Malformed) => "token is malformed: token contains an invalid number of segments",
    };
    Err(Refusal(StatusCode::UNAUTHORIZED, format!("{why}\n{missing}")))
}

/// Runs `work` for a caller who is signed in, unlocked, and holds all of `scopes`.
pub(super) fn signed_in(
    forge: &Forge,
    headers: &HeaderMap,
    uri: &Uri,
    scopes: &[&str],
    work: impl FnOnce(&mut State, i64) -> Result<Response, Refusal>,
) -> Response {
    forge.with(|state| {
        let outcome = caller(state, headers, uri).and_then(|caller| {
            let caller = caller.ok_or_else(|| Refusal(StatusCode::UNAUTHORIZED, "token is required".to_owned()))?;
            unlocked(state, &caller)?;
            // One after the other: the first that is missing is named.
            if let Some(scope) = scopes.iter().find(|scope| !allows(&caller.scopes, scope)) {
                let why = format!("token does not have at least one of required scope(s): [{scope}]");
                return Err(Refusal(StatusCode::FORBIDDEN, why));
            }
            work(state, caller.user)
        });
        outcome.unwrap_or_else(|refusal| refusal.answer(&state.root))
    })
}

fn unlocked(state: &State, caller: &Caller) -> Result<(), Refusal> {
    match state.user(caller.user) {
        Some(user) if user.prohibit_login => {
            let why = "This account is prohibited from signing in, please contact your site administrator.";
            Err(Refusal(StatusCode::FORBIDDEN, why.to_owned()))
        }
        Some(user) if user.must_change_password => {
            let why = "You must change your password. Change it at: /user/change_password";
            Err(Refusal(StatusCode::FORBIDDEN, why.to_owned()))
        }
        Some(user) if user.locked() => Err(Refusal(StatusCode::FORBIDDEN, "This account is not activated.".to_owned())),
        _ => Ok(()),
    }
}

pub(super) fn not_found<T>(what: &str) -> Result<T, Refusal> {
    Err(Refusal(StatusCode::NOT_FOUND, what.to_owned()))
}

/// Open to strangers and to every scope, but not to bad tokens and locked users.
async fn version(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri) -> Response {
    forge.with(|state| {
        let known = caller(state, &headers, &uri).and_then(|caller| caller.map_or(Ok(()), |who| unlocked(state, &who)));
        match known {
            Ok(()) => Json(json!({"version": "16.0.0+gitea-1.22.0"})).into_response(),
            Err(refusal) => refusal.answer(&state.root),
        }
    })
}

pub(super) fn user_json(root: &str, user: &User) -> Value {
    let login = &user.login;
    json!({
        "id": user.id, "login": login, "login_name": "", "source_id": 0, "full_name": "", "email": user.email(),
        "avatar_url": format!("{root}/avatars/{}", user.id), "html_url": format!("{root}/{login}"), "language": "",
        "is_admin": user.admin, "last_login": "1970-01-01T00:00:00Z", "created": user.created,
        "restricted": user.restricted, "active": user.active, "prohibit_login": user.prohibit_login, "location": "",
        "pronouns": "", "website": "", "description": "", "visibility": "public", "followers_count": 0,
        "following_count": 0, "starred_repos_count": 0, "username": login,
    })
}

async fn me(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri) -> Response {
    signed_in(&forge, &headers, &uri, &["read:user"], |state, user| match state.user(user) {
        Some(user) => Ok(Json(user_json(&state.root, user)).into_response()),
        None => not_found("user redirect does not exist"),
    })
}

fn org_json(name: &str) -> Value {
    json!({"id": 1000, "name": name, "full_name": "", "username": name, "visibility": "public"})
}

/// A page of a list, as `page` and `limit` ask for it; 50 entries at most.
fn page(all: Vec<Value>, query: &HashMap<String, String>) -> Response {
    let number = |name: &str, default: usize| query.get(name).and_then(|n| n.parse().ok()).unwrap_or(default).max(1);
    let limit = number("limit", 30).min(50);
    let skip = (number("page", 1) - 1).saturating_mul(limit);
    Json(all.into_iter().skip(skip).take(limit).collect::<Vec<_>>()).into_response()
}

async fn my_orgs(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    signed_in(&forge, &headers, &uri, &["read:user", "read:organization"], |state, user| {
        let mut names: Vec<String> =
            state.user(user).into_iter().flat_map(|user| &user.teams).map(|(org, _)| org.clone()).collect();
        names.sort();
        names.dedup();
        Ok(page(names.iter().map(|name| org_json(name)).collect(), &query))
    })
}

async fn my_teams(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    signed_in(&forge, &headers, &uri, &["read:organization"], |state, user| {
        let teams = state.user(user).into_iter().flat_map(|user| &user.teams);
        let teams =
            teams.map(|(org, team)| json!({"id": 1, "name": team, "description": "", "organization": org_json(org)}));
        Ok(page(teams.collect(), &query))
    })
}

/// Every user owns two repositories named after them, so that one user's answer cannot pass for another's.
fn repos_of(root: &str, user: &User) -> Vec<Value> {
    ["garden", "notes"]
        .iter()
        .enumerate()
        .map(|(n, kind)| {
            let name = format!("{}-{kind}", user.login);
            let full_name = format!("{}/{name}", user.login);
            json!({"id": user.id * 10 + i64::try_from(n).unwrap_or(0), "owner": user_json(root, user), "name": name,
                "html_url": format!("{root}/{full_name}"), "full_name": full_name, "private": *kind == "notes",
                "description": format!("{}'s {kind}", user.login), "default_branch": "main", "has_issues": true})
        })
        .collect()
}

/// The repositories `viewer` may see: all public ones and their own.
fn visible(state: &State, viewer: i64) -> Vec<Value> {
    let all = state.users.iter().flat_map(|user| repos_of(&state.root, user));
    all.filter(|repo| {
        repo.get("private") == Some(&json!(false)) || repo.pointer("/owner/id").and_then(Value::as_i64) == Some(viewer)
    })
    .collect()
}

fn find_repo(state: &State, viewer: i64, owner: &str, name: &str) -> Result<Value, Refusal> {
    let full_name = json!(format!("{owner}/{name}"));
    let found = visible(state, viewer).into_iter().find(|repo| repo.get("full_name") == Some(&full_name));
    found.map_or_else(|| not_found("The target couldn't be found."), Ok)
}

async fn my_repos(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri) -> Response {
    signed_in(&forge, &headers, &uri, &["read:user", "read:repository"], |state, user| {
        Ok(Json(state.user(user).map(|user| repos_of(&state.root, user)).unwrap_or_default()).into_response())
    })
}

async fn search(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let wanted = query.get("q").cloned().unwrap_or_default();
    signed_in(&forge, &headers, &uri, &["read:repository"], |state, user| {
        let mut found = visible(state, user);
        found.retain(|repo| repo.get("name").and_then(Value::as_str).is_some_and(|name| name.contains(&wanted)));
        Ok(Json(json!({"ok": true, "data": found})).into_response())
    })
}

type Repo = Path<(String, String)>;

async fn repo(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri, Path((owner, name)): Repo) -> Response {
    signed_in(&forge, &headers, &uri, &["read:repository"], |state, user| {
        Ok(Json(find_repo(state, user, &owner, &name)?).into_response())
    })
}

fn issue_json(issue: &Issue) -> Value {
    json!({"id": issue.number, "number": issue.number, "title": issue.title, "state": "open",
        "user": {"login": issue.author}, "repository": {"full_name": issue.repo}})
}

async fn issues(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri, Path((owner, name)): Repo) -> Response {
    signed_in(&forge, &headers, &uri, &["read:issue"], |state, user| {
        find_repo(state, user, &owner, &name)?;
        let here = format!("{owner}/{name}");
        let filed: Vec<Value> = state.issues.iter().filter(|issue| issue.repo == here).map(issue_json).collect();
        Ok(Json(filed).into_response())
    })
}

#[derive(Deserialize)]
struct NewIssue {
    title: String,
}

async fn open_issue(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    uri: Uri,
    Path((owner, name)): Repo,
    Json(new): Json<NewIssue>,
) -> Response {
    signed_in(&forge, &headers, &uri, &["write:issue"], |state, user| {
        find_repo(state, user, &owner, &name)?;
        let repo = format!("{owner}/{name}");
        let number =
            state.issues.iter().filter(|issue| issue.repo == repo).map(|issue| issue.number).max().unwrap_or(0) + 1;
        let author = state.user(user).map(|user| user.login.clone()).unwrap_or_default();
        let issue = Issue { repo, number, title: new.title, author };
        let answer = (StatusCode::CREATED, Json(issue_json(&issue))).into_response();
        state.issues.push(issue);
        Ok(answer)
    })
}

/// Any path has contents: a line that names it; `big-N` has N bytes.
async fn contents(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    uri: Uri,
    Path((owner, name, path)): Path<(String, String, String)>,
) -> Response {
    signed_in(&forge, &headers, &uri, &["read:repository"], |state, user| {
        find_repo(state, user, &owner, &name)?;
        let text = text_of(&owner, &name, &path);
        let sha = hex(sha_of(&text).as_slice());
        Ok(Json(json!({"name": path, "path": path, "type": "file", "encoding": "base64", "size": text.len(),
            "sha": sha, "content": STANDARD.encode(text)}))
        .into_response())
    })
}

/// The same as it is.
async fn raw(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    uri: Uri,
    Path((owner, name, path)): Path<(String, String, String)>,
) -> Response {
    signed_in(&forge, &headers, &uri, &["read:repository"], |state, user| {
        find_repo(state, user, &owner, &name)?;
        Ok(text_of(&owner, &name, &path).into_response())
    })
}

fn text_of(owner: &str, name: &str, path: &str) -> String {
    let size = path.strip_prefix("big-").and_then(|size| size.parse().ok());
    size.map_or_else(|| format!("{owner}/{name}/{path}\n"), |size| "x".repeat(size))
}

fn sha_of(text: &str) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(text.as_bytes()).iter().copied().take(20).collect()
}

/// An application as the API tells it; the secret only where it was just made.
fn app_json(app: &App, secret: &str) -> Value {
    json!({"id": app.id, "name": app.name, "client_id": app.client_id, "client_secret": secret,
        "confidential_client": app.confidential, "redirect_uris": app.redirects, "created": "2026-01-01T00:00:00Z"})
}

#[derive(Deserialize)]
struct NewApp {
    name: String,
    /// False unless said, which surprises.
    #[serde(default)]
    confidential_client: bool,
    redirect_uris: Vec<String>,
}

async fn register(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri, Json(new): Json<NewApp>) -> Response {
    signed_in(&forge, &headers, &uri, &["write:user"], |state, user| {
        let id = state.add_app(user, &new.name, new.confidential_client, new.redirect_uris);
        let made = state.app(id).map(|app| app_json(app, &app.secret));
        Ok((StatusCode::CREATED, Json(made)).into_response())
    })
}

async fn apps(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri) -> Response {
    signed_in(&forge, &headers, &uri, &["read:user"], |state, user| {
        let own: Vec<Value> = state.apps.iter().filter(|app| app.owner == user).map(|app| app_json(app, "")).collect();
        Ok(Json(own).into_response())
    })
}

async fn app(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri, Path(id): Path<i64>) -> Response {
    signed_in(&forge, &headers, &uri, &["read:user"], |state, user| {
        match state.app(id).filter(|app| app.owner == user) {
            Some(app) => Ok(Json(app_json(app, "")).into_response()),
            None => not_found("The target couldn't be found."),
        }
    })
}

/// Every change makes a new secret.
async fn change_app(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    uri: Uri,
    Path(id): Path<i64>,
    Json(new): Json<NewApp>,
) -> Response {
    signed_in(&forge, &headers, &uri, &["write:user"], |state, user| {
        let secret = state.fresh("gto_");
        let Some(app) = state.apps.iter_mut().find(|app| app.id == id && app.owner == user) else {
            return not_found("The target couldn't be found.");
        };
        (app.name, app.confidential, app.redirects) = (new.name, new.confidential_client, new.redirect_uris);
        app.secret.clone_from(&secret);
        Ok(Json(app_json(app, &secret)).into_response())
    })
}

async fn delete_app(Extract(forge): Extract<Forge>, headers: HeaderMap, uri: Uri, Path(id): Path<i64>) -> Response {
    signed_in(&forge, &headers, &uri, &["write:user"], |state, user| {
        if state.app(id).is_none_or(|app| app.owner != user) {
            return not_found("The target couldn't be found.");
        }
        state.apps.retain(|app| app.id != id);
        state.grants.retain(|grant| grant.app != id);
        Ok(StatusCode::NO_CONTENT.into_response())
    })
}
