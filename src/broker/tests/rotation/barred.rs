//! What Forgejo says no to for now waits, and is not ended.

use super::*;

use crate::forge::rotation::Standing;
use harness::forge::state::User;

/// A scene in which accounts may be barred for two weeks.
async fn scene() -> Scene {
    let scene = Scene::new().await;
    let access = Access { revoke_barred_after: Duration::from_hours(14 * 24), ..Access::default() };
    scene.rotation.lists().replace(access);
    scene
}

fn everybody(scene: &Scene, change: impl FnMut(&mut User)) {
    scene.forge.with(|state| state.users.iter_mut().for_each(change));
}

#[tokio::test]
async fn an_account_that_must_change_its_password_is_refused_until_it_has_and_loses_nothing() {
    let ways: [fn(&mut User, bool); 3] =
        [|user, on| user.must_change_password = on, |user, on| user.prohibit_login = on, |user, on| user.active = !on];
    for bar in ways {
        let mut scene = scene().await;
        everybody(&scene, |user| bar(user, true));
        scene.pass(61);
        assert_eq!(scene.upstream().await, Err(Denied::Barred));
        assert_eq!(scene.changes.try_recv().ok(), Some(Change::Barred(grants())), "its children are stopped");
        let looks = scene.looks();
        assert_eq!(scene.upstream().await, Err(Denied::Barred));
        assert_eq!(scene.looks(), looks, "Forgejo is not asked with each request");
        everybody(&scene, |user| bar(user, false));
        scene.clock.advance(Duration::from_secs(11));
        assert!(scene.upstream().await.is_ok(), "ten seconds later it goes on");
        assert!(scene.rotation.fresh(CREDENTIAL).await.is_ok());
        let stored = scene.store.find_credential(CREDENTIAL).await.expect("read").expect("there");
        assert_eq!(stored.barred_since, None);
    }
}

#[tokio::test]
async fn who_is_barred_stays_so_over_a_restart_and_while_forgejo_is_away() {
    let scene = scene().await;
    everybody(&scene, |user| user.active = false);
    scene.pass(61);
    assert_eq!(scene.upstream().await, Err(Denied::Barred));
    let (rotation, _changes) = Rotation::new(
        scene.store.clone(),
        Arc::clone(&scene.vault),
        Forgejo::new(&scene.forge.with(|state| state.root.clone())).expect("a client"),
        None,
        scene.rotation.lists().clone(),
        scene.clock.clone(),
        Duration::from_mins(5),
    );
    scene.mode(|mode| mode.fail = Some(502));
    assert!(matches!(rotation.fresh(CREDENTIAL).await, Err(RotationError::Barred)));
    scene.clock.advance(Duration::from_secs(11));
    assert_eq!(scene.upstream().await, Err(Denied::Barred), "although the token was good an hour ago");
}

#[tokio::test]
async fn an_account_that_stays_barred_for_too_long_loses_its_grants_without_anybody_asking() {
    let mut scene = scene().await;
    everybody(&scene, |user| user.prohibit_login = true);
    let mut ended = None;
    let mut days = 0;
    while ended.is_none() && days < 20 {
        scene.pass(61);
        scene.rotation.sweep().await;
        scene.rotation.recheck().await;
        while let Ok(change) = scene.changes.try_recv() {
            ended = matches!(change, Change::Lost(_)).then_some(change);
        }
        scene.pass(23 * 60 - 1);
        days += 1;
    }
    assert_eq!(ended, Some(Change::Lost(grants())));
    assert_eq!(days, 15, "after two weeks");
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn a_deleted_account_is_gone_at_once() {
    let mut scene = scene().await;
    scene.forge.with(|state| state.remove_user(1));
    scene.pass(61);
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(grants())));
}

#[tokio::test]
async fn when_the_store_takes_nothing_a_barred_account_is_refused_all_the_same() {
    let scene = scene().await;
    let grant = scene.personal().await;
    scene.pass(61);
    assert!(scene.principals.behind(&grant).await.is_some());
    scene.store.refuse_notes().await;
    everybody(&scene, |user| user.active = false);
    scene.pass(61);
    for _ in 0..3 {
        assert!(scene.principals.behind(&grant).await.is_none());
    }
}

#[tokio::test]
async fn a_child_that_says_its_token_is_refused_has_forgejo_asked_once_a_minute() {
    let scene = scene().await;
    let grant = GrantId::new("grant");
    assert_eq!(scene.rotation.look_at_doubted(&grant).await, Some(Standing::Good));
    let looks = scene.looks();
    for _ in 0..20 {
        assert_eq!(scene.rotation.look_at_doubted(&grant).await, None, "a child is no lever");
    }
    assert_eq!(scene.looks(), looks);
    scene.forge.with(|state| state.grants.clear());
    scene.pass(1);
    assert_eq!(scene.rotation.look_at_doubted(&grant).await, Some(Standing::Ended));
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}
