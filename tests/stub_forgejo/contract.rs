//! What Forgejo does, word for word where the broker depends on it: on the stub, or on a real one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use reqwest::header::{COOKIE, WWW_AUTHENTICATE};
use serde_json::{Value, json};
use wire::clock::Clock;

use crate::fixture::{App, Fixture, exchange_form, refused, returned, text, user_agent};
use harness::user_agent::{Form, Page, UserAgent};

/// The claims of a token.
fn claims(token: &Value) -> Value {
    let payload = text(token).split('.').nth(1).unwrap().to_owned();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// Somebody who has logged in in their browser, and looks at Forgejo's own consent page.
async fn at_consent(fixture: &Fixture, login: &str) -> (UserAgent, Page) {
    let mut user_agent = user_agent(login);
    let sent = user_agent.open(fixture.authorize("read:user")).await;
    let page = user_agent.open(sent.location().unwrap()).await;
    let form = page.form("/user/login").with("user_name", login).with("password", &format!("secret-of-{login}"));
    let sent = user_agent.send(&form).await;
    let page = user_agent.open(sent.location().unwrap()).await;
    (user_agent, page)
}

#[tokio::test]
async fn the_token_answer_has_forgejos_keys_in_forgejos_order_and_no_scope() {
    let fixture = Fixture::given().await;
    let code = fixture.code("alice", "read:user").await;
    let mut form = vec![("client_id", fixture.app.id.as_str()), ("client_secret", fixture.app.secret.as_str())];
    form.extend(exchange_form(&code));
    let answer = fixture.post("/login/oauth/access_token").form(&form).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json;charset=utf-8");
    let body = answer.text().await.unwrap();
    let places: Vec<_> =
        ["\"access_token\":", "\"token_type\":\"bearer\"", "\"expires_in\":3600", "\"refresh_token\":"]
            .map(|key| body.find(key).unwrap())
            .to_vec();
    assert!(places.is_sorted());
    assert!(body.ends_with("}\n") && !body.contains("scope") && !body.contains("id_token"));
}

#[tokio::test]
async fn a_tokens_claims_say_its_grant_its_kind_and_its_count() {
    let fixture = Fixture::given().await;
    let pair = fixture.sign_in("alice", "read:user").await;
    let (access, refresh) = (claims(&pair["access_token"]), claims(&pair["refresh_token"]));
    assert_eq!((&access["tt"], &refresh["tt"], &refresh["cnt"]), (&json!(0), &json!(1), &json!(1)));
    assert_eq!(access["gnt"], refresh["gnt"]);
    assert!(access.get("cnt").is_none());
    assert_eq!(access["exp"].as_i64().unwrap() - access["iat"].as_i64().unwrap(), 3600);
    assert_eq!(refresh["exp"].as_i64().unwrap() - refresh["iat"].as_i64().unwrap(), 730 * 3600);
}

#[tokio::test]
async fn an_id_token_comes_only_with_openid() {
    let fixture = Fixture::given().await;
    let pair = fixture.sign_in("alice", "openid read:user").await;
    assert!(pair["id_token"].is_string());
}

#[tokio::test]
async fn every_refusal_of_a_code_is_the_tables() {
    let fixture = Fixture::given().await;
    let code = fixture.code("alice", "read:user").await;
    let form = exchange_form(&code);
    let with = |name: &'static str, value: &'static str| {
        form.iter().map(|pair| if pair.0 == name { (name, value) } else { *pair }).collect::<Vec<_>>()
    };
    let app = |id: &str, secret: &str| App { number: 0, id: id.to_owned(), secret: secret.to_owned() };
    let (good, id) = (&fixture.app, fixture.app.id.as_str());
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
        (fixture.other.clone(), form.to_vec(), "invalid_grant", "invalid grant"),
        (
            good.clone(),
            with("grant_type", "password"),
            "unsupported_grant_type",
            "Only refresh_token or authorization_code grant type is supported",
        ),
    ];
    for (app, form, error, description) in table {
        assert_eq!(fixture.token(&app, &form).await, refused(error, description));
    }
    fixture.exchange(&code).await.expect("no refusal used the code up");
    assert_eq!(fixture.exchange(&code).await, refused("unauthorized_client", "client is not authorized"));
}

