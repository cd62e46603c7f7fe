//! Two users, two children, one endpoint.

use reqwest::StatusCode;
use serde_json::json;

use crate::{real_deployment, stand_in_deployment, token, who};
use harness::mcp_session::{Session, http, initialize, message, post};

#[tokio::test]
async fn each_user_gets_their_own_answers_from_a_child_of_their_own() {
    let Some(deployment) = real_deployment("own_answers") else { return };
    let (alice, bob) = (token(&deployment, "alice"), token(&deployment, "bob"));
    let mut hers = Session::open(&deployment.url, &alice).await.expect("a session");
    let mut his = Session::open(&deployment.url, &bob).await.expect("a session");
    assert_eq!(deployment.children().len(), 2);
    let (she, he) = (who(&mut hers).await, who(&mut his).await);
    assert!(she.contains("alice@example.org") && !she.contains("bob"), "{she}");
    assert!(he.contains("bob@example.org") && !he.contains("alice"), "{he}");
    assert_eq!(hers.end().await.expect("an answer"), StatusCode::NO_CONTENT);
    let (status, _) = hers.send("tools/list", json!({})).await.expect("an answer");
    assert_eq!(status, StatusCode::NOT_FOUND, "2025-06-18 demands 404 for an ended session");
    assert!(who(&mut his).await.contains("bob"), "the other session goes on");
}

#[tokio::test]
async fn another_users_token_on_a_session_is_403() {
    let Some(deployment) = real_deployment("hijack") else { return };
    let (alice, bob) = (token(&deployment, "alice"), token(&deployment, "bob"));
    let hers = Session::open(&deployment.url, &alice).await.expect("a session");
    let call = json!({"jsonrpc": "2.0", "id": "x", "method": "tools/list"});
    let stolen = post(&http(), &deployment.url, &bob, Some(&hers.id), &call).await.expect("an answer");
    assert_eq!(stolen.status(), StatusCode::FORBIDDEN);
    assert_eq!(message(stolen).await.expect("json")["id"], "x");
}

#[tokio::test]
async fn without_a_good_token_nothing_starts() {
    let deployment = stand_in_deployment("no_token", &[], |_| {});
    let refused = post(&http(), &deployment.url, "fjb_at_nonsense", None, &initialize()).await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let challenge = refused.headers().get("www-authenticate").expect("a challenge").to_str().expect("ascii").to_owned();
    // Without a registration at Forgejo nobody can log in, and no client is sent to look for a way.
    assert_eq!(
        challenge, "Bearer error=\"invalid_token\", reason=\"unknown\", scope=\"forgejo:read forgejo:write\"",
        "{challenge}"
    );
    assert!(refused.bytes().await.expect("a body").is_empty());
    assert!(deployment.children().is_empty());
}

#[tokio::test]
async fn progress_and_the_childs_own_requests_travel_through_real_pipes() {
    let deployment = stand_in_deployment("progress", &[], |_| {});
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let call = json!({"jsonrpc": "2.0", "id": "p", "method": "tools/call", "params":
        {"name": "progress", "arguments": {"count": 3}, "_meta": {"progressToken": "mine"}}});
    let response = post(&http(), &deployment.url, &session.token(), Some(&session.id), &call).await.expect("an answer");
    let text = response.text().await.expect("a stream");
    assert_eq!(text.matches("notifications/progress").count(), 3, "{text}");
    assert_eq!(text.matches("\"progressToken\":\"mine\"").count(), 3, "{text}");
    let big = session.text("big", json!({"bytes": 5_000_000})).await.expect("an answer");
    assert_eq!(big.len(), 5_000_000);
}

#[tokio::test]
async fn revoking_a_token_ends_its_sessions_and_children() {
    let deployment = stand_in_deployment("revoke", &[], |_| {});
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let list = deployment.ctl().args(["token", "list", "--json"]).output().expect("brokerctl runs");
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("json");
    let id = list.pointer("/0/id").and_then(|id| id.as_str()).expect("an id").to_owned();
    assert!(deployment.ctl().args(["token", "revoke", &id]).status().expect("brokerctl runs").success());
    assert!(session.send("tools/list", json!({})).await.is_err(), "401 has no body");
    let gone = || async {
        while !deployment.children().is_empty() {
            harness::look_again().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), gone()).await.expect("the child is gone");
}
