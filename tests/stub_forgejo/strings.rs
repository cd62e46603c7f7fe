//! What only the stub can do: its clock, its misbehaviour, its diary. And what Forgejo says since version 16 only.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Fixture, refused, text};

impl Fixture {
    async fn control(&self, path: &str, body: Value) {
        assert!(self.post(path).json(&body).send().await.unwrap().status().is_success());
    }
}

#[tokio::test]
async fn it_says_that_it_is_a_stub() {
    let (fixture, _, _) = Fixture::stub().await;
    let answer = fixture.get("/api/v1/version").send().await.unwrap();
    assert_eq!(answer.headers()["server"], "stub-forgejo");
}

#[tokio::test]
async fn a_refresh_token_ends_after_730_hours() {
    let (fixture, _, clock) = Fixture::stub().await;
    let pair = fixture.sign_in("alice", "read:user").await;
    clock.advance(Duration::from_hours(730));
    let expired = fixture.refresh(&pair["refresh_token"]).await;
    assert_eq!(expired, refused("unauthorized_client", "unable to parse refresh token"));
}

#[tokio::test]
async fn an_access_token_outlives_a_refresh_and_ends_at_its_expiry() {
    let (fixture, _, clock) = Fixture::stub().await;
    let pair = fixture.sign_in("alice", "read:user").await;
    clock.advance(Duration::from_secs(3599));
    fixture.refresh(&pair["refresh_token"]).await.unwrap();
    assert_eq!(fixture.api("/api/v1/user", &pair["access_token"]).await.status(), 200);
    clock.advance(Duration::from_secs(1));
    let answer = fixture.api("/api/v1/user", &pair["access_token"]).await;
    assert_eq!(answer.status(), 401);
    let message = text(&answer.json::<Value>().await.unwrap()["message"]);
    let lines = format!(
        "token has invalid claims: token is expired\naccess token does not exist [sha: {}]",
        text(&pair["access_token"])
    );
    assert_eq!(message, lines, "Forgejo 16 repeats the token, which the broker has to redact");
}

#[tokio::test]
async fn introspection_says_of_what_is_not_active_that_it_is_not_and_does_not_notice_locked_users() {
    let (fixture, forge, _) = Fixture::stub().await;
    let pair = fixture.sign_in("erin", "read:user").await;
    forge.with(|state| state.users.iter_mut().filter(|user| user.login == "erin").for_each(|erin| erin.active = false));
    assert_eq!(fixture.introspect(&pair["access_token"]).await.expect("active")["username"], "erin");
    let request = fixture.post("/login/oauth/introspect").basic_auth(&fixture.app.id, Some(&fixture.app.secret));
    let told = request.form(&[("token", "garbage")]).send().await.unwrap().text().await.unwrap();
    assert_eq!(told, r#"{"active":false}"#);
}

#[tokio::test]
async fn users_see_their_own_private_repositories_only() {
    let (fixture, forge, _) = Fixture::stub().await;
    let token = |login: &str| Value::from(forge.with(|state| state.add_token(login, "").unwrap()));
    let (alice, bob) = (token("alice"), token("bob"));
    let notes = "/api/v1/repos/alice/alice-notes";
    assert_eq!(fixture.api(notes, &alice).await.status(), 200);
    assert_eq!(fixture.api(notes, &bob).await.status(), 404);
    let me: Value = fixture.api("/api/v1/user", &bob).await.json().await.unwrap();
    assert_eq!((&me["id"], &me["login"]), (&json!(2), &json!("bob")));
}

#[tokio::test]
async fn a_lost_answer_has_raised_the_counter_all_the_same() {
    let (fixture, _, _) = Fixture::stub().await;
    let pair = fixture.sign_in("alice", "read:user").await;
    fixture.control("/stub/mode", json!({"lose_answer": true})).await;
    let form = [
        ("client_id", fixture.app.id.clone()),
        ("client_secret", fixture.app.secret.clone()),
        ("grant_type", "refresh_token".to_owned()),
        ("refresh_token", text(&pair["refresh_token"])),
    ];
    let lost = async { fixture.post("/login/oauth/access_token").form(&form).send().await?.bytes().await };
    assert!(lost.await.is_err());
    fixture.control("/stub/mode", json!({})).await;
    let burnt = fixture.refresh(&pair["refresh_token"]).await;
    assert_eq!(burnt, refused("unauthorized_client", "token was already used"));
}

#[tokio::test]
async fn a_hanging_forge_answers_once_it_is_told_to_stop_and_a_failing_one_with_its_status() {
    let (fixture, forge, _) = Fixture::stub().await;
    fixture.control("/stub/mode", json!({"hang": true})).await;
    let mut hanging = tokio::spawn(fixture.get("/api/v1/version").send());
    // The request is on the list before it hangs, so the list tells that it has arrived.
    while forge.with(|state| state.requests.is_empty()) {
        tokio::task::yield_now().await;
    }
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut hanging).await.is_err(), "no answer comes");
    fixture.control("/stub/mode", json!({"fail": 503})).await;
    assert_eq!(hanging.await.unwrap().unwrap().status(), 200);
    assert_eq!(fixture.get("/api/v1/version").send().await.unwrap().status(), 503);
}

#[tokio::test]
async fn the_life_of_new_access_tokens_can_be_set() {
    let (fixture, _, _) = Fixture::stub().await;
    fixture.control("/stub/mode", json!({"access_ttl": 4})).await;
    assert_eq!(fixture.sign_in("alice", "read:user").await["expires_in"], 4);
}

#[tokio::test]
async fn requests_are_listed_with_who_made_them_and_without_their_tokens() {
    let (fixture, forge, _) = Fixture::stub().await;
    let token = forge.with(|state| state.add_token("alice", "").unwrap());
    fixture.api("/api/v1/user?token=x", &Value::from(token.as_str())).await;
    let seen = fixture.get("/stub/requests").send().await.unwrap().text().await.unwrap();
    assert_eq!(seen, r#"[{"method":"GET","path":"/api/v1/user","user":"alice"}]"#);
}
