//! Upstream tokens are refreshed ahead of their end, once a user, and what goes wrong costs no more than it must.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::bearer::{Challenge, Denied, Principals};
use crate::auth::principal::{GrantId, Scopes};
use crate::auth::token::{AccessToken, AuthorizationCode, RefreshToken};
use crate::forge::access::Access;
use crate::forge::api::Forgejo;
use crate::forge::application::Application;
use crate::forge::rotation::{Change, Rotation, RotationError};
use crate::forge::vault;
use crate::forge::vault::Vault;
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
struct Fixture {
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

impl Fixture {
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
        let vault = Arc::new(Vault::open(&dir.path().join("key"), false, &mut SysRng).expect("a vault"));
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
            checked_at: Some(now),
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
        let challenge =
            Challenge { resource_metadata: Some("https://broker.example/meta".to_owned()), scope: "forgejo:read" };
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
}

fn grants() -> Vec<GrantId> {
    vec![GrantId::new("grant")]
}

#[tokio::test]
async fn a_token_is_refreshed_ahead_of_its_end_and_stored_before_it_is_used() {
    let mut fixture = Fixture::new().await;
    fixture.pass(54);
    fixture.rotation.sweep().await;
    assert_eq!(fixture.refreshes(), 0, "not due yet");
    assert_eq!(fixture.upstream().await.expect("good"), fixture.first);
    fixture.pass(2);
    fixture.rotation.sweep().await;
    assert_eq!(fixture.refreshes(), 1);
    assert_eq!(fixture.changes.try_recv().ok(), Some(Change::Rotated(grants())));
    let stored = fixture.store.find_credential(CREDENTIAL).await.expect("readable").expect("there");
    let access = fixture.vault.open_sealed(&stored.access, &vault::access_place(CREDENTIAL)).expect("opens");
    assert_ne!(access, fixture.first);
    assert_eq!(fixture.upstream().await.expect("good"), access, "the bearer layer hands out the new one");
    fixture.rotation.sweep().await;
    assert_eq!(fixture.refreshes(), 1, "once");
}

#[tokio::test]
async fn many_callers_refresh_once_and_get_the_same_token() {
    let fixture = Fixture::new().await;
    fixture.pass(56);
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let rotation = fixture.rotation.clone();
            tokio::spawn(async move { rotation.fresh(CREDENTIAL).await })
        })
        .collect();
    let mut tokens = Vec::new();
    for asked in asking {
        tokens.push(asked.await.expect("no panic").expect("a token").token);
    }
    assert_eq!(fixture.refreshes(), 1);
    assert!(tokens.iter().all(|token| Some(token) == tokens.first() && *token != fixture.first));
}

#[tokio::test]
async fn a_caller_who_goes_away_takes_no_pair_along() {
    let mut fixture = Fixture::new().await;
    fixture.pass(56);
    let rotation = fixture.rotation.clone();
    // Polled once, then dropped: the refresh has begun.
    let mut asking = Box::pin(async move { rotation.fresh(CREDENTIAL).await });
    assert!(futures_util::FutureExt::now_or_never(&mut asking).is_none());
    drop(asking);
    assert_eq!(fixture.changes.recv().await, Some(Change::Rotated(grants())));
    fixture.pass(60);
    assert!(fixture.rotation.fresh(CREDENTIAL).await.is_ok(), "the stored refresh token is the newest one");
}

