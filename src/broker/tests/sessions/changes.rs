//! A client that listens hears which lists its next child may have others of, once.

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use crate::auth::principal::Principal;
use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, events, request};

fn answer_of(version: &str) -> Value {
    let server = json!({"name": "fake", "version": version});
    json!({"protocolVersion": "2025-06-18", "serverInfo": server, "capabilities": {"tools": {}, "resources": {}}})
}

fn list(id: u64) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/list"})
}

/// Stops the session's child and makes a call, for which the next one comes up and answers so; `tools` where it is asked
/// for them.
async fn next_child(
    fixture: &mut Fixture,
    alice: &Principal,
    id: &str,
    mut child: FakeChild,
    answer: Value,
    tools: Option<Value>,
) -> FakeChild {
    child.loses_the_supervisor();
    child.is_stopped().await;
    let calling = fixture.posting(alice, Some(id), call(1, "x"));
    let mut next = fixture.child().await;
    let heard = next.hears().await.expect("initialize");
    next.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": answer})).await;
    next.hears().await.expect("initialized");
    if let Some(tools) = tools {
        let heard = next.hears().await.expect("a question for its tools");
        assert_eq!(heard["method"], "tools/list");
        next.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"tools": tools}})).await;
    }
    next.answers(json!({})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"], json!({}), "the client's own call is answered");
    next
}

/// What a client that listens has heard when its session ends.
async fn heard(fixture: &Fixture, alice: &Principal, id: &str) -> Vec<Value> {
    let stream = request(Method::GET, Some(id)).body(Body::empty()).expect("a request");
    let stream = fixture.send(alice, stream).await;
    fixture.registry.end_grant(&alice.grant, "test");
    events(stream).await.iter().map(|event| event["method"].clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn another_version_of_the_program_is_announced_once_for_all_lists_that_it_has() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, child) = fixture.open(&alice).await;
    let child = next_child(&mut fixture, &alice, &id, child, answer_of("1"), None).await;
    let child = next_child(&mut fixture, &alice, &id, child, answer_of("1"), None).await;
    let _child = next_child(&mut fixture, &alice, &id, child, answer_of("2"), None).await;
    let lists = ["notifications/tools/list_changed", "notifications/resources/list_changed"];
    let heard = heard(&fixture, &alice, &id).await;
    // The fixture's own first child had no resources.
    assert_eq!(heard, [&lists[1..], &lists[..]].concat());
}

#[tokio::test(start_paused = true)]
async fn other_tools_of_the_same_program_are_announced_to_a_client_that_has_asked_for_them() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, child) = fixture.open(&alice).await;
    let mut child = next_child(&mut fixture, &alice, &id, child, answer_of("1"), None).await;
    let (one, two) = (json!({"name": "one"}), json!({"name": "two"}));
    let calling = fixture.posting(&alice, Some(&id), list(2));
    child.answers(json!({"tools": [one, two]})).await;
    calling.await.expect("no panic");
    // In another order they are the same.
    let child = next_child(&mut fixture, &alice, &id, child, answer_of("1"), Some(json!([two, one]))).await;
    let child = next_child(&mut fixture, &alice, &id, child, answer_of("1"), Some(json!([two]))).await;
    let _child = next_child(&mut fixture, &alice, &id, child, answer_of("1"), Some(json!([two]))).await;
    let tools = "notifications/tools/list_changed";
    assert_eq!(heard(&fixture, &alice, &id).await, ["notifications/resources/list_changed", tools]);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_knows_is_recorded_with_its_session() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, child) = fixture.open(&alice).await;
    let mut child = next_child(&mut fixture, &alice, &id, child, answer_of("1"), None).await;
    let calling = fixture.posting(&alice, Some(&id), list(2));
    child.answers(json!({"tools": [{"name": "one"}]})).await;
    calling.await.expect("no panic");
    let records = fixture.records.clone();
    fixture.registry.sweep().await;
    drop((fixture, child));
    let mut fixture = Fixture::over(config(), records).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let mut next = fixture.child().await;
    let asked = next.hears().await.expect("initialize");
    next.says(json!({"jsonrpc": "2.0", "id": asked["id"], "result": answer_of("1")})).await;
    next.hears().await.expect("initialized");
    next.answers(json!({"tools": [{"name": "another"}]})).await;
    next.answers(json!({})).await;
    calling.await.expect("no panic");
    assert_eq!(heard(&fixture, &alice, &id).await, ["notifications/tools/list_changed"]);
}
