//! Upstream tokens are refreshed ahead of their end, once a user, and what goes wrong costs no more than it must.

mod barred;
mod forge_identity;
mod listed;
mod off_and_on_again;
mod offboarding;
mod ownership;
mod recovery;
mod registration;
mod reseal;

use std::sync::Arc;
use std::time::Duration;

use crate::auth::bearer::{Challenge, Denied, Principals};
use crate::auth::principal::{GrantId, Scopes};
use crate::auth::restriction::Restrictions;
use crate::auth::token::{AccessToken, AuthorizationCode, RefreshToken};
use crate::forge::access::Access;
use crate::forge::api::Forgejo;
use crate::forge::application::Application;
use crate::forge::rotation::{Change, Rotation, RotationError};
use crate::forge::vault;
use crate::forge::vault::{Vault, vault_in};
use crate::store::{Code, Credential, NewGrant, NewPair, Store};
use axum::http::{HeaderMap, HeaderValue};
use rand::rngs::SysRng;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use wire::clock::{Clock, UnixTime};
use wire::message::{Label, TenantId};
use wire::secret::UpstreamToken;

use harness::forge::Forge;

const CREDENTIAL: &str = "credential";

/// A user who has logged in an hour's token ago, with one grant.
struct Scene {
    forge: Forge,
    clock: Clock,
    store: Store,
    vault: Arc<Vault>,
    rotation: Rotation,
    changes: mpsc::Receiver<Change>,
    principals: Principals,
    headers: HeaderMap,
    first: UpstreamToken,
    _dir: tempfile::TempDir,
}

fn token(text: &serde_json::Value) -> UpstreamToken {
    UpstreamToken::parse(text.as_str().expect("a text")).expect("a token")
}

/// A client that the user has connected, by the store's own steps; its access token.
async fn connect(store: &Store, tenant: TenantId, now: UnixTime) -> AccessToken {
    let (code, refresh) = (AuthorizationCode::mint(&mut SysRng), RefreshToken::mint(&mut SysRng));
    let refresh = refresh.expect("a token");
    let access = AccessToken::mint(&mut SysRng).expect("a token");
    let code = Code {
        hash: code.expect("a code").hash(),
        client_id: "client".to_owned(),
        client_name: "Client".to_owned(),
        redirect_uri: "https://client.example/".to_owned(),
        challenge: String::new(),
        tenant,
        credential_id: CREDENTIAL.to_owned(),
        scopes: Scopes { write: true },
        created_at: now,
        needs_key: false,
        redeemed: None,
    };
    let ends = now.plus(Duration::from_hours(24 * 30));
    let pair = NewPair {
        access: access.hash(),
        access_ends: ends,
        access_scopes: None,
        refresh: refresh.hash(),
        family: refresh.family().hash(),
        refresh_ends: ends,
    };
    store.insert_code(&code).await.expect("stored");
    assert!(store.redeem_code(&code, &GrantId::new("grant"), &pair, now).await.expect("redeemed"));
    access
}

