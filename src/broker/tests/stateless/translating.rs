//! A child of the session era serves stateless clients as if it spoke their revision.

use axum::http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

use crate::tests::sessions::fixture::{Fixture, body, caller, config, events};
use crate::tests::stateless::fixture::{CAPABILITIES, VERSION, call, request, request_by};

#[tokio::test(start_paused = true)]
async fn the_broker_does_the_handshake_and_the_child_hears_nothing_of_the_revision() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let mut calling = call("mine", "t");
    calling["params"]["_meta"]["progressToken"] = json!(7);
    let asking = fixture.asking(&alice, &calling);
    let mut child = fixture.child().await;
    let told = child.speaks_sessions(json!({"tools": {}})).await;
    assert_eq!((&told["protocolVersion"], &told["capabilities"]), (&json!("2025-11-25"), &json!({})));
    let heard = child.hears().await.expect("the call");
    let meta = &heard["params"]["_meta"];
    assert_eq!((meta.get(VERSION), meta.get(CAPABILITIES)), (None, None));
    let (progress, number) = (meta["progressToken"].clone(), heard["id"].clone());
    child.says(json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": progress, "progress": 1}})).await;
    child.says(json!({"jsonrpc": "2.0", "id": number, "result": {"content": []}})).await;
    let events = events(asking.await.expect("no panic")).await;
    assert_eq!(events[0]["params"]["progressToken"], 7);
    assert_eq!(events[1]["id"], "mine");
    let result = &events[1]["result"];
    assert_eq!((&result["resultType"], &result["content"]), (&json!("complete"), &json!([])));
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "fake");
    assert_eq!(result.get("ttlMs"), None);
}

#[tokio::test(start_paused = true)]
async fn lists_are_cacheable_discovery_is_answered_and_what_the_era_has_not_is_404() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &request("d", "server/discover", json!({})));
    let mut child = fixture.child().await;
    child.speaks_sessions(json!({"tools": {"listChanged": true}, "tasks": {"list": {}}})).await;
    let found = body(asking.await.expect("no panic")).await;
    assert_eq!(found["id"], "d");
    let result = &found["result"];
    assert_eq!(result["supportedVersions"][0], "2026-07-28");
    assert_eq!(result["capabilities"], json!({"tools": {"listChanged": true}}));
    assert_eq!((&result["instructions"], &result["cacheScope"]), (&json!("be kind"), &json!("private")));
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["version"], "1");
    let listing = fixture.asking(&alice, &request(1, "tools/list", json!({})));
    child.answers(json!({"tools": []})).await;
    let result = body(listing.await.expect("no panic")).await["result"].clone();
    assert_eq!((&result["resultType"], &result["cacheScope"]), (&json!("complete"), &json!("private")));
    assert!(result["ttlMs"].as_u64().is_some());
    let tasks = fixture.ask(&alice, &request(2, "tasks/get", json!({"taskId": "t"}))).await;
    assert_eq!((tasks.status(), body(tasks).await["error"]["code"].clone()), (StatusCode::NOT_FOUND, json!(-32601)));
}

#[tokio::test(start_paused = true)]
async fn a_level_is_set_ahead_of_the_request_that_wants_it_and_no_other_hears_of_the_log() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let mut logging = call(1, "t");
    logging["params"]["_meta"]["io.modelcontextprotocol/logLevel"] = json!("warning");
    let asking = fixture.asking(&alice, &logging);
    let mut child = fixture.child().await;
    child.speaks_sessions(json!({"tools": {}, "logging": {}})).await;
    let set = child.hears().await.expect("the level");
    assert_eq!((&set["method"], &set["params"]["level"]), (&json!("logging/setLevel"), &json!("warning")));
    child.says(json!({"jsonrpc": "2.0", "id": set["id"], "result": {}})).await;
    let heard = child.hears().await.expect("the call");
    let log = |level: &str| json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": level, "data": 1}});
    child.says(log("info")).await;
    child.says(log("error")).await;
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    let told = events(asking.await.expect("no panic")).await;
    let levels: Vec<_> = told.iter().filter_map(|event| event.pointer("/params/level")).collect();
    assert_eq!(levels, [&json!("error")]);
    let plain = fixture.asking(&alice, &call(2, "t"));
    let heard = child.hears().await.expect("the call");
    child.says(log("error")).await;
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    assert_eq!(body(plain.await.expect("no panic")).await["id"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_is_not_there_has_the_code_of_the_revision() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &request(1, "resources/read", json!({"uri": "test://nothing"})));
    let mut child = fixture.child().await;
    child.speaks_sessions(json!({"resources": {}})).await;
    let heard = child.hears().await.expect("the call");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -32002, "message": "not found"}})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["error"]["code"], -32602);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_ends_when_it_is_asked_is_started_again_and_not_asked() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &call(1, "t"));
    let mut child = fixture.child().await;
    assert_eq!(child.hears().await.expect("the question")["method"], "server/discover");
    child.ends(wire::message::Exit::Code(1));
    let mut next = fixture.child().await;
    next.is_initialized(json!({"tools": {}})).await;
    next.answers(json!({"content": []})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["result"]["resultType"], "complete");
    let bob = caller(2, "g2");
    let asking = fixture.asking(&bob, &call(1, "t"));
    let mut his = fixture.child().await;
    his.is_initialized(json!({"tools": {}})).await;
    his.answers(json!({"content": []})).await;
    asking.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_answers_nothing_before_initialize_is_initialized_after_a_while() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &call(1, "t"));
    let mut child = fixture.child().await;
    assert_eq!(child.hears().await.expect("the question")["method"], "server/discover");
    tokio::time::sleep(Duration::from_secs(2)).await;
    child.is_initialized(json!({"tools": {}})).await;
    child.answers(json!({"content": []})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["result"]["resultType"], "complete");
}

#[tokio::test(start_paused = true)]
async fn clients_that_can_be_asked_for_different_things_have_a_child_each() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let able = |id: i32| request_by(id, "tools/call", json!({"name": "t"}), json!({"elicitation": {}}));
    for (message, told) in [(call(1, "t"), json!({})), (able(2), json!({"elicitation": {"form": {}}}))] {
        let asking = fixture.asking(&alice, &message);
        let mut child = fixture.child().await;
        let params: Value = child.speaks_sessions(json!({"tools": {}})).await;
        assert_eq!(params["capabilities"], told);
        child.answers(json!({})).await;
        asking.await.expect("no panic");
        fixture.spare(child);
    }
    let asking = fixture.asking(&alice, &able(3));
    fixture.spared().answers(json!({})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["id"], 3);
}
