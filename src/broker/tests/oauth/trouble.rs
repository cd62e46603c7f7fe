//! Forgejo away, accounts that are not let in, and what is over.

use std::time::Duration;

use crate::forge::access::Access;
use crate::forge::rotation::Change;
use serde_json::json;

use crate::tests::oauth::fixture::{Answer, Fixture, Terms, WEB};
use harness::user_agent::{Decision, Page, UserAgent, decided};

#[tokio::test]
async fn while_forgejo_is_away_logins_get_a_clear_page_and_nothing_is_revoked() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, refresh) = fixture.connect(&mut alice, &client, WEB).await;
    let consent = alice.open(fixture.authorize(&client, WEB, &[("prompt", "consent")])).await;
    fixture.misbehave(|mode| mode.fail = Some(502));
    let page = alice.send(&decided(consent.form("/oauth/consent"), Decision::Allow)).await;
    assert_eq!((page.status.as_u16(), page.location()), (503, None));
    assert!(
        page.text.contains("Forgejo cannot be reached") && page.text.contains("temporarily_unavailable"),
        "{}",
        page.text
    );
    assert!(!page.header("retry-after").is_empty());
    let page = alice.open(format!("{}/account", fixture.url)).await;
    assert_eq!(page.status, 200, "the account page needs no Forgejo");
    assert!(fixture.who(&access).await.is_ok());
    let (status, tokens) = fixture.refresh(&client, &refresh).await;
    assert_eq!(status, 200, "a client's refresh does not wait for Forgejo");
    // Past the end of Forgejo's own token: calls say that it is not possible now, and nothing is lost.
    fixture.clock.advance(Duration::from_mins(61));
    fixture.rotation.sweep().await;
    let (status, tokens) = fixture.refresh(&client, tokens["refresh_token"].as_str().expect("a token")).await;
    assert_eq!(status, 200, "{tokens}");
    let access = tokens["access_token"].as_str().expect("a token");
    assert_eq!(fixture.who(access).await, Err(503));
    fixture.misbehave(|_| {});
    fixture.clock.advance(Duration::from_mins(6));
    assert!(fixture.who(access).await.is_ok());
}

#[tokio::test]
async fn an_answer_of_forgejo_that_is_lost_is_a_clear_page_too() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    fixture.misbehave(|mode| mode.lose_answer = true);
    let page = alice.go(&fixture.authorize(&client, WEB, &[]), &fixture.known(), Decision::Allow).await;
    assert_eq!((page.status.as_u16(), page.location()), (503, None));
    assert!(page.text.contains("Back to the client"));
    fixture.misbehave(|_| {});
    let page = alice.go(&fixture.authorize(&client, WEB, &[]), &fixture.known(), Decision::Allow).await;
    assert_eq!(Answer::of(&page).address(), WEB);
}

#[tokio::test]
async fn a_broker_that_forgejo_does_not_know_says_so_and_ends_nothing() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, _) = fixture.connect(&mut alice, &client, WEB).await;
    fixture.forge.with(|state| state.apps[0].secret = "changed".to_owned());
    let page = alice.go(&fixture.authorize(&client, WEB, &[]), &fixture.known(), Decision::Allow).await;
    assert_eq!((page.status.as_u16(), page.location()), (502, None));
    assert!(page.text.contains("tell the operator"));
    assert!(fixture.who(&access).await.is_ok());
}

async fn logs_in(fixture: &Fixture, login: &str) -> Page {
    let client = fixture.client(WEB).await;
    let mut user_agent = UserAgent::new(login, "secret");
    user_agent.go(&fixture.authorize(&client, WEB, &[]), &fixture.known(), Decision::Allow).await
}

fn is_in(page: &Page) -> bool {
    page.location().is_some_and(|to| to.as_str().starts_with(&format!("{WEB}?code=")))
}

async fn world_for(allow: &[&str], deny: &[&str]) -> Fixture {
    let list = |entries: &[&str]| entries.iter().map(|entry| entry.parse().expect("a subject")).collect();
    let access = Access { allow: list(allow), deny: list(deny), ..Access::default() };
    let fixture = Fixture::with(Terms { access, ..Terms::default() }).await;
    fixture.forge.with(|state| {
        let alice = state.users.iter_mut().find(|user| user.login == "alice").expect("there");
        alice.teams = (0..60).map(|n| (format!("Org{n}"), "members".to_owned())).collect();
        alice.teams.push(("Acme".to_owned(), "Devs".to_owned()));
    });
    fixture
}

