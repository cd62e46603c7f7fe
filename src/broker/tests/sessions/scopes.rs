//! What a grant lets through: `forgejo:read` sees and calls only what reads.

use crate::auth::principal::{Principal, Scopes};
use crate::mcp::audit::AuditedCalls;
use crate::mcp::tools::Tables;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{
    Fixture, body, call, caller, caller_but, config, header, initialize, post, session_of,
};
use crate::tests::sessions::records::FakeRecords;

pub(crate) fn reader() -> Principal {
    caller_but(1, "g1", "upstream-token-of-1", |parts| parts.scopes = Scopes { write: false })
}

/// A session with a child that calls itself `program`.
async fn open(fixture: &mut Fixture, caller: &Principal, program: &str) -> (String, FakeChild) {
    let opening = fixture.posting(caller, None, initialize());
    let mut child = fixture.child().await;
    let heard = child.hears().await.expect("initialize");
    let server = json!({"name": program, "version": "1"});
    let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server});
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": result})).await;
    (session_of(&opening.await.expect("no panic")).expect("an id"), child)
}

fn tool(name: &str, reads: bool) -> Value {
    json!({"name": name, "annotations": {"readOnlyHint": reads, "destructiveHint": true}})
}

async fn list(fixture: &Fixture, caller: &Principal, id: &str, child: &mut FakeChild, tools: Value) -> Value {
    let listing = fixture.posting(caller, Some(id), json!({"jsonrpc": "2.0", "id": 5, "method": "tools/list"}));
    child.answers(json!({"tools": tools, "nextCursor": "more"})).await;
    body(listing.await.expect("no panic")).await
}

#[tokio::test(start_paused = true)]
async fn a_reader_is_refused_what_writes_and_told_which_scope_would_do() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = open(&mut fixture, &reader(), "Forgejo MCP Server").await;
    let refused = fixture.post(&reader(), Some(&id), call(7, "delete_org")).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let challenge = header(&refused, "www-authenticate").expect("a challenge").to_owned();
    for part in [
        "Bearer error=\"insufficient_scope\"",
        "scope=\"forgejo:read forgejo:write\"",
        "resource_metadata=\"https://broker.example/.well-known/oauth-protected-resource/mcp\"",
    ] {
        assert!(challenge.contains(part), "{challenge}");
    }
    assert_eq!(body(refused).await["id"], 7);
    let calling = fixture.posting(&reader(), Some(&id), call(8, "get_my_user_info"));
    let heard = child.answers(json!({"content": []})).await;
    assert_eq!(heard["params"]["name"], "get_my_user_info", "the refused call never came");
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn where_the_operator_allows_no_writing_a_reader_is_told_so_and_sent_for_no_scope() {
    let offered = Scopes { write: false };
    let mut fixture =
        Fixture::offering(config(), FakeRecords::default(), Tables::default(), AuditedCalls::default(), offered).await;
    let (id, _child) = open(&mut fixture, &reader(), "Forgejo MCP Server").await;
    let refused = fixture.post(&reader(), Some(&id), call(7, "delete_org")).await;
    assert_eq!((refused.status(), header(&refused, "www-authenticate")), (StatusCode::FORBIDDEN, None));
    let refused = body(refused).await;
    assert_eq!(refused["id"], 7);
    assert_eq!(refused["error"]["message"], "Forbidden: the operator of this service allows no writing");
}

#[tokio::test(start_paused = true)]
async fn a_tool_that_nobody_knows_counts_as_writing() {
    let mut fixture = Fixture::new(config()).await;
    let (id, _child) = open(&mut fixture, &reader(), "Forgejo MCP Server").await;
    assert_eq!(
        fixture.post(&reader(), Some(&id), call(7, "get_something_of_tomorrow")).await.status(),
        StatusCode::FORBIDDEN
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_table_the_childs_annotations_decide_and_it_is_asked_once() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = open(&mut fixture, &reader(), "some-other-program").await;
    let calling = fixture.posting(&reader(), Some(&id), call(1, "look"));
    let first = child.answers(json!({"tools": [tool("look", true)], "nextCursor": "p2"})).await;
    assert_eq!(first["method"], "tools/list");
    let second = child.answers(json!({"tools": [tool("change", false)]})).await;
    assert_eq!(second["params"]["cursor"], "p2");
    assert_eq!(child.answers(json!({"content": []})).await["params"]["name"], "look");
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
    for writes in ["change", "unlisted"] {
        assert_eq!(fixture.post(&reader(), Some(&id), call(2, writes)).await.status(), StatusCode::FORBIDDEN);
    }
    // Its tools have changed: what it said before does not count any more.
    child.says(json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})).await;
    let ping = fixture.posting(&reader(), Some(&id), json!({"jsonrpc": "2.0", "id": 3, "method": "prompts/list"}));
    child.answers(json!({"prompts": []})).await;
    ping.await.expect("no panic");
    let calling = fixture.posting(&reader(), Some(&id), call(4, "look"));
    child.answers(json!({"tools": [tool("look", false)]})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::FORBIDDEN);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_lists_nothing_lets_a_reader_call_nothing() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = open(&mut fixture, &reader(), "some-other-program").await;
    let calling = fixture.posting(&reader(), Some(&id), call(1, "look"));
    let heard = child.hears().await.expect("the question");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -1, "message": "no"}})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::FORBIDDEN);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_never_says_its_tools_holds_no_reader_for_longer_than_a_request_may_take() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = open(&mut fixture, &reader(), "some-other-program").await;
    let begun = Instant::now();
    // Each waits for those before it, and then asks itself.
    let calls = (0..20).map(|n| fixture.posting(&reader(), Some(&id), call(n, "look")));
    let calls: Vec<_> = calls.collect();
    let deaf = tokio::spawn(async move { while child.hears().await.is_some() {} });
    for calling in calls {
        let answer = body(calling.await.expect("no panic")).await;
        assert!(answer["error"].is_object(), "{answer}");
    }
    assert!(begun.elapsed() <= config().request_timeout, "{:?}", begun.elapsed());
    deaf.abort();
}

