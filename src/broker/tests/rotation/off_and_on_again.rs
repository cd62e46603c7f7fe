//! A user is a number: logins change, are taken by others, and come back with other accounts.

use super::*;

use crate::forge::api::ForgejoUser;
use crate::tests::captured_log::CapturedLog;

fn tenant(number: u64) -> TenantId {
    TenantId::new(number).expect("an id")
}

impl Scene {
    /// Whom Forgejo names when somebody with this login logs in, as a login notes it.
    async fn logs_in(&self, login: &str) -> ForgejoUser {
        let token = self.forge.with(|state| state.add_token(login, "read:user")).expect("a token");
        let forgejo = Forgejo::new(&self.forge.with(|state| state.root.clone())).expect("a client");
        let user = forgejo.whoami(&UpstreamToken::parse(token).expect("a token")).await.expect("somebody");
        assert!(self.rotation.recognise(&user).await.expect("noted"));
        user
    }

    async fn login_of(&self, number: u64) -> String {
        let account = self.store.account(tenant(number)).await.expect("read").expect("there");
        account.login.as_str().to_owned()
    }

    async fn called(&self, name: &str) -> Vec<u64> {
        self.store.accounts_named(name).await.expect("read").iter().map(|account| account.tenant.get()).collect()
    }
}

#[tokio::test]
async fn a_rename_costs_nothing_and_shows_wherever_the_login_is_shown() {
    let mut scene = Scene::new().await;
    let personal = scene.personal().await;
    let (log, _here) = CapturedLog::begin();
    let before = scene.principals.authenticate(&scene.headers).await.expect("good");
    assert!(scene.forge.with(|state| state.rename_user("alice", "alicia")));
    scene.pass(61);
    scene.rotation.recheck().await;
    let mut followed = Vec::new();
    while followed.len() < 2 {
        let Some(Change::Rotated(grants)) = scene.changes.recv().await else { panic!("something was lost") };
        followed.extend(grants);
        followed.sort();
        followed.dedup();
    }
    assert_eq!(followed, [GrantId::new("grant"), personal], "all of hers, whatever they stand on");
    for grant in &followed {
        scene.principals.forget_grant(grant);
    }
    let after = scene.principals.authenticate(&scene.headers).await.expect("good");
    assert_eq!((before.tenant, before.login.as_str()), (after.tenant, "alice"));
    assert_eq!(after.login.as_str(), "alicia");
    assert_eq!(scene.login_of(1).await, "alicia");
    let said = log.text();
    let told = said.lines().find(|line| line.contains("login-changed")).expect("a line");
    assert!(told.contains("user 1 is alicia at Forgejo now, and was alice"), "{told}");
}

#[tokio::test]
async fn who_takes_a_login_gets_nothing_of_whoever_had_it_and_both_are_told_apart() {
    let scene = Scene::new().await;
    assert!(scene.forge.with(|state| state.rename_user("alice", "alicia")));
    let newcomer = scene.forge.with(|state| state.add_user("alice", "secret", false));
    let user = scene.logs_in("alice").await;
    assert_eq!(i64::try_from(user.id.get()).ok(), Some(newcomer));
    assert!(scene.store.grants_of(user.id).await.expect("read").is_empty());
    assert_eq!(scene.called("alice").await, [2], "the login is one account's");
    assert_eq!(scene.called("ID:1").await, [1]);
    assert_eq!(scene.login_of(1).await, "_alice", "Forgejo was not asked about her yet");
    scene.rotation.recheck().await;
    assert_eq!((scene.login_of(1).await, scene.login_of(2).await), ("alicia".to_owned(), "alice".to_owned()));
    assert_eq!(scene.upstream().await.expect("good"), scene.first, "and she goes on");
}

#[tokio::test]
async fn an_account_that_was_deleted_and_made_again_is_another_user() {
    let mut scene = Scene::new().await;
    scene.forge.with(|state| {
        state.remove_user(1);
        state.add_user("alice", "secret", false)
    });
    let user = scene.logs_in("alice").await;
    assert_eq!(user.id, tenant(2));
    assert!(scene.store.grants_of(user.id).await.expect("read").is_empty(), "nothing of the earlier one is hers");
    scene.rotation.recheck().await;
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(grants())), "what the earlier one had is over");
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
    assert_eq!(scene.called("alice").await, [2]);
}
