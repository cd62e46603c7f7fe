//! No token acts for a user of whom Forgejo does not say that it is theirs.

use super::*;

use crate::forge::rotation::Standing;
use crate::tests::captured_log::CapturedLog;
use harness::forge::state::Grant;

/// Gives the number of the grant behind the scene's credential to another user of the same application.
fn give_the_grant_to(scene: &Scene, user: i64) {
    scene.forge.with(|state| state.grants.iter_mut().for_each(|grant| grant.user = user));
}

fn add_user(scene: &Scene, login: &str) -> i64 {
    scene.forge.with(|state| state.add_user(login, "secret", false))
}

async fn is_revoked(scene: &Scene, grant: &GrantId) -> bool {
    scene.store.find_grant(grant).await.expect("read").is_none_or(|row| row.revoked)
}

#[tokio::test]
async fn a_refresh_that_brings_another_users_token_ends_the_grants_and_hands_it_to_nobody() {
    let mut scene = Scene::new().await;
    let bob = add_user(&scene, "bob");
    give_the_grant_to(&scene, bob);
    scene.pass(56);
    scene.rotation.sweep().await;
    assert_eq!(scene.refreshes(), 1);
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(grants())));
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
    let stored = scene.store.find_credential(CREDENTIAL).await.expect("read").expect("there");
    assert!(stored.access.bytes.is_empty() && stored.refresh.is_none(), "nobody here has a right to it");
}

#[tokio::test]
async fn such_a_token_is_an_alarm_that_operators_can_search_for_and_holds_no_token() {
    let scene = Scene::new().await;
    let (log, _here) = CapturedLog::begin();
    let bob = add_user(&scene, "bob");
    give_the_grant_to(&scene, bob);
    assert_eq!(scene.rotation.look_again(&GrantId::new("grant")).await, Standing::Ended);
    let said = log.text();
    let alarm = said.lines().find(|line| line.contains("foreign-account")).expect("an alarm");
    let message_id = wire::telemetry::message_id::FOREIGN_ACCOUNT;
    assert!(alarm.contains("ERROR") && alarm.contains(message_id) && alarm.contains("tenant=1"), "{alarm}");
    assert!(!said.contains(scene.first.expose()), "{said}");
}

#[tokio::test]
async fn whoever_comes_first_after_such_a_refresh_is_refused_and_not_served_as_another() {
    let scene = Scene::new().await;
    let bob = add_user(&scene, "bob");
    give_the_grant_to(&scene, bob);
    scene.pass(61);
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn a_grants_number_that_was_given_out_again_is_noticed_without_a_refresh() {
    let mut scene = Scene::new().await;
    let bob = add_user(&scene, "bob");
    give_the_grant_to(&scene, bob);
    assert_eq!(scene.upstream().await.expect("an hour's word is believed"), scene.first);
    scene.store.age_owner_checks().await.expect("aged");
    assert_eq!(scene.rotation.look_again(&GrantId::new("grant")).await, Standing::Ended);
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(grants())));
    assert_eq!(scene.refreshes(), 0);
}

#[tokio::test]
async fn a_personal_token_that_is_another_users_now_is_found_within_the_hour() {
    let mut scene = Scene::new().await;
    let grant = scene.personal().await;
    let bob = add_user(&scene, "bob");
    scene.forge.with(|state| state.tokens.values_mut().for_each(|token| token.user = bob));
    scene.pass(61);
    scene.rotation.recheck().await;
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(vec![grant.clone()])));
    assert!(is_revoked(&scene, &grant).await);
    assert!(!is_revoked(&scene, &GrantId::new("grant")).await, "what stands on the user's own token goes on");
}