#[tokio::test]
async fn every_refusal_of_a_refresh_is_the_tables() {
    let fixture = Fixture::given().await;
    let pair = fixture.sign_in("alice", "read:user").await;
    let good = text(&pair["refresh_token"]);
    let access = text(&pair["access_token"]);
    let app = |id: &str, secret: &str| App { number: 0, id: id.to_owned(), secret: secret.to_owned() };
    let table = [
        (app(&fixture.app.id, "no"), good.as_str(), "invalid_client", "invalid client secret"),
        (app("x", "no"), &good, "invalid_client", "cannot load client with client id: \"x\""),
        (fixture.app.clone(), "garbage", "unauthorized_client", "unable to parse refresh token"),
        (fixture.app.clone(), &access, "unauthorized_client", "token is not a refresh token"),
        (fixture.other.clone(), &good, "invalid_grant", "refresh token was not issued to this client"),
    ];
    for (app, token, error, description) in table {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        assert_eq!(fixture.token(&app, &form).await, refused(error, description));
    }
}

#[tokio::test]
async fn a_basic_header_that_contradicts_the_body_is_an_invalid_request() {
    let fixture = Fixture::given().await;
    let form = [("grant_type", "refresh_token"), ("client_id", "someone-else")];
    let answer = fixture.post("/login/oauth/access_token").basic_auth(&fixture.app.id, Some(&fixture.app.secret));
    let answer: Value = answer.form(&form).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["error"], "invalid_request");
}

#[tokio::test]
async fn a_reused_refresh_token_is_refused_and_the_newest_stays_good() {
    let fixture = Fixture::given().await;
    let first = fixture.sign_in("alice", "read:user").await;
    let second = fixture.refresh(&first["refresh_token"]).await.unwrap();
    let reused = fixture.refresh(&first["refresh_token"]).await;
    assert_eq!(reused, refused("unauthorized_client", "token was already used"));
    assert_eq!(fixture.api("/api/v1/user", &first["access_token"]).await.status(), 200);
    fixture.refresh(&second["refresh_token"]).await.unwrap();
}

