//! The stub forge answers as Forgejo 16 does, so that what the broker is tested against is what it will meet.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a helper of a test fails the test"
)]

use std::time::Duration;

use forgejo_mcp_broker::clock::{Clock, UnixTime};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[path = "support/forge.rs"]
mod forge;

use forge::Forge;

const CALLBACK: &str = "https://broker.example/oauth/callback";
/// RFC 7636, appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

/// A forge with alice and bob, a confidential application, and a second one.
struct Scene {
    root: String,
    forge: Forge,
    clock: Clock,
    http: Client,
    app: App,
    other: App,
}

#[derive(Clone)]
struct App {
    id: String,
    secret: String,
}

/// `error` and `error_description`.
type Refusal = (String, String);

impl Scene {
    async fn new() -> Self {
        // Err only says that another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock = Clock::manual(UnixTime::from_secs(1_800_000_000));
        let forge = Forge::new(clock.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let root = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(forge::serve(listener, forge.clone()));
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let (app, other) = forge.with(|state| {
            state.add_user("alice", "a", false);
            state.add_user("bob", "b", false);
            let mut app = |name: &str| {
                let id = state.add_app(0, name, true, vec![CALLBACK.to_owned()]);
                let app = state.app(id).unwrap();
                App { id: app.client_id.clone(), secret: app.secret.clone() }
            };
            (app("broker"), app("other"))
        });
        Self { root, forge, clock, http, app, other }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.root))
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.root))
    }

    async fn control(&self, path: &str, body: Value) {
        assert!(self.post(path).json(&body).send().await.unwrap().status().is_success());
    }

    /// The session cookie of a user who just logged in.
    async fn login(&self, user: &str) -> String {
        let form = [("user_name", user), ("password", &user[..1])];
        let answer = self.post("/user/login").form(&form).send().await.unwrap();
        assert_eq!(answer.status(), 303);
        answer.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    fn authorize(&self, pairs: &[(String, String)]) -> RequestBuilder {
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        self.get(&format!("/login/oauth/authorize?{query}"))
    }

    fn request(&self, scope: &str) -> Vec<(String, String)> {
        let pairs = [
            ("client_id", self.app.id.as_str()),
            ("redirect_uri", CALLBACK),
            ("response_type", "code"),
            ("state", "s&t"),
            ("scope", scope),
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// Through login and, where it is shown, consent; gives the code.
    async fn code(&self, user: &str, scope: &str) -> String {
        let session = self.login(user).await;
        let mut form = self.request(scope);
        let answer = self.authorize(&form).header(COOKIE, &session).send().await.unwrap();
        let answer = if answer.status() == 200 {
            form.push(("granted".to_owned(), "true".to_owned()));
            self.post("/login/oauth/grant").form(&form).header(COOKIE, &session).send().await.unwrap()
        } else {
            answer
        };
        returned(&answer, "code").expect("a code")
    }

    async fn token(&self, app: &App, pairs: &[(&str, &str)]) -> Result<Value, Refusal> {
        let mut form = vec![("client_id", app.id.as_str()), ("client_secret", app.secret.as_str())];
        form.extend_from_slice(pairs);
        let answer = self.post("/login/oauth/access_token").form(&form).send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        if status == 200 {
            return Ok(body);
        }
        assert_eq!(status, 400, "every refusal of the token endpoint is 400");
        Err((text(&body["error"]), text(&body["error_description"])))
    }

    async fn exchange(&self, code: &str) -> Result<Value, Refusal> {
        self.token(&self.app, &exchange_form(code)).await
    }

    async fn refresh(&self, token: &Value) -> Result<Value, Refusal> {
        let token = token.as_str().unwrap();
        self.token(&self.app, &[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    async fn sign_in(&self, user: &str, scope: &str) -> Value {
        self.exchange(&self.code(user, scope).await).await.unwrap()
    }

    async fn api(&self, path: &str, token: &Value) -> Response {
        self.get(path).bearer_auth(token.as_str().unwrap()).send().await.unwrap()
    }
}

fn exchange_form(code: &str) -> [(&str, &str); 4] {
    [("grant_type", "authorization_code"), ("code", code), ("redirect_uri", CALLBACK), ("code_verifier", VERIFIER)]
}

/// A parameter of the address the browser is sent back to.
fn returned(answer: &Response, name: &str) -> Option<String> {
    let location = answer.headers().get(LOCATION)?.to_str().unwrap();
    let url = url::Url::parse(location).ok()?;
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn refused<T>(error: &str, description: &str) -> Result<T, Refusal> {
    Err((error.to_owned(), description.to_owned()))
}

#[tokio::test]
async fn the_token_answer_has_forgejos_keys_in_forgejos_order_and_no_scope() {
    let scene = Scene::new().await;
    let code = scene.code("alice", "read:user").await;
    let mut form = vec![("client_id", scene.app.id.as_str()), ("client_secret", scene.app.secret.as_str())];
    form.extend(exchange_form(&code));
    let answer = scene.post("/login/oauth/access_token").form(&form).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json;charset=utf-8");
    assert_eq!(answer.headers()["server"], "stub-forgejo");
    let body = answer.text().await.unwrap();
    let places: Vec<_> =
        ["\"access_token\":", "\"token_type\":\"bearer\"", "\"expires_in\":3600", "\"refresh_token\":"]
            .map(|key| body.find(key).unwrap())
            .to_vec();
    assert!(places.is_sorted());
    assert!(body.ends_with("}\n") && !body.contains("scope") && !body.contains("id_token"));
}

#[tokio::test]
async fn an_id_token_comes_only_with_openid() {
    let scene = Scene::new().await;
    let pair = scene.sign_in("alice", "openid read:user").await;
    assert!(pair["id_token"].is_string());
}

#[tokio::test]
async fn every_refusal_of_a_code_is_the_tables() {
    let scene = Scene::new().await;
    let code = scene.code("alice", "read:user").await;
    let form = exchange_form(&code);
    let with = |name: &'static str, value: &'static str| {
        form.iter().map(|pair| if pair.0 == name { (name, value) } else { *pair }).collect::<Vec<_>>()
    };
    let app = |id: &str, secret: &str| App { id: id.to_owned(), secret: secret.to_owned() };
    let (good, id) = (&scene.app, scene.app.id.as_str());
    let table = [
        (app(id, "no"), form.to_vec(), "unauthorized_client", "invalid client secret"),
        (app(id, ""), form.to_vec(), "unauthorized_client", "invalid empty client secret"),
        (app("x", "no"), form.to_vec(), "invalid_client", "cannot load client with client id: 'x'"),
        (good.clone(), with("redirect_uri", "https://evil"), "unauthorized_client", "unexpected redirect URI"),
        (
            good.clone(),
            with("redirect_uri", "https://BROKER.example/oauth/callback/"),
            "unauthorized_client",
            "redirect_uri does not match the authorization request",
        ),
        (good.clone(), with("code", "gta_no"), "unauthorized_client", "client is not authorized"),
        (good.clone(), with("code_verifier", "no"), "unauthorized_client", "failed PKCE code challenge"),
        (good.clone(), with("code_verifier", ""), "unauthorized_client", "failed PKCE code challenge"),
        (scene.other.clone(), form.to_vec(), "invalid_grant", "invalid grant"),
        (
            good.clone(),
            with("grant_type", "password"),
            "unsupported_grant_type",
            "Only refresh_token or authorization_code grant type is supported",
        ),
    ];
    for (app, form, error, description) in table {
        assert_eq!(scene.token(&app, &form).await, refused(error, description));
    }
    scene.exchange(&code).await.expect("no refusal used the code up");
    assert_eq!(scene.exchange(&code).await, refused("unauthorized_client", "client is not authorized"));
}

#[tokio::test]
async fn every_refusal_of_a_refresh_is_the_tables() {
    let scene = Scene::new().await;
    let pair = scene.sign_in("alice", "read:user").await;
    let good = text(&pair["refresh_token"]);
    let access = text(&pair["access_token"]);
    let app = |id: &str, secret: &str| App { id: id.to_owned(), secret: secret.to_owned() };
    let table = [
        (app(&scene.app.id, "no"), good.as_str(), "invalid_client", "invalid client secret"),
        (app("x", "no"), &good, "invalid_client", "cannot load client with client id: \"x\""),
        (scene.app.clone(), "garbage", "unauthorized_client", "unable to parse refresh token"),
        (scene.app.clone(), &access, "unauthorized_client", "token is not a refresh token"),
        (scene.other.clone(), &good, "invalid_grant", "refresh token was not issued to this client"),
    ];
    for (app, token, error, description) in table {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        assert_eq!(scene.token(&app, &form).await, refused(error, description));
    }
    scene.clock.advance(Duration::from_hours(730));
    let expired = scene.refresh(&pair["refresh_token"]).await;
    assert_eq!(expired, refused("unauthorized_client", "unable to parse refresh token"));
}

#[tokio::test]
async fn a_basic_header_that_contradicts_the_body_is_an_invalid_request() {
    let scene = Scene::new().await;
    let form = [("grant_type", "refresh_token"), ("client_id", "someone-else")];
    let answer = scene.post("/login/oauth/access_token").basic_auth(&scene.app.id, Some(&scene.app.secret));
    let answer: Value = answer.form(&form).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["error"], "invalid_request");
}

#[tokio::test]
async fn a_reused_refresh_token_is_refused_and_the_newest_stays_good() {
    let scene = Scene::new().await;
    let first = scene.sign_in("alice", "read:user").await;
    let second = scene.refresh(&first["refresh_token"]).await.unwrap();
    let reused = scene.refresh(&first["refresh_token"]).await;
    assert_eq!(reused, refused("unauthorized_client", "token was already used"));
    assert_eq!(scene.api("/api/v1/user", &first["access_token"]).await.status(), 200);
    scene.refresh(&second["refresh_token"]).await.unwrap();
}

#[tokio::test]
async fn of_eight_concurrent_refreshes_one_wins() {
    let scene = Scene::new().await;
    let pair = scene.sign_in("alice", "read:user").await;
    let all = futures_util::future::join_all((0..8).map(|_| scene.refresh(&pair["refresh_token"]))).await;
    assert_eq!(all.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let reused = refused("unauthorized_client", "token was already used");
    assert_eq!(all.iter().filter(|outcome| **outcome == reused).count(), 7);
}

#[tokio::test]
async fn a_second_login_kills_the_firsts_refresh_token_but_not_another_users() {
    let scene = Scene::new().await;
    let bob = scene.sign_in("bob", "read:user").await;
    let first = scene.sign_in("alice", "read:user").await;
    scene.sign_in("alice", "read:user").await;
    let stale = scene.refresh(&first["refresh_token"]).await;
    assert_eq!(stale, refused("unauthorized_client", "token was already used"));
    scene.refresh(&bob["refresh_token"]).await.unwrap();
}

#[tokio::test]
async fn access_tokens_of_one_second_are_identical_and_later_ones_are_not() {
    let scene = Scene::new().await;
    let first = scene.sign_in("alice", "read:user").await;
    let same = scene.refresh(&first["refresh_token"]).await.unwrap();
    assert_eq!(first["access_token"], same["access_token"]);
    assert_ne!(first["refresh_token"], same["refresh_token"]);
    scene.control("/stub/clock", json!({"advance": 1})).await;
    let later = scene.refresh(&same["refresh_token"]).await.unwrap();
    assert_ne!(first["access_token"], later["access_token"]);
}

#[tokio::test]
async fn an_access_token_outlives_a_refresh_and_ends_at_its_expiry() {
    let scene = Scene::new().await;
    let pair = scene.sign_in("alice", "read:user").await;
    scene.clock.advance(Duration::from_secs(3599));
    scene.refresh(&pair["refresh_token"]).await.unwrap();
    assert_eq!(scene.api("/api/v1/user", &pair["access_token"]).await.status(), 200);
    scene.clock.advance(Duration::from_secs(1));
    let answer = scene.api("/api/v1/user", &pair["access_token"]).await;
    assert_eq!(answer.status(), 401);
    let message = text(&answer.json::<Value>().await.unwrap()["message"]);
    let lines = format!(
        "token has invalid claims: token is expired\naccess token does not exist [sha: {}]",
        text(&pair["access_token"])
    );
    assert_eq!(message, lines, "Forgejo 16 repeats the token, which the broker has to redact");
}

#[tokio::test]
async fn another_scope_at_the_second_authorisation_is_silently_ignored() {
    let scene = Scene::new().await;
    scene.sign_in("alice", "read:user").await;
    let session = scene.login("alice").await;
    let request = scene.authorize(&scene.request("write:user")).header(COOKIE, session);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 303);
    assert_eq!(returned(&answer, "state").unwrap(), "s&t");
    let pair = scene.exchange(&returned(&answer, "code").unwrap()).await.unwrap();
    let told = scene.post("/login/oauth/introspect").basic_auth(&scene.app.id, Some(&scene.app.secret));
    let told: Value = told.form(&[("token", text(&pair["access_token"]))]).send().await.unwrap().json().await.unwrap();
    assert_eq!((&told["scope"], &told["sub"]), (&json!("read:user"), &json!("1")));
}

#[tokio::test]
async fn a_denial_goes_back_to_the_client_and_a_foreign_form_nowhere() {
    let scene = Scene::new().await;
    let session = scene.login("alice").await;
    let mut form = scene.request("read:user");
    form.push(("granted".to_owned(), "false".to_owned()));
    let post = || scene.post("/login/oauth/grant").form(&form).header(COOKIE, &session);
    let answer = post().send().await.unwrap();
    assert_eq!(returned(&answer, "error").unwrap(), "access_denied");
    assert_eq!(returned(&answer, "error_description").unwrap(), "the request is denied");
    assert_eq!(post().header("sec-fetch-site", "cross-site").send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_stranger_is_sent_to_the_login_form_and_from_there_back() {
    let scene = Scene::new().await;
    let answer = scene.authorize(&scene.request("read:user")).send().await.unwrap();
    assert_eq!(answer.headers()[LOCATION], "/user/login");
    let cookie = answer.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    let login = |password: &'static str| {
        let form = [("user_name", "alice"), ("password", password)];
        scene.post("/user/login").form(&form).header(COOKIE, &cookie).send()
    };
    assert_eq!(login("wrong").await.unwrap().status(), 200);
    let answer = login("a").await.unwrap();
    assert!(answer.headers()[LOCATION].to_str().unwrap().starts_with("/login/oauth/authorize?client_id="));
}

#[tokio::test]
async fn an_unregistered_redirect_gets_a_page_and_no_redirect() {
    let scene = Scene::new().await;
    let session = scene.login("alice").await;
    let mut request = scene.request("read:user");
    request[1].1 = "https://evil.example/".to_owned();
    let answer = scene.authorize(&request).header(COOKIE, session).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.headers().get(LOCATION).is_none());
}

#[tokio::test]
async fn only_the_api_notices_that_a_user_is_locked_out() {
    let scene = Scene::new().await;
    for change in [json!({"active": false}), json!({"active": true, "prohibit_login": true})] {
        let pair = scene.sign_in("bob", "read:user").await;
        scene.control("/stub/users/bob", change).await;
        for path in ["/api/v1/user", "/api/v1/version"] {
            assert_eq!(scene.api(path, &pair["access_token"]).await.status(), 403);
        }
        assert_eq!(scene.api("/login/oauth/userinfo", &pair["access_token"]).await.status(), 200);
        scene.refresh(&pair["refresh_token"]).await.unwrap();
        scene.control("/stub/users/bob", json!({"active": true, "prohibit_login": false})).await;
    }
}

#[tokio::test]
async fn a_revoked_grant_ends_access_and_refresh() {
    let scene = Scene::new().await;
    let pair = scene.sign_in("alice", "read:user").await;
    let session = scene.login("alice").await;
    let revoke = scene.post("/user/settings/applications/oauth2/0/revoke/1").header(COOKIE, session);
    assert!(revoke.send().await.unwrap().status().is_success());
    assert_eq!(scene.api("/api/v1/user", &pair["access_token"]).await.status(), 401);
    let refused_now = scene.refresh(&pair["refresh_token"]).await;
    assert_eq!(refused_now, refused("invalid_grant", "grant does not exist"));
}

#[tokio::test]
async fn scopes_are_enforced_and_unknown_ones_mean_all() {
    let scene = Scene::new().await;
    let narrow = scene.forge.with(|state| state.add_token("alice", "read:user").unwrap());
    let all = scene.forge.with(|state| state.add_token("alice", "mcp:tools").unwrap());
    let file = |token: String| {
        let request = scene.post("/api/v1/repos/alice/alice-garden/issues").json(&json!({"title": "weeds"}));
        request.header("authorization", format!("token {token}")).send()
    };
    let answer = file(narrow).await.unwrap();
    assert_eq!(answer.status(), 403);
    let message = text(&answer.json::<Value>().await.unwrap()["message"]);
    assert_eq!(message, "token does not have at least one of required scope(s): [write:issue]");
    assert_eq!(file(all).await.unwrap().status(), 201);
}

#[tokio::test]
async fn users_see_their_own_private_repositories_only() {
    let scene = Scene::new().await;
    let token = |login: &str| Value::from(scene.forge.with(|state| state.add_token(login, "").unwrap()));
    let (alice, bob) = (token("alice"), token("bob"));
    let notes = "/api/v1/repos/alice/alice-notes";
    assert_eq!(scene.api(notes, &alice).await.status(), 200);
    assert_eq!(scene.api(notes, &bob).await.status(), 404);
    let me: Value = scene.api("/api/v1/user", &bob).await.json().await.unwrap();
    assert_eq!((&me["id"], &me["login"]), (&json!(2), &json!("bob")));
}

#[tokio::test]
async fn a_lost_answer_has_raised_the_counter_all_the_same() {
    let scene = Scene::new().await;
    let pair = scene.sign_in("alice", "read:user").await;
    scene.control("/stub/mode", json!({"lose_answer": true})).await;
    let form = [
        ("client_id", scene.app.id.clone()),
        ("client_secret", scene.app.secret.clone()),
        ("grant_type", "refresh_token".to_owned()),
        ("refresh_token", text(&pair["refresh_token"])),
    ];
    let lost = async { scene.post("/login/oauth/access_token").form(&form).send().await?.bytes().await };
    assert!(lost.await.is_err());
    scene.control("/stub/mode", json!({})).await;
    let burnt = scene.refresh(&pair["refresh_token"]).await;
    assert_eq!(burnt, refused("unauthorized_client", "token was already used"));
}

#[tokio::test]
async fn a_hanging_forge_answers_once_it_is_told_to_stop_and_a_failing_one_with_its_status() {
    let scene = Scene::new().await;
    scene.control("/stub/mode", json!({"hang": true})).await;
    let hanging = tokio::spawn(scene.get("/api/v1/version").send());
    // The request is on the list before it hangs, so the list tells that it has arrived.
    while scene.forge.with(|state| state.requests.is_empty()) {
        tokio::task::yield_now().await;
    }
    assert!(!hanging.is_finished());
    scene.control("/stub/mode", json!({"fail": 503})).await;
    assert_eq!(hanging.await.unwrap().unwrap().status(), 200);
    assert_eq!(scene.get("/api/v1/version").send().await.unwrap().status(), 503);
}

#[tokio::test]
async fn the_life_of_new_access_tokens_can_be_set() {
    let scene = Scene::new().await;
    scene.control("/stub/mode", json!({"access_ttl": 4})).await;
    assert_eq!(scene.sign_in("alice", "read:user").await["expires_in"], 4);
}

#[tokio::test]
async fn requests_are_listed_with_who_made_them_and_without_their_tokens() {
    let scene = Scene::new().await;
    let token = scene.forge.with(|state| state.add_token("alice", "").unwrap());
    scene.api("/api/v1/user?token=x", &Value::from(token.as_str())).await;
    let seen = scene.get("/stub/requests").send().await.unwrap().text().await.unwrap();
    assert_eq!(seen, r#"[{"method":"GET","path":"/api/v1/user","user":"alice"}]"#);
}
