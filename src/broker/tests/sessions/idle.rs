//! Children idle out soon, sessions much later, and the client notices neither before the session ends.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;
use wire::message::Exit;

use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, initialize, request};

const CHILD_IDLE: Duration = Duration::from_secs(301);

#[tokio::test(start_paused = true)]
async fn an_idle_child_is_stopped_and_the_next_request_starts_one_with_the_recorded_handshake() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    fixture.registry.sweep().await;
    assert_eq!(fixture.registry.counts(), (1, 1), "not idle yet");
    tokio::time::advance(CHILD_IDLE).await;
    fixture.registry.sweep().await;
    child.is_stopped().await;
    let calling = fixture.posting(&alice, Some(&id), call(5, "whoami"));
    let mut next = fixture.child().await;
    assert_eq!(next.welcomes().await["params"], initialize()["params"]);
    assert_eq!(next.hears().await.expect("a line")["method"], "notifications/initialized");
    next.answers(json!({"who": "alice"})).await;
    let answer = body(calling.await.expect("no panic")).await;
    assert_eq!((&answer["id"], &answer["result"]["who"]), (&json!(5), &json!("alice")));
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_child_was_stopped_keeps_nothing_of_it() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    // Of the child that came with the session, and of the one that a request has started.
    for n in 0..2 {
        let session = fixture.registry.find(&id, &alice).expect("open");
        let bridge = Arc::downgrade(&session.live().expect("a child"));
        tokio::time::advance(CHILD_IDLE).await;
        fixture.registry.sweep().await;
        child.is_stopped().await;
        // What was told of its end runs in tasks of its own.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(bridge.strong_count(), 0, "nobody holds its bridge");
        let calling = fixture.posting(&alice, Some(&id), call(n, "x"));
        child = fixture.child().await;
        child.comes_up().await;
        child.answers(json!({})).await;
        calling.await.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_arrive_while_a_child_starts_wait_for_it_and_only_one_is_started() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    tokio::time::advance(CHILD_IDLE).await;
    fixture.registry.sweep().await;
    child.is_stopped().await;
    let calls: Vec<_> = (0..5).map(|n| fixture.posting(&alice, Some(&id), call(n, "x"))).collect();
    let mut next = fixture.child().await;
    next.comes_up().await;
    for _ in 0..5 {
        next.answers(json!({})).await;
    }
    for (n, calling) in calls.into_iter().enumerate() {
        assert_eq!(body(calling.await.expect("no panic")).await["id"], n);
    }
    assert!(fixture.children.try_recv().is_err(), "one start for all of them");
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_keeps_its_child_and_an_open_stream_alone_does_not() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let stream = request(Method::GET, Some(&id)).body(Body::empty()).expect("a request");
    let stream = fixture.send(&alice, stream).await;
    assert_eq!(stream.status(), StatusCode::OK);
    let _calling = fixture.posting(&alice, Some(&id), call(1, "slow"));
    let heard = child.hears().await.expect("the call");
    tokio::time::advance(Duration::from_secs(299)).await;
    fixture.registry.sweep().await;
    assert_eq!(fixture.registry.counts(), (1, 1));
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    tokio::task::yield_now().await;
    tokio::time::advance(CHILD_IDLE).await;
    fixture.registry.sweep().await;
    child.is_stopped().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_ends() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    fixture.clock.advance(Duration::from_secs(24 * 3600 - 1));
    fixture.registry.sweep().await;
    assert_eq!(fixture.registry.counts().0, 1);
    fixture.clock.advance(Duration::from_secs(1));
    fixture.registry.sweep().await;
    child.is_stopped().await;
    assert_eq!(fixture.post(&alice, Some(&id), call(1, "x")).await.status(), StatusCode::GONE);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_come_back_is_an_error_and_the_next_request_tries_again() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.loses_the_supervisor();
    child.is_stopped().await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let mut dying = fixture.child().await;
    dying.hears().await.expect("initialize");
    dying.ends(Exit::Code(1));
    assert!(
        body(calling.await.expect("no panic")).await["error"]["message"]
            .as_str()
            .expect("text")
            .contains("exit status 1")
    );
    let calling = fixture.posting(&alice, Some(&id), call(2, "x"));
    let mut next = fixture.child().await;
    next.comes_up().await;
    next.answers(json!({})).await;
    assert!(body(calling.await.expect("no panic")).await["result"].is_object());
}