#[tokio::test]
async fn of_eight_concurrent_refreshes_one_wins() {
    let fixture = Fixture::given().await;
    let pair = fixture.sign_in("alice", "read:user").await;
    let all = futures_util::future::join_all((0..8).map(|_| fixture.refresh(&pair["refresh_token"]))).await;
    assert_eq!(all.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{all:?}");
}

#[tokio::test]
async fn a_second_login_kills_the_firsts_refresh_token_but_not_another_users() {
    let fixture = Fixture::given().await;
    let bob = fixture.sign_in("bob", "read:user").await;
    let first = fixture.sign_in("alice", "read:user").await;
    fixture.sign_in("alice", "read:user").await;
    let stale = fixture.refresh(&first["refresh_token"]).await;
    assert_eq!(stale, refused("unauthorized_client", "token was already used"));
    fixture.refresh(&bob["refresh_token"]).await.unwrap();
}

#[tokio::test]
async fn access_tokens_of_one_grant_and_one_second_are_identical() {
    let fixture = Fixture::given().await;
    let first = fixture.sign_in("alice", "read:user").await;
    let second = fixture.refresh(&first["refresh_token"]).await.unwrap();
    let at = |pair: &Value| claims(&pair["access_token"])["iat"].clone();
    assert_eq!(first["access_token"] == second["access_token"], at(&first) == at(&second));
    assert_ne!(first["refresh_token"], second["refresh_token"]);
}

#[tokio::test]
async fn another_scope_at_the_second_authorisation_is_silently_ignored() {
    let fixture = Fixture::given().await;
    let mut alice = user_agent("alice");
    let page = fixture.agreed(&mut alice, "read:user").await;
    fixture.exchange(&returned(&page, "code").unwrap()).await.unwrap();
    let page = alice.open(fixture.authorize("write:user")).await;
    assert_eq!((page.status.as_u16(), returned(&page, "state").as_deref()), (303, Some("s&t")));
    let pair = fixture.exchange(&returned(&page, "code").unwrap()).await.unwrap();
    let told = fixture.introspect(&pair["access_token"]).await.expect("active");
    assert_eq!((&told["username"], &told["scope"]), (&json!("alice"), &json!("read:user")));
    let me: Value = fixture.api("/api/v1/user", &pair["access_token"]).await.json().await.unwrap();
    assert_eq!(told["sub"], json!(me["id"].to_string()));
    assert_eq!(fixture.introspect(&json!("garbage")).await, None);
}

#[tokio::test]
async fn a_denial_goes_back_to_the_client_and_a_foreign_form_nowhere() {
    let fixture = Fixture::given().await;
    let (mut alice, page) = at_consent(&fixture, "alice").await;
    let form = page.form("/login/oauth/grant").with("granted", "false");
    let cookies: Vec<String> = alice.cookies.iter().map(|((_, name), value)| format!("{name}={value}")).collect();
    let foreign = fixture.post("/login/oauth/grant").form(&form.fields).header(COOKIE, cookies.join("; "));
    assert_eq!(foreign.header("sec-fetch-site", "cross-site").send().await.unwrap().status(), 403);
    let denied = alice.send(&form).await;
    assert_eq!(returned(&denied, "error").as_deref(), Some("access_denied"));
    assert_eq!(returned(&denied, "error_description").as_deref(), Some("the request is denied"));
    assert_eq!(returned(&denied, "state").as_deref(), Some("s&t"));
}

#[tokio::test]
async fn a_stranger_is_sent_to_the_login_form_and_from_there_back() {
    let fixture = Fixture::given().await;
    let mut alice = user_agent("alice");
    let sent = alice.open(fixture.authorize("read:user")).await;
    assert_eq!(sent.location().unwrap().path(), "/user/login");
    let form = alice.open(sent.location().unwrap()).await.form("/user/login").with("user_name", "alice");
    assert_eq!(alice.send(&form.clone().with("password", "wrong")).await.status, 200);
    let sent = alice.send(&form.with("password", "secret-of-alice")).await;
    assert_eq!(sent.location().unwrap(), fixture.authorize("read:user"));
}

#[tokio::test]
async fn an_unregistered_redirect_gets_a_page_and_no_redirect() {
    let fixture = Fixture::given().await;
    let (mut alice, _) = at_consent(&fixture, "alice").await;
    let evil = fixture.authorize("read:user").as_str().replace("broker.example", "evil.example");
    let page = alice.open(evil).await;
    assert_eq!((page.status.as_u16(), page.location()), (400, None));
}

#[tokio::test]
async fn only_the_api_notices_that_a_user_is_locked_out() {
    let fixture = Fixture::given().await;
    let edit = async |active: bool, prohibited: bool| {
        let edit = json!({"login_name": "erin", "source_id": 0, "active": active, "prohibit_login": prohibited});
        assert_eq!(fixture.as_admin(Method::PATCH, "/api/v1/admin/users/erin", &edit).await.status(), 200);
    };
    for (active, prohibited) in [(false, false), (true, true)] {
        // On a real one an earlier run may have failed in between.
        edit(true, false).await;
        let pair = fixture.sign_in("erin", "read:user").await;
        edit(active, prohibited).await;
        for path in ["/api/v1/user", "/api/v1/version"] {
            assert_eq!(fixture.api(path, &pair["access_token"]).await.status(), 403);
        }
        assert_eq!(fixture.api("/login/oauth/userinfo", &pair["access_token"]).await.status(), 200);
        fixture.refresh(&pair["refresh_token"]).await.unwrap();
        edit(true, false).await;
    }
}

#[tokio::test]
async fn a_revoked_grant_ends_access_and_refresh() {
    let fixture = Fixture::given().await;
    let mut alice = user_agent("alice");
    let page = fixture.agreed(&mut alice, "read:user").await;
    let pair = fixture.exchange(&returned(&page, "code").unwrap()).await.unwrap();
    let grant = claims(&pair["access_token"])["gnt"].clone();
    let path = format!("{}/user/settings/applications/oauth2/0/revoke/{grant}", fixture.root);
    let revoke = Form { action: path.parse().unwrap(), fields: BTreeMap::new() };
    assert!(alice.send(&revoke).await.status.is_success());
    assert_eq!(fixture.api("/api/v1/user", &pair["access_token"]).await.status(), 401);
    assert_eq!(fixture.introspect(&pair["access_token"]).await, None);
    let refused_now = fixture.refresh(&pair["refresh_token"]).await;
    assert_eq!(refused_now, refused("invalid_grant", "grant does not exist"));
}

#[tokio::test]
async fn an_application_that_is_deleted_is_no_client_any_more() {
    let fixture = Fixture::given().await;
    let pair = fixture.sign_in("alice", "read:user").await;
    let path = format!("/api/v1/user/applications/oauth2/{}", fixture.app.number);
    assert_eq!(fixture.as_admin(Method::DELETE, &path, &json!({})).await.status(), 204);
    assert_eq!(fixture.api("/api/v1/user", &pair["access_token"]).await.status(), 401);
    let (error, _) = fixture.refresh(&pair["refresh_token"]).await.expect_err("refused");
    assert_eq!(error, "invalid_client");
}

#[tokio::test]
async fn scopes_are_enforced_and_unknown_ones_mean_all() {
    let fixture = Fixture::given().await;
    let repos = async |login: &str, scope: &str| {
        let pair = fixture.sign_in(login, scope).await;
        let answer = fixture.api("/api/v1/user/repos", &pair["access_token"]).await;
        let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
        (status, body.get("message").map(text).unwrap_or_default())
    };
    let why = "token does not have at least one of required scope(s): [read:repository]";
    assert_eq!(repos("alice", "read:user").await, (403, why.to_owned()));
    assert_eq!(repos("bob", "mcp:tools").await, (200, String::new()));
    let memberships = fixture.sign_in("carol", "read:user read:organization").await;
    for path in ["/api/v1/user/orgs", "/api/v1/user/teams"] {
        assert_eq!(fixture.api(path, &memberships["access_token"]).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn userinfo_says_who_it_is_whatever_the_scope() {
    let fixture = Fixture::given().await;
    let pair = fixture.sign_in("alice", "read:issue").await;
    let told: Value = fixture.api("/login/oauth/userinfo", &pair["access_token"]).await.json().await.unwrap();
    assert_eq!((&told["preferred_username"], &told["email"]), (&json!("alice"), &json!("alice@example.org")));
    assert_eq!(told["sub"], fixture.introspect(&pair["access_token"]).await.expect("active")["sub"]);
    let stranger = fixture.get("/login/oauth/userinfo").send().await.unwrap();
    assert_eq!(stranger.status(), 401);
    assert_eq!(stranger.headers()[WWW_AUTHENTICATE], "Bearer realm=\"\"");
}

#[tokio::test]
async fn a_refusal_of_the_api_is_json_with_a_message() {
    let fixture = Fixture::given().await;
    for token in ["garbage", "fjb_at_of_the_brokers_own"] {
        let answer = fixture.api("/api/v1/user", &json!(token)).await;
        assert_eq!(answer.status(), 401);
        let told: Value = answer.json().await.unwrap();
        assert!(told["message"].is_string() && told["url"].is_string(), "{told}");
    }
}

#[tokio::test]
async fn an_account_is_told_from_its_successor_by_when_it_was_made_which_does_not_change() {
    let fixture = Fixture::given().await;
    let mut told = Vec::new();
    for login in ["alice", "alice", "bob"] {
        let pair = fixture.sign_in(login, "read:user").await;
        let user: Value = fixture.api("/api/v1/user", &pair["access_token"]).await.json().await.unwrap();
        // RFC 3339, with the offset of the server's own time zone.
        let created = text(&user["created"]);
        assert!(created.len() >= 20 && created.as_bytes()[10] == b'T', "{created}");
        told.push((user["id"].clone(), created));
    }
    assert_eq!(told[0], told[1]);
    assert_ne!(told[0].0, told[2].0);
}

#[tokio::test]
async fn a_forge_tells_everybody_the_keys_that_it_signs_tokens_with() {
    let fixture = Fixture::given().await;
    let mut told = Vec::new();
    for _ in 0..2 {
        let answer = fixture.get("/login/oauth/keys").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        told.push(answer.json::<Value>().await.unwrap());
    }
    assert_eq!(told[0], told[1]);
    let key = &told[0]["keys"][0];
    assert!(key["kty"].is_string() && (key["n"].is_string() || key["x"].is_string()), "{key}");
}

/// A login that nobody had here before, also not in an earlier run on a real forge.
fn new_login(of: &str) -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    format!("{of}-{}-{}", Clock::system().now().secs(), MADE.fetch_add(1, Ordering::Relaxed))
}

async fn make(fixture: &Fixture, login: &str) -> Value {
    let user = json!({"username": login, "password": format!("secret-of-{login}"),
        "email": format!("{login}@example.org"), "must_change_password": false});
    let answer = fixture.as_admin(Method::POST, "/api/v1/admin/users", &user).await;
    assert_eq!(answer.status(), 201);
    answer.json().await.unwrap()
}

#[tokio::test]
async fn everybody_is_told_whose_a_login_is_and_where_one_that_was_given_up_has_gone() {
    let fixture = Fixture::given().await;
    let (old, new) = (new_login("old"), new_login("new"));
    let made = make(&fixture, &old).await;
    let told: Value =
        fixture.get(&format!("/api/v1/users/{}", old.to_uppercase())).send().await.unwrap().json().await.unwrap();
    for member in ["id", "login", "created"] {
        assert_eq!(told[member], made[member], "{member}");
    }
    let rename = format!("/api/v1/admin/users/{old}/rename");
    assert_eq!(fixture.as_admin(Method::POST, &rename, &json!({"new_username": new})).await.status(), 204);
    let moved = fixture.get(&format!("/api/v1/users/{old}")).send().await.unwrap();
    assert_eq!(moved.status(), 307);
    assert!(moved.headers()["location"].to_str().unwrap().ends_with(&format!("/api/v1/users/{new}")));
    let told: Value = fixture.get(&format!("/api/v1/users/{new}")).send().await.unwrap().json().await.unwrap();
    assert_eq!((&told["id"], &told["created"]), (&made["id"], &made["created"]), "a rename makes no other account");
    let nobody = fixture.get(&format!("/api/v1/users/{}", new_login("nobody"))).send().await.unwrap();
    assert_eq!(nobody.status(), 404);
    // The login is free for another.
    let another = make(&fixture, &old).await;
    assert_ne!(another["id"], made["id"]);
    let told: Value = fixture.get(&format!("/api/v1/users/{old}")).send().await.unwrap().json().await.unwrap();
    assert_eq!(told["id"], another["id"]);
}

#[tokio::test]
async fn no_number_is_given_out_twice() {
    let fixture = Fixture::given().await;
    let login = new_login("gone");
    let made = make(&fixture, &login).await;
    let delete = format!("/api/v1/admin/users/{login}?purge=true");
    assert_eq!(fixture.as_admin(Method::DELETE, &delete, &json!({})).await.status(), 204);
    let again = make(&fixture, &login).await;
    assert!(again["id"].as_i64() > made["id"].as_i64(), "{again}");
}
