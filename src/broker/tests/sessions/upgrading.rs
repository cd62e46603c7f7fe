//! When another child program is installed, sessions get children of it, and their clients notice nothing.

use std::sync::atomic::Ordering;

use serde_json::json;
use wire::message::Exit;

use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, initialize};

#[tokio::test(start_paused = true)]
async fn an_idle_child_of_a_replaced_program_goes_at_once_and_the_next_request_starts_one_of_the_new() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut old) = fixture.open(&alice).await;
    fixture.spawner.replace_program();
    old.is_stopped().await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let mut new = fixture.child().await;
    assert_eq!(new.welcomes().await["params"], initialize()["params"]);
    new.hears().await.expect("initialized");
    new.answers(json!({"from": "new"})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["from"], "new");
    assert_eq!(fixture.spawner.spawned.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_in_flight_is_not_cut_and_its_child_goes_after_it() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut old) = fixture.open(&alice).await;
    let slow = fixture.posting(&alice, Some(&id), call("slow", "x"));
    let heard = old.hears().await.expect("the call");
    fixture.spawner.replace_program();
    tokio::task::yield_now().await;
    assert!(!old.is_asked_to_stop());
    old.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"from": "old"}})).await;
    assert_eq!(body(slow.await.expect("no panic")).await["result"]["from"], "old");
    old.is_stopped().await;
    assert!(fixture.registry.find(&id, &alice).is_ok(), "the session goes on");
    assert_eq!(fixture.spawner.spawned.load(Ordering::SeqCst), 1, "nobody asks for another yet");
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_never_without_a_call_is_taken_over_from() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut old) = fixture.open(&alice).await;
    let first = fixture.posting(&alice, Some(&id), call("first", "x"));
    let first_heard = old.hears().await.expect("the call");
    fixture.spawner.replace_program();
    // It is not known when the broker has heard of it: the calls overlap until one of them brings the new child.
    let second = fixture.posting(&alice, Some(&id), call("second", "x"));
    let second_heard = old.hears().await.expect("the call");
    let mut new = fixture.child().await;
    new.comes_up().await;
    let third = loop {
        let calling = fixture.posting(&alice, Some(&id), call("more", "x"));
        tokio::select! {
            _ = new.answers(json!({"from": "new"})) => break calling,
            request = old.hears() => {
                let request = request.expect("it is busy, and must not be stopped");
                old.says(json!({"jsonrpc": "2.0", "id": request["id"], "result": {}})).await;
                calling.await.expect("no panic");
            }
        }
    };
    assert_eq!(body(third.await.expect("no panic")).await["result"]["from"], "new");
    for (calling, heard) in [(first, first_heard), (second, second_heard)] {
        old.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"from": "old"}})).await;
        assert_eq!(body(calling.await.expect("no panic")).await["result"]["from"], "old", "not cut");
    }
    old.is_stopped().await;
    assert_eq!(fixture.spawner.spawned.load(Ordering::SeqCst), 2);
    new.ends(Exit::Code(0));
}