impl Scene {
    async fn new() -> Self {
        let clock = Clock::manual(UnixTime::from_secs(1_800_000_000));
        let forge = Forge::new(clock.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(harness::forge::serve(listener, forge.clone()));
        tokio::task::yield_now().await;
        let (user, application, pair) = forge.with(|state| {
            state.root.clone_from(&url);
            let user = state.add_user("alice", "secret", false);
            let app = state.add_app(0, "broker", true, vec!["https://broker.example/cb".to_owned()]);
            let (client_id, secret) =
                state.app(app).map(|app| (app.client_id.clone(), app.secret.clone())).expect("an app");
            let scope = "write:user write:repository".to_owned();
            state.grants.push(harness::forge::state::Grant {
                id: 77,
                user,
                app,
                scope,
                nonce: String::new(),
                counter: 0,
                unused: None,
            });
            let pair = state.issue_pair(77).expect("a pair");
            let client_secret = UpstreamToken::parse(secret).expect("a secret");
            (user, Application { client_id, client_secret, scopes: Vec::new() }, pair)
        });
        let pair: serde_json::Value = serde_json::from_str(&pair).expect("json");
        let dir = tempfile::tempdir().expect("a directory");
        let vault = Arc::new(vault_in(dir.path()));
        let store = Store::in_memory().await.expect("a store");
        let first = token(pair.get("access_token").expect("there"));
        let refresh = token(pair.get("refresh_token").expect("there"));
        let access = vault.seal(&first, &vault::access_place(CREDENTIAL), &mut SysRng).expect("sealed");
        let now = clock.now();
        let tenant = TenantId::new(u64::try_from(user).expect("positive")).expect("an id");
        let credential = Credential {
            id: CREDENTIAL.to_owned(),
            tenant,
            access,
            refresh: Some(vault.seal(&refresh, &vault::refresh_place(CREDENTIAL), &mut SysRng).expect("sealed")),
            expires_at: Some(now.plus(Duration::from_hours(1))),
            application: None,
            barred_since: None,
        };
        let login = Label::parse("alice").expect("a label");
        store.put_oauth_credential(&credential, &login, now).await.expect("stored");
        let broker_token = connect(&store, tenant, now).await;
        let forgejo = Forgejo::new(&url).expect("a client");
        let lead = Duration::from_mins(5);
        let (rotation, changes) = Rotation::new(
            store.clone(),
            Arc::clone(&vault),
            forgejo,
            Some(application),
            Access::default(),
            clock.clone(),
            lead,
        );
        rotation.note_vouched(CREDENTIAL, &first).await.expect("noted");
        let challenge = Challenge {
            resource_metadata: Some("https://broker.example/meta".to_owned()),
            scope: "forgejo:read",
            is_bare: false,
        };
        let principals =
            Principals::new(store.clone(), Arc::clone(&vault), clock.clone(), challenge, Some(rotation.clone()));
        let mut headers = HeaderMap::new();
        let value = format!("Bearer {}", broker_token.expose());
        headers.insert("authorization", HeaderValue::from_str(&value).expect("a header"));
        Self { forge, clock, store, vault, rotation, changes, principals, headers, first, _dir: dir }
    }

    fn mode(&self, change: impl FnOnce(&mut harness::forge::state::Mode)) {
        let mut mode = harness::forge::state::Mode::default();
        change(&mut mode);
        self.forge.set_mode(mode);
    }

    fn pass(&self, minutes: u64) {
        self.clock.advance(Duration::from_mins(minutes));
    }

    fn refreshes(&self) -> usize {
        self.forge.with(|state| state.requests.iter().filter(|seen| seen.path == "/login/oauth/access_token").count())
    }

    async fn upstream(&self) -> Result<UpstreamToken, Denied> {
        self.principals.authenticate(&self.headers).await.map(|principal| principal.upstream.clone())
    }

    /// A sweep that waits for Forgejo to refresh the token, until the mode changes.
    async fn hanging_sweep(&self) -> tokio::task::JoinHandle<()> {
        self.pass(56);
        self.mode(|mode| mode.hang = true);
        let rotation = self.rotation.clone();
        let sweep = tokio::spawn(async move { rotation.sweep().await });
        while self.refreshes() == 0 {
            harness::look_again().await;
        }
        sweep
    }
}

fn grants() -> Vec<GrantId> {
    vec![GrantId::new("grant")]
}

#[tokio::test]
async fn a_token_is_refreshed_ahead_of_its_end_and_stored_before_it_is_used() {
    let mut scene = Scene::new().await;
    scene.pass(54);
    scene.rotation.sweep().await;
    assert_eq!(scene.refreshes(), 0, "not due yet");
    assert_eq!(scene.upstream().await.expect("good"), scene.first);
    scene.pass(2);
    scene.rotation.sweep().await;
    assert_eq!(scene.refreshes(), 1);
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Rotated(grants())));
    let stored = scene.store.find_credential(CREDENTIAL).await.expect("readable").expect("there");
    let access = scene.vault.open_sealed(&stored.access, &vault::access_place(CREDENTIAL)).expect("opens");
    assert_ne!(access, scene.first);
    assert_eq!(scene.upstream().await.expect("good"), access, "the bearer layer hands out the new one");
    scene.rotation.sweep().await;
    assert_eq!(scene.refreshes(), 1, "once");
}