#[tokio::test]
async fn in_a_forge_that_was_set_up_anew_nobody_becomes_whoever_has_their_number() {
    let mut scene = Scene::new().await;
    let personal = scene.personal().await;
    // The first look tells when the account was made.
    scene.pass(56);
    scene.rotation.sweep().await;
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Rotated(grants())));
    let (app, counter) = scene.forge.with(|state| {
        let counter = state.grants.first().map(|grant| grant.counter).expect("a grant");
        (state.apps.pop().expect("an app"), counter)
    });
    scene.forge.with(|state| {
        state.reset(false);
        let bob = state.add_user("bob", "secret", false);
        assert_eq!(bob, 1, "alice's number");
        let (scope, nonce) = ("write:user".to_owned(), String::new());
        state.grants.push(Grant { id: 77, user: bob, app: app.id, scope, nonce, counter, unused: None });
        state.apps.push(app);
    });
    scene.pass(56);
    scene.rotation.sweep().await;
    assert_eq!(scene.refreshes(), 2, "the new forge takes the old token");
    let Some(Change::Lost(mut ended)) = scene.changes.try_recv().ok() else { panic!("nothing has ended") };
    ended.sort();
    assert_eq!(ended, vec![GrantId::new("grant"), personal.clone()], "all that the earlier account had");
    assert!(is_revoked(&scene, &personal).await);
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn a_new_token_is_handed_out_only_when_forgejo_has_said_whose_it_is() {
    let mut scene = Scene::new().await;
    scene.pass(56);
    scene.mode(|mode| mode.fail_api = true);
    assert_eq!(scene.upstream().await.expect("the old one"), scene.first, "it is good for four minutes more");
    assert_eq!(scene.refreshes(), 1);
    assert!(scene.changes.try_recv().is_err(), "no child is given a token that nobody vouches for");
    assert_eq!(scene.upstream().await, Err(Denied::Unavailable));
    scene.mode(|_| {});
    scene.pass(1);
    scene.rotation.recheck().await;
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Rotated(grants())));
    assert_ne!(scene.upstream().await.expect("the new one"), scene.first);
}

#[tokio::test]
async fn while_forgejo_is_away_a_token_that_was_its_users_before_is_used_on() {
    let mut scene = Scene::new().await;
    let grant = scene.personal().await;
    scene.pass(61);
    scene.mode(|mode| mode.fail = Some(502));
    assert!(scene.principals.behind(&grant).await.is_some());
    let looks = scene.looks();
    assert!(scene.principals.behind(&grant).await.is_some());
    assert_eq!(scene.looks(), looks, "and it is not asked each time");
    scene.mode(|_| {});
    scene.forge.with(|state| state.users.iter_mut().for_each(|user| user.active = false));
    scene.pass(1);
    assert!(scene.principals.behind(&grant).await.is_none(), "back again, it is asked first");
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(vec![grant])));
}

#[tokio::test]
async fn while_the_store_takes_nothing_a_token_that_was_its_users_before_is_used_on_as_forgejo_says() {
    let scene = Scene::new().await;
    let grant = scene.personal().await;
    scene.pass(61);
    assert!(scene.principals.behind(&grant).await.is_some());
    scene.store.refuse_notes().await;
    scene.pass(61);
    let looks = scene.looks();
    for _ in 0..2 {
        assert!(scene.principals.behind(&grant).await.is_some());
        assert_eq!(scene.looks(), looks + 1, "its word is good for an hour, also where the store has not taken it");
    }
    scene.forge.with(|state| state.users.iter_mut().for_each(|user| user.active = false));
    scene.pass(61);
    for _ in 0..2 {
        assert!(scene.principals.behind(&grant).await.is_none());
    }
}

#[tokio::test]
async fn a_child_that_dies_at_its_start_has_forgejo_asked_whether_the_token_is_still_good() {
    let mut scene = Scene::new().await;
    let grant = GrantId::new("grant");
    assert_eq!(scene.rotation.look_again(&grant).await, Standing::Good);
    assert_eq!(scene.looks(), 1, "asked once, although the last answer is fresh");
    scene.mode(|mode| mode.fail = Some(502));
    assert_eq!(scene.rotation.look_again(&grant).await, Standing::Unknown);
    assert!(!is_revoked(&scene, &grant).await);
    scene.mode(|_| {});
    scene.pass(1);
    // As when the user takes the access back at Forgejo.
    scene.forge.with(|state| state.grants.clear());
    assert_eq!(scene.rotation.look_again(&grant).await, Standing::Ended);
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(grants())));
    assert_eq!(scene.upstream().await, Err(Denied::Revoked), "so that the client logs in again");
    assert_eq!(scene.rotation.look_again(&grant).await, Standing::Ended);
}