#[tokio::test]
async fn a_refresh_that_is_refused_for_good_ends_the_grants() {
    let mut fixture = Fixture::new().await;
    fixture.forge.with(|state| state.grants.clear());
    fixture.pass(56);
    fixture.rotation.sweep().await;
    assert_eq!(fixture.changes.try_recv().ok(), Some(Change::Lost(grants())));
    assert_eq!(fixture.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn a_deactivated_account_is_noticed_although_the_refresh_is_not() {
    let mut fixture = Fixture::new().await;
    fixture.forge.with(|state| state.users.iter_mut().for_each(|user| user.active = false));
    fixture.pass(56);
    fixture.rotation.sweep().await;
    assert_eq!(fixture.changes.try_recv().ok(), Some(Change::Lost(grants())));
    assert_eq!(fixture.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn trouble_at_forgejo_costs_nothing_while_the_token_is_good_and_is_tried_again_with_pauses() {
    let mut fixture = Fixture::new().await;
    fixture.mode(|mode| mode.fail = Some(503));
    fixture.pass(56);
    fixture.rotation.sweep().await;
    assert_eq!(fixture.refreshes(), 1);
    assert_eq!(fixture.upstream().await.expect("still good"), fixture.first);
    fixture.rotation.sweep().await;
    assert_eq!(fixture.refreshes(), 1, "a pause before the next try");
    fixture.pass(1);
    fixture.rotation.sweep().await;
    assert_eq!(fixture.refreshes(), 2);
    fixture.pass(5);
    assert_eq!(fixture.upstream().await, Err(Denied::Unavailable), "the token has ended and Forgejo is away");
    assert!(fixture.changes.try_recv().is_err(), "and nobody was logged out");
    fixture.mode(|_| {});
    fixture.pass(5);
    assert_ne!(fixture.upstream().await.expect("healed"), fixture.first);
}

#[tokio::test]
async fn a_lost_answer_burns_the_token_and_the_user_must_log_in_again() {
    let mut fixture = Fixture::new().await;
    fixture.mode(|mode| mode.lose_answer = true);
    fixture.pass(56);
    fixture.rotation.sweep().await;
    assert!(fixture.changes.try_recv().is_err(), "it cannot be told from trouble");
    fixture.mode(|_| {});
    fixture.pass(1);
    assert!(matches!(fixture.rotation.fresh(CREDENTIAL).await, Err(RotationError::LoginAgain)));
    assert_eq!(fixture.changes.try_recv().ok(), Some(Change::Lost(grants())));
}

#[tokio::test]
async fn a_broker_that_forgejo_does_not_know_logs_nobody_out() {
    let mut fixture = Fixture::new().await;
    fixture.forge.with(|state| state.apps.iter_mut().for_each(|app| app.secret = "changed".to_owned()));
    fixture.pass(56);
    fixture.rotation.sweep().await;
    assert_eq!(fixture.refreshes(), 1);
    assert!(fixture.changes.try_recv().is_err());
    assert_eq!(fixture.upstream().await.expect("still good"), fixture.first);
}

#[tokio::test]
async fn who_comes_with_a_token_that_has_ended_upstream_gets_a_fresh_one_or_is_told_to_log_in() {
    let fixture = Fixture::new().await;
    fixture.pass(90);
    assert_ne!(fixture.upstream().await.expect("refreshed on the way in"), fixture.first);
    fixture.forge.with(|state| state.grants.clear());
    fixture.pass(90);
    assert_eq!(fixture.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn whoever_stands_behind_a_grant_has_the_newest_token_until_it_is_revoked() {
    let fixture = Fixture::new().await;
    let grant = GrantId::new("grant");
    let behind = fixture.principals.behind(&grant).await.expect("somebody");
    assert_eq!((behind.upstream.clone(), behind.login.as_str()), (fixture.first.clone(), "alice"));
    fixture.pass(56);
    let behind = fixture.principals.behind(&grant).await.expect("somebody");
    assert_ne!(behind.upstream, fixture.first);
    fixture.store.revoke_grant(&grant, "test", fixture.clock.now()).await.expect("revoked");
    assert!(fixture.principals.behind(&grant).await.is_none());
    fixture.store.close().await;
    assert!(fixture.principals.behind(&grant).await.is_none(), "a store that fails names nobody");
}

impl Fixture {
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
            credential: self.vault.seal(&token, &vault::access_place(&id), &mut SysRng).expect("sealed"),
            credential_id: id,
            token: AccessToken::mint(&mut SysRng).expect("a token").hash(),
            created_at: self.clock.now(),
            expires_at: self.clock.now().plus(Duration::from_hours(24 * 365)),
        };
        self.store.insert_grant(&new).await.expect("stored");
        // These tests are about personal tokens: the one from a login is not to be looked at as well.
        let never = self.clock.now().plus(Duration::from_hours(24 * 365));
        self.store.note_account(CREDENTIAL, TenantId::new(1).expect("an id"), None, never).await.expect("noted");
        self.forge.with(|state| state.requests.clear());
        grant
    }

    fn looks(&self) -> usize {
        self.forge.with(|state| state.requests.iter().filter(|seen| seen.path == "/api/v1/user").count())
    }
}

#[tokio::test]
async fn the_account_behind_a_personal_token_is_looked_at_once_an_hour() {
    let mut fixture = Fixture::new().await;
    let grant = fixture.personal().await;
    fixture.rotation.recheck().await;
    assert_eq!(fixture.looks(), 0, "it was good an instant ago");
    fixture.pass(61);
    fixture.rotation.recheck().await;
    fixture.rotation.recheck().await;
    assert_eq!(fixture.looks(), 1);
    assert!(fixture.changes.try_recv().is_err());
    fixture.forge.with(|state| state.users.iter_mut().for_each(|user| user.active = false));
    fixture.pass(61);
    fixture.rotation.recheck().await;
    assert_eq!(fixture.changes.try_recv().ok(), Some(Change::Lost(vec![grant.clone()])));
    assert!(fixture.store.find_grant(&grant).await.expect("read").is_some_and(|row| row.revoked));
}

#[tokio::test]
async fn an_account_that_cannot_be_judged_holds_up_no_other() {
    let mut fixture = Fixture::new().await;
    let odd = fixture.personal().await;
    fixture.forge.with(|state| state.add_user("bob", "secret", false));
    let locked = fixture.personal_of(2, "bob").await;
    fixture.forge.with(|state| {
        for user in &mut state.users {
            // No user of Forgejo's is called that; what its answer means nobody knows.
            if user.id == 1 { "not a login".clone_into(&mut user.login) } else { user.active = false }
        }
    });
    fixture.pass(61);
    fixture.rotation.recheck().await;
    assert_eq!(fixture.changes.try_recv().ok(), Some(Change::Lost(vec![locked])));
    assert!(fixture.store.find_grant(&odd).await.expect("read").is_some_and(|row| !row.revoked));
}

#[tokio::test]
async fn while_forgejo_is_away_no_personal_token_is_judged() {
    let mut fixture = Fixture::new().await;
    let grant = fixture.personal().await;
    fixture.pass(61);
    // The last two come from something between, such as a firewall: Forgejo's own refusals are JSON.
    for status in [502, 403, 401] {
        fixture.mode(|mode| mode.fail = Some(status));
        fixture.rotation.recheck().await;
        assert!(fixture.changes.try_recv().is_err(), "{status}");
        assert!(fixture.store.find_grant(&grant).await.expect("read").is_some_and(|row| !row.revoked), "{status}");
    }
    fixture.mode(|_| {});
    fixture.rotation.recheck().await;
    assert_eq!(fixture.looks(), 4, "asked again as soon as it is back");
}

#[tokio::test]
async fn the_end_of_the_broker_waits_for_a_pair_that_forgejo_is_about_to_give() {
    let fixture = Fixture::new().await;
    fixture.pass(56);
    fixture.mode(|mode| mode.hang = true);
    let rotation = fixture.rotation.clone();
    let sweep = tokio::spawn(async move { rotation.sweep().await });
    while fixture.refreshes() == 0 {
        tokio::task::yield_now().await;
    }
    // The tick is stopped; the exchange that it has begun is not.
    sweep.abort();
    let rotation = fixture.rotation.clone();
    let ending = tokio::spawn(async move { rotation.finish(Duration::from_secs(30)).await });
    fixture.mode(|_| {});
    ending.await.expect("no panic");
    let stored = fixture.store.find_credential(CREDENTIAL).await.expect("read").expect("there");
    let stored = fixture.vault.open_sealed(&stored.access, &vault::access_place(CREDENTIAL)).expect("opens");
    assert_ne!(stored.expose(), fixture.first.expose(), "the new pair is in the store");
}

/// Makes the stub give tokens of bob's where it gives alice's, as a mix-up at Forgejo would.
fn give_bobs(fixture: &Fixture) {
    fixture.forge.with(|state| {
        let bob = state.add_user("bob", "secret", false);
        state.grants.iter_mut().for_each(|grant| grant.user = bob);
    });
}

#[tokio::test]
async fn a_refresh_that_brings_another_users_token_is_used_by_nobody_and_shuts_the_user_out() {
    let mut fixture = Fixture::new().await;
    give_bobs(&fixture);
    fixture.pass(56);
    assert_eq!(fixture.upstream().await, Err(Denied::Revoked), "not for a moment");
    assert_eq!(fixture.changes.try_recv().ok(), Some(Change::Lost(grants())));
    let stored = fixture.store.find_credential(CREDENTIAL).await.expect("read").expect("there");
    assert!(stored.access.bytes.is_empty() && stored.refresh.is_none(), "what is another's is not kept");
}

#[tokio::test]
async fn the_hourly_look_finds_a_token_that_is_another_accounts_by_now() {
    for replaced in [false, true] {
        let mut fixture = Fixture::new().await;
        fixture.pass(56);
        fixture.rotation.sweep().await;
        assert_eq!(fixture.changes.try_recv().ok(), Some(Change::Rotated(grants())), "refreshed, and seen to be hers");
        if replaced {
            // The forge was reset or restored: her number and her login are somebody else's.
            fixture.forge.with(|state| state.replace_account("alice"));
        } else {
            give_bobs(&fixture);
        }
        fixture.rotation.recheck().await;
        assert!(fixture.changes.try_recv().is_err(), "it was hers an instant ago");
        // The token lives longer than the hour, so that no refresh comes first.
        fixture.forge.with(|state| state.mode.access_ttl = Some(4 * 3600));
        fixture.pass(56);
        fixture.rotation.sweep().await;
        let lost = std::iter::from_fn(|| fixture.changes.try_recv().ok()).last();
        assert_eq!(lost, Some(Change::Lost(grants())), "replaced: {replaced}");
        assert_eq!(fixture.upstream().await, Err(Denied::Revoked));
    }
}

#[tokio::test]
async fn a_token_that_came_while_the_api_does_not_answer_is_used_by_nobody_until_it_does() {
    let mut fixture = Fixture::new().await;
    fixture.mode(|mode| mode.fail_api = true);
    fixture.pass(56);
    fixture.rotation.sweep().await;
    assert_eq!(fixture.refreshes(), 1);
    assert_eq!(fixture.upstream().await, Err(Denied::Unavailable), "whose it is, nobody knows");
    fixture.mode(|_| {});
    assert_ne!(fixture.upstream().await.expect("hers"), fixture.first);
    assert_eq!(fixture.refreshes(), 1, "the pair that was stored is good");
    while let Ok(change) = fixture.changes.try_recv() {
        assert_eq!(change, Change::Rotated(grants()), "nobody was logged out");
    }
}

#[tokio::test]
async fn a_child_that_dies_at_its_start_has_its_account_looked_at_once() {
    let mut fixture = Fixture::new().await;
    assert!(fixture.rotation.is_still_let_in(CREDENTIAL).await.expect("an answer"));
    fixture.mode(|mode| mode.fail_api = true);
    assert!(fixture.rotation.is_still_let_in(CREDENTIAL).await.expect("an answer"), "trouble is no verdict");
    fixture.mode(|_| {});
    fixture.forge.with(|state| state.users.iter_mut().for_each(|user| user.active = false));
    assert!(!fixture.rotation.is_still_let_in(CREDENTIAL).await.expect("an answer"));
    assert_eq!(fixture.changes.try_recv().ok(), Some(Change::Lost(grants())));
    assert_eq!(fixture.upstream().await, Err(Denied::Revoked));
}