#[tokio::test]
async fn many_callers_refresh_once_and_get_the_same_token() {
    let scene = Scene::new().await;
    // Ended, so that nobody is given it while its successor is long in coming.
    scene.pass(61);
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let rotation = scene.rotation.clone();
            tokio::spawn(async move { rotation.fresh(CREDENTIAL).await })
        })
        .collect();
    let mut tokens = Vec::new();
    for asked in asking {
        tokens.push(asked.await.expect("no panic").expect("a token").token);
    }
    assert_eq!(scene.refreshes(), 1);
    assert!(tokens.iter().all(|token| Some(token) == tokens.first() && *token != scene.first));
}

#[tokio::test]
async fn a_caller_who_goes_away_takes_no_pair_along() {
    let mut scene = Scene::new().await;
    scene.pass(56);
    let rotation = scene.rotation.clone();
    // Polled once, then dropped: the refresh has begun.
    let mut asking = Box::pin(async move { rotation.fresh(CREDENTIAL).await });
    assert!(futures_util::FutureExt::now_or_never(&mut asking).is_none());
    drop(asking);
    assert_eq!(scene.changes.recv().await, Some(Change::Rotated(grants())));
    scene.pass(60);
    assert!(scene.rotation.fresh(CREDENTIAL).await.is_ok(), "the stored refresh token is the newest one");
}

#[tokio::test]
async fn a_sweep_ends_with_its_refreshes_however_long_forgejo_takes() {
    let mut scene = Scene::new().await;
    let sweep = scene.hanging_sweep().await;
    // Longer than a caller waits whose token is good.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    for _ in 0..10 {
        harness::look_again().await;
        assert!(!sweep.is_finished(), "it would begin others beside those that are under way");
    }
    scene.mode(|_| {});
    sweep.await.expect("no panic");
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Rotated(grants())));
}

#[tokio::test]
async fn a_refresh_that_is_refused_for_good_ends_the_grants() {
    let mut scene = Scene::new().await;
    scene.forge.with(|state| state.grants.clear());
    scene.pass(56);
    scene.rotation.sweep().await;
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(grants())));
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn a_deactivated_account_is_noticed_although_the_refresh_is_not() {
    let mut scene = Scene::new().await;
    scene.forge.with(|state| state.users.iter_mut().for_each(|user| user.active = false));
    scene.pass(56);
    scene.rotation.sweep().await;
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(grants())));
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn trouble_at_forgejo_costs_nothing_while_the_token_is_good_and_is_tried_again_with_pauses() {
    let mut scene = Scene::new().await;
    scene.mode(|mode| mode.fail = Some(503));
    scene.pass(56);
    scene.rotation.sweep().await;
    assert_eq!(scene.refreshes(), 1);
    assert_eq!(scene.upstream().await.expect("still good"), scene.first);
    scene.rotation.sweep().await;
    assert_eq!(scene.refreshes(), 1, "a pause before the next try");
    scene.pass(1);
    scene.rotation.sweep().await;
    assert_eq!(scene.refreshes(), 2);
    scene.pass(5);
    assert_eq!(scene.upstream().await, Err(Denied::Unavailable), "the token has ended and Forgejo is away");
    assert!(scene.changes.try_recv().is_err(), "and nobody was logged out");
    scene.mode(|_| {});
    scene.pass(5);
    assert_ne!(scene.upstream().await.expect("healed"), scene.first);
}

