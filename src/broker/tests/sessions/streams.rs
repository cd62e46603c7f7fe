//! JSON where the answer comes first, an event stream where something comes before it or nothing else is taken; the session's own stream.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use futures_util::StreamExt;
use serde_json::json;

use crate::tests::sessions::bridging::next_event;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, events, header, post, request};

fn note(data: &str) -> serde_json::Value {
    json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": data}})
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_json_only_gets_json_and_what_came_before_is_kept_out() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let mut asked = post(Some(&id), call(1, "x").to_string());
    asked.headers_mut().insert("accept", "application/json".parse().expect("a header"));
    let calling = fixture.sending(&alice, asked);
    let heard = child.hears().await.expect("the call");
    child.says(note("early")).await;
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"a": 1}})).await;
    let response = calling.await.expect("no panic");
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    assert_eq!(body(response).await["result"]["a"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_events_only_gets_events() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let mut asked = post(Some(&id), call(1, "x").to_string());
    asked.headers_mut().insert("accept", "text/event-stream".parse().expect("a header"));
    let calling = fixture.sending(&alice, asked);
    child.answers(json!({"a": 1})).await;
    let response = calling.await.expect("no panic");
    assert_eq!(header(&response, "content-type"), Some("text/event-stream"));
    assert_eq!(header(&response, "cache-control"), Some("no-cache, no-transform"));
    assert_eq!(header(&response, "x-accel-buffering"), Some("no"));
    assert_eq!(events(response).await[0]["result"]["a"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_kept_alive_through_silence() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let mut asked = post(Some(&id), call(1, "slow").to_string());
    asked.headers_mut().insert("accept", "text/event-stream".parse().expect("a header"));
    let calling = fixture.sending(&alice, asked);
    let heard = child.hears().await.expect("the call");
    let reading = tokio::spawn(crate::tests::sessions::fixture::text(calling.await.expect("no panic")));
    tokio::time::sleep(std::time::Duration::from_secs(50)).await;
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    let text = reading.await.expect("no panic");
    assert_eq!(text.matches(": keepalive\n\n").count(), 4, "one at once, three in fifty seconds: {text}");
    assert_eq!(text.matches("data: ").count(), 1);
    assert!(!text.contains("id: "), "no event ids: nothing can be resumed");
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_no_request_goes_to_the_sessions_own_stream() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.says(note("before anyone listens")).await;
    let listen = || request(Method::GET, Some(&id)).body(Body::empty()).expect("a request");
    let response = fixture.send(&alice, listen()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "content-type"), Some("text/event-stream"));
    let mut stream = response.into_body().into_data_stream();
    assert_eq!(next_event(&mut stream).await["params"]["data"], "before anyone listens");
    child.says(note("live")).await;
    assert_eq!(next_event(&mut stream).await["params"]["data"], "live");
    fixture.registry.end_grant(&alice.grant, "test");
    assert!(stream.next().await.is_none(), "it ends with the session");
}

#[tokio::test(start_paused = true)]
async fn a_second_stream_takes_over_what_nobody_has_read_of_the_first_which_ends() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let listen = || request(Method::GET, Some(&id)).body(Body::empty()).expect("a request");
    let mut first = fixture.send(&alice, listen()).await.into_body().into_data_stream();
    child.says(note("read")).await;
    assert_eq!(next_event(&mut first).await["params"]["data"], "read");
    child.says(json!({"jsonrpc": "2.0", "id": "s-1", "method": "roots/list"})).await;
    child.says(note("after")).await;
    // The beginning of the child's request, and no more.
    first.next().await.expect("the stream goes on").expect("readable");
    let mut second = fixture.send(&alice, listen()).await.into_body().into_data_stream();
    assert!(first.next().await.is_none(), "the first has ended, in the middle");
    let asked = next_event(&mut second).await;
    assert_eq!(asked["method"], "roots/list");
    let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}});
    assert_eq!(fixture.post(&alice, Some(&id), answer).await.status(), StatusCode::ACCEPTED);
    assert_eq!(child.hears().await.expect("the answer")["id"], "s-1");
    assert_eq!(next_event(&mut second).await["params"]["data"], "after");
    // Gone without a word, in the middle again.
    child.says(note("once more")).await;
    second.next().await.expect("the stream goes on").expect("readable");
    drop(second);
    let mut third = fixture.send(&alice, listen()).await.into_body().into_data_stream();
    assert_eq!(next_event(&mut third).await["params"]["data"], "once more");
}

#[tokio::test(start_paused = true)]
async fn a_large_answer_arrives_whole_as_json() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call("big", "x"));
    let big = "x".repeat(900_000);
    child.answers(json!({"big": big})).await;
    let response = calling.await.expect("no panic");
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    let length: usize = header(&response, "content-length").expect("a length").parse().expect("a number");
    let text = crate::tests::sessions::fixture::text(response).await;
    assert_eq!(text.len(), length);
    let answer: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!(answer["id"], "big");
    assert_eq!(answer["result"]["big"].as_str().map(str::len), Some(900_000));
}
