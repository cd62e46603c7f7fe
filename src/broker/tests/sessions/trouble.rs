//! Trouble around a session is told in full and leaves nothing behind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::session::quota::Caps;
use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;
use wire::message::Exit;

use crate::tests::sessions::fixture::{
    Fixture, body, call, caller, caller_with, config, header, initialize, request, session_of,
};

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_recorded_is_not_opened_and_its_child_is_stopped() {
    let mut fixture = Fixture::new(config()).await;
    fixture.records.fail(true);
    let opening = fixture.posting(&caller(1, "g1"), None, initialize());
    let mut child = fixture.child().await;
    child.welcomes().await;
    let response = opening.await.expect("no panic");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(header(&response, "retry-after").is_some());
    assert_eq!(session_of(&response), None);
    child.is_stopped().await;
    assert_eq!(fixture.registry.counts().0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_end_cannot_be_stored_goes_on_and_is_gone_after_a_restart_once_it_could() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let end = || request(Method::DELETE, Some(&id)).body(Body::empty()).expect("a request");
    fixture.records.fail(true);
    let refused = fixture.send(&alice, end()).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(header(&refused, "retry-after").is_some());
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    child.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK, "nothing has ended");
    fixture.records.fail(false);
    assert_eq!(fixture.send(&alice, end()).await.status(), StatusCode::NO_CONTENT);
    // At the moment of the answer, not some time after it.
    let next = Fixture::over(config(), fixture.records.clone()).await;
    assert_eq!(next.registry.counts(), (0, 0));
    child.is_stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_an_error_and_no_status_and_the_session_goes_on_when_it_can() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.loses_the_supervisor();
    child.is_stopped().await;
    fixture.records.fail(true);
    let refused = fixture.post(&alice, Some(&id), call("r", "x")).await;
    assert_eq!(refused.status(), StatusCode::OK);
    let answer = body(refused).await;
    assert_eq!(answer["id"], "r");
    assert!(answer["error"]["message"].as_str().expect("text").contains("try again in 5 s"), "{answer}");
    fixture.records.fail(false);
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let mut next = fixture.child().await;
    next.comes_up().await;
    next.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn uses_are_written_in_a_batch_and_a_failure_to_write_them_costs_nothing_else() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, _child) = fixture.open(&alice).await;
    let opened = fixture.records.last_uses();
    fixture.clock.advance(Duration::from_secs(100));
    assert!(fixture.registry.find(&id, &alice).is_ok());
    assert_eq!(fixture.records.last_uses(), opened, "not on each use");
    fixture.records.fail(true);
    fixture.registry.sweep().await;
    fixture.records.fail(false);
    fixture.registry.sweep().await;
    assert_eq!(fixture.records.last_uses(), [opened[0].plus(Duration::from_secs(100))], "what failed is not forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_does_not_start_the_child_in_time_is_an_error_that_says_so() {
    let fixture = Fixture::new(config()).await;
    fixture.spawner.hangs.store(true, Ordering::SeqCst);
    let answer = body(fixture.post(&caller(1, "g1"), None, initialize()).await).await;
    assert!(answer["error"]["message"].as_str().expect("text").contains("in time"), "{answer}");
    // The child may still come, so its place is taken until it has come and gone.
    assert_eq!(fixture.registry.counts(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_one_users_starts_beyond_the_queue_is_429() {
    let fixture = Fixture::new(config()).await;
    fixture.spawner.hangs.store(true, Ordering::SeqCst);
    let alice = caller(1, "g1");
    let mut waiting: Vec<_> = (0..101).map(|_| fixture.posting(&alice, None, initialize())).collect();
    // A hundred wait; one more comes back at once.
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

#[tokio::test(start_paused = true)]
async fn at_the_cap_on_all_children_anybodys_idle_child_makes_room_and_a_busy_one_does_not() {
    let mut config = config();
    config.children = Caps { total: 1, per_user: 1 };
    let mut fixture = Fixture::new(config).await;
    let (alice, bob) = (caller(1, "g1"), caller(2, "g2"));
    let (_, mut hers) = fixture.open(&alice).await;
    let opening = fixture.posting(&bob, None, initialize());
    hers.is_stopped().await;
    let mut his = fixture.child().await;
    his.welcomes().await;
    let id = session_of(&opening.await.expect("no panic")).expect("an id");
    let _calling = fixture.posting(&bob, Some(&id), call(1, "slow"));
    his.hears().await.expect("the call");
    let refused = fixture.post(&alice, None, initialize()).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(header(&refused, "retry-after").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_go_makes_no_room() {
    let mut config = config();
    config.children = Caps { total: 9, per_user: 1 };
    let mut fixture = Fixture::new(config).await;
    let alice = caller(1, "g1");
    let (_, _immortal) = fixture.open(&alice).await;
    assert_eq!(fixture.post(&alice, None, initialize()).await.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_whose_new_child_fails_stops_the_old_one_when_it_is_quiet_and_keeps_the_session() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut old) = fixture.open(&alice).await;
    fixture.registry.rotate(&caller_with(1, "g1", "the-new-upstream-token"), Duration::from_secs(30));
    let mut new = fixture.child().await;
    new.hears().await.expect("initialize");
    new.ends(Exit::Code(1));
    old.is_stopped().await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let mut next = fixture.child().await;
    next.comes_up().await;
    next.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_while_its_child_starts_is_unknown_and_the_child_is_stopped() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.loses_the_supervisor();
    child.is_stopped().await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let mut next = fixture.child().await;
    let heard = next.hears().await.expect("initialize");
    assert_eq!(fixture.registry.end_grant(&alice.grant, "revoked"), 1);
    let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}});
    next.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": result})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::GONE);
    next.is_stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_stopping_wakes_no_child() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.loses_the_supervisor();
    child.is_stopped().await;
    fixture.registry.shut_down(Duration::ZERO).await;
    let refused = fixture.post(&alice, Some(&id), call("r", "x")).await;
    // Its session goes on with the next broker.
    assert_eq!(refused.status(), StatusCode::OK);
    let answer = body(refused).await;
    assert_eq!(answer["id"], "r");
    assert!(answer["error"]["message"].as_str().expect("text").contains("shutting down; try again"), "{answer}");
}
