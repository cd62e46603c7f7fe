//! Forgejo's own tokens instead of a login, where the operator lets them in: the one line of a script.

use std::process::Command;

use serde_json::{Value, json};

use crate::stand_in_deployment;
use harness::deployment::Deployment;
use harness::mcp_session::Session;

fn deployment(name: &str, lets_in: bool) -> Deployment {
    stand_in_deployment(name, &[], |config| {
        config.broker = format!("[access]\nforgejo_tokens = {lets_in}\n");
    })
}

/// As README has it: status and body.
fn curl(deployment: &Deployment, token: &str, tool: &str) -> (String, String) {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}}});
    let output = Command::new("curl")
        .args(["-sS", "-w", "\n%{http_code}", "-H", &format!("authorization: Bearer {token}")])
        .args(["-H", "accept: application/json, text/event-stream", "-H", "content-type: application/json"])
        .args(["-H", "mcp-protocol-version: 2026-07-28", "-H", "mcp-method: tools/call"])
        .args(["-H", &format!("mcp-name: {tool}"), "-d", &call.to_string(), &format!("{}/mcp", deployment.url)])
        .output()
        .expect("curl runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_script_calls_tools_with_its_users_own_token_until_that_is_deleted_at_forgejo() {
    let deployment = deployment("forgejo_tokens", true);
    let token = deployment.forge_token("alice").expect("a Forgejo token");
    let (status, body) = curl(&deployment, &token, "get_my_user_info");
    assert_eq!(status, "200", "{body}");
    assert!(body.contains("alice"), "its child works with the token itself: {body}");
    // A session, too; and another token of the same user has no part in it.
    let mut session = Session::open(&deployment.url, &token).await.expect("a session");
    assert!(session.text("get_my_user_info", json!({})).await.expect("an answer").contains("alice"));
    let other = deployment.forge_token("alice").expect("a Forgejo token");
    let mut foreign = session.clone();
    foreign.change_token(&other);
    assert_eq!(foreign.send("tools/list", json!({})).await.expect("an answer").0, 403);
    let grants = deployment.ctl().args(["--json", "grants"]).output().expect("brokerctl runs");
    let grants: Value = serde_json::from_slice(&grants.stdout).expect("json");
    assert!(grants.as_array().is_some_and(|all| all.iter().all(|one| one["kind"] == "forgejo")), "{grants}");

    deployment.stub_delete(&format!("/stub/tokens/{token}")).expect("deleted");
    // The child's first refused call is asked about, and ends what there is.
    let (status, body) = curl(&deployment, &token, "get_my_user_info");
    assert_eq!((status.as_str(), body.as_str()), ("401", ""), "{}", deployment.output());
    let again = session.send("tools/list", json!({})).await;
    assert!(again.is_err() || again.expect("an answer").0 == 401);
    assert_eq!(curl(&deployment, &other, "get_my_user_info").0, "200", "the other one is as good as before");

    for token in [&token, &other] {
        assert!(!deployment.output().contains(token.as_str()), "no log has it");
        for file in std::fs::read_dir(deployment.config.dir.join("broker")).expect("the database").flatten() {
            let bytes = std::fs::read(file.path()).unwrap_or_default();
            assert!(!bytes.windows(token.len()).any(|part| part == token.as_bytes()), "{:?} has it", file.file_name());
        }
    }
}

#[tokio::test]
async fn unless_the_operator_says_so_it_is_no_token() {
    let deployment = deployment("no_forgejo_tokens", false);
    let token = deployment.forge_token("alice").expect("a Forgejo token");
    assert_eq!(curl(&deployment, &token, "get_my_user_info").0, "401");
    assert!(!deployment.output().contains(&token));
}