#[tokio::test(start_paused = true)]
async fn a_reader_sees_only_tools_that_read_and_everything_else_stays() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = open(&mut fixture, &reader(), "some-other-program").await;
    let seen = list(
        &fixture,
        &reader(),
        &id,
        &mut child,
        json!([tool("look", true), tool("change", false), {"name": "bare"}]),
    )
    .await;
    assert_eq!(
        seen,
        json!({"jsonrpc": "2.0", "id": 5, "result": {"tools": [tool("look", true)], "nextCursor": "more"}})
    );
}

#[tokio::test(start_paused = true)]
async fn where_the_operator_does_not_want_hints_corrected_they_stay_and_the_table_decides_all_the_same() {
    let tables = Tables::new(Vec::new(), false);
    let mut fixture = Fixture::with(config(), FakeRecords::default(), tables).await;
    let tools = json!([tool("get_my_user_info", false), tool("delete_org", false)]);
    let writer = caller(1, "g2");
    let (id, mut child) = open(&mut fixture, &writer, "Forgejo MCP Server").await;
    assert_eq!(list(&fixture, &writer, &id, &mut child, tools.clone()).await["result"]["tools"], tools);
    let (id, mut child) = open(&mut fixture, &reader(), "Forgejo MCP Server").await;
    let seen = list(&fixture, &reader(), &id, &mut child, tools).await;
    assert_eq!(seen["result"]["tools"], json!([tool("get_my_user_info", false)]));
}

#[tokio::test(start_paused = true)]
async fn hints_are_corrected_by_the_table_also_for_those_who_may_write() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = open(&mut fixture, &alice, "Forgejo MCP Server").await;
    let tools = json!([tool("get_org", false), tool("create_issue", false), tool("delete_org", false)]);
    let seen = list(&fixture, &alice, &id, &mut child, tools).await;
    let hints: Vec<_> =
        seen["result"]["tools"].as_array().expect("a list").iter().map(|tool| tool["annotations"].clone()).collect();
    assert_eq!(
        hints,
        [
            json!({"readOnlyHint": true, "destructiveHint": false}),
            json!({"readOnlyHint": false, "destructiveHint": false}),
            json!({"readOnlyHint": false, "destructiveHint": true}),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_writer_calls_everything_and_the_child_is_asked_nothing() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = open(&mut fixture, &alice, "some-other-program").await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "anything"));
    assert_eq!(child.answers(json!({})).await["method"], "tools/call");
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn parser_differential_a_reader_cannot_hide_a_write_from_us_and_show_it_to_the_child() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = open(&mut fixture, &reader(), "Forgejo MCP Server").await;
    for text in [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_org","Name":"delete_org"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_org"},"Params":{"name":"delete_org"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","METHOD":"tools/call","params":{"name":"delete_org"}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/x","Method":"tools/call","Id":9,"params":{"name":"delete_org"}}"#,
        r#"{"jsonrpc":"2.0","id":9,"result":{},"Method":"tools/call","params":{"name":"delete_org"}}"#,
    ] {
        let refused = fixture.send(&reader(), post(Some(&id), text.to_owned())).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{text}");
    }
    assert_eq!(
        fixture
            .post(
                &reader(),
                Some(&id),
                json!({"jsonrpc": "2.0", "id": 1, "method": "tools/Call", "params": {"name": "delete_org"}})
            )
            .await
            .status(),
        StatusCode::FORBIDDEN
    );
    let listing = fixture.posting(&reader(), Some(&id), json!({"jsonrpc": "2.0", "id": 5, "method": "tools/list"}));
    assert_eq!(child.answers(json!({"tools": []})).await["method"], "tools/list", "nothing before it came through");
    listing.await.expect("no panic");
}