#[tokio::test]
async fn the_operators_lists_decide_who_may_log_in() {
    for (allow, deny, alice, bob) in [
        (&["user:ALICE"][..], &[][..], true, false),
        (&["org:acme"], &[], true, false),
        (&["team:acme/devs"], &[], true, false),
        (&["team:acme/ops"], &[], false, false),
        (&[], &["user:alice"], false, true),
        (&["org:acme"], &["team:acme/devs"], false, false),
    ] {
        let fixture = world_for(allow, deny).await;
        for (login, may) in [("alice", alice), ("bob", bob)] {
            let page = logs_in(&fixture, login).await;
            assert_eq!(is_in(&page), may, "{login} allow {allow:?} deny {deny:?}");
            if !may {
                assert_eq!(page.status, 403);
                assert!(page.text.contains("does not let the account in"), "{}", page.text);
            }
        }
    }
}

#[tokio::test]
async fn restricted_accounts_are_refused() {
    let fixture = Fixture::new().await;
    fixture.forge.with(|state| state.users[0].restricted = true);
    let page = logs_in(&fixture, "alice").await;
    assert!(page.status == 403 && page.text.contains("restricted accounts"), "{}", page.text);
}

#[tokio::test]
async fn who_is_not_let_in_any_more_loses_everything_at_the_next_refresh() {
    let mut fixture = world_for(&["org:acme"], &[]).await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, refresh) = fixture.connect(&mut alice, &client, WEB).await;
    fixture.forge.with(|state| state.users[0].teams.clear());
    fixture.clock.advance(Duration::from_mins(56));
    // Not without a look, however long Forgejo takes for it.
    fixture.store.age_owner_checks().await.expect("aged");
    assert_eq!(fixture.who(&access).await, Err(401));
    let mut lost = Vec::new();
    while let Ok(change) = fixture.changes.try_recv() {
        if let Change::Lost(grants) = change {
            lost.extend(grants);
        }
    }
    assert_eq!(lost.len(), 1);
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400);
    let page = alice.open(format!("{}/account", fixture.url)).await;
    assert!(page.text.contains("Log in with Forgejo"), "the visit is over too");
}

#[tokio::test]
async fn a_deactivated_account_loses_everything_at_the_next_refresh() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (access, _) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    fixture.forge.with(|state| state.users[0].active = false);
    fixture.clock.advance(Duration::from_mins(56));
    fixture.rotation.sweep().await;
    assert_eq!(fixture.who(&access).await, Err(401));
}

#[tokio::test]
async fn lists_that_cannot_be_applied_now_let_nobody_new_in_and_throw_nobody_out() {
    let fixture = world_for(&["org:acme"], &[]).await;
    let client = fixture.client(WEB).await;
    let (access, _) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    fixture.misbehave(|mode| mode.fail_memberships = true);
    let page = logs_in(&fixture, "alice").await;
    assert_eq!((page.status.as_u16(), page.location()), (503, None));
    fixture.clock.advance(Duration::from_mins(56));
    fixture.rotation.sweep().await;
    assert!(fixture.who(&access).await.is_ok());
}

#[tokio::test]
async fn who_is_kept_out_by_name_is_so_also_while_forgejo_tells_no_memberships() {
    let fixture = world_for(&["org:acme"], &["user:alice"]).await;
    fixture.misbehave(|mode| mode.fail_memberships = true);
    let page = logs_in(&fixture, "alice").await;
    assert!(page.status == 403 && page.text.contains("does not let the account in"), "{}", page.text);
}

/// Alice is connected; then something happens to her, her login says why she is not let in, and what was connected ends.
async fn is_shut_out(fixture: Fixture, happens: impl FnOnce(&mut harness::forge::state::State), why: &str) {
    let client = fixture.client(WEB).await;
    let (access, _) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    fixture.forge.with(happens);
    fixture.clock.advance(Duration::from_mins(56));
    fixture.rotation.sweep().await;
    assert_eq!(fixture.who(&access).await, Err(401), "what was connected ends at the next refresh");
    let page = logs_in(&fixture, "alice").await;
    assert_eq!((page.status.as_u16(), page.location()), (403, None));
    assert!(page.text.contains(why), "{}", page.text);
    let tenant = crate::tests::oauth::fixture::alices_number();
    let id = fixture.store.oauth_credential_of(tenant).await.expect("read").expect("there");
    let credential = fixture.store.find_credential(&id).await.expect("read").expect("there");
    assert!(credential.access.bytes.is_empty() && credential.refresh.is_none(), "no token of hers is kept");
}

