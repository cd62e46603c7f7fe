//! A login on the operator's lists stands for the account that it was when the lists were read.

use super::*;

use crate::forge::access::{AccessError, NotAdmitted};
use crate::forge::identity::{self, Adoption};
use crate::tests::captured_log::CapturedLog;

fn lists(allow: &[&str], deny: &[&str]) -> Access {
    let list = |entries: &[&str]| entries.iter().map(|entry| entry.parse().expect("a subject")).collect();
    Access { allow: list(allow), deny: list(deny), ..Access::default() }
}

impl Scene {
    async fn load(&self, allow: &[&str], deny: &[&str]) -> usize {
        self.rotation.lists().replace(lists(allow, deny));
        self.rotation.apply_lists().await.expect("applied")
    }

    fn rename(&self, from: &str, to: &str) {
        assert!(self.forge.with(|state| state.rename_user(from, to)), "{from} to {to}");
    }

    /// Somebody comes whose login this is, and is let in or not.
    async fn comes(&self, login: &str) -> bool {
        let token = self.forge.with(|state| {
            if state.user_by_login(login).is_none() {
                state.add_user(login, "secret", false);
            }
            state.add_token(login, "read:user").expect("a token")
        });
        let token = UpstreamToken::parse(token).expect("a token");
        let forgejo = Forgejo::new(&self.forge.with(|state| state.root.clone())).expect("a client");
        let user = forgejo.whoami(&token).await.expect("somebody");
        match self.rotation.admits(&user, &token).await {
            Ok(()) => true,
            Err(AccessError::NotAdmitted(NotAdmitted::Lists)) => false,
            Err(e) => panic!("{e}"),
        }
    }

    /// A broker that is started anew over the same store.
    fn restarted(&self) -> Rotation {
        let (store, vault, clock) = (self.store.clone(), Arc::clone(&self.vault), self.clock.clone());
        let forgejo = Forgejo::new(&self.forge.with(|state| state.root.clone())).expect("a client");
        Rotation::new(store, vault, forgejo, None, Access::default(), clock, Duration::from_mins(5)).0
    }
}

#[tokio::test]
async fn who_is_allowed_by_login_stays_so_under_another_and_who_takes_the_login_is_not() {
    let scene = Scene::new().await;
    let (log, _here) = CapturedLog::begin();
    scene.load(&["user:Alice"], &[]).await;
    scene.rename("alice", "alicia");
    assert!(scene.comes("alicia").await);
    assert!(!scene.comes("alice").await, "a new account under the old login");
    let said = log.text();
    let told = said.lines().find(|line| line.contains("login-moved")).expect("a line");
    assert!(told.contains("stays account 1") && told.contains("account 2's now") && told.contains("id:2"), "{told}");
    scene.load(&["user:alice", "id:2"], &[]).await;
    assert!(scene.comes("alice").await, "the operator has said so");
}

#[tokio::test]
async fn who_is_denied_by_login_does_not_get_free_under_another_and_nobody_does_under_that_login() {
    let mut scene = Scene::new().await;
    scene.rename("alice", "mallory");
    // Denied before anybody has come by that name: the store knows alice.
    assert_eq!(scene.load(&[], &["user:mallory"]).await, 1, "the one who is connected has that login now");
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(grants())));
    scene.rename("mallory", "angel");
    assert!(!scene.comes("angel").await);
    assert!(!scene.comes("mallory").await);
    assert!(scene.comes("bob").await);
}

#[tokio::test]
async fn a_login_whose_account_is_not_known_yet_means_who_has_it_and_from_then_on_that_one() {
    let scene = Scene::new().await;
    scene.mode(|mode| mode.fail_api = true);
    scene.load(&["user:alice", "user:carol"], &[]).await;
    scene.mode(|_| {});
    assert!(scene.comes("carol").await, "the forge was away when the lists were read");
    scene.rename("carol", "caroline");
    assert!(scene.comes("caroline").await);
    assert!(!scene.comes("carol").await, "a stranger by the login alone");
}

