//! An answer that is long in coming is JSON all the same, of any size, with white space in front; what the child says ahead
//! of it goes to the session's own stream.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::auth::principal::Principal;
use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::bridging::next_event;
use crate::tests::sessions::fixture::{
    Fixture, body, call, caller, config, header, initialize, post, request, session_of, text,
};

fn note(data: &str) -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": data}})
}

fn with_progress(id: u64) -> Value {
    let mut call = call(id, "slow");
    call["params"]["_meta"] = json!({"progressToken": "mine"});
    call
}

fn progress(heard: &Value) -> Value {
    let token = &heard["params"]["_meta"]["progressToken"];
    json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})
}

async fn listening(fixture: &Fixture, alice: &Principal, id: &str) -> BodyDataStream {
    let get = request(Method::GET, Some(id)).body(Body::empty()).expect("a request");
    fixture.send(alice, get).await.into_body().into_data_stream()
}

/// The call as the child hears it, and its answer once the head of that is there.
async fn committed(calling: JoinHandle<Response>, child: &mut FakeChild) -> (Value, Response) {
    let begun = Instant::now();
    let heard = child.hears().await.expect("the call");
    let response = calling.await.expect("no panic");
    assert!(begun.elapsed() >= Duration::from_secs(10), "not before");
    (heard, response)
}

fn form(response: &Response) -> &str {
    header(response, "content-type").expect("a form")
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_json_of_any_size_behind_white_space() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "slow"));
    let (heard, response) = committed(calling, &mut child).await;
    assert_eq!((response.status(), form(&response)), (StatusCode::OK, "application/json"));
    assert_eq!(header(&response, "content-length"), None);
    assert_eq!(header(&response, "x-accel-buffering"), Some("no"));
    let reading = tokio::spawn(text(response));
    tokio::time::sleep(Duration::from_secs(40)).await;
    let big = "x".repeat(900_000);
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"big": big}})).await;
    let text = reading.await.expect("no panic");
    assert!(text.starts_with("   {"), "one at once, two in forty seconds: {text:.20}");
    let answer: Value = serde_json::from_str(&text).expect("one JSON text");
    assert_eq!((&answer["id"], answer["result"]["big"].as_str().map(str::len)), (&json!(1), Some(900_000)));
}

#[tokio::test(start_paused = true)]
async fn what_comes_ahead_of_a_late_answer_goes_to_the_sessions_own_stream() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let mut own = listening(&fixture, &alice, &id).await;
    let calling = fixture.posting(&alice, Some(&id), with_progress(1));
    let (heard, response) = committed(calling, &mut child).await;
    assert_eq!(form(&response), "application/json");
    child.says(progress(&heard)).await;
    child.says(note("half way")).await;
    child.says(json!({"jsonrpc": "2.0", "id": "s-1", "method": "sampling/createMessage", "params": {}})).await;
    assert_eq!(next_event(&mut own).await["params"], json!({"progressToken": "mine", "progress": 1}));
    assert_eq!(next_event(&mut own).await["params"]["data"], "half way");
    let asked = next_event(&mut own).await;
    assert_eq!(asked["method"], "sampling/createMessage");
    let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "result": {}});
    assert_eq!(fixture.post(&alice, Some(&id), answer).await.status(), StatusCode::ACCEPTED);
    assert_eq!(child.hears().await.expect("the answer")["id"], "s-1");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    assert_eq!(body(response).await["id"], 1);
}

#[tokio::test(start_paused = true)]
async fn where_nobody_listens_a_question_of_the_child_waits_and_progress_does_not() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), with_progress(1));
    let (heard, response) = committed(calling, &mut child).await;
    assert_eq!(form(&response), "application/json");
    child.says(progress(&heard)).await;
    child.says(json!({"jsonrpc": "2.0", "id": "s-1", "method": "roots/list"})).await;
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    assert_eq!(body(response).await["id"], 1);
    let mut own = listening(&fixture, &alice, &id).await;
    assert_eq!(next_event(&mut own).await["method"], "roots/list");
    // Nobody answers it, which the child is told.
    let told = child.hears().await.expect("an error");
    assert_eq!((&told["id"], told.get("error").is_some()), (&json!("s-1"), true));
}

#[tokio::test(start_paused = true)]
async fn a_message_ahead_of_the_answer_makes_it_a_stream_for_good() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "slow"));
    let heard = child.hears().await.expect("the call");
    child.says(note("early")).await;
    let mut stream = calling.await.expect("no panic").into_body().into_data_stream();
    assert_eq!(next_event(&mut stream).await["params"]["data"], "early");
    tokio::time::sleep(Duration::from_secs(40)).await;
    child.says(note("later")).await;
    assert_eq!(next_event(&mut stream).await["params"]["data"], "later");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    assert_eq!(next_event(&mut stream).await["id"], 1);
}

#[tokio::test(start_paused = true)]
async fn silence_makes_a_stream_for_a_client_that_can_be_asked_and_does_not_listen() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let mut asked = initialize();
    asked["params"]["capabilities"] = json!({"elicitation": {}});
    let opening = fixture.posting(&alice, None, asked);
    let mut child = fixture.child().await;
    child.welcomes().await;
    let id = session_of(&opening.await.expect("no panic")).expect("an id");
    let calling = fixture.posting(&alice, Some(&id), call(1, "slow"));
    let (heard, response) = committed(calling, &mut child).await;
    assert_eq!(form(&response), "text/event-stream");
    let mut stream = response.into_body().into_data_stream();
    child.says(json!({"jsonrpc": "2.0", "id": "e", "method": "elicitation/create", "params": {}})).await;
    assert_eq!(next_event(&mut stream).await["method"], "elicitation/create");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    let own = listening(&fixture, &alice, &id).await;
    let calling = fixture.posting(&alice, Some(&id), call(2, "slow"));
    assert_eq!(form(&committed(calling, &mut child).await.1), "application/json");
    drop(own);
}

#[tokio::test(start_paused = true)]
async fn whatever_ends_a_late_answer_is_an_error_with_the_requests_id() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let (_, cancelled) = committed(fixture.posting(&alice, Some(&id), call(1, "x")), &mut child).await;
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    fixture.post(&alice, Some(&id), cancel).await;
    child.hears().await.expect("the cancellation");
    let (_, timed_out) = committed(fixture.posting(&alice, Some(&id), call(2, "x")), &mut child).await;
    let (cancelled, timed_out) = (body(cancelled).await, body(timed_out).await);
    child.hears().await.expect("the cancellation");
    let (_, ended) = committed(fixture.posting(&alice, Some(&id), call(3, "x")), &mut child).await;
    child.ends(wire::message::Exit::Code(1));
    for (id, answer, why) in [(1, cancelled, "cancelled"), (2, timed_out, "5m"), (3, body(ended).await, "ended")] {
        assert_eq!(answer["id"], id);
        assert!(answer["error"]["message"].as_str().is_some_and(|message| message.contains(why)), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_batch_is_one_array_behind_white_space_for_who_takes_json_only() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open_in(&alice, "2025-03-26").await;
    let mut asked = post(Some(&id), json!([call(1, "x"), call(2, "y")]).to_string());
    asked.headers_mut().insert("accept", "application/json".parse().expect("a header"));
    let calling = fixture.sending(&alice, asked);
    child.answers(json!({})).await;
    let (heard, response) = committed(calling, &mut child).await;
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    let text = text(response).await;
    let answers: Value = serde_json::from_str(&text).expect("one JSON text");
    assert!(text.starts_with(" [") && answers[0]["id"] == 1 && answers[1]["id"] == 2, "{text}");
}
