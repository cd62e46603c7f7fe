//! What a client may not say of itself, and in which form it must speak.

use serde_json::{Value, json};

use crate::tests::oauth::fixture::{Fixture, WEB};
use harness::user_agent::UserAgent;

async fn named(fixture: &Fixture, name: &str) -> (Value, String) {
    let metadata = json!({"client_name": name, "redirect_uris": [WEB], "token_endpoint_auth_method": "none"});
    let (status, registered) = fixture.register(&metadata).await;
    assert_eq!(status, 201, "{registered}");
    let client = registered["client_id"].as_str().expect("an id");
    let page = UserAgent::new("alice", "secret").open(fixture.authorize(client, WEB, &[])).await;
    (registered["client_name"].clone(), page.text)
}

#[tokio::test]
async fn a_client_whose_name_cannot_be_seen_is_shown_as_one_without_a_name() {
    let fixture = Fixture::new().await;
    for name in ["\u{3164}", "\u{2800}\u{2800}", "\u{ad}\u{180e}\u{34f}", "\u{fe0f}\u{e0041}\u{e0042}"] {
        let (registered, page) = named(&fixture, name).await;
        assert_eq!(registered, "a client without a name");
        assert!(page.contains("<h1>Connect <q><bdi class=\"name\">a client without a name</bdi></q> to Forgejo?</h1>"));
    }
}

#[tokio::test]
async fn a_name_does_not_close_the_quotation_marks_of_the_headline() {
    let fixture = Fixture::new().await;
    let (_, page) = named(&fixture, "Claude” (verified by the operator). “").await;
    let headline = "<q><bdi class=\"name\">Claude (verified by the operator).</bdi></q> to Forgejo?</h1>";
    assert!(page.contains(headline), "{page}");
}

#[tokio::test]
async fn an_address_that_a_browser_could_read_otherwise_is_not_registered() {
    let fixture = Fixture::new().await;
    for address in [
        "https:evil.example/cb",
        "https:///x",
        "http:///127.0.0.1/cb",
        "http://127.0.0.1:0/cb",
        "https://client.example/cb?code=mine",
        "https://client.example/cb?state=mine",
        "https://client.example/cb?error=mine",
        "https://client.example/cb?iss=mine",
    ] {
        let metadata = json!({"client_name": "x", "redirect_uris": [WEB, address]});
        let (status, refused) = fixture.register(&metadata).await;
        assert_eq!((status, &refused["error"]), (400, &json!("invalid_redirect_uri")), "{address}: {refused}");
    }
}

#[tokio::test]
async fn registrations_are_json_and_token_requests_are_forms() {
    let fixture = Fixture::new().await;
    let metadata = json!({"client_name": "x", "redirect_uris": [WEB]}).to_string();
    let form = "grant_type=refresh_token&client_id=x&refresh_token=y";
    let ask = async |path: &str, kind: Option<&str>, body: &str| {
        let mut request = fixture.http.post(format!("{}{path}", fixture.url)).body(body.to_owned());
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("json"))
    };
    for (path, body, good, bad) in [
        ("/oauth/register", metadata.as_str(), "Application/JSON; charset=utf-8", "application/x-www-form-urlencoded"),
        ("/oauth/token", form, "application/x-www-form-urlencoded;charset=UTF-8", "application/json"),
        ("/oauth/revoke", "token=x&client_id=x", "application/x-www-form-urlencoded", "text/plain"),
    ] {
        let (status, _) = ask(path, Some(good), body).await;
        assert!([201, 401].contains(&status), "{path}: {status}");
        for kind in [Some(bad), Some("multipart/form-data"), None] {
            let (status, refused) = ask(path, kind, body).await;
            assert_eq!((status, &refused["error"]), (415, &json!("invalid_request")), "{path} {kind:?}");
        }
    }
}

#[tokio::test]
async fn a_refresh_that_asks_for_more_or_for_the_unknown_is_refused_and_costs_nothing() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.go(&fixture.authorize(&client, WEB, &[("scope", "forgejo:read")]), &fixture.known(), ALLOW).await;
    let answer = crate::tests::oauth::fixture::Answer::of(&page);
    let (_, tokens) = fixture.redeem(&client, WEB, answer.get("code")).await;
    let refresh = tokens["refresh_token"].as_str().expect("a token");
    for scope in ["forgejo:read forgejo:write", "forgejo:write", "openid", "forgejo:read admin"] {
        let form =
            [("grant_type", "refresh_token"), ("client_id", &*client), ("refresh_token", refresh), ("scope", scope)];
        let (status, refused) = fixture.token(&form).await;
        assert_eq!((status, &refused["error"]), (400, &json!("invalid_scope")), "{scope}: {refused}");
    }
    let (status, tokens) = fixture.refresh(&client, refresh).await;
    assert_eq!((status, &tokens["scope"]), (200, &json!("forgejo:read")), "the token is still good");
}

const ALLOW: harness::user_agent::Decision = harness::user_agent::Decision::Allow;