#[tokio::test]
async fn what_forgejo_did_not_tell_when_the_lists_were_read_is_asked_again() {
    let scene = Scene::new().await;
    let mallory = scene.forge.with(|state| state.add_user("mallory", "secret", false));
    scene.mode(|mode| mode.fail_api = true);
    scene.load(&[], &["user:mallory", "user:nobody"]).await;
    scene.rotation.look_up_names_again().await;
    scene.mode(|_| {});
    scene.rotation.look_up_names_again().await;
    let known = scene.rotation.lists().now().names.get("mallory").map(|account| account.tenant.get());
    assert_eq!(known, u64::try_from(mallory).ok());
    scene.forge.with(|state| state.requests.clear());
    scene.rotation.look_up_names_again().await;
    assert_eq!(scene.forge.with(|state| state.requests.len()), 0, "of nobody it is asked once an hour");
    scene.rename("mallory", "angel");
    assert!(!scene.comes("angel").await);
}

#[tokio::test]
async fn a_login_of_which_forgejo_says_nothing_keeps_no_other_from_being_known() {
    let scene = Scene::new().await;
    let logins: Vec<String> = (1..=40).map(|n| format!("user{n:02}")).collect();
    let first = scene
        .forge
        .with(|state| logins.iter().map(|login| state.add_user(login, "secret", false)).min().expect("some"));
    scene.mode(|mode| mode.fail_api_of = Some(first));
    let deny: Vec<String> = logins.iter().map(|login| format!("user:{login}")).collect();
    scene.load(&[], &deny.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let known = || logins.iter().filter(|login| scene.rotation.lists().now().names.get(login).is_some()).count();
    assert_eq!(known(), 39);
    // It is asked again, and not with each round.
    scene.mode(|_| {});
    scene.rotation.look_up_names_again().await;
    assert_eq!(known(), 39);
    scene.clock.advance(Duration::from_mins(5));
    scene.rotation.look_up_names_again().await;
    assert_eq!(known(), 40);
}

#[tokio::test]
async fn whoever_is_connected_is_known_also_where_forgejo_tells_strangers_nothing() {
    let scene = Scene::new().await;
    scene.rotation.look_again(&GrantId::new("grant")).await;
    scene.mode(|mode| mode.fail_api = true);
    scene.load(&["user:alice"], &[]).await;
    scene.mode(|_| {});
    scene.rename("alice", "alicia");
    assert!(!scene.comes("alice").await, "the login was hers who is connected");
    assert!(scene.comes("alicia").await);
}

#[tokio::test]
async fn whose_a_login_is_outlives_the_broker_as_long_as_a_list_names_it() {
    let scene = Scene::new().await;
    scene.load(&["user:alice"], &[]).await;
    scene.rename("alice", "alicia");
    scene.forge.with(|state| state.add_user("alice", "secret", false));
    for (allow, number) in [(&["user:alice"][..], 1), (&["user:bob"], 2), (&["user:alice"], 2)] {
        let rotation = scene.restarted();
        rotation.lists().replace(lists(allow, &[]));
        rotation.apply_lists().await.expect("applied");
        let known = rotation.lists().now().names.get("alice").map(|account| account.tenant.get());
        assert_eq!(known, allow.contains(&"user:alice").then_some(number), "the entry was taken out in between");
    }
}

#[tokio::test]
async fn in_another_forge_a_login_is_somebody_elses() {
    let scene = Scene::new().await;
    scene.load(&["user:alice"], &[]).await;
    scene.forge.with(|state| {
        state.reset(true);
        state.add_user("bob", "secret", false);
        state.add_user("alice", "secret", false);
    });
    assert!(!scene.comes("bob").await, "the number alone is no account");
    let forgejo = Forgejo::new(&scene.forge.with(|state| state.root.clone())).expect("a client");
    identity::adopt(&scene.store, &forgejo, Adoption::Other, scene.clock.now()).await.expect("adopted");
    let rotation = scene.restarted();
    rotation.lists().replace(lists(&["user:alice"], &[]));
    rotation.apply_lists().await.expect("applied");
    assert_eq!(rotation.lists().now().names.get("alice").map(|account| account.tenant.get()), Some(2));
}