#[tokio::test]
async fn whose_memberships_forgejo_does_not_show_is_shut_out_and_told_what_to_do() {
    let fixture = world_for(&[], &["org:evil"]).await;
    let narrow = |state: &mut harness::forge::state::State| {
        "write:user write:repository".clone_into(&mut state.grants[0].scope);
    };
    is_shut_out(fixture, narrow, "for which it needs the scope read:organization").await;
}

#[tokio::test]
async fn who_becomes_a_restricted_user_is_shut_out() {
    is_shut_out(Fixture::new().await, |state| state.users[0].restricted = true, "restricted accounts").await;
}

#[tokio::test]
async fn who_is_locked_at_forgejo_is_shut_out() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    fixture.connect(&mut alice, &client, WEB).await;
    // Her browser is still logged in at Forgejo, which gives a code; only its API says no.
    fixture.forge.with(|state| state.users[0].prohibit_login = true);
    let page = alice.go(&fixture.authorize(&client, WEB, &[]), &fixture.known(), Decision::Allow).await;
    assert_eq!((page.status.as_u16(), page.location()), (403, None));
    assert!(page.text.contains("the account is locked at Forgejo"), "{}", page.text);
}

#[tokio::test]
async fn nobody_stays_by_being_in_more_organisations_than_can_be_read() {
    let fixture = world_for(&[], &["org:evil"]).await;
    let join = |state: &mut harness::forge::state::State| {
        state.users[0].teams = (0..2000).map(|n| (format!("org{n}"), "members".to_owned())).collect();
    };
    is_shut_out(fixture, join, "in too many organisations").await;
}

#[tokio::test]
async fn a_login_that_waits_for_memberships_keeps_no_other_waiting() {
    let fixture = world_for(&["org:acme", "user:bob"], &[]).await;
    let client = fixture.client(WEB).await;
    fixture.misbehave(|mode| mode.hang_memberships = true);
    let mut waiting = Vec::new();
    for login in ["alice", "bob"] {
        let (url, known) = (fixture.authorize(&client, WEB, &[]), fixture.known().map(ToOwned::to_owned));
        waiting.push(tokio::spawn(async move {
            let known = [known[0].as_str(), known[1].as_str()];
            UserAgent::new(login, "secret").go(&url, &known, Decision::Allow).await
        }));
    }
    // Each has its pair from Forgejo and asks for memberships, at the same time.
    asked(&fixture, harness::forge::state::MEMBERSHIPS, 2).await;
    fixture.misbehave(|_| {});
    for login in waiting {
        assert!(is_in(&login.await.expect("no panic")));
    }
}

#[tokio::test]
async fn what_is_over_is_removed_and_a_grant_without_a_live_token_ends() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (_, refresh) = fixture.connect(&mut alice, &client, WEB).await;
    let (_, second) = fixture.refresh(&client, &refresh).await;
    fixture.who(second["access_token"].as_str().expect("a token")).await.expect("it is used");
    let page = alice.open(fixture.authorize(&client, WEB, &[("prompt", "consent")])).await;
    alice.send(&decided(page.form("/oauth/consent"), Decision::Allow)).await;
    assert_eq!(
        fixture
            .store
            .logins_under_way(crate::tests::oauth::fixture::START.minus(Duration::from_hours(24)))
            .await
            .expect("a number"),
        1
    );
    fixture.clock.advance(Duration::from_hours(2));
    fixture.oauth.tidy().await;
    assert_eq!(
        fixture
            .store
            .logins_under_way(crate::tests::oauth::fixture::START.minus(Duration::from_hours(24)))
            .await
            .expect("a number"),
        0
    );
    let (status, refused) = fixture.refresh(&client, &refresh).await;
    assert_eq!((status, &refused["error"]), (400, &json!("invalid_grant")));
    let grants = fixture.store.grants().await.expect("grants");
    assert!(grants[0].revoked_at.is_some(), "a reuse long after is still noticed");
    let (_, refresh) = fixture.connect(&mut alice, &client, WEB).await;
    fixture.clock.advance(Duration::from_hours(31 * 24));
    fixture.oauth.tidy().await;
    let grants = fixture.store.grants().await.expect("grants");
    assert!(grants.iter().all(|grant| grant.revoked_at.is_some()), "{grants:?}");
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400);
}

