//! A new application at Forgejo: nobody's tokens are shown to it, and who must log in again is said.

use super::*;

/// A broker of the same store with another application, registered there or not.
fn moved_on(scene: &Scene, is_registered: bool) -> (Rotation, Principals) {
    let application = scene.forge.with(|state| {
        let app = state.add_app(0, "new", true, Vec::new());
        let app = state.app(app).expect("an app");
        let client_id = if is_registered { app.client_id.clone() } else { "mistyped".to_owned() };
        let client_secret = UpstreamToken::parse(app.secret.clone()).expect("a secret");
        Application { client_id, client_secret, scopes: Vec::new() }
    });
    let url = scene.forge.with(|state| state.root.clone());
    let (rotation, _) = Rotation::new(
        scene.store.clone(),
        Arc::clone(&scene.vault),
        Forgejo::new(&url).expect("a client"),
        Some(application),
        Access::default(),
        scene.clock.clone(),
        Duration::from_mins(5),
    );
    let challenge = Challenge { resource_metadata: None, scope: "forgejo:read", is_bare: false };
    let (store, vault) = (scene.store.clone(), Arc::clone(&scene.vault));
    let principals = Principals::new(store, vault, scene.clock.clone(), challenge, Some(rotation.clone()));
    (rotation, principals)
}

#[tokio::test]
async fn a_refresh_token_is_never_shown_to_another_application_and_its_user_logs_in_when_the_token_ends() {
    let scene = Scene::new().await;
    scene.rotation.begin().await.expect("noted");
    let (rotation, principals) = moved_on(&scene, true);
    rotation.begin().await.expect("noted");
    let grant = GrantId::new("grant");
    scene.pass(56);
    assert!(principals.authenticate(&scene.headers).await.is_ok(), "the token is good until its end");
    assert!(!rotation.needs_login(&grant).await.expect("read"));
    scene.pass(5);
    assert_eq!(principals.authenticate(&scene.headers).await.map(|_| ()), Err(Denied::Revoked));
    assert!(rotation.needs_login(&grant).await.expect("read"));
    assert_eq!(scene.refreshes(), 0, "nothing was shown to it");
    let row = scene.store.find_grant(&grant).await.expect("read").expect("there");
    assert!(!row.revoked, "one login brings all of the user's connections a token again");
    // The one before it is put back.
    assert!(scene.upstream().await.is_ok());
}

#[tokio::test]
async fn a_mistyped_application_logs_nobody_out() {
    let scene = Scene::new().await;
    scene.rotation.begin().await.expect("noted");
    let (rotation, principals) = moved_on(&scene, false);
    scene.pass(61);
    assert_eq!(principals.authenticate(&scene.headers).await.map(|_| ()), Err(Denied::Unavailable));
    assert!(!rotation.needs_login(&GrantId::new("grant")).await.expect("read"));
}

#[tokio::test]
async fn who_must_log_in_again_is_counted_with_the_reason_until_they_have() {
    let scene = Scene::new().await;
    scene.rotation.begin().await.expect("noted");
    assert_eq!(scene.rotation.cut_off().await.expect("counted"), []);
    let (rotation, _) = moved_on(&scene, true);
    let [(1, why)] = rotation.cut_off().await.expect("counted")[..] else { panic!("not one") };
    assert!(why.contains("client_id"), "{why}");
    scene.forge.with(|state| state.grants.clear());
    scene.pass(61);
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
    let [(1, why)] = scene.rotation.cut_off().await.expect("counted")[..] else { panic!("not one") };
    assert!(why.contains("refuses their refresh tokens"), "{why}");
    scene.pass(31 * 24 * 60);
    assert_eq!(scene.rotation.cut_off().await.expect("counted"), [], "they have heard of it");
}
