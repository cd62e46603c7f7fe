//! Metadata and registration: what clients find out and say by themselves.

use std::time::Duration;

use serde_json::{Value, json};

use crate::tests::oauth::fixture::{Fixture, Terms, WEB};
use harness::user_agent::UserAgent;

async fn get(fixture: &Fixture, path: &str) -> (u16, Value, reqwest::header::HeaderMap) {
    let request = fixture.http.get(format!("{}{path}", fixture.url)).header("host", "evil.example");
    let request = request.header("x-forwarded-host", "evil.example").header("mcp-protocol-version", "2024-11-05");
    let response = request.header("origin", "https://page.example").send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    (status, response.json().await.expect("json"), headers)
}

#[tokio::test]
async fn the_resource_and_the_server_are_described_from_configuration_alone() {
    let fixture = Fixture::new().await;
    for path in ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"] {
        let (status, document, headers) = get(&fixture, path).await;
        assert_eq!(status, 200);
        assert_eq!(document["resource"], format!("{}/mcp", fixture.url));
        assert_eq!(document["authorization_servers"], json!([fixture.url]));
        assert_eq!(document["scopes_supported"], json!(["forgejo:read", "forgejo:write"]));
        assert_eq!(headers["access-control-allow-origin"], "*");
    }
    let mut documents = Vec::new();
    for path in ["/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"] {
        let (status, document, _) = get(&fixture, path).await;
        assert_eq!((status, &document["issuer"]), (200, &json!(fixture.url)));
        for endpoint in ["authorization_endpoint", "token_endpoint", "registration_endpoint", "revocation_endpoint"] {
            assert!(document[endpoint].as_str().expect(endpoint).starts_with(&fixture.url));
        }
        assert_eq!(document["code_challenge_methods_supported"], json!(["S256"]));
        assert_eq!(document["client_id_metadata_document_supported"], true);
        assert!(!document["scopes_supported"].as_array().expect("a list").contains(&json!("offline_access")));
        documents.push(document);
    }
    assert_eq!(documents[0], documents[1]);
    assert!(!documents[0].to_string().contains("evil.example"));
}

#[tokio::test]
async fn other_well_known_paths_are_a_plain_json_404() {
    let fixture = Fixture::new().await;
    for path in [
        "/.well-known/oauth-authorization-server/mcp",
        "/.well-known/openid-configuration/mcp",
        "/.well-known/oauth-protected-resource/other",
        "/.well-known/mcp.json",
        "/mcp/.well-known/openid-configuration",
    ] {
        let (status, document, headers) = get(&fixture, path).await;
        assert_eq!((status, &document), (404, &json!({"error": "not_found"})), "{path}");
        assert!(!headers.contains_key("www-authenticate"));
    }
}

#[tokio::test]
async fn a_client_without_a_token_is_led_to_the_metadata() {
    let fixture = Fixture::new().await;
    let response = fixture.http.get(format!("{}/mcp", fixture.url)).send().await.expect("an answer");
    assert_eq!(response.status(), 401);
    let challenge = response.headers()["www-authenticate"].to_str().expect("text");
    let metadata = format!("resource_metadata=\"{}/.well-known/oauth-protected-resource/mcp\"", fixture.url);
    assert!(challenge.contains(&metadata) && challenge.contains("scope=\"forgejo:read forgejo:write\""), "{challenge}");
}

#[tokio::test]
async fn the_first_challenge_names_an_error_unless_the_operator_wants_it_to_the_letter() {
    for bare_challenge in [false, true] {
        let fixture = Fixture::with(Terms { bare_challenge, ..Terms::default() }).await;
        let challenge = async |authorization: Option<&str>| {
            let mut request = fixture.http.get(format!("{}/mcp", fixture.url));
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status(), 401);
            answer.headers()["www-authenticate"].to_str().expect("text").to_owned()
        };
        let first = challenge(None).await;
        assert_eq!(first.contains("error="), !bare_challenge, "{first}");
        assert!(first.starts_with("Bearer ") && first.contains("resource_metadata="), "{first}");
        assert!(challenge(Some("Basic eDp5")).await.contains("error=\"invalid_request\""));
        assert!(challenge(Some("Bearer x")).await.contains("error=\"invalid_token\""));
    }
}

#[tokio::test]
async fn a_registration_is_answered_with_what_was_registered_and_without_nulls() {
    let fixture = Fixture::new().await;
    let asked = json!({"client_name": "Cursor", "application_type": "native", "scope": "forgejo:read",
        "redirect_uris": ["cursor://anysphere.cursor-mcp/oauth/callback", "https://www.cursor.com/agents/mcp/oauth/callback", "http://localhost:8787/callback"],
        "grant_types": ["authorization_code", "refresh_token"], "response_types": ["code"],
        "token_endpoint_auth_method": "none", "software_id": "x", "contacts": [], "logo_uri": null});
    let (status, registered) = fixture.register(&asked).await;
    assert_eq!(status, 201, "{registered}");
    for same in [
        "client_name",
        "application_type",
        "redirect_uris",
        "grant_types",
        "response_types",
        "token_endpoint_auth_method",
    ] {
        assert_eq!(registered[same], asked[same], "{same}");
    }
    let members = registered.as_object().expect("an object");
    assert!(members.values().all(|value| !value.is_null()) && !members.contains_key("client_secret"));
    assert!(!registered["client_id"].as_str().expect("an id").starts_with("https://"));
}

