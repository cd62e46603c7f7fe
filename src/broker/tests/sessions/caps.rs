//! Caps hold, say when to come back, and cost a user their own oldest things first.

use std::time::Duration;

use crate::session::quota::Caps;
use axum::http::StatusCode;
use serde_json::json;
use wire::message::Exit;

use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, header, initialize};

#[tokio::test(start_paused = true)]
async fn the_cap_on_all_sessions_is_503_with_retry_after() {
    let mut fixture = Fixture::new(forgejo_policy(|p| p.sessions = Caps { total: 1, per_user: 1 })).await;
    fixture.open(&caller(1, "g1")).await;
    let response = fixture.post(&caller(2, "g2"), None, initialize()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(&response, "retry-after"), Some("5"));
    assert_eq!(body(response).await["id"], 0);
}

#[tokio::test(start_paused = true)]
async fn the_cap_of_a_user_is_429_with_retry_after_and_no_other_user_feels_it() {
    let mut fixture = Fixture::new(forgejo_policy(|p| p.sessions = Caps { total: 9, per_user: 1 })).await;
    let (_id, _child) = fixture.open(&caller(1, "g1")).await;
    let response = fixture.post(&caller(1, "g1"), None, initialize()).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&response, "retry-after"), Some("60"), "when the oldest may make room");
    fixture.open(&caller(2, "g2")).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_been_idle_makes_room_for_the_next_of_its_user() {
    let mut fixture = Fixture::new(forgejo_policy(|p| p.sessions = Caps { total: 9, per_user: 1 })).await;
    let alice = caller(1, "g1");
    let (first, mut child) = fixture.open(&alice).await;
    fixture.clock.advance(Duration::from_secs(61));
    let (second, _child) = fixture.open(&alice).await;
    child.is_stopped().await;
    assert_ne!(first, second);
    assert_eq!(fixture.post(&alice, Some(&first), call(1, "x")).await.status(), StatusCode::GONE);
}

#[tokio::test(start_paused = true)]
async fn a_session_with_a_request_in_flight_makes_no_room() {
    let mut fixture = Fixture::new(forgejo_policy(|p| p.sessions = Caps { total: 9, per_user: 1 })).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "slow"));
    let heard = child.hears().await.expect("the call");
    fixture.clock.advance(Duration::from_secs(3600));
    let refused = fixture.post(&alice, None, initialize()).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_user_at_the_cap_of_children_loses_their_longest_idle_child_and_keeps_the_session() {
    let mut fixture = Fixture::new(forgejo_policy(|p| p.children = Caps { total: 9, per_user: 1 })).await;
    let alice = caller(1, "g1");
    let (first, mut first_child) = fixture.open(&alice).await;
    let opening = fixture.posting(&alice, None, initialize());
    first_child.is_stopped().await;
    let mut second_child = fixture.child().await;
    second_child.welcomes().await;
    assert_eq!(opening.await.expect("no panic").status(), StatusCode::OK);
    // The first session is still there: its next request takes the child's place back.
    let calling = fixture.posting(&alice, Some(&first), call(1, "x"));
    second_child.is_stopped().await;
    let mut third_child = fixture.child().await;
    third_child.welcomes().await;
    assert_eq!(third_child.hears().await.expect("replayed")["method"], "notifications/initialized");
    third_child.answers(json!({"ok": true})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["ok"], true);
}

#[tokio::test(start_paused = true)]
async fn a_user_whose_children_are_all_busy_is_429() {
    let mut fixture = Fixture::new(forgejo_policy(|p| p.children = Caps { total: 9, per_user: 1 })).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let _calling = fixture.posting(&alice, Some(&id), call(1, "slow"));
    child.hears().await.expect("the call");
    let refused = fixture.post(&alice, None, initialize()).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(header(&refused, "retry-after").is_some());
    fixture.open(&caller(2, "g2")).await;
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_again_when_its_child_is_gone() {
    let mut fixture = Fixture::new(forgejo_policy(|p| {
        p.sessions = Caps { total: 1, per_user: 1 };
        p.children = Caps { total: 1, per_user: 1 };
    }))
    .await;
    let alice = caller(1, "g1");
    for _ in 0..3 {
        let (id, mut child) = fixture.open(&alice).await;
        child.ends(Exit::Signal(9));
        crate::tests::sessions::ends::until_unknown(&fixture, &alice, &id).await;
    }
    assert_eq!(fixture.registry.counts(), (0, 0));
}

fn forgejo_policy(
    change: impl FnOnce(&mut crate::session::config::SessionConfig),
) -> crate::session::config::SessionConfig {
    let mut config = config();
    change(&mut config);
    config
}

#[tokio::test(start_paused = true)]
async fn caps_that_are_lowered_end_nothing_and_hold_from_then_on() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (first, _one) = fixture.open(&alice).await;
    let (second, _two) = fixture.open(&alice).await;
    let (third, mut busy) = fixture.open(&alice).await;
    fixture.registry.reconfigure(forgejo_policy(|p| p.sessions = Caps { total: 9, per_user: 2 }));
    for session in [&first, &second, &third] {
        assert!(fixture.registry.find(session, &alice).is_ok());
    }
    assert_eq!(fixture.post(&alice, None, initialize()).await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(fixture.registry.counts().0, 3, "who could not make enough room has lost none");
    // Two have to go for one to come, and the busy one is not among them.
    let calling = fixture.posting(&alice, Some(&third), call(1, "slow"));
    let heard = busy.hears().await.expect("the call");
    fixture.clock.advance(Duration::from_secs(61));
    fixture.open(&alice).await;
    assert!(fixture.registry.find(&third, &alice).is_ok());
    assert_eq!((fixture.registry.counts().0, fixture.registry.users()), (2, 1));
    busy.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_child_gets_it_when_the_cap_is_raised() {
    let mut fixture = Fixture::new(forgejo_policy(|p| p.children = Caps { total: 1, per_user: 1 })).await;
    let (alice, bob) = (caller(1, "g1"), caller(2, "g2"));
    let (id, mut busy) = fixture.open(&alice).await;
    let _calling = fixture.posting(&alice, Some(&id), call(1, "slow"));
    busy.hears().await.expect("the call");
    let opening = fixture.posting(&bob, None, initialize());
    while fixture.registry.load_now().children_awaited == 0 {
        tokio::task::yield_now().await;
    }
    fixture.registry.reconfigure(forgejo_policy(|p| p.children = Caps { total: 2, per_user: 1 }));
    fixture.child().await.welcomes().await;
    assert_eq!(opening.await.expect("no panic").status(), StatusCode::OK);
}