#[tokio::test]
async fn tokens_and_codes_leave_the_database_when_they_can_tell_a_thief_no_more() {
    use crate::auth::token::{AccessToken, AuthorizationCode, RefreshToken};
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let code = fixture.log_in(&mut UserAgent::new("alice", "secret"), &client, WEB).await.get("code").to_owned();
    let (_, tokens) = fixture.redeem(&client, WEB, &code).await;
    let text = |tokens: &serde_json::Value, name: &str| tokens[name].as_str().expect("a token").to_owned();
    let (access, used) = (text(&tokens, "access_token"), text(&tokens, "refresh_token"));
    let (_, sibling) = fixture.refresh(&client, &used).await;
    let (_, next) = fixture.refresh(&client, &used).await;
    let name = |token: &str| RefreshToken::parse(token).expect("a token").name();
    let (used, sibling) = (name(&used), name(&text(&sibling, "refresh_token")));
    let access = AccessToken::parse(&access).expect("a token").hash();
    let code = AuthorizationCode::parse(&code).expect("a code").hash();
    let kept = async |days: u64| {
        let then = crate::tests::oauth::fixture::START.plus(Duration::from_hours(24 * days + 2));
        fixture.clock.advance(then.since(fixture.clock.now()));
        fixture.oauth.tidy().await;
        let now = fixture.clock.now();
        let refresh = async |token| fixture.store.find_refresh_token(&token, now).await.expect("read").is_some();
        [
            fixture.store.find_code(&code).await.expect("read").is_some(),
            fixture.store.find_token(&access).await.expect("read").is_some(),
            refresh(used).await,
            refresh(sibling).await,
        ]
    };
    assert_eq!(kept(0).await, [true; 4], "what has ended is told from what never was, for a day");
    assert_eq!(kept(1).await, [false, false, true, true]);
    assert_eq!(kept(20).await, [false, false, true, true], "the family lives, and a thief would be noticed");
    let (status, last) = fixture.refresh(&client, &text(&next, "refresh_token")).await;
    assert_eq!(status, 200);
    assert_eq!(kept(32).await, [false; 4], "they would have expired by themselves");
    assert_eq!(fixture.refresh(&client, &text(&last, "refresh_token")).await.0, 200, "and the family lives on");
}

/// Waits until the forge has been asked for this path so many times.
async fn asked(fixture: &Fixture, path: &str, times: usize) {
    let count = || fixture.forge.with(|state| state.requests.iter().filter(|seen| seen.path == path).count());
    let enough = async {
        while count() < times {
            harness::look_again().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), enough).await.expect("the forge is asked");
}

#[tokio::test]
async fn a_refresh_that_a_login_of_the_same_user_has_overtaken_waits_for_it_and_ends_nothing() {
    let mut fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, _) = fixture.connect(&mut alice, &client, WEB).await;
    let credential = fixture.store.oauth_credential_of(crate::tests::oauth::fixture::alices_number());
    let credential = credential.await.expect("read").expect("a credential");
    fixture.clock.advance(Duration::from_mins(56));
    // So that the stored token is not handed out meanwhile.
    fixture.store.age_owner_checks().await.expect("aged");
    fixture.forge.with(|state| state.requests.clear());
    // Straight through, because all was agreed to before.
    let callback = alice.go_up_to("/oauth/callback", &fixture.authorize(&client, WEB, &[]), Decision::Deny).await;
    // The login has its pair from Forgejo, which has made the stored one worthless, and cannot yet say whose it is.
    fixture.misbehave(|mode| mode.hang_api = true);
    let mut logging_in = alice.clone();
    let login = tokio::spawn(async move { logging_in.open(callback).await });
    asked(&fixture, "/login/oauth/access_token", 1).await;
    asked(&fixture, "/api/v1/user", 1).await;
    let rotation = fixture.rotation.clone();
    let mut refresh = tokio::spawn(async move { rotation.fresh(&credential).await });
    asked(&fixture, "/login/oauth/access_token", 2).await;
    let early = tokio::time::timeout(Duration::from_millis(200), &mut refresh).await;
    assert!(early.is_err(), "the refresh was refused, and waits for the login instead of ending the user's grants");
    fixture.misbehave(|_| {});
    let page = login.await.expect("no panic");
    assert!(page.location().is_some_and(|to| to.as_str().starts_with(WEB)), "{}", page.text);
    refresh.await.expect("no panic").expect("the login's own token");
    while let Ok(change) = fixture.changes.try_recv() {
        assert!(matches!(change, Change::Rotated(_)), "{change:?}");
    }
    assert!(fixture.who(&access).await.is_ok());
}

#[tokio::test]
async fn logins_from_one_address_are_limited() {
    let mut terms = Terms::default();
    terms.rates.logins = 2;
    let fixture = Fixture::with(terms).await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    for n in 0..3 {
        let page = alice.open(fixture.authorize(&client, WEB, &[])).await;
        let sent = alice.send(&decided(page.form("/oauth/consent"), Decision::Allow)).await;
        assert_eq!(sent.status.as_u16(), if n < 2 { 303 } else { 429 });
    }
}

