//! When Forgejo is well again, nobody waits for the end of a pause.

use super::*;

use crate::forge::rotation::HeldUp;
use crate::forge::token_endpoint::AuthorizationAnswer;

const BOBS: &str = "credential-bob";

impl Scene {
    /// Bob has logged in as alice has, and has one grant.
    async fn bob(&self) {
        let pair = self.forge.with(|state| {
            let user = state.add_user("bob", "secret", false);
            let app = state.apps.first().map(|app| app.id).expect("an app");
            let scope = "write:user write:repository".to_owned();
            let (nonce, counter, unused) = (String::new(), 0, None);
            state.grants.push(harness::forge::state::Grant { id: 78, user, app, scope, nonce, counter, unused });
            state.issue_pair(78).expect("a pair")
        });
        let pair: serde_json::Value = serde_json::from_str(&pair).expect("json");
        let of = |name: &str| token(pair.get(name).expect("there"));
        let seal = |token: &UpstreamToken, place: String| self.vault.seal(token, &place, &mut SysRng).expect("sealed");
        let (now, tenant) = (self.clock.now(), TenantId::new(2).expect("an id"));
        let credential = Credential {
            id: BOBS.to_owned(),
            tenant,
            access: seal(&of("access_token"), vault::access_place(BOBS)),
            refresh: Some(seal(&of("refresh_token"), vault::refresh_place(BOBS))),
            expires_at: Some(now.plus(Duration::from_hours(1))),
            application: None,
            barred_since: None,
        };
        let login = Label::parse("bob").expect("a label");
        self.store.put_oauth_credential(&credential, &login, now).await.expect("stored");
        self.rotation.note_vouched(BOBS, &of("access_token")).await.expect("noted");
    }

    /// Forgejo's token endpoint fails for long after the users' tokens have ended, and they come again and again: their
    /// pauses are at their longest.
    async fn fail_for_long(&self) {
        self.mode(|mode| mode.fail_tokens = true);
        self.pass(65);
        for _ in 0..20 {
            for credential in [CREDENTIAL, BOBS] {
                assert!(matches!(self.rotation.fresh(credential).await, Err(RotationError::NotNow)));
            }
            self.pass(5);
        }
        for credential in [CREDENTIAL, BOBS] {
            let _ = self.rotation.fresh(credential).await;
        }
    }

    fn wait(&self, secs: u64) {
        self.clock.advance(Duration::from_secs(secs));
    }
}

#[tokio::test]
async fn one_who_waits_finds_that_forgejo_is_well_again_and_with_that_every_pause_is_over() {
    let scene = Scene::new().await;
    scene.bob().await;
    scene.fail_for_long().await;
    scene.mode(|_| {});
    assert!(matches!(scene.rotation.fresh(CREDENTIAL).await, Err(RotationError::NotNow)), "it has just failed");
    scene.wait(5);
    let before = scene.refreshes();
    assert!(scene.rotation.fresh(CREDENTIAL).await.is_ok(), "not five minutes later");
    assert!(scene.rotation.fresh(BOBS).await.is_ok(), "with alice's answer bob's pause is over as well");
    assert_eq!(scene.refreshes(), before + 2);
}

#[tokio::test]
async fn a_forge_that_fails_on_is_asked_by_one_at_a_time_ahead_of_the_pauses() {
    let scene = Scene::new().await;
    scene.bob().await;
    scene.fail_for_long().await;
    let before = scene.refreshes();
    for _ in 0..60 {
        scene.wait(1);
        for credential in [CREDENTIAL, BOBS] {
            assert!(matches!(scene.rotation.fresh(credential).await, Err(RotationError::NotNow)));
        }
    }
    let asked = scene.refreshes() - before;
    assert!((20..=24).contains(&asked), "each every five seconds, and never both in one: {asked}");
}

#[tokio::test]
async fn a_login_that_forgejo_answers_ends_the_pauses_of_those_too_who_can_wait() {
    let scene = Scene::new().await;
    scene.pass(56);
    scene.mode(|mode| mode.fail_tokens = true);
    for secs in [5, 10, 20, 40, 5] {
        assert!(scene.rotation.fresh(CREDENTIAL).await.is_ok(), "the token is good");
        scene.wait(secs);
    }
    scene.mode(|_| {});
    let before = scene.refreshes();
    assert!(scene.rotation.fresh(CREDENTIAL).await.is_ok());
    assert_eq!(scene.refreshes(), before, "80 seconds of the pause are not over, and nothing hurries");
    let answer = AuthorizationAnswer {
        code: "none".to_owned(),
        verifier: "none".to_owned(),
        redirect: "https://broker.example/cb".to_owned(),
    };
    // Its no is an answer, too.
    assert!(scene.rotation.log_in(answer, HeldUp::default()).await.is_err());
    // Not without a look, however long Forgejo takes for it.
    scene.store.age_owner_checks().await.expect("aged");
    let refreshed = scene.rotation.fresh(CREDENTIAL).await.expect("a token");
    assert_ne!(refreshed.token, scene.first);
}
