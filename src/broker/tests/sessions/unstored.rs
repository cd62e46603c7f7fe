//! What became of a session while the store took nothing is stored as soon as it does.

use std::time::Duration;

use serde_json::json;

use crate::tests::sessions::binding::later;
use crate::tests::sessions::fixture::{Fixture, call, caller, config};

/// Sessions that a broker finds that starts now, and those of them that end with this grant.
async fn after_a_restart(fixture: &Fixture, grant: &str) -> (usize, usize) {
    let next = Fixture::over(config(), fixture.records.clone()).await;
    let sessions = next.registry.counts().0;
    (sessions, next.registry.end_grant(&caller(1, grant).grant, "revoked"))
}

/// Until the change that is under way was tried.
async fn tried(fixture: &Fixture) {
    while fixture.registry.unstored() == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_store_does_not_take_is_stored_by_the_next_sweep_that_can() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (_, mut child) = fixture.open(&alice).await;
    fixture.records.fail(true);
    assert_eq!(fixture.registry.end_grant(&alice.grant, "ended-by-operator"), 1);
    child.is_stopped().await;
    tried(&fixture).await;
    fixture.registry.sweep().await;
    assert_eq!(after_a_restart(&fixture, "g1").await.0, 1, "it would be back");
    fixture.records.fail(false);
    fixture.registry.sweep().await;
    assert_eq!(after_a_restart(&fixture, "g1").await.0, 0);
    assert_eq!(fixture.registry.unstored(), 0, "it is stored once");
}

#[tokio::test(start_paused = true)]
async fn a_stop_stores_what_the_store_did_not_take_before() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (_, mut child) = fixture.open(&alice).await;
    fixture.records.fail(true);
    fixture.registry.end_grant(&alice.grant, "ended-by-operator");
    child.is_stopped().await;
    tried(&fixture).await;
    fixture.records.fail(false);
    fixture.registry.shut_down(Duration::ZERO).await;
    assert_eq!(after_a_restart(&fixture, "g1").await.0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_move_that_the_store_does_not_take_is_stored_later_unless_the_session_ends_meanwhile() {
    for ends in [false, true] {
        let mut fixture = Fixture::new(config()).await;
        let (id, mut child) = fixture.open(&caller(1, "g1")).await;
        fixture.records.fail(true);
        let calling = fixture.posting(&later("g2"), Some(&id), call(1, "whoami"));
        child.answers(json!({})).await;
        calling.await.expect("no panic");
        tried(&fixture).await;
        if ends {
            assert_eq!(fixture.registry.end_grant(&later("g2").grant, "revoked"), 1);
            child.is_stopped().await;
            fixture.registry.sweep().await;
        }
        fixture.records.fail(false);
        fixture.registry.sweep().await;
        let left = usize::from(!ends);
        assert_eq!(after_a_restart(&fixture, "g2").await, (left, left));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_has_set_is_stored_by_the_next_sweep_that_can() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let set = json!({"jsonrpc": "2.0", "id": 1, "method": "logging/setLevel", "params": {"level": "debug"}});
    let setting = fixture.posting(&alice, Some(&id), set);
    child.answers(json!({})).await;
    setting.await.expect("no panic");
    fixture.records.fail(true);
    fixture.registry.sweep().await;
    fixture.records.fail(false);
    fixture.registry.sweep().await;
    let stored = fixture.records.settings();
    assert!(stored.iter().all(|settings| settings.contains("debug")), "{stored:?}");
}