#[tokio::test]
async fn a_lost_answer_burns_the_token_and_the_user_must_log_in_again() {
    let mut scene = Scene::new().await;
    scene.mode(|mode| mode.lose_answer = true);
    scene.pass(56);
    scene.rotation.sweep().await;
    assert!(scene.changes.try_recv().is_err(), "it cannot be told from trouble");
    scene.mode(|_| {});
    scene.pass(1);
    assert!(matches!(scene.rotation.fresh(CREDENTIAL).await, Err(RotationError::LoginAgain)));
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(grants())));
}

#[tokio::test]
async fn a_broker_that_forgejo_does_not_know_logs_nobody_out() {
    let mut scene = Scene::new().await;
    scene.forge.with(|state| state.apps.iter_mut().for_each(|app| app.secret = "changed".to_owned()));
    scene.pass(56);
    scene.rotation.sweep().await;
    assert_eq!(scene.refreshes(), 1);
    assert!(scene.changes.try_recv().is_err());
    assert_eq!(scene.upstream().await.expect("still good"), scene.first);
}

#[tokio::test]
async fn who_comes_with_a_token_that_has_ended_upstream_gets_a_fresh_one_or_is_told_to_log_in() {
    let scene = Scene::new().await;
    scene.pass(90);
    assert_ne!(scene.upstream().await.expect("refreshed on the way in"), scene.first);
    scene.forge.with(|state| state.grants.clear());
    scene.pass(90);
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn whoever_stands_behind_a_grant_has_the_newest_token_until_it_is_revoked() {
    let scene = Scene::new().await;
    let grant = GrantId::new("grant");
    let behind = scene.principals.behind(&grant).await.expect("somebody");
    assert_eq!((behind.upstream.clone(), behind.login.as_str()), (scene.first.clone(), "alice"));
    scene.pass(61);
    let behind = scene.principals.behind(&grant).await.expect("somebody");
    assert_ne!(behind.upstream, scene.first);
    scene.store.revoke_grant(&grant, "test", scene.clock.now()).await.expect("revoked");
    assert!(scene.principals.behind(&grant).await.is_none());
    scene.store.close().await;
    assert!(scene.principals.behind(&grant).await.is_none(), "a store that fails names nobody");
}

impl Scene {
    /// A grant that stands on a personal token of the same user.
    async fn personal(&self) -> GrantId {
        self.personal_of(1, "alice").await
    }

    async fn personal_of(&self, tenant: u64, login: &str) -> GrantId {
        let token = self.forge.with(|state| state.add_token(login, "read:user")).expect("a token");
        let token = UpstreamToken::parse(token).expect("a token");
        let (grant, id) = (GrantId::new(format!("grant-{login}")), format!("personal-{login}"));
        let new = NewGrant {
            grant: grant.clone(),
            client_id: "service".to_owned(),
            tenant: TenantId::new(tenant).expect("an id"),
            login: Label::parse(login).expect("a label"),
            scopes: Scopes { write: true },
            restrictions: Restrictions::default(),
            credential: self.vault.seal(&token, &vault::access_place(&id), &mut SysRng).expect("sealed"),
            credential_id: id,
            token: AccessToken::mint(&mut SysRng).expect("a token").hash(),
            created_at: self.clock.now(),
            expires_at: self.clock.now().plus(Duration::from_hours(24 * 365)),
        };
        self.store.insert_grant(&new).await.expect("stored");
        self.rotation.note_vouched(&new.credential_id, &token).await.expect("noted");
        self.forge.with(|state| state.requests.clear());
        grant
    }

    fn looks(&self) -> usize {
        self.forge.with(|state| state.requests.iter().filter(|seen| seen.path == "/api/v1/user").count())
    }
}

#[tokio::test]
async fn the_account_behind_a_personal_token_is_looked_at_once_an_hour() {
    let mut scene = Scene::new().await;
    let grant = scene.personal().await;
    scene.rotation.recheck().await;
    assert_eq!(scene.looks(), 0, "it was good an instant ago");
    scene.pass(61);
    scene.rotation.recheck().await;
    scene.rotation.recheck().await;
    assert_eq!(scene.looks(), 1);
    assert!(scene.changes.try_recv().is_err());
    scene.forge.with(|state| state.users.iter_mut().for_each(|user| user.active = false));
    scene.pass(61);
    scene.rotation.recheck().await;
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(vec![grant.clone()])));
    assert!(scene.store.find_grant(&grant).await.expect("read").is_some_and(|row| row.revoked));
}

