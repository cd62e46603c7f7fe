//! A child that speaks the revision gets its requests as they were sent, and its client the answers as they were given.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};

use crate::tests::sessions::fixture::{BOTH, Fixture, body, caller, config, events, header, text};
use crate::tests::sessions::scopes::reader;
use crate::tests::stateless::fixture::{call, post, request};

#[tokio::test(start_paused = true)]
async fn what_need_not_be_touched_passes_byte_for_byte_both_ways() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let sent = r#"{ "x":1.50,"jsonrpc":"2.0","method":"tools/call" ,"id":"mine","params":{"arguments":{"n":1.0E5,"a":[ ]},"name":"t","_meta":{"io.modelcontextprotocol\/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"extensions":{}},"com.example/x":null}}}"#;
    let request = Request::builder().method("POST").uri("/mcp").header("accept", BOTH);
    let request = request.header("content-type", "application/json").header("mcp-protocol-version", "2026-07-28");
    let request = request.header("mcp-method", "tools/call").header("mcp-name", "t").header("mcp-param-a", "b");
    let asking = fixture.sending(&alice, request.body(Body::from(sent)).expect("a request"));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    let heard = child.hears_raw().await.expect("a line");
    let number = serde_json::from_str::<Value>(&heard).expect("json")["id"].to_string();
    assert_eq!(heard, sent.replace(r#""mine""#, &number));
    let said = r#"{"result":{ "resultType":"complete","content":[],"n":2.50},"id":NUMBER,"jsonrpc":"2.0"}"#;
    child.says_raw(&said.replace("NUMBER", &number)).await;
    let response = asking.await.expect("no panic");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "mcp-session-id"), None);
    assert_eq!(text(response).await, said.replace("NUMBER", r#""mine""#));
}

#[tokio::test(start_paused = true)]
async fn the_status_says_what_a_childs_error_says_as_long_as_no_stream_has_begun() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    for (n, (code, status)) in [(-32601, 404), (-32021, 400), (-32602, 200), (-32603, 200)].into_iter().enumerate() {
        let asking = fixture.asking(&alice, &request(n, "some/method", json!({})));
        if n == 0 {
            let mut child = fixture.child().await;
            child.speaks_both(json!({})).await;
            fixture.spare(child);
        }
        let child = fixture.spared();
        let heard = child.hears().await.expect("a request");
        let error = json!({"code": code, "message": "no", "data": {"requiredCapabilities": {"sampling": {}}}});
        child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "error": error})).await;
        let response = asking.await.expect("no panic");
        assert_eq!(response.status().as_u16(), status, "{code}");
        let body = body(response).await;
        assert_eq!((&body["id"], &body["error"]), (&json!(n), &error));
    }
}

#[tokio::test(start_paused = true)]
async fn progress_comes_with_its_own_token_and_a_log_line_only_to_who_asked_for_one() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let mut logging = request("l", "tools/call", json!({"name": "t", "_meta": {"progressToken": "p"}}));
    logging["params"]["_meta"]["io.modelcontextprotocol/logLevel"] = json!("info");
    let first = fixture.asking(&alice, &logging);
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}, "logging": {}})).await;
    let first_heard = child.hears().await.expect("a request");
    let second = fixture.asking(&alice, &call("q", "t"));
    let second_heard = child.hears().await.expect("a request");
    let log =
        |level| json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": level, "data": "x"}});
    child.says(log("debug")).await;
    child.says(log("warning")).await;
    let token = &first_heard["params"]["_meta"]["progressToken"];
    child.says(json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})).await;
    for heard in [&first_heard, &second_heard] {
        child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"resultType": "complete"}})).await;
    }
    let events = events(first.await.expect("no panic")).await;
    let told: Vec<_> = events.iter().map(|event| (event["method"].clone(), event["params"]["level"].clone())).collect();
    assert_eq!(
        told,
        [
            (json!("notifications/message"), json!("warning")),
            (json!("notifications/progress"), Value::Null),
            (Value::Null, Value::Null),
        ]
    );
    assert_eq!(events[1]["params"]["progressToken"], "p");
    assert_eq!(header(&second.await.expect("no panic"), "content-type"), Some("application/json"));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_asks_its_client_directly_is_told_that_nobody_can_be_asked() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &call(1, "t"));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    let heard = child.hears().await.expect("a request");
    child.says(json!({"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": {"message": "?"}})).await;
    let told = child.hears().await.expect("an answer");
    assert_eq!((&told["id"], &told["error"]["code"]), (&json!("q"), &json!(-32601)));
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"resultType": "complete"}})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["result"]["resultType"], "complete");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_was_filtered_for_its_caller_is_not_for_others() {
    let mut fixture = Fixture::new(config()).await;
    let asking = fixture.asking(&reader(), &request(1, "tools/list", json!({})));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    let tools = json!([{"name": "r", "annotations": {"readOnlyHint": true}}, {"name": "w"}]);
    let result = json!({"resultType": "complete", "tools": tools, "ttlMs": 5, "cacheScope": "public"});
    child.answers(result).await;
    let result = body(asking.await.expect("no panic")).await["result"].clone();
    assert_eq!((&result["cacheScope"], result["tools"].as_array().map(Vec::len)), (&json!("private"), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_reader_calls_what_the_child_itself_says_only_reads() {
    let mut fixture = Fixture::new(config()).await;
    let asking = fixture.asking(&reader(), &call(1, "r"));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    child.tools = None;
    let tools = json!([{"name": "r", "annotations": {"readOnlyHint": true}}, {"name": "w"}]);
    let listed =
        child.answers(json!({"resultType": "complete", "tools": tools, "ttlMs": 5, "cacheScope": "public"})).await;
    assert_eq!(listed["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
    child.answers(json!({"resultType": "complete", "content": []})).await;
    assert_eq!(asking.await.expect("no panic").status(), StatusCode::OK);
    let refused = fixture.send(&reader(), post(&call(2, "w"))).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(body(refused).await["id"], 2);
}
