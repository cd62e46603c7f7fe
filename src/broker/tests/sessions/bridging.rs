//! The bridge keeps ids, types and order straight, whatever both sides choose.

use serde_json::{Value, json};

use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, events};

#[tokio::test(start_paused = true)]
async fn requests_with_the_same_id_in_flight_get_their_own_answers() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let first = fixture.posting(&alice, Some(&id), call(1, "a"));
    let heard_first = child.hears().await.expect("a");
    let second = fixture.posting(&alice, Some(&id), call(1, "b"));
    let heard_second = child.hears().await.expect("b");
    assert_ne!(heard_first["id"], heard_second["id"], "unique towards the child");
    // Answered in the other order.
    for heard in [heard_second, heard_first] {
        let name = heard["params"]["name"].clone();
        child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"was": name}})).await;
    }
    assert_eq!(body(first.await.expect("no panic")).await["result"]["was"], "a");
    assert_eq!(body(second.await.expect("no panic")).await["result"]["was"], "b");
}

#[tokio::test(start_paused = true)]
async fn progress_reaches_the_request_that_asked_under_the_clients_token_and_comes_before_the_answer() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let mut message = call("p", "slow");
    message["params"]["_meta"] = json!({"progressToken": "mine", "other": 1});
    let calling = fixture.posting(&alice, Some(&id), message);
    let heard = child.hears().await.expect("the call");
    let token = heard["params"]["_meta"]["progressToken"].clone();
    assert_ne!(token, "mine");
    assert_eq!(heard["params"]["_meta"]["other"], 1);
    let progress = |token: Value, n: u32| json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": n}});
    child.says(progress(json!(99_999), 1)).await;
    child.says(progress(token, 2)).await;
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    let seen = events(calling.await.expect("no panic")).await;
    assert_eq!(seen.len(), 2, "a token of nobody is dropped: {seen:?}");
    assert_eq!(seen[0]["params"], json!({"progressToken": "mine", "progress": 2}));
    assert_eq!(seen[1]["id"], "p");
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_names_the_childs_id_and_ends_the_clients_stream() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call("c", "slow"));
    let heard = child.hears().await.expect("the call");
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "c", "reason": "enough"}});
    assert_eq!(fixture.post(&alice, Some(&id), cancel).await.status().as_u16(), 202);
    let told = child.hears().await.expect("the cancellation");
    assert_eq!(told["params"], json!({"requestId": heard["id"], "reason": "enough"}));
    assert!(events(calling.await.expect("no panic")).await.is_empty());
    // The answer that comes all the same is nobody's.
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    let next = fixture.posting(&alice, Some(&id), call("c", "again"));
    child.answers(json!({"n": 2})).await;
    assert_eq!(body(next.await.expect("no panic")).await["result"]["n"], 2);
}

#[tokio::test(start_paused = true)]
async fn an_ambiguous_cancellation_is_ignored() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let first = fixture.posting(&alice, Some(&id), call(1, "a"));
    child.hears().await.expect("a");
    let _second = fixture.posting(&alice, Some(&id), call(1, "b"));
    child.hears().await.expect("b");
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    fixture.post(&alice, Some(&id), cancel).await;
    let third = fixture.posting(&alice, Some(&id), call(2, "c"));
    assert_eq!(child.answers(json!({})).await["params"]["name"], "c", "no cancellation came before it");
    assert_eq!(third.await.expect("no panic").status().as_u16(), 200);
    assert!(!first.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_request_of_the_child_goes_to_the_call_in_flight_and_the_answer_comes_back_under_its_own_id() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "sample"));
    let heard = child.hears().await.expect("the call");
    child.says(json!({"jsonrpc": "2.0", "id": "s-1", "method": "sampling/createMessage", "params": {"x": 1}})).await;
    let response = calling.await.expect("no panic");
    let mut stream = response.into_body().into_data_stream();
    let asked = next_event(&mut stream).await;
    assert_eq!(asked["method"], "sampling/createMessage");
    assert_ne!(asked["id"], "s-1");
    let reply = json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"text": "hello"}});
    assert_eq!(fixture.post(&alice, Some(&id), reply.clone()).await.status().as_u16(), 202);
    let heard_reply = child.hears().await.expect("the reply");
    assert_eq!(heard_reply, json!({"jsonrpc": "2.0", "id": "s-1", "result": {"text": "hello"}}));
    // A second reply is to nothing that was asked.
    assert_eq!(fixture.post(&alice, Some(&id), reply).await.status().as_u16(), 202);
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    assert_eq!(next_event(&mut stream).await["id"], 1);
    let after = fixture.posting(&alice, Some(&id), call(2, "x"));
    assert_eq!(child.answers(json!({})).await["method"], "tools/call");
    after.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn the_child_s_ping_is_answered_by_the_broker_and_the_clients_too() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.says(json!({"jsonrpc": "2.0", "id": "ping-1", "method": "ping"})).await;
    assert_eq!(child.hears().await.expect("an answer"), json!({"jsonrpc": "2.0", "id": "ping-1", "result": {}}));
    let ping = json!({"jsonrpc": "2.0", "id": "p", "method": "ping"});
    assert_eq!(
        body(fixture.post(&alice, Some(&id), ping).await).await,
        json!({"jsonrpc": "2.0", "id": "p", "result": {}})
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_child_repeats_of_the_token_reaches_nobody() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "leak"));
    let heard = child.hears().await.expect("the call");
    let message = format!("token {} does not exist", alice.upstream.expose());
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -32603, "message": message}})).await;
    let answer = body(calling.await.expect("no panic")).await;
    assert_eq!(answer["error"]["message"], "token [redacted] does not exist");
}

#[tokio::test(start_paused = true)]
async fn lines_that_are_no_messages_are_skipped() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let heard = child.hears().await.expect("the call");
    for garbage in ["", "  ", "hello", "{}", "[1]", r#"{"jsonrpc":"2.0","id":123456,"result":{}}"#] {
        child.says_raw(garbage).await;
    }
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"ok": 1}})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["ok"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_ends_at_its_deadline_and_the_child_is_told() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call("late", "x"));
    let heard = child.hears().await.expect("the call");
    let answer = body(calling.await.expect("no panic")).await;
    assert_eq!(answer["id"], "late");
    assert!(answer["error"]["message"].as_str().expect("text").contains("5m"));
    assert_eq!(child.hears().await.expect("a cancellation")["params"]["requestId"], heard["id"]);
}

pub(crate) async fn next_event(stream: &mut axum::body::BodyDataStream) -> Value {
    use futures_util::StreamExt;
    let mut text = String::new();
    loop {
        let chunk = stream.next().await.expect("the stream goes on").expect("readable");
        text.push_str(std::str::from_utf8(&chunk).expect("utf-8"));
        if let Some(data) =
            text.split("\n\n").find_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")))
            && text.ends_with("\n\n")
        {
            return serde_json::from_str(data).expect("json");
        }
    }
}
