//! Tokens for services: the operator says for how long, from where and for which tools they are good.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::stand_in_deployment;
use harness::mcp_session::{Session, http};
use harness::mcp_stateless::Caller;

fn run(mut command: Command, arguments: &[&str]) -> Value {
    let output = command.arg("--json").args(arguments).stdin(Stdio::null()).output().expect("brokerctl runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("json")
}

#[tokio::test]
async fn a_service_sees_and_calls_its_tools_from_its_network_until_that_is_changed() {
    let deployment = stand_in_deployment("service_tokens", &[], |_| {});
    let forgejo_token = deployment.forge_token("alice").expect("a Forgejo token");
    let tools = "get_my_user_info,create_issue";
    let lists = ["--tools", tools, "--from", "127.0.0.0/8", "--expires", "2h"];
    let token = deployment.broker_token("alice", &forgejo_token, &lists).expect("a token");
    let mut session = Session::open(&deployment.url, &token).await.expect("a session");
    let mut seen = session.tools().await.expect("a list");
    seen.sort();
    assert_eq!(seen, ["create_issue", "get_my_user_info"]);
    assert_eq!(session.send("tools/call", json!({"name": "get_my_user_info"})).await.expect("an answer").0, 200);
    let (status, refused) = session.send("tools/call", json!({"name": "delete_org"})).await.expect("an answer");
    assert_eq!(status, 403, "{refused}");
    let stateless = Caller::new(&deployment.url, &token);
    let call = async |tool: &str| stateless.ask("tools/call", json!({"name": tool})).await.expect("an answer").0;
    let (_, list) = stateless.ask("tools/list", json!({})).await.expect("an answer");
    assert_eq!(list.pointer("/result/tools").and_then(Value::as_array).map(Vec::len), Some(2), "{list}");
    assert_eq!(call("get_my_user_info").await, 200);
    assert_eq!(call("delete_org").await, 403);

    let listed = run(deployment.ctl(), &["token", "list", "--user", "alice"]);
    assert_eq!((&listed[0]["kind"], &listed[0]["networks"]), (&json!("token"), &json!(["127.0.0.0/8"])), "{listed}");
    let id = listed[0]["id"].as_str().expect("an id");
    // A stream of the session that is open when the token is changed ends with it.
    let stream = http().get(format!("{}/mcp", deployment.url)).bearer_auth(&token);
    let stream = stream.header("accept", "text/event-stream").header("mcp-session-id", &session.id);
    let stream = stream.send().await.expect("a stream");
    assert_eq!(stream.status(), 200);
    let changed = run(deployment.ctl(), &["token", "change", id, "--tools", "create_issue"]);
    assert_eq!((&changed["sessions"], &changed["networks"]), (&json!(1), &json!(["127.0.0.0/8"])), "{changed}");
    stream.text().await.expect("an end in order");
    assert_eq!(session.send("tools/list", json!({})).await.expect("an answer").0, 404, "it begins anew");
    let mut session = Session::open(&deployment.url, &token).await.expect("a session");
    assert_eq!(session.tools().await.expect("a list"), ["create_issue"]);
    assert_eq!(call("get_my_user_info").await, 403);

    run(deployment.ctl(), &["token", "change", id, "--all-tools", "--from", "192.0.2.0/24,2001:db8::/32"]);
    let refused = http().post(format!("{}/mcp", deployment.url)).bearer_auth(&token).send().await.expect("an answer");
    assert_eq!((refused.status().as_u16(), refused.headers().get("www-authenticate")), (403, None));
    assert!(deployment.output().contains("none of its networks"), "{}", deployment.output());
    run(deployment.ctl(), &["token", "change", id, "--from-anywhere", "--expires", "1h"]);
    let mut session = Session::open(&deployment.url, &token).await.expect("a session");
    assert!(session.tools().await.expect("a list").len() > 2);
    run(deployment.ctl(), &["token", "revoke", id]);
    let revoked = http().post(format!("{}/mcp", deployment.url)).bearer_auth(&token).send().await.expect("an answer");
    let challenge = revoked.headers()["www-authenticate"].to_str().expect("text").to_owned();
    assert!(revoked.status() == 401 && challenge.contains("invalid_token"), "{challenge}");
}