#[tokio::test(start_paused = true)]
async fn a_child_with_other_capabilities_is_announced_to_a_client_that_listens() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.loses_the_supervisor();
    child.is_stopped().await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let mut next = fixture.child().await;
    let heard = next.hears().await.expect("initialize");
    let capabilities = json!({"tools": {}, "prompts": {}});
    let server = json!({"name": "fake", "version": "1"});
    let result = json!({"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": server});
    next.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": result})).await;
    next.hears().await.expect("initialized");
    next.answers(json!({})).await;
    calling.await.expect("no panic");
    let stream = request(Method::GET, Some(&id)).body(Body::empty()).expect("a request");
    let stream = fixture.send(&alice, stream).await;
    fixture.registry.end_grant(&alice.grant, "test");
    let heard: Vec<_> =
        crate::tests::sessions::fixture::events(stream).await.iter().map(|event| event["method"].clone()).collect();
    assert_eq!(heard, ["notifications/prompts/list_changed"]);
}

#[tokio::test(start_paused = true)]
async fn the_log_level_and_the_watched_resources_are_told_to_the_next_child() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let settings = [
        ("logging/setLevel", json!({"level": "debug"})),
        ("logging/setLevel", json!({"level": "error"})),
        ("resources/subscribe", json!({"uri": "forge://a"})),
        ("resources/subscribe", json!({"uri": "forge://b"})),
        ("resources/unsubscribe", json!({"uri": "forge://a"})),
    ];
    for (n, (method, params)) in settings.into_iter().enumerate() {
        let request = json!({"jsonrpc": "2.0", "id": n, "method": method, "params": params});
        let calling = fixture.posting(&alice, Some(&id), request);
        child.answers(json!({})).await;
        calling.await.expect("no panic");
    }
    child.loses_the_supervisor();
    child.is_stopped().await;
    let calling = fixture.posting(&alice, Some(&id), call("mine", "x"));
    let mut next = fixture.child().await;
    next.welcomes().await;
    assert_eq!(next.hears().await.expect("a line")["method"], "notifications/initialized");
    let level = next.answers(json!({})).await;
    assert_eq!((&level["method"], &level["params"]["level"]), (&json!("logging/setLevel"), &json!("error")));
    let watched = next.answers(json!({})).await;
    assert_eq!((&watched["method"], &watched["params"]["uri"]), (&json!("resources/subscribe"), &json!("forge://b")));
    assert_eq!(next.answers(json!({"ok": 1})).await["method"], "tools/call");
    let answer = body(calling.await.expect("no panic")).await;
    assert_eq!((&answer["id"], &answer["result"]["ok"]), (&json!("mine"), &json!(1)), "and the client sees none of it");

    // Also after a restart of the broker.
    let registry = fixture.registry.clone();
    let stopping = tokio::spawn(async move { registry.shut_down(Duration::from_secs(1)).await });
    next.is_stopped().await;
    stopping.await.expect("no panic");
    let mut after = Fixture::over(config(), fixture.records.clone()).await;
    let calling = after.posting(&alice, Some(&id), call("mine", "x"));
    let mut next = after.child().await;
    next.comes_up().await;
    assert_eq!(next.answers(json!({})).await["params"]["level"], "error");
    assert_eq!(next.answers(json!({})).await["params"]["uri"], "forge://b");
    assert_eq!(next.answers(json!({})).await["method"], "tools/call");
    calling.await.expect("no panic");
}