#[tokio::test]
async fn the_tokens_of_who_has_disconnected_leave_the_database_and_come_back_with_a_login() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (_, refresh) = fixture.connect(&mut alice, &client, WEB).await;
    let form = [("client_id", client.as_str()), ("token", refresh.as_str())];
    fixture.http.post(format!("{}/oauth/revoke", fixture.url)).form(&form).send().await.expect("an answer");
    let tenant = crate::tests::oauth::fixture::alices_number();
    let id = fixture.store.oauth_credential_of(tenant).await.expect("read").expect("there");
    fixture.oauth.tidy().await;
    let sealed = fixture.store.find_credential(&id).await.expect("read").expect("there");
    assert!(sealed.refresh.is_some(), "a code may be on its way");
    fixture.clock.advance(Duration::from_hours(2));
    fixture.oauth.tidy().await;
    let emptied = fixture.store.find_credential(&id).await.expect("read").expect("there");
    assert!(emptied.access.bytes.is_empty() && emptied.refresh.is_none());
    let (access, _) = fixture.connect(&mut alice, &client, WEB).await;
    assert!(fixture.who(&access).await.is_ok());
    fixture.clock.advance(Duration::from_hours(24 * 100));
    fixture.oauth.tidy().await;
    fixture.oauth.tidy().await;
    let grants = fixture.store.grants().await.expect("grants");
    assert_eq!(grants.len(), 1, "the revoked one is gone after ninety days, the expired one not yet: {grants:?}");
}

#[tokio::test]
async fn the_credential_of_a_live_grant_is_never_emptied() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (_, refresh) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    fixture.clock.advance(Duration::from_hours(24 * 20));
    fixture.oauth.tidy().await;
    let (status, tokens) = fixture.refresh(&client, &refresh).await;
    assert_eq!(status, 200);
    assert!(fixture.who(tokens["access_token"].as_str().expect("a token")).await.is_ok());
}

#[tokio::test]
async fn a_forge_that_fails_in_the_middle_of_a_login_costs_the_user_nothing() {
    let mut fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, _) = fixture.connect(&mut alice, &client, WEB).await;
    // Straight through, because all was agreed to before.
    let callback = alice.go_up_to("/oauth/callback", &fixture.authorize(&client, WEB, &[]), Decision::Deny).await;
    fixture.forge.with(|state| state.requests.clear());
    fixture.misbehave(|mode| mode.fail_api = true);
    let login = tokio::spawn(async move { alice.open(callback).await });
    // The exchange is done, the older pair worthless; who it was, Forgejo does not say.
    asked(&fixture, "/api/v1/user", 2).await;
    fixture.misbehave(|_| {});
    let page = login.await.expect("no panic");
    assert!(page.location().is_some_and(|to| to.as_str().starts_with(WEB)), "{}", page.text);
    fixture.clock.advance(Duration::from_mins(56));
    fixture.rotation.sweep().await;
    assert!(fixture.who(&access).await.is_ok());
    while let Ok(change) = fixture.changes.try_recv() {
        assert!(matches!(change, Change::Rotated(_)), "{change:?}");
    }
}

#[tokio::test]
async fn who_gets_an_earlier_accounts_number_in_a_new_forge_gets_nothing_else_of_it() {
    let mut fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut old_browser = UserAgent::new("alice", "secret");
    let (access, refresh) = fixture.connect(&mut old_browser, &client, WEB).await;
    fixture.forge.with(|state| {
        let apps = std::mem::take(&mut state.apps);
        state.reset(true);
        state.apps = apps;
        assert_eq!(state.add_user("mallory", "secret", false), 1, "alice's number");
    });
    let mut mallory = UserAgent::new("mallory", "secret");
    let address = fixture.authorize(&client, WEB, &[]);
    let page = mallory.go(&address, &fixture.known(), Decision::Allow).await;
    assert_eq!((page.status.as_u16(), page.location()), (403, None));
    assert!(page.text.contains("log in once more"), "{}", page.text);
    while let Ok(change) = fixture.changes.try_recv() {
        if let Change::Lost(grants) = change {
            for grant in grants {
                fixture.revocation.end(&grant, "test");
            }
        }
    }
    assert_eq!(fixture.who(&access).await, Err(401));
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400);
    let page = old_browser.open(format!("{}/account", fixture.url)).await;
    assert!(page.text.contains("Log in with Forgejo"), "her browser is nobody's");
    let (access, _) = fixture.connect(&mut mallory, &client, WEB).await;
    assert!(fixture.who(&access).await.expect("somebody").starts_with("mallory "));
}
