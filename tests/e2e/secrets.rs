//! No secret reaches a log, an argument vector or an error body.

use serde_json::json;

use crate::login::{Client, login_deployment, user_agent};
use crate::{stand_in_deployment, token};
use harness::deployment::processes;
use harness::mcp_session::{Session, http, post};
use harness::user_agent::Decision;

#[tokio::test]
async fn no_secret_of_a_login_is_in_any_output() {
    let deployment = login_deployment("secrets-login", crate::stand_in(&[]), "");
    let client = Client::register(&deployment).await;
    let mut alice = user_agent("alice");
    let (access, refresh) = client.connect(&mut alice, Decision::Allow).await;
    Session::open(&deployment.url, &access).await.expect("a session");
    let form = [("grant_type", "refresh_token"), ("client_id", client.id.as_str()), ("refresh_token", &refresh)];
    client.tokens(&form).await;
    // Refusals of every kind, each with a secret in it.
    let ask = |path: &'static str, form: Vec<(&'static str, String)>| {
        http().post(format!("{}{path}", deployment.url)).form(&form).send()
    };
    let bad = format!("{refresh}x");
    for (path, token) in [("/oauth/token", "refresh_token"), ("/oauth/token", "code"), ("/oauth/revoke", "token")] {
        let grant = if token == "code" { "authorization_code" } else { "refresh_token" };
        let form = vec![("grant_type", grant.to_owned()), ("client_id", client.id.clone()), (token, bad.clone())];
        ask(path, form).await.expect("an answer");
    }
    alice.open(format!("{}/oauth/callback?state={bad}&code={bad}", deployment.url)).await;
    let output = deployment.output();
    assert!(output.contains("client connected") && output.contains("logged in at Forgejo"), "{output}");
    for secret in ["fjb_", "secret-of-alice", "gta_", "gto_"] {
        assert!(!output.contains(secret), "{secret} is in the output:\n{output}");
    }
    for cookie in alice.cookies.values() {
        assert!(!output.contains(cookie), "a cookie is in the output:\n{output}");
    }
}

#[tokio::test]
async fn no_token_is_in_any_output_or_argument_of_a_whole_run() {
    let deployment = stand_in_deployment("secrets", &[], |_| {});
    let forgejo_token = deployment.forge_token("alice").expect("a Forgejo token");
    let broker_token = deployment.broker_token("alice", &forgejo_token, &[]).expect("a token");
    let mut session = Session::open(&deployment.url, &broker_token).await.expect("a session");
    // The child repeats its token in an error and on standard error, as goern's does with Forgejo 16.
    let (_, leaked) = session.send("tools/call", json!({"name": "leak", "arguments": {}})).await.expect("an answer");
    let leaked = leaked.to_string();
    assert!(leaked.contains("[redacted]") && !leaked.contains(&forgejo_token), "{leaked}");
    // A wrong user, a bad token, and bodies that hold tokens.
    let refused = deployment.broker_token("mallory", &forgejo_token, &[]).expect_err("another user").to_string();
    assert!(!refused.contains(&forgejo_token), "{refused}");
    let refused = deployment.broker_token("alice", "not-a-good-token", &[]).expect_err("a bad token").to_string();
    assert!(!refused.contains("not-a-good-token"), "{refused}");
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"secret": broker_token}});
    let answer = post(&http(), &deployment.url, &broker_token, Some("nonsense"), &body).await.expect("an answer");
    assert!(!answer.text().await.expect("a body").contains(&broker_token));
    for process in processes() {
        let argv = String::from_utf8_lossy(&process.file("cmdline")).into_owned();
        assert!(!argv.contains(&forgejo_token) && !argv.contains(&broker_token), "{argv}");
    }
    let second = token(&deployment, "bob");
    let id = session.id.clone();
    session.end().await.expect("an answer");
    let output = deployment.output();
    for (what, secret) in [
        ("the Forgejo token", &forgejo_token),
        ("the broker token", &broker_token),
        ("another broker token", &second),
        ("the session id", &id),
    ] {
        assert!(!output.contains(secret.as_str()), "{what} is in the output:\n{output}");
    }
    assert!(output.contains("[redacted]"), "the child's own words are in the log, without the token:\n{output}");
}
