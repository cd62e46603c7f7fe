//! Arguments that headers repeat (`x-mcp-header`, 2026-07-28, streamable HTTP): a call whose headers say otherwise reaches no
//! child, and which arguments those are is the child's own word.

use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use crate::auth::principal::Principal;
use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{Fixture, body, caller, config};
use crate::tests::stateless::fixture::{post, request};

/// One tool whose `region` is repeated, and one without any.
fn tools() -> Value {
    let properties = json!({"region": {"type": "string", "x-mcp-header": "Region"}, "q": {"type": "string"}});
    json!([{"name": "t", "inputSchema": {"type": "object", "properties": properties}}, {"name": "plain"}])
}

/// Calls a tool with this region in the body and this header, if any; in the background.
fn calling(
    fixture: &Fixture,
    alice: &Principal,
    tool: &str,
    header: Option<&str>,
) -> tokio::task::JoinHandle<Response> {
    let call = request("c", "tools/call", json!({"name": tool, "arguments": {"region": "us", "q": "x"}}));
    let mut post = post(&call);
    if let Some(header) = header {
        post.headers_mut().insert("mcp-param-region", header.parse().expect("a header"));
    }
    fixture.sending(alice, post)
}

async fn is_refused(response: tokio::task::JoinHandle<Response>) {
    let refused = response.await.expect("no panic");
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let refused = body(refused).await;
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!("c"), &json!(-32020)), "{refused}");
}

async fn is_served(response: tokio::task::JoinHandle<Response>, child: &mut FakeChild) {
    let heard = child.answers(json!({"resultType": "complete", "content": []})).await;
    assert_eq!(heard["method"], "tools/call");
    assert_eq!(response.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_call_reaches_the_child_only_with_headers_that_say_what_its_arguments_say() {
    for relays in [true, false] {
        let mut fixture = Fixture::new(config()).await;
        let alice = caller(1, "g1");
        let cold = calling(&fixture, &alice, "t", Some("eu"));
        let mut child = fixture.child().await;
        child.tools = Some(tools());
        child.speaks(relays, json!({"tools": {}})).await;
        let good = calling(&fixture, &alice, "t", Some("us"));
        is_served(good, &mut child).await;
        // Nobody had asked for the tools when it came.
        is_refused(cold).await;
        is_refused(calling(&fixture, &alice, "t", None)).await;
        is_refused(calling(&fixture, &alice, "t", Some("=?base64?dXMg?="))).await;
        is_served(calling(&fixture, &alice, "t", Some("=?base64?dXM=?=")), &mut child).await;
        // A header of no argument's.
        is_served(calling(&fixture, &alice, "plain", Some("eu")), &mut child).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_whose_tools_have_changed_is_asked_anew() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let first = calling(&fixture, &alice, "t", None);
    let mut child = fixture.child().await;
    child.speaks(true, json!({"tools": {"listChanged": true}})).await;
    is_served(first, &mut child).await;
    child.tools = Some(tools());
    is_served(calling(&fixture, &alice, "t", None), &mut child).await;
    child.says(json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})).await;
    // An answer that comes after it shows that it was heard.
    is_served(calling(&fixture, &alice, "plain", None), &mut child).await;
    let refused = calling(&fixture, &alice, "t", None);
    let served = calling(&fixture, &alice, "plain", None);
    is_served(served, &mut child).await;
    is_refused(refused).await;
}

/// A first call whose header says other than its argument, and its child, which has heard the question for its tools.
async fn asked_for_its_tools(
    fixture: &mut Fixture,
) -> (Principal, tokio::task::JoinHandle<Response>, FakeChild, Value) {
    let alice = caller(1, "g1");
    let first = calling(fixture, &alice, "t", Some("eu"));
    let mut child = fixture.child().await;
    child.speaks(true, json!({"tools": {}})).await;
    child.tools = None;
    let asked = child.hears().await.expect("a question");
    assert_eq!(asked["method"], "tools/list");
    (alice, first, child, asked)
}

#[tokio::test(start_paused = true)]
async fn a_call_that_says_nothing_a_header_could_repeat_waits_for_no_list_of_tools() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    for (arguments, header, waits) in [
        (json!({"name": "t"}), None, false),
        (json!({"name": "t", "arguments": {}}), None, false),
        (json!({"name": "t", "arguments": null}), None, false),
        // The one who reads names in any case finds arguments here.
        (json!({"name": "t", "arguments": {}, "Arguments": {"region": "us"}}), None, true),
        (json!({"name": "t", "arguments": {}}), Some("eu"), true),
    ] {
        let mut call = post(&request("c", "tools/call", arguments.clone()));
        if let Some(header) = header {
            call.headers_mut().insert("mcp-param-region", HeaderValue::from_static(header));
        }
        let calling = fixture.sending(&alice, call);
        let mut child = fixture.child().await;
        child.speaks(true, json!({"tools": {}})).await;
        child.tools = None;
        let first = child.hears().await.expect("a message");
        assert_eq!(first["method"], if waits { "tools/list" } else { "tools/call" }, "{arguments} {header:?}");
        calling.abort();
        fixture.registry.end_grant(&alice.grant, "revoked");
        child.is_stopped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_child_has_no_list_of_tools_nothing_is_refused_and_it_is_asked_once() {
    let mut fixture = Fixture::new(config()).await;
    let (alice, first, mut child, asked) = asked_for_its_tools(&mut fixture).await;
    let error = json!({"code": -32601, "message": "no"});
    child.says(json!({"jsonrpc": "2.0", "id": asked["id"], "error": error})).await;
    is_served(first, &mut child).await;
    is_served(calling(&fixture, &alice, "t", Some("eu")), &mut child).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_to_a_child_that_leaves_the_question_open_fails_and_the_next_one_asks_again() {
    let mut fixture = Fixture::new(config()).await;
    let (alice, first, mut child, _) = asked_for_its_tools(&mut fixture).await;
    let failed = body(first.await.expect("no panic")).await;
    assert!(failed["id"] == "c" && failed["error"].is_object(), "{failed}");
    assert_eq!(child.hears().await.expect("the end of the question")["method"], "notifications/cancelled");
    child.tools = Some(tools());
    let refused = calling(&fixture, &alice, "t", Some("eu"));
    is_served(calling(&fixture, &alice, "t", Some("us")), &mut child).await;
    is_refused(refused).await;
}
