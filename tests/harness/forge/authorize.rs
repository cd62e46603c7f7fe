//! The browser's part of Forgejo's OAuth: the login form, the consent form, the cookies between them.
//!
//! As in Forgejo 14 and later there is no form token; a request that a browser marks as cross-origin is refused instead.

use std::collections::HashMap;

use axum::Router;
use axum::extract::{Form, Query, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use url::Url;

use super::state::{App, Code, Forge, Grant, State, User};

pub(crate) fn routes() -> Router<Forge> {
    Router::new()
        .route("/login/oauth/authorize", get(authorize))
        .route("/login/oauth/grant", post(decide))
        .route("/user/login", get(login_form).post(login))
        .route("/user/settings/applications/oauth2/{kind}/revoke/{grant}", post(revoke))
}

type Fields = HashMap<String, String>;

fn field<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).map_or("", String::as_str)
}

impl App {
    /// Forgejo's comparison: whole, without case, a trailing slash ignored; for a public client any port of a loopback
    /// address if the same URI without a port is registered.
    pub fn takes_redirect(&self, uri: &str) -> bool {
        let plain = |uri: &str| uri.trim_end_matches('/').to_ascii_lowercase();
        let registered = |uri: &str| self.redirects.iter().any(|known| plain(known) == plain(uri));
        registered(uri) || (!self.confidential && without_loopback_port(uri).is_some_and(|uri| registered(&uri)))
    }
}

fn without_loopback_port(uri: &str) -> Option<String> {
    let mut url = Url::parse(uri).ok()?;
    let loopback = match url.host()? {
        url::Host::Ipv4(ip) => ip.is_loopback(),
        url::Host::Ipv6(ip) => ip.is_loopback(),
        url::Host::Domain(_) => false,
    };
    (loopback && url.scheme() == "http").then(|| url.set_port(None).ok()).flatten()?;
    Some(url.into())
}

impl User {
    pub fn email(&self) -> String {
        format!("{}@example.org", self.login)
    }
}

/// The user of the `session` cookie.
fn visitor(state: &State, headers: &HeaderMap) -> Option<i64> {
    state.sessions.get(cookie(headers, "session")?).copied()
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

fn see_other(to: &str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, to.to_owned())]).into_response()
}

/// 303 back to the client with `pairs` and the state appended.
fn back(redirect: &str, pairs: &[(&str, &str)], state: &str) -> Response {
    let Ok(mut url) = Url::parse(redirect) else { return bad_request("Invalid redirect URI") };
    url.query_pairs_mut().extend_pairs(pairs).append_pair("state", state);
    see_other(url.as_str())
}

