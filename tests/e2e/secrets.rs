//! No secret reaches a log, an argument vector or an error body.

use serde_json::json;

use crate::session::{Session, http, post};
use crate::stage::processes;
use crate::{stand_in_stage, token};

#[tokio::test]
async fn no_token_is_in_any_output_or_argument_of_a_whole_run() {
    let stage = stand_in_stage("secrets", &[], |_| {});
    let forgejo_token = stage.forge_token("alice").expect("a Forgejo token");
    let broker_token = stage.broker_token("alice", &forgejo_token, &[]).expect("a token");
    let mut session = Session::open(&stage.url, &broker_token).await.expect("a session");
    // The child repeats its token in an error and on standard error, as goern's does with Forgejo 16.
    let (_, leaked) = session.send("tools/call", json!({"name": "leak", "arguments": {}})).await.expect("an answer");
    let leaked = leaked.to_string();
    assert!(leaked.contains("[redacted]") && !leaked.contains(&forgejo_token), "{leaked}");
    // A wrong user, a bad token, and bodies that hold tokens.
    let refused = stage.broker_token("mallory", &forgejo_token, &[]).expect_err("another user").to_string();
    assert!(!refused.contains(&forgejo_token), "{refused}");
    let refused = stage.broker_token("alice", "not-a-good-token", &[]).expect_err("a bad token").to_string();
    assert!(!refused.contains("not-a-good-token"), "{refused}");
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"secret": broker_token}});
    let answer = post(&http(), &stage.url, &broker_token, Some("nonsense"), &body).await.expect("an answer");
    assert!(!answer.text().await.expect("a body").contains(&broker_token));
    for process in processes() {
        let argv = String::from_utf8_lossy(&process.file("cmdline")).into_owned();
        assert!(!argv.contains(&forgejo_token) && !argv.contains(&broker_token), "{argv}");
    }
    let second = token(&stage, "bob");
    let id = session.id.clone();
    session.end().await.expect("an answer");
    let output = stage.output();
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
