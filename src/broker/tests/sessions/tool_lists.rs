//! Promise: a token with a list of tools shows and calls these only, in both eras, whatever its scopes.

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::auth::principal::{Principal, Scopes};
use crate::auth::restriction::{AllowedTools, Restrictions};
use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{Fixture, body, call, caller_but, config, header};
use crate::tests::stateless;

/// A token that may write, for two tools.
fn service() -> Principal {
    restricted(true)
}

fn restricted(write: bool) -> Principal {
    caller_but(1, "service", "upstream-token-of-1", |parts| {
        parts.scopes = Scopes { write };
        let tools = AllowedTools::new(["list_repo_issues", "create_issue"]).expect("a list");
        parts.restrictions = Restrictions { tools: Some(Arc::new(tools)), networks: None };
    })
}

fn tools() -> Value {
    json!([
        {"name": "list_repo_issues", "annotations": {"readOnlyHint": true}}, {"name": "delete_repo"},
        {"name": "create_issue"}, {"name": "get_my_user_info", "annotations": {"readOnlyHint": true}},
    ])
}

fn names(list: &Value) -> Vec<&str> {
    list["result"]["tools"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|tool| tool["name"].as_str().expect("a name"))
        .collect()
}

async fn assert_other_tool(refused: axum::response::Response, id: i64) {
    assert_eq!((refused.status(), header(&refused, "www-authenticate")), (StatusCode::FORBIDDEN, None));
    let refused = body(refused).await;
    assert_eq!(refused["id"], id);
    let message = refused["error"]["message"].as_str().expect("a message");
    assert!(message.starts_with("Forbidden: this token is"), "{message}");
}

/// The child is called for a tool that is on the list.
async fn assert_called(calling: tokio::task::JoinHandle<axum::response::Response>, child: &mut FakeChild, tool: &str) {
    let heard = child.answers(json!({"content": []})).await;
    assert_eq!(heard["params"]["name"], tool, "no other call came");
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn in_a_session_other_tools_are_neither_shown_nor_called() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = fixture.open(&service()).await;
    let listing = fixture.posting(&service(), Some(&id), json!({"jsonrpc": "2.0", "id": 5, "method": "tools/list"}));
    child.answers(json!({"tools": tools()})).await;
    assert_eq!(names(&body(listing.await.expect("no panic")).await), ["list_repo_issues", "create_issue"]);
    for tool in ["delete_repo", "get_my_user_info", "Create_issue", "create_issue "] {
        assert_other_tool(fixture.post(&service(), Some(&id), call(7, tool)).await, 7).await;
    }
    for tool in ["create_issue", "list_repo_issues"] {
        assert_called(fixture.posting(&service(), Some(&id), call(8, tool)), &mut child, tool).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_session_it_is_the_same_through_a_child_of_either_era() {
    for relays in [true, false] {
        let mut fixture = Fixture::new(config()).await;
        let list = stateless::fixture::request(5, "tools/list", json!({}));
        let listing = fixture.asking(&service(), &list);
        let mut child = fixture.child().await;
        child.speaks(relays, json!({"tools": {}})).await;
        let result = json!({"resultType": "complete", "tools": tools(), "ttlMs": 5, "cacheScope": "public"});
        child.answers(if relays { result } else { json!({"tools": tools()}) }).await;
        let list = body(listing.await.expect("no panic")).await;
        assert_eq!(names(&list), ["list_repo_issues", "create_issue"]);
        assert_eq!(list["result"]["cacheScope"], "private", "nobody else may be shown it");
        let refused = fixture.ask(&service(), &stateless::fixture::call(7, "delete_repo")).await;
        assert_other_tool(refused, 7).await;
        let calling = fixture.asking(&service(), &stateless::fixture::call(8, "create_issue"));
        assert_called(calling, &mut child, "create_issue").await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_reads_past_the_tools_and_no_second_reading_of_a_message_gets_by() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = fixture.open(&service()).await;
    for method in ["resources/read", "prompts/get", "completion/complete", "something/new"] {
        let asked = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": {}});
        assert_other_tool(fixture.post(&service(), Some(&id), asked).await, 7).await;
    }
    let twice = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
        "params": {"name": "create_issue", "Name": "delete_repo", "arguments": {}}});
    assert_eq!(fixture.post(&service(), Some(&id), twice).await.status(), StatusCode::BAD_REQUEST);
    let unasked = json!({"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "delete_repo"}});
    assert_eq!(fixture.post(&service(), Some(&id), unasked).await.status(), StatusCode::FORBIDDEN);
    // What a client does to get along passes.
    for method in ["prompts/list", "resources/list", "logging/setLevel"] {
        let asking = fixture.posting(&service(), Some(&id), json!({"jsonrpc": "2.0", "id": 9, "method": method}));
        assert_eq!(child.answers(json!({})).await["method"], method, "the first that came");
        assert_eq!(asking.await.expect("no panic").status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_gives_no_right_to_write() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = fixture.open(&restricted(false)).await;
    let listing =
        fixture.posting(&restricted(false), Some(&id), json!({"jsonrpc": "2.0", "id": 5, "method": "tools/list"}));
    child.answers(json!({"tools": tools()})).await;
    assert_eq!(names(&body(listing.await.expect("no panic")).await), ["list_repo_issues"]);
    let calling = fixture.posting(&restricted(false), Some(&id), call(7, "create_issue"));
    child.answers(json!({"tools": tools()})).await;
    let refused = calling.await.expect("no panic");
    assert!(header(&refused, "www-authenticate").is_some_and(|value| value.contains("insufficient_scope")));
    assert_called(
        fixture.posting(&restricted(false), Some(&id), call(8, "list_repo_issues")),
        &mut child,
        "list_repo_issues",
    )
    .await;
}
