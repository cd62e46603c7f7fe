//! Bursts wait in line, and a place that was made goes to the one it was made for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;

use crate::child::spawner::SpawnError;
use crate::session::quota::Caps;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, initialize, session_of};
use wire::message::Refusal;

/// Until no child is left.
pub(crate) async fn until_cold(fixture: &Fixture) {
    while fixture.registry.counts().1 > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_says_when_to_come_back_is_come_back_to() {
    for refusal in [
        Refusal::SpawnRate { retry_after_ms: 300 },
        Refusal::ChildrenTotal { retry_after_ms: 1000 },
        Refusal::ChildrenOfTenant { retry_after_ms: 1000 },
        Refusal::NoFreeUid { retry_after_ms: 250 },
        Refusal::ShuttingDown,
    ] {
        let mut fixture = Fixture::new(config()).await;
        let alice = caller(1, "g1");
        fixture.spawner.refuse(Some(SpawnError::Refused(refusal)));
        let opening = fixture.posting(&alice, None, initialize());
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert!(!opening.is_finished(), "it waits: {refusal:?}");
        fixture.spawner.refuse(None);
        fixture.child().await.welcomes().await;
        assert!(session_of(&opening.await.expect("no panic")).is_some(), "{refusal:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_users_who_come_at_once_all_get_their_child() {
    let mut fixture = Fixture::new(config()).await;
    let opening: Vec<_> =
        (1..=100).map(|user| fixture.posting(&caller(user, &format!("g{user}")), None, initialize())).collect();
    for _ in 0..100 {
        let mut child = fixture.child().await;
        tokio::spawn(async move {
            child.welcomes().await;
            child.is_stopped().await;
        });
    }
    for opening in opening {
        assert_eq!(opening.await.expect("no panic").status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn six_clients_who_share_fewer_children_are_all_answered() {
    let mut config = config();
    config.children = Caps { total: 2, per_user: 2 };
    let mut fixture = Fixture::new(config).await;
    let mut ids = Vec::new();
    let serve = |mut child: crate::tests::sessions::backend::FakeChild| async move {
        child.welcomes().await;
        while let Some(heard) = child.hears().await {
            if heard["method"] == "tools/call" {
                child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
            }
        }
        child.ends(wire::message::Exit::Code(0));
    };
    for user in 1..=6 {
        let opening = fixture.posting(&caller(user, &format!("g{user}")), None, initialize());
        let child = fixture.child().await;
        tokio::spawn(serve(child));
        ids.push(session_of(&opening.await.expect("no panic")).expect("an id"));
    }
    let begun = tokio::time::Instant::now();
    for round in 0..20 {
        let calls: Vec<_> = (1_u64..)
            .zip(&ids)
            .map(|(user, id)| fixture.posting(&caller(user, &format!("g{user}")), Some(id), call(round, "x")))
            .collect();
        for calling in calls {
            while !calling.is_finished() {
                tokio::select! {
                    Some(child) = fixture.children.recv() => drop(tokio::spawn(serve(child))),
                    () = tokio::time::sleep(Duration::from_millis(10)) => {}
                }
            }
            let response = calling.await.expect("no panic");
            assert_eq!(response.status(), StatusCode::OK);
            assert!(body(response).await.get("result").is_some());
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "nobody waited out a time: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_child_that_becomes_idle_makes_room_for_who_waits() {
    let mut config = config();
    config.children = Caps { total: 1, per_user: 1 };
    let mut fixture = Fixture::new(config).await;
    let (alice, bob) = (caller(1, "g1"), caller(2, "g2"));
    let (id, mut hers) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "slow"));
    let heard = hers.hears().await.expect("the call");
    let opening = fixture.posting(&bob, None, initialize());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!opening.is_finished() && !hers.is_asked_to_stop(), "a busy child is not stopped for another");
    hers.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"done": true}})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["done"], true);
    hers.is_stopped().await;
    fixture.child().await.welcomes().await;
    assert!(session_of(&opening.await.expect("no panic")).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_child_that_comes_too_late_keeps_its_place_until_it_is_gone() {
    let mut config = config();
    config.children = Caps { total: 1, per_user: 1 };
    let mut fixture = Fixture::new(config).await;
    fixture.spawner.delay(Duration::from_secs(40));
    let refused = fixture.post(&caller(1, "g1"), None, initialize()).await;
    assert!(body(refused).await["error"]["message"].as_str().expect("text").contains("in time"));
    assert_eq!(fixture.registry.counts().1, 1, "it may still come");
    let mut late = fixture.child().await;
    while !late.is_asked_to_stop() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(fixture.registry.counts().1, 1, "it is not gone yet");
    late.is_stopped().await;
    until_cold(&fixture).await;
    assert_eq!(fixture.spawner.spawned.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_being_started_when_the_broker_stops_does_not_hold_up_the_stop() {
    for waking in [false, true] {
        let mut fixture = Fixture::new(config()).await;
        let alice = caller(1, "g1");
        let calling = if waking {
            let (id, mut child) = fixture.open(&alice).await;
            child.loses_the_supervisor();
            until_cold(&fixture).await;
            fixture.posting(&alice, Some(&id), call(1, "x"))
        } else {
            fixture.posting(&alice, None, initialize())
        };
        let mut starting = fixture.child().await;
        let registry = fixture.registry.clone();
        let begun = tokio::time::Instant::now();
        let stopping = tokio::spawn(async move { registry.shut_down(Duration::from_secs(3)).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        starting.welcomes().await;
        starting.is_stopped().await;
        stopping.await.expect("no panic");
        assert!(begun.elapsed() < Duration::from_secs(10), "waking {waking}: {:?}", begun.elapsed());
        let answer = body(calling.await.expect("no panic")).await;
        assert!(answer.get("error").is_some() || !waking, "{answer}");
        until_cold(&fixture).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_endless_call_holds_up_only_itself_while_the_broker_stops() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (endless, mut one) = fixture.open(&alice).await;
    let (other, mut two) = fixture.open(&alice).await;
    let _calling = fixture.posting(&alice, Some(&endless), call(1, "endless"));
    one.hears().await.expect("the call");
    let registry = fixture.registry.clone();
    let draining = tokio::spawn(async move { registry.drain(Duration::from_secs(5)).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let meanwhile = fixture.posting(&alice, Some(&other), call(2, "x"));
    two.answers(json!({"served": "during the drain"})).await;
    assert_eq!(body(meanwhile.await.expect("no panic")).await["result"]["served"], "during the drain");
    assert!(!draining.await.expect("no panic"), "the endless call outlasts the drain");
}

#[tokio::test(start_paused = true)]
async fn what_comes_in_during_a_drain_does_not_prolong_it() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let first = fixture.posting(&alice, Some(&id), call(1, "x"));
    let heard = child.hears().await.expect("the call");
    let registry = fixture.registry.clone();
    let draining = tokio::spawn(async move { registry.drain(Duration::from_secs(60)).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _second = fixture.posting(&alice, Some(&id), call(2, "x"));
    child.hears().await.expect("the second call");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    first.await.expect("no panic");
    assert!(draining.await.expect("no panic"));
}
