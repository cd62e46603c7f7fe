//! No wait without an end: what is cancelled is over, and every wait of a request counts against its own deadline.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{
    Fixture, body, call, caller, config, events, header, initialize, request, session_of,
};
use crate::tests::sessions::living_on::in_pieces;
use wire::message::Exit;

fn cancellation(id: u64) -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})
}

/// A call that the child has heard and never answers, cancelled by its client.
async fn cancelled_call(fixture: &Fixture, id: &str, child: &mut FakeChild, number: u64) {
    let alice = caller(1, "g1");
    let calling = fixture.posting(&alice, Some(id), call(number, "x"));
    child.hears().await.expect("the call");
    let response = fixture.post(&alice, Some(id), cancellation(number)).await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert!(events(calling.await.expect("no panic")).await.is_empty());
    assert_eq!(child.hears().await.expect("the cancellation")["method"], "notifications/cancelled");
}

#[tokio::test(start_paused = true)]
async fn cancelled_requests_that_a_child_never_answers_keep_no_place() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = fixture.open(&caller(1, "g1")).await;
    for number in 0..100 {
        cancelled_call(&fixture, &id, &mut child, number).await;
    }
    let calling = fixture.posting(&caller(1, "g1"), Some(&id), call(1000, "x"));
    child.answers(json!({"still": "works"})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["still"], "works");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_holds_up_no_shutdown() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = fixture.open(&caller(1, "g1")).await;
    cancelled_call(&fixture, &id, &mut child, 1).await;
    let begun = tokio::time::Instant::now();
    let registry = fixture.registry.clone();
    let stopping = tokio::spawn(async move { registry.shut_down(Duration::from_secs(30)).await });
    child.is_stopped().await;
    stopping.await.expect("no panic");
    assert_eq!(begun.elapsed(), Duration::ZERO, "nothing was waited for, by a clock that only waits move");
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_to_a_cancelled_request_reaches_nobody() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let first = fixture.posting(&alice, Some(&id), call(1, "x"));
    let heard = child.hears().await.expect("the call");
    fixture.post(&alice, Some(&id), cancellation(1)).await;
    child.hears().await.expect("the cancellation");
    first.await.expect("no panic");
    let second = fixture.posting(&alice, Some(&id), call(1, "x"));
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"late": true}})).await;
    child.answers(json!({"own": true})).await;
    assert_eq!(body(second.await.expect("no panic")).await["result"], json!({"own": true}));
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_body_took_is_not_given_again_for_the_start_of_its_session() {
    let mut config = config();
    config.request_timeout = Duration::from_secs(10);
    config.start_timeout = Duration::from_secs(60);
    let fixture = Fixture::new(config).await;
    fixture.spawner.hangs.store(true, Ordering::SeqCst);
    let text = initialize().to_string().into_bytes();
    let pieces: Vec<_> = text.chunks(text.len().div_ceil(4)).map(<[u8]>::to_vec).collect();
    let begun = tokio::time::Instant::now();
    let refused = fixture.send(&caller(1, "g1"), in_pieces(None, pieces, Duration::from_secs(2), true)).await;
    let took = begun.elapsed();
    assert!(crate::tests::sessions::fixture::text(refused).await.contains("error"));
    assert!(took >= Duration::from_secs(8) && took < Duration::from_secs(11), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_a_child_never_reads_ends_at_its_deadline() {
    let mut config = config();
    config.request_timeout = Duration::from_secs(10);
    let mut fixture = Fixture::new(config).await;
    let alice = caller(1, "g1");
    let (id, _deaf) = fixture.open(&alice).await;
    // The first fills the pipe, more fill the queue behind it, and the last waits for room in that.
    let large =
        json!({"jsonrpc": "2.0", "id": 0, "method": "tools/call", "params": {"name": "x", "text": "x".repeat(60_000)}});
    let calls: Vec<_> = (0..40).map(|_| fixture.posting(&alice, Some(&id), large.clone())).collect();
    let begun = tokio::time::Instant::now();
    for calling in calls {
        let response = calling.await.expect("no panic");
        let late = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        assert!(late || response.status() == StatusCode::OK);
        let text = crate::tests::sessions::fixture::text(response).await;
        assert!(text.contains("\"error\""), "{text}");
    }
    assert!(begun.elapsed() < Duration::from_secs(12), "all end with their own deadline: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_child_is_kept_alive_and_answered_when_it_comes() {
    let mut config = config();
    config.start_timeout = Duration::from_secs(60);
    let mut fixture = Fixture::new(config).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.loses_the_supervisor();
    crate::tests::sessions::starts::until_cold(&fixture).await;
    let calling = fixture.posting(&alice, Some(&id), call("a", "x"));
    let mut slow = fixture.child().await;
    // It says nothing for a while, so the head goes out.
    let response = calling.await.expect("no panic");
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    let reading = tokio::spawn(crate::tests::sessions::fixture::text(response));
    tokio::time::sleep(Duration::from_secs(31)).await;
    slow.comes_up().await;
    let heard = slow.hears().await.expect("the call");
    // What comes ahead of the answer has no room in it.
    slow.says(json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x"}})).await;
    slow.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"at": "last"}})).await;
    let text = reading.await.expect("no panic");
    assert!(text.starts_with("   {"), "one at once and two in thirty seconds: {text}");
    let answer: Value = serde_json::from_str(&text).expect("one JSON text");
    assert_eq!((&answer["id"], &answer["result"]["at"]), (&json!("a"), &json!("last")));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_after_the_answer_has_begun_is_an_error_with_the_requests_id() {
    let mut config = config();
    config.start_timeout = Duration::from_secs(30);
    let mut fixture = Fixture::new(config).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.loses_the_supervisor();
    crate::tests::sessions::starts::until_cold(&fixture).await;
    let calling = fixture.posting(&alice, Some(&id), call("a", "x"));
    let _silent = fixture.child().await;
    let answer = body(calling.await.expect("no panic")).await;
    assert_eq!(answer["id"], "a");
    assert!(answer["error"]["message"].as_str().expect("text").contains("in time"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_child_that_closes_its_input_and_lives_on_is_stopped_at_once_and_its_requests_get_their_errors() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.closes_its_input();
    let begun = tokio::time::Instant::now();
    let response = fixture.post(&alice, Some(&id), call(7, "x")).await;
    let answer = body(response).await;
    assert_eq!(answer["id"], 7);
    assert!(answer["error"]["message"].as_str().expect("text").contains("closed its input"), "{answer}");
    assert!(child.is_asked_to_stop());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_child_whose_input_is_seen_to_be_closed_before_its_end_is_told_is_explained_by_its_end() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.closes_its_input();
    let calling = fixture.posting(&alice, Some(&id), call(7, "x"));
    // The supervisor tells it when the broker has noticed: time passes when nothing else can happen.
    tokio::time::sleep(Duration::from_millis(100)).await;
    child.ends(Exit::Code(3));
    let answer = body(calling.await.expect("no panic")).await;
    assert!(answer["error"]["message"].as_str().expect("text").contains("exit status 3"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn head_is_no_get_and_takes_no_stream_away() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let opening = fixture.posting(&alice, None, initialize());
    let mut child = fixture.child().await;
    child.welcomes().await;
    let id = session_of(&opening.await.expect("no panic")).expect("an id");
    let get = request(Method::GET, Some(&id)).body(axum::body::Body::empty()).expect("a request");
    let mut stream = fixture.send(&alice, get).await.into_body().into_data_stream();
    let head = request(Method::HEAD, Some(&id)).body(axum::body::Body::empty()).expect("a request");
    assert_eq!(fixture.send(&alice, head).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    child.says(json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "hi"}})).await;
    let note = crate::tests::sessions::bridging::next_event(&mut stream).await;
    assert_eq!(note["params"]["data"], "hi");
}