fn bad_request(why: &str) -> Response {
    (StatusCode::BAD_REQUEST, Html(format!("<h1>stub-forgejo</h1><p>{}</p>", escape(why)))).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

/// Go's cross-origin check, by the header that browsers cannot forge.
fn cross_origin(headers: &HeaderMap) -> Option<Response> {
    let site = headers.get("sec-fetch-site")?.to_str().unwrap_or("?");
    let refusal = "cross-origin request detected from Sec-Fetch-Site header\n";
    (site != "same-origin" && site != "none").then(|| (StatusCode::FORBIDDEN, refusal).into_response())
}

async fn authorize(
    Extract(forge): Extract<Forge>,
    uri: Uri,
    headers: HeaderMap,
    Query(asked): Query<Fields>,
) -> Response {
    forge.with(|state| {
        let Some(user) = visitor(state, &headers) else {
            let here = uri.path_and_query().map_or("/", |here| here.as_str());
            let here: String = url::form_urlencoded::byte_serialize(here.as_bytes()).collect();
            let cookie = format!("redirect_to={here}; Path=/; HttpOnly; SameSite=Lax");
            return ([(header::SET_COOKIE, cookie)], see_other("/user/login")).into_response();
        };
        let redirect = field(&asked, "redirect_uri");
        let Some(app) = state.app_by_client(field(&asked, "client_id")) else {
            return bad_request("Client ID not registered");
        };
        if !app.takes_redirect(redirect) {
            return bad_request("Unregistered Redirect URI");
        }
        let echo = field(&asked, "state");
        if field(&asked, "response_type") != "code" {
            let pairs = [
                ("error", "unsupported_response_type"),
                ("error_description", "Only code response type is supported."),
            ];
            return back(redirect, &pairs, echo);
        }
        let method = field(&asked, "code_challenge_method");
        if !["", "S256", "plain"].contains(&method) {
            let pairs = [("error", "invalid_request"), ("error_description", "unsupported code challenge method")];
            return back(redirect, &pairs, echo);
        }
        let (app, confidential, name) = (app.id, app.confidential, app.name.clone());
        if method.is_empty() && !confidential {
            let pairs = [("error", "invalid_request"), ("error_description", "PKCE is required for public clients")];
            return back(redirect, &pairs, echo);
        }
        let held = state.grants.iter().find(|grant| grant.user == user && grant.app == app).map(|grant| grant.id);
        match held {
            // What was asked for now is not looked at: the first scope stays.
            Some(grant) if confidential => send_code(state, grant, &asked),
            _ => Html(consent(&name, &asked)).into_response(),
        }
    })
}

/// The consent page: the request travels on in hidden fields (PKCE too, which Forgejo keeps in the session).
fn consent(name: &str, asked: &Fields) -> String {
    const CARRIED: [&str; 7] =
        ["client_id", "state", "scope", "nonce", "redirect_uri", "code_challenge", "code_challenge_method"];
    let hidden = CARRIED
        .map(|name| format!("<input type=\"hidden\" name=\"{name}\" value=\"{}\">", escape(field(asked, name))))
        .join("\n");
    format!(
        "<!doctype html><title>stub-forgejo</title><h1>Authorize \"{}\" to access your account?</h1>\n\
         <p>With scopes: {}.</p><form method=\"post\" action=\"/login/oauth/grant\">\n{hidden}\
         <button name=\"granted\" value=\"true\">Authorize</button> <button name=\"granted\" value=\"false\">Cancel</button></form>",
        escape(name),
        escape(field(asked, "scope")),
    )
}

async fn decide(Extract(forge): Extract<Forge>, headers: HeaderMap, Form(sent): Form<Fields>) -> Response {
    if let Some(refusal) = cross_origin(&headers) {
        return refusal;
    }
    forge.with(|state| {
        let Some(user) = visitor(state, &headers) else { return see_other("/user/login") };
        let redirect = field(&sent, "redirect_uri");
        let echo = field(&sent, "state");
        let Some(app) = state.app_by_client(field(&sent, "client_id")).filter(|app| app.takes_redirect(redirect))
        else {
            return bad_request("Client ID or redirect URI not registered");
        };
        if field(&sent, "granted") != "true" {
            let pairs = [("error", "access_denied"), ("error_description", "the request is denied")];
            return back(redirect, &pairs, echo);
        }
        let app = app.id;
        let scope = field(&sent, "scope").to_owned();
        let held = state.grants.iter().find(|grant| grant.user == user && grant.app == app);
        let grant = match held {
            Some(grant) if grant.scope != scope => {
                let pairs = [("error", "server_error"), ("error_description", "a grant exists with different scope")];
                return back(redirect, &pairs, echo);
            }
            Some(grant) => grant.id,
            None => {
                let id = state.grants.last().map_or(1, |grant| grant.id + 1);
                let nonce = field(&sent, "nonce").to_owned();
                state.grants.push(Grant { id, user, app, scope, nonce, counter: 0, unused: None });
                id
            }
        };
        send_code(state, grant, &sent)
    })
}

/// 303 with a fresh code that is bound to this request's redirect and challenge.
fn send_code(state: &mut State, grant: i64, asked: &Fields) -> Response {
    let word = state.fresh("gta_");
    let redirect_uri = field(asked, "redirect_uri").to_owned();
    let (challenge, method) =
        (field(asked, "code_challenge").to_owned(), field(asked, "code_challenge_method").to_owned());
    let answer = back(&redirect_uri, &[("code", &word)], field(asked, "state"));
    state.codes.insert(word, Code { grant, redirect_uri, challenge, method });
    answer
}

const LOGIN_FORM: &str = "<!doctype html><title>stub-forgejo</title><h1>Sign in to stub-forgejo</h1>\n\
    <form method=\"post\" action=\"/user/login\"><input name=\"user_name\"> <input name=\"password\" type=\"password\">\n\
    <button>Sign in</button></form>";

async fn login_form() -> Html<&'static str> {
    Html(LOGIN_FORM)
}

/// A wrong password is 200 with the form again.
async fn login(Extract(forge): Extract<Forge>, headers: HeaderMap, Form(sent): Form<Fields>) -> Response {
    if let Some(refusal) = cross_origin(&headers) {
        return refusal;
    }
    forge.with(|state| {
        let user = state.user_by_login(field(&sent, "user_name"));
        let Some(user) = user.filter(|user| user.password == field(&sent, "password") && !user.locked()) else {
            return Html(LOGIN_FORM).into_response();
        };
        let user = user.id;
        let word = state.fresh("");
        state.sessions.insert(word.clone(), user);
        // The value is form-encoded, so it decodes as the name of one pair.
        let to = cookie(&headers, "redirect_to")
            .and_then(|to| url::form_urlencoded::parse(to.as_bytes()).next().map(|(to, _)| to.into_owned()))
            .filter(|to| to.starts_with('/') && !to.starts_with("//"));
        let session = format!("session={word}; Path=/; HttpOnly; SameSite=Lax");
        ([(header::SET_COOKIE, session)], see_other(to.as_deref().unwrap_or("/"))).into_response()
    })
}

/// The user takes a grant back, with all its tokens.
async fn revoke(
    Extract(forge): Extract<Forge>,
    headers: HeaderMap,
    axum::extract::Path((_, grant)): axum::extract::Path<(String, i64)>,
) -> Response {
    forge.with(|state| {
        let Some(user) = visitor(state, &headers) else { return see_other("/user/login") };
        state.grants.retain(|held| held.id != grant || held.user != user);
        axum::Json(serde_json::json!({"redirect": "/user/settings/applications"})).into_response()
    })
}