#[tokio::test]
async fn an_account_that_cannot_be_judged_holds_up_no_other() {
    let mut scene = Scene::new().await;
    let odd = scene.personal().await;
    scene.forge.with(|state| state.add_user("bob", "secret", false));
    let locked = scene.personal_of(2, "bob").await;
    scene.forge.with(|state| {
        for user in &mut state.users {
            // No user of Forgejo's is called that; what its answer means nobody knows.
            if user.id == 1 { "not a login".clone_into(&mut user.login) } else { user.active = false }
        }
    });
    scene.pass(61);
    scene.rotation.recheck().await;
    assert_eq!(scene.changes.try_recv().ok(), Some(Change::Lost(vec![locked])));
    assert!(scene.store.find_grant(&odd).await.expect("read").is_some_and(|row| !row.revoked));
}

#[tokio::test]
async fn one_account_of_which_forgejo_says_nothing_keeps_no_other_from_being_looked_at() {
    let scene = Scene::new().await;
    scene.personal().await;
    for n in 2..=20 {
        let login = format!("user{n}");
        scene.forge.with(|state| state.add_user(&login, "secret", false));
        scene.personal_of(n, &login).await;
    }
    scene.mode(|mode| mode.fail_api_of = Some(1));
    scene.pass(61);
    scene.rotation.recheck().await;
    assert_eq!(scene.looks(), 20);
    // And where it says nothing at all, it is not asked about everybody.
    scene.mode(|mode| mode.fail_api = true);
    scene.pass(61);
    scene.rotation.recheck().await;
    assert!((28..36).contains(&scene.looks()), "{}", scene.looks());
}

#[tokio::test]
async fn while_forgejo_is_away_no_personal_token_is_judged() {
    let mut scene = Scene::new().await;
    let grant = scene.personal().await;
    scene.pass(61);
    // The last two come from something between, such as a firewall: Forgejo's own refusals are JSON.
    for status in [502, 403, 401] {
        scene.mode(|mode| mode.fail = Some(status));
        scene.rotation.recheck().await;
        assert!(scene.changes.try_recv().is_err(), "{status}");
        assert!(scene.store.find_grant(&grant).await.expect("read").is_some_and(|row| !row.revoked), "{status}");
        scene.pass(1);
    }
    scene.mode(|_| {});
    scene.rotation.recheck().await;
    assert_eq!(scene.looks(), 4, "asked again as soon as it is back");
}

#[tokio::test]
async fn the_end_of_the_broker_waits_for_a_pair_that_forgejo_is_about_to_give() {
    let scene = Scene::new().await;
    let sweep = scene.hanging_sweep().await;
    // The tick is stopped; the exchange that it has begun is not.
    sweep.abort();
    let rotation = scene.rotation.clone();
    let ending = tokio::spawn(async move { rotation.finish(Duration::from_secs(30)).await });
    scene.mode(|_| {});
    ending.await.expect("no panic");
    let stored = scene.store.find_credential(CREDENTIAL).await.expect("read").expect("there");
    let stored = scene.vault.open_sealed(&stored.access, &vault::access_place(CREDENTIAL)).expect("opens");
    assert_ne!(stored.expose(), scene.first.expose(), "the new pair is in the store");
}
