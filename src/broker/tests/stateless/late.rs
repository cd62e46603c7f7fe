//! A late answer is JSON without a session, too, whichever era the child speaks.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;

use crate::tests::sessions::fixture::{Fixture, body, caller, config, header, text};
use crate::tests::stateless::fixture::{call, request};

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_json_behind_white_space_and_hanging_up_cancels() {
    for relays in [true, false] {
        let mut fixture = Fixture::new(config()).await;
        let alice = caller(1, "g1");
        let meta = json!({"progressToken": "p", "io.modelcontextprotocol/logLevel": "info"});
        let asking = fixture.asking(&alice, &request(1, "tools/call", json!({"name": "t", "_meta": meta})));
        let mut child = fixture.child().await;
        child.speaks(relays, json!({"tools": {}})).await;
        let heard = child.hears().await.expect("the call");
        let response = asking.await.expect("no panic");
        assert_eq!((response.status(), header(&response, "content-type")), (StatusCode::OK, Some("application/json")));
        // They have no way to this client any more.
        let progress = json!({"progressToken": heard["params"]["_meta"]["progressToken"], "progress": 1});
        child.says(json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": progress})).await;
        child.says(json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info"}})).await;
        child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -32601, "message": "no"}})).await;
        let text = text(response).await;
        let answer: serde_json::Value = serde_json::from_str(&text).expect("one JSON text");
        assert!(text.starts_with(' ') && answer["error"]["code"] == -32601, "the status went ahead: {text}");
        let asking = fixture.asking(&alice, &call(2, "t"));
        let heard = child.hears().await.expect("the call");
        drop(asking.await.expect("an answer that has begun"));
        let told = child.hears().await.expect("a cancellation");
        assert_eq!((&told["method"], &told["params"]["requestId"]), (&json!("notifications/cancelled"), &heard["id"]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_of_the_child_is_a_late_answer_and_what_follows_it_is_settled_anew() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let ask = |id: u64, more: serde_json::Value| {
        let mut params = json!({"name": "t", "arguments": {}});
        for (name, value) in more.as_object().expect("an object") {
            params[name.as_str()] = value.clone();
        }
        crate::tests::stateless::fixture::request_by(id, "tools/call", params, json!({"elicitation": {}}))
    };
    let asking = fixture.asking(&alice, &ask(1, json!({})));
    let mut child = fixture.child().await;
    child.speaks_sessions(json!({"tools": {}})).await;
    let heard = child.hears().await.expect("the call");
    let response = asking.await.expect("no panic");
    let question = json!({"message": "?", "requestedSchema": {"type": "object", "properties": {}}});
    child.says(json!({"jsonrpc": "2.0", "id": "e", "method": "elicitation/create", "params": question})).await;
    let asked = body(response).await;
    assert_eq!(asked["result"]["resultType"], "input_required");
    // Longer than a client waits for anything.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let key = asked["result"]["inputRequests"].as_object().expect("one").keys().next().expect("one").clone();
    let state = &asked["result"]["requestState"];
    let back = json!({"requestState": state, "inputResponses": {key: {"action": "accept", "content": {}}}});
    let asking = fixture.asking(&alice, &ask(2, back));
    assert_eq!(child.hears().await.expect("the answer")["id"], "e");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"content": []}})).await;
    let response = asking.await.expect("no panic");
    assert!(header(&response, "content-length").is_some(), "it came at once");
    assert_eq!(body(response).await["id"], 2);
}
