//! A database belongs to one forge.

use super::*;

use crate::forge::identity::{self, Adoption, ForgeError};

impl Scene {
    fn forgejo(&self) -> Forgejo {
        Forgejo::new(&self.forge.with(|state| state.root.clone())).expect("a client")
    }

    async fn settles(&self) -> Result<(), ForgeError> {
        identity::settle(&self.store, &self.forgejo(), self.clock.now()).await
    }
}

/// Another address of the same forge.
fn elsewhere(scene: &Scene) -> Forgejo {
    let root = scene.forge.with(|state| state.root.clone());
    Forgejo::new(&root.replace("127.0.0.1", "localhost")).expect("a client")
}

#[tokio::test]
async fn a_forge_that_was_set_up_anew_under_its_address_is_refused_with_both_named() {
    let scene = Scene::new().await;
    scene.settles().await.expect("noted");
    scene.settles().await.expect("the same");
    scene.forge.with(|state| state.reset(true));
    let refused = scene.settles().await.expect_err("another one");
    let said = refused.to_string();
    assert!(said.matches("signing keys ").count() == 2 && said.contains("--adopt-forge other"), "{said}");
    assert_eq!(identity::adopt(&scene.store, &scene.forgejo(), Adoption::Other, scene.clock.now()).await.ok(), Some(1));
    scene.settles().await.expect("adopted");
    assert_eq!(scene.upstream().await, Err(Denied::Revoked), "nobody of before is anybody now");
}

#[tokio::test]
async fn a_forge_that_moved_is_the_same_by_its_keys_and_by_the_operators_word_without_them() {
    let scene = Scene::new().await;
    scene.settles().await.expect("noted");
    let (store, now) = (&scene.store, scene.clock.now());
    identity::settle(store, &elsewhere(&scene), now).await.expect("the same keys");
    scene.mode(|mode| mode.fail = Some(503));
    let refused = scene.settles().await.expect_err("it may be anybody");
    assert!(refused.to_string().contains("signing keys unknown"), "{refused}");
    identity::settle(store, &elsewhere(&scene), now).await.expect("away, and nothing says that it is another");
    identity::adopt(store, &scene.forgejo(), Adoption::Same, now).await.expect("adopted");
    scene.settles().await.expect("by its address");
    scene.mode(|_| {});
    assert_eq!(scene.upstream().await.expect("good"), scene.first, "who was connected stays connected");
}

#[tokio::test]
async fn a_forge_that_changes_under_a_running_broker_has_every_account_looked_at() {
    let scene = Scene::new().await;
    scene.rotation.recheck_forge().await;
    scene.forge.with(|state| state.signing_key = 7);
    scene.pass(20);
    scene.rotation.recheck_forge().await;
    assert_eq!(scene.upstream().await.expect("not noticed yet"), scene.first, "it is asked once an hour");
    scene.pass(41);
    scene.rotation.recheck_forge().await;
    let check = scene.store.owner_check(CREDENTIAL).await.expect("read").expect("checked");
    assert_eq!(check.at, UnixTime::from_secs(0));
}
