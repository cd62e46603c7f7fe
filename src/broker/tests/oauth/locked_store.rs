//! Another program holds the database's write lock, such as an operator's `sqlite3`: who only reads does not wait for it.

use std::time::Duration;

use crate::tests::oauth::fixture::{Fixture, WEB, alices_number};
use harness::user_agent::UserAgent;
use tokio::task::JoinHandle;

/// A write that waits for the lock. Whoever ends before it has not waited behind writes.
async fn waiting_write(fixture: &Fixture) -> JoinHandle<()> {
    let (store, begun) = (fixture.store.clone(), std::sync::Arc::new(tokio::sync::Notify::new()));
    let told = std::sync::Arc::clone(&begun);
    let write = tokio::spawn(async move {
        told.notify_one();
        drop(store.probe().await);
    });
    begun.notified().await;
    write
}

#[tokio::test]
async fn pages_and_bearer_checks_do_not_wait_for_a_write_and_what_they_note_is_written_later() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (used, _) = fixture.connect(&mut alice, &client, WEB).await;
    let (unseen, _) = fixture.connect(&mut alice, &client, WEB).await;
    fixture.who(&used).await.expect("a use that waits to be written");
    // So that Forgejo is asked, and its answer is to be kept.
    fixture.store.age_owner_checks().await.expect("aged");
    let locked = fixture.store.locked_by_another().await;
    let write = waiting_write(&fixture).await;
    let page = alice.open(format!("{}/account", fixture.url)).await;
    assert!(page.status == 200 && page.text.contains("last used just now"), "{}", page.text);
    let page = alice.open(fixture.authorize(&client, WEB, &[("prompt", "consent")])).await;
    assert!(page.text.contains("/oauth/consent"), "{}", page.text);
    for token in [&used, &unseen] {
        assert!(fixture.who(token).await.is_ok());
    }
    assert!(!write.is_finished(), "all of that before a write that came earlier");
    drop(locked);
    write.await.expect("no panic");
    fixture.revocation.principals.flush_uses().await;
    let connections = fixture.store.connections_of(alices_number()).await.expect("read");
    assert_eq!(connections.iter().filter(|one| one.last_used_at.is_some()).count(), 2);
    let id = fixture.store.oauth_credential_of(alices_number()).await.expect("read").expect("there");
    let kept = async {
        while fixture.store.owner_check(&id).await.expect("read").is_none_or(|check| check.at != fixture.clock.now()) {
            harness::look_again().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), kept).await.expect("Forgejo's answer is kept");
}

#[tokio::test]
async fn a_token_is_used_on_while_its_successor_waits_to_be_stored() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (access, _) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    let id = fixture.store.oauth_credential_of(alices_number()).await.expect("read").expect("there");
    let stored = async || fixture.store.find_credential(&id).await.expect("read").expect("there").refresh;
    let before = stored().await;
    fixture.clock.advance(Duration::from_mins(56));
    let locked = fixture.store.locked_by_another().await;
    let write = waiting_write(&fixture).await;
    assert!(fixture.who(&access).await.is_ok());
    assert!(!write.is_finished() && stored().await == before, "before the successor is stored");
    drop(locked);
    write.await.expect("no panic");
    fixture.rotation.finish(Duration::from_secs(60)).await;
    assert!(stored().await != before, "and nothing is lost");
}
