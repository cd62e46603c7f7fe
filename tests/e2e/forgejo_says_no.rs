//! Forgejo says no while people are connected: what is over ends at once, and what is not waits.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::login::{Client, login_deployment, user_agent};
use crate::stand_in;
use harness::deployment::Deployment;
use harness::mcp_session::{Session, http, post};
use harness::user_agent::Decision;

async fn connected(deployment: &Deployment) -> Session {
    let client = Client::register(deployment).await;
    let (access, _) = client.connect(&mut user_agent("alice"), Decision::Allow).await;
    Session::open(&deployment.url, &access).await.expect("a session")
}

/// Calls the tool that asks Forgejo who its user is: status, challenge and body.
async fn asked(deployment: &Deployment, session: &Session) -> (u16, String, String) {
    let call = json!({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "get_my_user_info"}});
    let answer = post(&http(), &deployment.url, &session.token(), Some(&session.id), &call).await.expect("an answer");
    let challenge = answer.headers().get("www-authenticate").and_then(|value| value.to_str().ok()).unwrap_or_default();
    (answer.status().as_u16(), challenge.to_owned(), answer.text().await.expect("a body"))
}

#[tokio::test]
async fn access_that_was_taken_back_at_forgejo_is_noticed_with_the_first_call_that_it_refuses() {
    let deployment = login_deployment("no-taken-back", stand_in(&[]), "");
    if deployment.forge.is_none() {
        return crate::skip("taken back", "a real forge has no string for it");
    }
    let session = connected(&deployment).await;
    assert_eq!(asked(&deployment, &session).await.0, 200);
    deployment.stub_delete("/stub/grants/alice").expect("taken back");
    let (status, challenge, body) = asked(&deployment, &session).await;
    assert_eq!((status, body.as_str()), (401, ""), "{}", deployment.output());
    assert!(challenge.contains("invalid_token"), "{challenge}");
    let (status, ..) = asked(&deployment, &session).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn who_must_change_their_password_is_told_so_and_goes_on_in_the_same_session_afterwards() {
    let deployment = login_deployment("no-barred", stand_in(&[]), "");
    if deployment.forge.is_none() {
        return crate::skip("barred", "a real forge has no string for it");
    }
    let session = connected(&deployment).await;
    assert_eq!(asked(&deployment, &session).await.0, 200);
    deployment.stub("/stub/users/alice", r#"{"must_change_password":true}"#).expect("barred");
    let (status, challenge, body) = asked(&deployment, &session).await;
    assert_eq!((status, challenge.as_str()), (403, ""), "{body}");
    assert!(body.contains("must change its password"), "{body}");
    let stopped = async {
        while !deployment.children().is_empty() {
            harness::look_again().await;
        }
    };
    timeout(Duration::from_secs(20), stopped).await.expect("its child is stopped");
    deployment.stub("/stub/users/alice", r#"{"must_change_password":false}"#).expect("let in");
    let again = async {
        loop {
            let (status, _, body) = asked(&deployment, &session).await;
            if status == 200 {
                break body;
            }
            assert_eq!(status, 403, "{body}");
            harness::look_again().await;
        }
    };
    let body = timeout(Duration::from_secs(30), again).await.expect("it goes on");
    let answer: Value = serde_json::from_str(&body).expect("json");
    assert!(answer.get("result").is_some(), "{answer}");
    assert!(deployment.output().contains("account-barred") && deployment.output().contains("account-let-in"));
}
