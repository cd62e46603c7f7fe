//! The user's own page.

use crate::tests::oauth::fixture::{Fixture, WEB};
use harness::user_agent::{Page, UserAgent};

async fn at_account(fixture: &Fixture, user_agent: &mut UserAgent) -> Page {
    user_agent.account(&fixture.url, &fixture.forgejo).await
}

#[tokio::test]
async fn a_user_logs_in_and_sees_their_clients_and_nobody_elses() {
    let fixture = Fixture::new().await;
    let (one, two) = (fixture.client(WEB).await, fixture.client("https://bobs.example/cb").await);
    let mut alice = UserAgent::new("alice", "secret");
    let (access, _) = fixture.connect(&mut alice, &one, WEB).await;
    fixture.connect(&mut UserAgent::new("bob", "secret"), &two, "https://bobs.example/cb").await;
    fixture.who(&access).await.expect("a use");
    let page = at_account(&fixture, &mut UserAgent::new("alice", "secret")).await;
    assert_eq!(page.url.path(), "/account");
    for part in ["alice", "Test client", &one, "last used just now", "0 open sessions", "Reads and changes"] {
        assert!(page.text.contains(part), "{part}: {}", page.text);
    }
    assert!(!page.text.contains(&two));
}

#[tokio::test]
async fn a_user_is_told_where_forgejo_keeps_to_other_scopes() {
    let fixture = Fixture::new().await;
    let fixed = |scope: &'static str| {
        fixture.forge.with(|state| state.grants.iter_mut().for_each(|grant| scope.clone_into(&mut grant.scope)));
    };
    let again = async || at_account(&fixture, &mut UserAgent::new("alice", "secret")).await.text;
    assert!(!again().await.contains("at your first login"), "nothing differs");
    fixed("read:user");
    let page = again().await;
    assert!(page.contains("Not allowed: write:") && page.contains("/user/settings/applications"), "{page}");
    fixed("all");
    assert!(again().await.contains("Allowed, and not needed: all"));
    fixture.forge.with(|state| state.grants.clear());
    assert!(!again().await.contains("at your first login"), "removed there and logged in again");
}

#[tokio::test]
async fn who_asks_to_disconnect_and_hangs_up_is_disconnected_all_the_same() {
    use futures_util::FutureExt;
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (access, _) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    fixture.who(&access).await.expect("known from now on");
    let grants = fixture.store.grants().await.expect("grants");
    // What a server does with a request whose peer has gone: it is dropped where it waits.
    assert!(fixture.revocation.revoke(&grants[0].id, "test").now_or_never().is_none(), "it waits for the store");
    let ended = async {
        while fixture.who(&access).await.is_ok() {
            harness::look_again().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), ended).await.expect("the token is worthless");
}

#[tokio::test]
async fn disconnecting_ends_the_clients_tokens_and_forgets_the_consent() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, refresh) = fixture.connect(&mut alice, &client, WEB).await;
    let page = at_account(&fixture, &mut alice).await;
    let sent = alice.send(&page.form("/account/disconnect")).await;
    assert_eq!(sent.location().expect("back").path(), "/account");
    assert_eq!(fixture.who(&access).await, Err(401));
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400);
    let page = alice.open(format!("{}/account", fixture.url)).await;
    assert!(page.text.contains("No client is connected"));
    let page = alice.open(fixture.authorize(&client, WEB, &[])).await;
    assert!(page.text.contains("/oauth/consent"), "asked again");
}

#[tokio::test]
async fn a_remembered_approval_without_a_connection_can_be_forgotten() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    // The client never comes for its tokens.
    fixture.log_in(&mut alice, &client, WEB).await;
    let page = at_account(&fixture, &mut alice).await;
    assert!(page.text.contains("Approved, not connected now") && page.text.contains(WEB));
    alice.send(&page.form("/account/disconnect")).await;
    let page = alice.open(fixture.authorize(&client, WEB, &[])).await;
    assert!(page.text.contains("/oauth/consent"));
}

