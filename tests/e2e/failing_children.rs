//! Children that fail do it within their own session, and the client learns what happened.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use crate::{blocked, stand_in_deployment, token};
use harness::deployment::Deployment;
use harness::mcp_session::{Session, http, initialize, post};

async fn no_child_is_left(deployment: &Deployment) {
    let gone = async {
        while !deployment.children().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), gone).await.expect("the child is gone");
}

#[tokio::test]
async fn a_child_that_exits_before_it_answers_initialize_is_explained_in_its_own_words() {
    let deployment = stand_in_deployment("no_init", &["--no-init", "FATAL cannot find the forge"], |_| {});
    let error = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect_err("no session").to_string();
    assert!(error.contains("200") && error.contains("exit status 3"), "{error}");
    assert!(error.contains("FATAL cannot find the forge"), "{error}");
    no_child_is_left(&deployment).await;
}

#[tokio::test]
async fn a_child_that_repeats_a_token_that_forgejo_refuses_tells_it_to_nobody() {
    let deployment = stand_in_deployment("bad_token", &["--check-token"], |_| {});
    let forgejo_token = deployment.forge_token("alice").expect("a Forgejo token");
    let broker_token = deployment.broker_token("alice", &forgejo_token, &[]).expect("a token");
    // The user is gone upstream after the broker's token was made.
    deployment.stub_delete("/stub/users/alice").expect("deleted");
    let response = post(&http(), &deployment.url, &broker_token, None, &initialize()).await.expect("an answer");
    assert_eq!(response.status().as_u16(), 401);
    assert!(response.text().await.expect("a body").is_empty());
    let output = deployment.output();
    assert!(output.contains("[redacted]") && !output.contains(&forgejo_token), "{output}");
}

#[tokio::test]
async fn a_child_that_hangs_at_start_is_given_up_and_removed() {
    let deployment = stand_in_deployment("hang_init", &["--hang-init"], |config| {
        config.broker = "[sessions]\nstart_timeout = \"1s\"\n".to_owned();
        config.supervisor = "[stop]\neof_grace = \"100ms\"\nterm_grace = \"100ms\"\n".to_owned();
    });
    let error = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect_err("no session").to_string();
    assert!(error.contains("in time"), "{error}");
    no_child_is_left(&deployment).await;
}

#[tokio::test]
async fn a_child_that_ignores_the_end_of_its_input_and_sigterm_is_killed() {
    let deployment = stand_in_deployment("ignores_term", &["--ignore-term"], |config| {
        config.supervisor = "[stop]\neof_grace = \"100ms\"\nterm_grace = \"100ms\"\n".to_owned();
    });
    let session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let calling = blocked(&session).await;
    session.end().await.expect("an answer");
    let (_, answer) = calling.await.expect("no panic").expect("an answer");
    assert!(answer.pointer("/error/message").is_some(), "the request in flight is answered: {answer}");
    no_child_is_left(&deployment).await;
    let log = deployment.supervisor.as_ref().expect("runs").output();
    assert!(log.contains("signal 9"), "it took SIGKILL:\n{log}");
}

#[tokio::test]
async fn a_crash_ends_one_session_and_answers_its_requests() {
    let deployment = stand_in_deployment("crash", &[], |_| {});
    let token = token(&deployment, "alice");
    let mut crashing = Session::open(&deployment.url, &token).await.expect("a session");
    let mut other = Session::open(&deployment.url, &token).await.expect("a session");
    let (_, answer) =
        crashing.send("tools/call", json!({"name": "crash", "arguments": {"code": 7}})).await.expect("an answer");
    let message = answer.pointer("/error/message").and_then(|message| message.as_str()).unwrap_or_default().to_owned();
    assert!(message.contains("exit status 7"), "{answer}");
    let (status, _) = crashing.send("tools/list", json!({})).await.expect("an answer");
    assert_eq!(status.as_u16(), 404);
    assert_eq!(other.text("echo", json!({"text": "still here"})).await.expect("an answer"), "still here");
}

#[tokio::test]
async fn a_child_that_dies_because_forgejo_does_not_take_the_token_any_more_sends_its_client_to_log_in_again() {
    let deployment = stand_in_deployment("dead-token", &["--check-token"], |_| {});
    let token = token(&deployment, "alice");
    deployment.stub_delete("/stub/users/alice").expect("gone");
    let response = post(&http(), &deployment.url, &token, None, &initialize()).await.expect("an answer");
    assert_eq!(response.status().as_u16(), 401);
    let challenge =
        response.headers().get("www-authenticate").and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert!(challenge.contains("invalid_token"), "{challenge}");
    assert!(response.text().await.expect("a body").is_empty());
    let again = post(&http(), &deployment.url, &token, None, &initialize()).await.expect("an answer");
    assert_eq!(again.status().as_u16(), 401, "the grant is over");
    no_child_is_left(&deployment).await;
}
