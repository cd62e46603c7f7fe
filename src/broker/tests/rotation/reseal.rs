//! The key that seals Forgejo's tokens is replaced while everything goes on.

use super::*;

use crate::forge::rotation::ResealError;
use crate::forge::vault::KeyFile;

impl Scene {
    /// The vault as a broker after this one opens it.
    async fn reopened(&self) -> Vault {
        let sealed = self.store.sealing_key_ids().await.expect("read");
        Vault::open(self.vault.file().clone(), &sealed, &mut SysRng).expect("every key is there")
    }

    async fn stored(&self, vault: &Vault) -> UpstreamToken {
        let stored = self.store.find_credential(CREDENTIAL).await.expect("read").expect("there");
        vault.open_sealed(&stored.access, &vault::access_place(CREDENTIAL)).expect("opens")
    }
}

#[tokio::test]
async fn after_the_key_was_replaced_everything_is_sealed_under_the_new_one_and_nobody_noticed() {
    let mut scene = Scene::new().await;
    let personal = scene.personal().await;
    let old = scene.vault.key_id();
    assert_eq!(scene.rotation.replace_key().await.expect("replaced"), 2);
    let new = scene.vault.key_id();
    assert_ne!(old, new);
    assert_eq!(scene.store.sealing_keys().await.expect("read"), vec![(new, 2)]);
    assert_eq!(scene.stored(&scene.reopened().await).await, scene.first);
    assert_eq!(scene.upstream().await.expect("good"), scene.first);
    assert!(scene.principals.behind(&personal).await.is_some());
    assert_eq!(scene.looks(), 0, "it is the same token, which nobody needs to ask about again");
    scene.pass(56);
    scene.rotation.sweep().await;
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Rotated(grants())), "the refresh token is good too");
}

#[tokio::test]
async fn a_refresh_that_is_under_way_is_stored_and_the_old_key_waits_for_it() {
    let scene = Scene::new().await;
    // Ended, so that the refresh is waited for.
    scene.pass(61);
    scene.mode(|mode| mode.hang = true);
    let rotation = scene.rotation.clone();
    let refresh = tokio::spawn(async move { rotation.fresh(CREDENTIAL).await });
    while scene.refreshes() == 0 {
        harness::look_again().await;
    }
    let (rotation, old) = (scene.rotation.clone(), scene.vault.key_id());
    let replacing = tokio::spawn(async move { rotation.replace_key().await });
    while scene.vault.key_id() == old {
        harness::look_again().await;
    }
    assert_eq!(scene.vault.older_key_id(), Some(old));
    assert!(matches!(scene.rotation.replace_key().await, Err(ResealError::UnderWay)));
    scene.mode(|_| {});
    let fresh = refresh.await.expect("no panic").expect("a token").token;
    replacing.await.expect("no panic").expect("replaced");
    assert_eq!(scene.stored(&scene.reopened().await).await, fresh);
}

#[tokio::test]
async fn what_a_broker_has_begun_the_next_one_ends() {
    let scene = Scene::new().await;
    scene.personal().await;
    scene.vault.begin_replacing(&mut SysRng).expect("begun");
    // Killed here, the next one has both keys.
    assert_eq!(scene.stored(&scene.reopened().await).await, scene.first);
    scene.rotation.go_on_replacing_key().await;
    assert_eq!(scene.vault.older_key_id(), None);
    assert_eq!(scene.store.sealing_keys().await.expect("read"), vec![(scene.vault.key_id(), 2)]);
    assert_eq!(scene.stored(&scene.reopened().await).await, scene.first);
    scene.rotation.go_on_replacing_key().await;
    assert_eq!(scene.store.sealing_keys().await.expect("read"), vec![(scene.vault.key_id(), 2)], "and not twice");
}

#[tokio::test]
async fn what_is_sealed_under_a_lost_key_is_given_up_and_nothing_else() {
    let scene = Scene::new().await;
    let personal = scene.personal().await;
    let lost = scene.vault.key_id();
    scene.vault.begin_replacing(&mut SysRng).expect("begun");
    let kept = scene.store.find_credential("personal-alice").await.expect("read").expect("there");
    let place = vault::access_place(&kept.id);
    let token = scene.vault.open_sealed(&kept.access, &place).expect("opens");
    let anew = Credential { access: scene.vault.seal(&token, &place, &mut SysRng).expect("sealed"), ..kept.clone() };
    scene.store.reseal(&kept, &anew).await.expect("stored");
    let ended = scene.store.forget_sealed_under(&lost, scene.clock.now()).await.expect("given up");
    assert_eq!(ended, grants());
    assert_eq!(scene.store.sealing_keys().await.expect("read"), vec![(scene.vault.key_id(), 1)]);
    assert!(scene.principals.behind(&personal).await.is_some());
    assert_eq!(scene.upstream().await, Err(Denied::Revoked), "so that the client logs in again");
    let file = KeyFile { path: scene.vault.file().path.with_extension("next"), managed: false };
    let needed = [scene.vault.key_id()];
    assert!(Vault::open(file, &needed, &mut SysRng).is_ok(), "the key that is left is enough");
}