#[tokio::test]
async fn nobody_disconnects_what_is_anothers() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (access, _) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    let grant = fixture.store.grants().await.expect("grants").remove(0).id;
    let mut bob = UserAgent::new("bob", "secret");
    let page = at_account(&fixture, &mut bob).await;
    let token = page.form("/account/logout").fields["token"].clone();
    let mut form = page.form("/account/logout").with("grant", grant.as_str()).with("token", &token);
    form.action.set_path("/account/disconnect");
    assert_eq!(bob.send(&form).await.status, 303, "it was understood, and found nothing of his");
    assert!(fixture.who(&access).await.is_ok());
}

#[tokio::test]
async fn a_form_of_another_site_does_nothing() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, _) = fixture.connect(&mut alice, &client, WEB).await;
    let page = at_account(&fixture, &mut alice).await;
    let other =
        at_account(&fixture, &mut UserAgent::new("bob", "secret")).await.form("/account/logout").fields["token"]
            .clone();
    for token in ["", &other] {
        let sent = alice.send(&page.form("/account/disconnect").with("token", token)).await;
        assert_eq!(sent.status, 403);
    }
    assert!(fixture.who(&access).await.is_ok());
}

#[tokio::test]
async fn logging_out_ends_the_visit_and_leaves_the_clients_connected() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, _) = fixture.connect(&mut alice, &client, WEB).await;
    let page = at_account(&fixture, &mut alice).await;
    let visit = alice.cookies.clone();
    alice.send(&page.form("/account/logout")).await;
    for cookies in [alice.cookies.clone(), visit] {
        alice.cookies = cookies;
        let page = alice.open(format!("{}/account", fixture.url)).await;
        assert!(page.text.contains("Log in with Forgejo"), "also with the old cookie");
    }
    assert!(fixture.who(&access).await.is_ok());
}

#[tokio::test]
async fn every_login_begins_a_new_visit_and_logging_out_ends_all_of_the_browser() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let is_in = async |user_agent: &mut UserAgent| {
        user_agent.open(format!("{}/account", fixture.url)).await.text.contains("Your connected clients")
    };
    at_account(&fixture, &mut alice).await;
    let mut copy = alice.clone();
    let mut elsewhere = UserAgent::new("alice", "secret");
    at_account(&fixture, &mut elsewhere).await;
    fixture.log_in(&mut alice, &client, WEB).await;
    assert!(is_in(&mut alice).await && !is_in(&mut copy).await, "the cookie of before the second login is over");
    let mut copy = alice.clone();
    let page = alice.open(format!("{}/account", fixture.url)).await;
    // As a browser that has lost the cookie of its visit.
    alice.cookies.retain(|(_, name), _| !name.ends_with("visit"));
    alice.send(&page.form("/account/logout")).await;
    assert!(!is_in(&mut copy).await && is_in(&mut elsewhere).await, "of this browser, and of no other");
}

#[tokio::test]
async fn a_visit_ends_by_itself() {
    let fixture = Fixture::new().await;
    let mut alice = UserAgent::new("alice", "secret");
    at_account(&fixture, &mut alice).await;
    fixture.clock.advance(std::time::Duration::from_hours(12));
    assert!(alice.open(format!("{}/account", fixture.url)).await.text.contains("Log in with Forgejo"));
}

#[tokio::test]
async fn the_front_page_tells_how_each_client_is_connected() {
    let fixture = Fixture::new().await;
    let page = UserAgent::new("x", "x").open(format!("{}/", fixture.url)).await;
    let endpoint = format!("{}/mcp", fixture.url);
    assert_eq!(page.text.matches(&endpoint).count(), 8, "{}", page.text);
    for client in ["Claude Code", "ChatGPT", "VS Code", "Cursor", "Codex", "Gemini CLI", "opencode", "mcp-remote"] {
        assert!(page.text.contains(client), "{client}");
    }
}
