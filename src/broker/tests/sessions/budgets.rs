//! What is held for a user is counted in bytes, and nobody else pays for it. One test for each way in.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::budget::BudgetCaps;
use crate::session::config::SessionConfig;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, header, initialize, request, text};

const USER: usize = 1 << 20;

fn tight() -> SessionConfig {
    let mut config = config();
    config.memory = BudgetCaps { total: 8 * USER, per_user: USER };
    config.max_line = USER;
    config
}

fn note(bytes: usize) -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x".repeat(bytes)}})
}

/// A body of so many bytes of which the end never comes.
fn unfinished(id: Option<&str>, bytes: usize) -> axum::http::Request<Body> {
    let begun = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![b' '; bytes]))]);
    let body = Body::from_stream(begun.chain(futures_util::stream::pending()));
    request(Method::POST, id).header("content-type", "application/json").body(body).expect("a request")
}

#[tokio::test(start_paused = true)]
async fn bodies_that_never_end_are_held_against_their_user_and_nobody_else() {
    let mut fixture = Fixture::new(tight()).await;
    let (alice, bob) = (caller(1, "g1"), caller(2, "g2"));
    let (id, mut his) = fixture.open(&bob).await;
    // Sixty thousand bytes each, as many as the endpoint takes in one message here.
    let held: Vec<_> = (0..17).map(|_| fixture.sending(&alice, unfinished(None, 60_000))).collect();
    while fixture.registry.budgets().used() < 17 * 60_000 {
        tokio::task::yield_now().await;
    }
    let refused = fixture.send(&alice, unfinished(None, 60_000)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(header(&refused, "retry-after").is_some());
    assert!(text(refused).await.contains("1048576 bytes"), "it says how many may wait");
    let calling = fixture.posting(&bob, Some(&id), call(1, "x"));
    his.answers(json!({"ok": true})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["ok"], true);
    // Silence ends them, and everything is given back.
    for held in held {
        assert_eq!(held.await.expect("no panic").status(), StatusCode::REQUEST_TIMEOUT);
    }
    assert_eq!(fixture.registry.budgets().used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_says_that_it_is_too_large_is_refused_before_it_is_read() {
    let fixture = Fixture::new(config()).await;
    let large = request(Method::POST, None)
        .header("content-type", "application/json")
        .header("content-length", "65537")
        .body(Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>()))
        .expect("a request");
    assert_eq!(fixture.send(&caller(1, "g1"), large).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn what_a_child_says_while_nobody_listens_is_bounded_far_below_its_users_budget() {
    let mut roomy = tight();
    roomy.memory.per_user = 4 * USER;
    let mut fixture = Fixture::new(roomy).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    for _ in 0..64 {
        child.says(note(USER / 4)).await;
    }
    // Answered after them, so they have been read.
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    child.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
    assert!(fixture.registry.budgets().used() <= USER, "{}", fixture.registry.budgets().used());
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_reads_keep_the_child_waiting_and_go_on_when_they_are_read() {
    let mut fixture = Fixture::new(tight()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let large = json!({"text": "x".repeat(USER * 2 / 5)});
    let mut unread = Vec::new();
    for n in 0..2 {
        let calling = fixture.posting(&alice, Some(&id), call(n, "x"));
        child.answers(large.clone()).await;
        unread.push(calling.await.expect("no panic"));
    }
    let third = fixture.posting(&alice, Some(&id), call(3, "x"));
    let mut child = tokio::spawn(async move {
        child.answers(json!({"text": "x".repeat(USER * 2 / 5)})).await;
        child
    });
    assert!(tokio::time::timeout(Duration::from_secs(20), &mut child).await.is_err(), "its pipe is not read");
    assert!(fixture.registry.budgets().used() <= USER);
    unread.clear();
    child.await.expect("no panic");
    assert_eq!(third.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_finds_no_memory_for_long_is_an_error_that_says_why_and_the_session_goes_on() {
    let mut fixture = Fixture::new(tight()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let mut unread = Vec::new();
    for n in 0..2 {
        let calling = fixture.posting(&alice, Some(&id), call(n, "x"));
        child.answers(json!({"text": "x".repeat(USER * 2 / 5)})).await;
        unread.push(calling.await.expect("no panic"));
    }
    let third = fixture.posting(&alice, Some(&id), call(3, "x"));
    child.answers(json!({"text": "x".repeat(USER * 2 / 5)})).await;
    // On a stream, after so long.
    let answer = text(third.await.expect("no panic")).await;
    assert!(answer.contains(r#""id":3"#) && answer.contains("memory_per_user"), "{answer}");
    assert!(fixture.registry.budgets().used() <= USER);
    unread.clear();
    let calling = fixture.posting(&alice, Some(&id), call(4, "x"));
    child.answers(json!({"text": "x".repeat(USER * 2 / 5)})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn two_large_answers_of_one_user_never_hold_each_other_up_for_good() {
    let mut fixture = Fixture::new(tight()).await;
    let alice = caller(1, "g1");
    let (one, mut first) = fixture.open(&alice).await;
    let (two, mut second) = fixture.open(&alice).await;
    let large = "x".repeat(USER * 4 / 5);
    let first_call = fixture.posting(&alice, Some(&one), call(1, "x"));
    let second_call = fixture.posting(&alice, Some(&two), call(2, "x"));
    let heard = first.hears().await.expect("the call");
    first
        .says_part(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{"text":"{}"#, heard["id"], &large[..USER / 2]))
        .await;
    let its = large.clone();
    let second = tokio::spawn(async move {
        second.answers(json!({"text": its})).await;
        second
    });
    while fixture.registry.budgets().used() < USER * 9 / 10 {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    let rest = format!(r#"{}"}}}}"#, &large[USER / 2..]);
    let first = tokio::spawn(async move {
        first.says_raw(&rest).await;
        first
    });
    let answer = text(second_call.await.expect("no panic")).await;
    assert!(answer.contains("memory_per_user"), "{answer}");
    assert!(text(first_call.await.expect("no panic")).await.contains(&large), "there was room for it then");
    for child in [first, second] {
        assert!(!child.await.expect("no panic").is_asked_to_stop());
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_may_ask_its_client_only_so_much_at_once() {
    let mut fixture = Fixture::new(config()).await;
    let (_, mut child) = fixture.open(&caller(1, "g1")).await;
    for n in 0..64 {
        child.says(json!({"jsonrpc": "2.0", "id": n, "method": "sampling/createMessage", "params": {}})).await;
    }
    child.says(json!({"jsonrpc": "2.0", "id": "one too many", "method": "sampling/createMessage", "params": {}})).await;
    let refused = child.hears().await.expect("an error");
    assert_eq!(refused["id"], "one too many");
    assert!(refused["error"]["message"].as_str().expect("text").contains("too many"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn an_initialize_that_is_larger_than_any_clients_is_refused_and_nothing_is_kept() {
    let fixture = Fixture::new(config()).await;
    let mut large = initialize();
    large["params"]["clientInfo"]["title"] = "x".repeat(64 * 1024).into();
    let small_enough_for_a_message = large.to_string().len();
    assert!(small_enough_for_a_message > 64 * 1024);
    let response = fixture.post(&caller(1, "g1"), None, large).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(fixture.registry.counts(), (0, 0));
}