#[tokio::test]
async fn a_registration_that_cannot_be_met_is_refused_with_its_registered_code() {
    let fixture = Fixture::new().await;
    let with = |redirect: &str| json!({"redirect_uris": [redirect], "token_endpoint_auth_method": "none"});
    let table = [
        (with("http://client.example/cb"), "invalid_redirect_uri"),
        (with("https://client.example/cb#x"), "invalid_redirect_uri"),
        (with("javascript:alert(1)"), "invalid_redirect_uri"),
        (with("myapp://cb"), "invalid_redirect_uri"),
        (
            json!({"redirect_uris": [WEB, "http://x.example/"], "token_endpoint_auth_method": "none"}),
            "invalid_redirect_uri",
        ),
        (json!({"redirect_uris": []}), "invalid_redirect_uri"),
        (json!({}), "invalid_redirect_uri"),
        (json!({"redirect_uris": [WEB], "token_endpoint_auth_method": "private_key_jwt"}), "invalid_client_metadata"),
        (json!({"redirect_uris": [WEB], "grant_types": ["client_credentials"]}), "invalid_client_metadata"),
        (json!({"redirect_uris": [WEB], "response_types": ["token"]}), "invalid_client_metadata"),
        (json!([1]), "invalid_client_metadata"),
    ];
    for (asked, code) in table {
        let (status, refused) = fixture.register(&asked).await;
        assert_eq!((status, refused["error"].as_str()), (400, Some(code)), "{asked}");
    }
}

#[tokio::test]
async fn registrations_from_one_address_are_limited_and_repeated_ones_cost_nothing() {
    let mut terms = Terms::default();
    terms.rates.registrations = 2;
    let fixture = Fixture::with(terms).await;
    let asked = |redirect: &str| json!({"client_name": "Hosted", "redirect_uris": [redirect], "token_endpoint_auth_method": "none"});
    let mut ids = Vec::new();
    for _ in 0..20 {
        let (status, registered) = fixture.register(&asked("https://hosted.example/cb")).await;
        assert_eq!(status, 201);
        ids.push(registered["client_id"].clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one hosted client for all its users is one client");
    assert_eq!(fixture.register(&asked("https://a.example/cb")).await.0, 201);
    assert_eq!(fixture.register(&asked("https://b.example/cb")).await.0, 429);
}

#[tokio::test]
async fn confidential_clients_are_never_merged() {
    let fixture = Fixture::new().await;
    let asked = json!({"client_name": "Service", "redirect_uris": [WEB]});
    let ((_, one), (_, two)) = (fixture.register(&asked).await, fixture.register(&asked).await);
    assert_ne!(one["client_id"], two["client_id"]);
    assert_ne!(one["client_secret"], two["client_secret"]);
}

#[tokio::test]
async fn a_client_that_ever_completed_a_login_is_kept_and_one_that_never_did_is_not() {
    let fixture = Fixture::new().await;
    let (used, unused) = (fixture.client(WEB).await, fixture.client("https://unused.example/cb").await);
    fixture.connect(&mut UserAgent::new("alice", "secret"), &used, WEB).await;
    fixture.clock.advance(Duration::from_hours(24 * 400));
    fixture.oauth.tidy().await;
    let mut alice = UserAgent::new("alice", "secret");
    assert_eq!(alice.open(fixture.authorize(&used, WEB, &[])).await.status, 200);
    let gone = alice.open(fixture.authorize(&unused, "https://unused.example/cb", &[])).await;
    assert!(gone.status == 400 && gone.text.contains("add it again"), "{}", gone.text);
    let form = [("grant_type", "refresh_token"), ("client_id", &*unused), ("refresh_token", "fjb_rt_x")];
    let (status, refused) = fixture.token(&form).await;
    assert_eq!((status, &refused["error"]), (401, &json!("invalid_client")), "so that the client registers again");
}

#[tokio::test]
async fn pages_of_other_sites_may_call_what_is_for_programs() {
    let fixture = Fixture::new().await;
    let metadata = "/.well-known/oauth-authorization-server";
    for path in ["/oauth/token", "/token", "/oauth/register", "/oauth/revoke", metadata] {
        let request = fixture.http.request(reqwest::Method::OPTIONS, format!("{}{path}", fixture.url));
        let request = request.header("origin", "https://page.example").header("access-control-request-method", "POST");
        let request = request.header("access-control-request-headers", "content-type,mcp-protocol-version,traceparent");
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        let allowed = response.headers()["access-control-allow-headers"].to_str().expect("text");
        assert!(allowed.contains("mcp-protocol-version") && allowed.contains("traceparent"), "{allowed}");
        assert!(response.headers().contains_key("access-control-max-age"));
        assert!(!response.headers().contains_key("access-control-allow-credentials"));
    }
}
