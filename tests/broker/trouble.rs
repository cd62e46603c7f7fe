//! Trouble around a session is told in full and leaves nothing behind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::StatusCode;
use forgejo_mcp_broker::frontend::session::places::Caps;
use forgejo_mcp_broker::ipc::message::Exit;
use serde_json::json;

use crate::desk::{Desk, body, call, caller, caller_with, header, initialize, policy, session_of};

#[tokio::test]
async fn a_session_that_cannot_be_recorded_is_not_opened_and_its_child_is_stopped() {
    let mut desk = Desk::new(policy()).await;
    desk.records.fail(true);
    let opening = desk.posting(&caller(1, "g1"), None, initialize());
    let mut child = desk.child().await;
    child.welcomes().await;
    let response = opening.await.expect("no panic");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(header(&response, "retry-after").is_some());
    assert_eq!(session_of(&response), None);
    child.is_stopped().await;
    assert_eq!(desk.registry.counts().0, 0);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_503_and_the_session_goes_on_when_it_can() {
    let mut desk = Desk::new(policy()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = desk.open(&alice).await;
    child.loses_the_supervisor();
    child.is_stopped().await;
    desk.records.fail(true);
    let refused = desk.post(&alice, Some(&id), call("r", "x")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body(refused).await["id"], "r");
    desk.records.fail(false);
    let calling = desk.posting(&alice, Some(&id), call(1, "x"));
    let mut next = desk.child().await;
    next.welcomes().await;
    next.hears().await.expect("initialized");
    next.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test]
async fn uses_are_written_in_a_batch_and_a_failure_to_write_them_costs_nothing_else() {
    let mut desk = Desk::new(policy()).await;
    let alice = caller(1, "g1");
    let (id, _child) = desk.open(&alice).await;
    let opened = desk.records.last_uses();
    desk.clock.advance(Duration::from_secs(100));
    assert!(desk.registry.find(&id, &alice).is_ok());
    assert_eq!(desk.records.last_uses(), opened, "not on each use");
    desk.records.fail(true);
    desk.registry.sweep().await;
    desk.records.fail(false);
    desk.clock.advance(Duration::from_secs(100));
    assert!(desk.registry.find(&id, &alice).is_ok());
    desk.registry.sweep().await;
    assert_eq!(desk.records.last_uses(), [opened[0].plus(Duration::from_secs(200))]);
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_does_not_start_the_child_in_time_is_an_error_that_says_so() {
    let desk = Desk::new(policy()).await;
    desk.spawner.hangs.store(true, Ordering::SeqCst);
    let answer = body(desk.post(&caller(1, "g1"), None, initialize()).await).await;
    assert!(answer["error"]["message"].as_str().expect("text").contains("in time"), "{answer}");
    assert_eq!(desk.registry.counts(), (0, 0));
}

#[tokio::test]
async fn a_burst_of_one_users_starts_beyond_the_queue_is_429() {
    let desk = Desk::new(policy()).await;
    desk.spawner.hangs.store(true, Ordering::SeqCst);
    let alice = caller(1, "g1");
    let mut waiting: Vec<_> = (0..17).map(|_| desk.posting(&alice, None, initialize())).collect();
    // Sixteen wait; of the seventeen one comes back at once.
    let refused = loop {
        if let Some(at) = waiting.iter().position(tokio::task::JoinHandle::is_finished) {
            break waiting.remove(at).await.expect("no panic");
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(header(&refused, "retry-after").is_some());
    for waiting in waiting {
        waiting.abort();
    }
}

#[tokio::test]
async fn at_the_cap_on_all_children_anybodys_idle_child_makes_room_and_a_busy_one_does_not() {
    let mut policy = policy();
    policy.children = Caps { total: 1, per_user: 1 };
    let mut desk = Desk::new(policy).await;
    let (alice, bob) = (caller(1, "g1"), caller(2, "g2"));
    let (_, mut hers) = desk.open(&alice).await;
    let opening = desk.posting(&bob, None, initialize());
    hers.is_stopped().await;
    let mut his = desk.child().await;
    his.welcomes().await;
    let id = session_of(&opening.await.expect("no panic")).expect("an id");
    let _calling = desk.posting(&bob, Some(&id), call(1, "slow"));
    his.hears().await.expect("the call");
    let refused = desk.post(&alice, None, initialize()).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(header(&refused, "retry-after").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_go_makes_no_room() {
    let mut policy = policy();
    policy.children = Caps { total: 9, per_user: 1 };
    let mut desk = Desk::new(policy).await;
    let alice = caller(1, "g1");
    let (_, _immortal) = desk.open(&alice).await;
    assert_eq!(desk.post(&alice, None, initialize()).await.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_rotation_whose_new_child_fails_stops_the_old_one_when_it_is_quiet_and_keeps_the_session() {
    let mut desk = Desk::new(policy()).await;
    let alice = caller(1, "g1");
    let (id, mut old) = desk.open(&alice).await;
    desk.registry.rotate(&caller_with(1, "g1", "the-new-upstream-token"), Duration::from_secs(30));
    let mut new = desk.child().await;
    new.hears().await.expect("initialize");
    new.ends(Exit::Code(1));
    old.is_stopped().await;
    let calling = desk.posting(&alice, Some(&id), call(1, "x"));
    let mut next = desk.child().await;
    next.welcomes().await;
    next.hears().await.expect("initialized");
    next.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_session_that_ends_while_its_child_starts_is_unknown_and_the_child_is_stopped() {
    let mut desk = Desk::new(policy()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = desk.open(&alice).await;
    child.loses_the_supervisor();
    child.is_stopped().await;
    let calling = desk.posting(&alice, Some(&id), call(1, "x"));
    let mut next = desk.child().await;
    let heard = next.hears().await.expect("initialize");
    assert_eq!(desk.registry.end_grant(&alice.grant, "revoked"), 1);
    let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}});
    next.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": result})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::GONE);
    next.is_stopped().await;
}

#[tokio::test]
async fn a_broker_that_is_stopping_wakes_no_child() {
    let mut desk = Desk::new(policy()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = desk.open(&alice).await;
    child.loses_the_supervisor();
    child.is_stopped().await;
    desk.registry.shut_down(Duration::ZERO).await;
    let refused = desk.post(&alice, Some(&id), call("r", "x")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body(refused).await["id"], "r");
}
