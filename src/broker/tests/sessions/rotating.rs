//! When Forgejo's token is refreshed, the session gets a child with the new one, and its client notices nothing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::auth::principal::Principal;
use serde_json::json;
use wire::clock::UnixTime;

use crate::tests::sessions::fixture::{Fixture, body, call, caller, caller_until, caller_with, config, initialize};

#[tokio::test(start_paused = true)]
async fn a_rotated_token_gives_the_session_a_new_child_and_lets_the_old_one_finish() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut old) = fixture.open(&alice).await;
    let slow = fixture.posting(&alice, Some(&id), call("slow", "x"));
    let heard = old.hears().await.expect("the call");
    let rotated = caller_with(1, "g1", "the-new-upstream-token");
    fixture.registry.rotate(&rotated, Duration::from_secs(30));
    let mut new = fixture.child().await;
    assert_eq!(new.order.token.expose(), "the-new-upstream-token");
    assert_eq!(new.welcomes().await["params"], initialize()["params"]);
    new.hears().await.expect("initialized");
    // New requests go to the new child as soon as it has taken over; the old one still has its own.
    loop {
        let calling = fixture.posting(&rotated, Some(&id), call("new", "x"));
        let early = tokio::select! {
            _ = new.answers(json!({"from": "new"})) => None,
            request = old.hears() => request,
        };
        if let Some(request) = &early {
            old.says(json!({"jsonrpc": "2.0", "id": request["id"], "result": {"from": "old"}})).await;
        }
        let from = body(calling.await.expect("no panic")).await["result"]["from"].clone();
        if early.is_none() {
            assert_eq!(from, "new");
            break;
        }
    }
    old.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"from": "old"}})).await;
    assert_eq!(body(slow.await.expect("no panic")).await["result"]["from"], "old");
    old.is_stopped().await;
    assert!(fixture.registry.find(&id, &alice).is_ok(), "the session goes on");
}

/// Alice with a token that ends so many seconds after the first.
fn alice_until(token: &str, seconds: i64) -> Principal {
    let ends = UnixTime::from_secs(1_800_003_600 + seconds);
    caller_until(1, "g1", token, Some(ends))
}

#[tokio::test(start_paused = true)]
async fn a_child_that_was_being_started_when_the_token_changed_is_replaced_at_the_next_request() {
    let mut fixture = Fixture::new(config()).await;
    let (before, after) = (alice_until("the-first-token", 0), alice_until("the-second-token", 3300));
    // The change came too early for it: the session was not there yet.
    fixture.registry.rotate(&after, Duration::from_secs(30));
    let (id, mut old) = fixture.open(&before).await;
    let calling = fixture.posting(&after, Some(&id), call(1, "x"));
    old.answers(json!({"from": "old"})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["from"], "old", "it is good for a while yet");
    let mut new = fixture.child().await;
    assert_eq!(new.order.token.expose(), "the-second-token");
    new.comes_up().await;
    old.is_stopped().await;
    // A request that was authenticated before the change brings no older token back.
    for caller in [&before, &after] {
        let calling = fixture.posting(caller, Some(&id), call(2, "x"));
        new.answers(json!({})).await;
        calling.await.expect("no panic");
    }
    assert_eq!(fixture.spawner.spawned.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_has_the_new_token_already_stays() {
    let mut fixture = Fixture::new(config()).await;
    let alice = alice_until("the-second-token", 3300);
    let (id, mut child) = fixture.open(&alice).await;
    fixture.registry.rotate(&alice, Duration::from_secs(30));
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    child.answers(json!({})).await;
    calling.await.expect("no panic");
    fixture.registry.end_grant(&alice.grant, "test");
    child.is_stopped().await;
    assert_eq!(fixture.spawner.spawned.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_old_child_that_does_not_finish_is_stopped_after_the_drain() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut old) = fixture.open(&alice).await;
    let slow = fixture.posting(&alice, Some(&id), call("slow", "x"));
    old.hears().await.expect("the call");
    fixture.registry.rotate(&caller_with(1, "g1", "the-new-upstream-token"), Duration::from_secs(3));
    let mut new = fixture.child().await;
    new.welcomes().await;
    old.is_stopped().await;
    let answer = body(slow.await.expect("no panic")).await;
    assert_eq!(answer["id"], "slow");
    assert!(answer["error"].is_object());
}
