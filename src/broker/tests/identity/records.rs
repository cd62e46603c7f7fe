//! Session records in the real store: written when a session opens and ends, and gone when they are old.

use std::time::Duration;

use crate::store::{SessionDigest, SessionRecord, StoreError};

use crate::tests::identity::fixture::{Fixture, START, fixture, grant};

fn record(fixture: &Fixture, n: u8) -> SessionRecord {
    SessionRecord {
        digest: SessionDigest([n; 32]),
        grant: fixture.grant.clone(),
        tenant: wire::message::TenantId::new(1).expect("an id"),
        protocol_version: "2025-06-18".to_owned(),
        initialize: r#"{"capabilities":{}}"#.to_owned(),
        answer: r#"{"capabilities":{"tools":{}}}"#.to_owned(),
        created_at: START,
        last_used_at: START,
        settings: "{}".to_owned(),
    }
}

#[tokio::test]
async fn a_session_is_found_as_it_was_stored_until_it_ends() {
    let fixture = fixture().await;
    let (one, two) = (record(&fixture, 1), record(&fixture, 2));
    for session in [&one, &two] {
        fixture.store.insert_session(session).await.expect("stored");
    }
    assert_eq!(fixture.store.find_session(&one.digest).await.expect("readable"), Some(one.clone()));
    let later = START.plus(Duration::from_secs(60));
    fixture.store.touch_sessions(&[(one.digest, later), (two.digest, later)]).await.expect("stored");
    fixture.store.end_session(&two.digest, "client-ended", later).await.expect("stored");
    assert_eq!(fixture.store.find_session(&two.digest).await.expect("readable"), None);
    let live = fixture.store.live_sessions().await.expect("readable");
    assert_eq!(live.iter().map(|live| (live.digest, live.last_used_at)).collect::<Vec<_>>(), [(one.digest, later)]);
    let connections = fixture.store.connections_of(one.tenant).await.expect("readable");
    assert_eq!(connections.iter().map(|of| of.sessions).collect::<Vec<_>>(), [1], "as the account page counts them");
    assert_eq!(fixture.store.forget_sessions(later).await.expect("removed"), 0, "not old yet");
    assert_eq!(fixture.store.forget_sessions(later.plus(Duration::from_secs(1))).await.expect("removed"), 1);
}

#[tokio::test]
async fn the_sessions_of_a_revoked_grant_do_not_come_back_after_a_restart() {
    let fixture = fixture().await;
    fixture.store.insert_session(&record(&fixture, 1)).await.expect("stored");
    fixture.store.revoke_grant(&fixture.grant, "operator", START).await.expect("revoked");
    let late = fixture.store.insert_session(&record(&fixture, 2)).await;
    assert!(matches!(late, Err(StoreError::GrantRevoked)), "nor is one opened that came too late: {late:?}");
    assert!(fixture.store.live_sessions().await.expect("readable").is_empty());
    fixture.store.probe().await.expect("it goes on");
}

#[tokio::test]
async fn a_session_that_has_moved_lives_as_long_as_the_grant_that_it_has_moved_to() {
    let fixture = fixture().await;
    let session = record(&fixture, 1);
    fixture.store.insert_session(&session).await.expect("stored");
    let (another, _) = grant(&fixture.vault, "grant-2", 1);
    fixture.store.insert_grant(&another).await.expect("stored");
    let later = another.grant;
    fixture.store.move_session(&session.digest, &later).await.expect("stored");
    fixture.store.revoke_grant(&fixture.grant, "operator", START).await.expect("revoked");
    let live = fixture.store.live_sessions().await.expect("readable");
    assert_eq!(live.iter().map(|live| &live.given.grant).collect::<Vec<_>>(), [&later]);
    let back = fixture.store.move_session(&session.digest, &fixture.grant).await;
    assert!(matches!(back, Err(StoreError::GrantRevoked)), "never to one that is over: {back:?}");
}

#[tokio::test]
async fn what_a_client_has_set_is_kept_with_its_session() {
    let fixture = fixture().await;
    fixture.store.insert_session(&record(&fixture, 1)).await.expect("stored");
    let kept = vec![(SessionDigest([1; 32]), r#"{"level":"x"}"#.to_owned())];
    fixture.store.keep_session_settings(&kept).await.expect("stored");
    let found = fixture.store.find_session(&SessionDigest([1; 32])).await.expect("read").expect("there");
    assert_eq!(found.settings, r#"{"level":"x"}"#);
}

#[tokio::test]
async fn what_a_client_opened_its_session_with_leaves_the_file_when_the_session_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("broker.db");
    let store = crate::store::Store::open(&path).await.expect("a store");
    let (new, _) = crate::tests::identity::fixture::grant(&crate::tests::identity::fixture::vault(), "grant-1", 1);
    store.insert_grant(&new).await.expect("stored");
    let fixture = fixture().await;
    for n in 0..10 {
        let opened = SessionRecord { initialize: "x".repeat(5 * 1024 * 1024), ..record(&fixture, n) };
        store.insert_session(&opened).await.expect("stored");
        store.end_session(&opened.digest, "client-ended", START).await.expect("ended");
    }
    store.tidy(START).await.expect("tidied");
    store.close().await;
    let size = path.metadata().expect("there").len();
    assert!(size < 4 * 1024 * 1024, "{size} bytes are left");
}
