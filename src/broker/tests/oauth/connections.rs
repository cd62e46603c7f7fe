//! What a user sees of each connection on `/account`, and what they may do with it.

use std::time::Duration;

use serde_json::json;

use crate::store::WriteCall;
use crate::tests::oauth::fixture::{Fixture, WEB, alices_number};
use harness::user_agent::{Form, Page, UserAgent};

const OTHER: &str = "https://other.example/callback";

async fn account(fixture: &Fixture) -> (UserAgent, Page) {
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.account(&fixture.url, &fixture.forgejo).await;
    (alice, page)
}

fn forms(page: &Page, path: &str) -> Vec<Form> {
    page.forms().into_iter().filter(|form| form.action.path() == path).collect()
}

#[tokio::test]
async fn a_connection_says_since_when_from_where_and_whether_it_is_new() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (access, _) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    fixture.who(&access).await.expect("a use");
    fixture.clock.advance(Duration::from_hours(2));
    let (mut alice, page) = account(&fixture).await;
    for part in ["2 hours ago (Fri, 15 Jan 2027 08:00:00 GMT)", "from IPv4, 127.0.0.0/24", ">New<"] {
        assert!(page.text.contains(part), "{part}: {}", page.text);
    }
    assert!(!page.text.contains("127.0.0.1,") && !page.text.contains("from 127.0.0.1"), "no address");
    // It is noted behind the page.
    let seen = async {
        while fixture.store.connections_of(alices_number()).await.expect("read").iter().any(|one| one.is_new) {
            harness::look_again().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen).await.expect("noted");
    assert!(!alice.open(format!("{}/account", fixture.url)).await.text.contains(">New<"), "it was seen");
}

#[tokio::test]
async fn two_connections_of_one_client_are_told_apart_also_by_a_screen_reader() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    fixture.connect(&mut alice, &client, WEB).await;
    fixture.clock.advance(Duration::from_secs(90));
    fixture.connect(&mut alice, &client, WEB).await;
    let (_, page) = account(&fixture).await;
    for time in ["08:00:00 GMT", "08:01:30 GMT"] {
        let label = format!("aria-label=\"Disconnect Test client, connected Fri, 15 Jan 2027 {time}\"");
        assert!(page.text.contains(&label), "{label}: {}", page.text);
    }
}

#[tokio::test]
async fn a_connection_that_is_reduced_only_reads_at_once_and_stays_connected() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, refresh) = fixture.connect(&mut alice, &client, WEB).await;
    assert_eq!(fixture.who(&access).await.as_deref(), Ok("alice forgejo:read forgejo:write"));
    let (_, bobs) = {
        let mut bob = UserAgent::new("bob", "secret");
        let page = bob.account(&fixture.url, &fixture.forgejo).await;
        (bob, page)
    };
    let page = alice.open(format!("{}/account", fixture.url)).await;
    let reduce = page.form("/account/reduce");
    let mut mallory = UserAgent::new("bob", "secret");
    mallory.account(&fixture.url, &fixture.forgejo).await;
    let theirs = reduce.clone().with("token", &bobs.form("/account/logout").fields["token"]);
    assert_eq!(mallory.send(&theirs).await.status, 403);
    assert_eq!(fixture.who(&access).await.as_deref(), Ok("alice forgejo:read forgejo:write"));
    assert_eq!(alice.send(&reduce).await.location().expect("back").path(), "/account");
    assert_eq!(fixture.who(&access).await.as_deref(), Ok("alice forgejo:read"), "the same token");
    let page = alice.open(format!("{}/account", fixture.url)).await;
    assert!(page.text.contains("Only reads") && forms(&page, "/account/reduce").is_empty());
    // Clients that name the scopes they were given at first are not shut out.
    let form = [
        ("grant_type", "refresh_token"),
        ("client_id", &*client),
        ("refresh_token", &*refresh),
        ("scope", "forgejo:read forgejo:write"),
    ];
    let (status, tokens) = fixture.token(&form).await;
    assert_eq!((status, &tokens["scope"]), (200, &json!("forgejo:read")), "{tokens}");
    let access = tokens["access_token"].as_str().expect("a token");
    assert_eq!(fixture.who(access).await.as_deref(), Ok("alice forgejo:read"));
    let page = alice.open(fixture.authorize(&client, WEB, &[])).await;
    assert!(page.text.contains("/oauth/consent"), "writing does not come back unasked");
}

#[tokio::test]
async fn all_can_be_disconnected_at_once_and_nothing_comes_back_unasked() {
    let fixture = Fixture::new().await;
    let (one, two) = (fixture.client(WEB).await, fixture.client(OTHER).await);
    let mut alice = UserAgent::new("alice", "secret");
    let (first, _) = fixture.connect(&mut alice, &one, WEB).await;
    let (second, _) = fixture.connect(&mut alice, &two, OTHER).await;
    let bobs = fixture.client(WEB).await;
    let (others, _) = fixture.connect(&mut UserAgent::new("bob", "secret"), &bobs, WEB).await;
    let page = alice.open(format!("{}/account", fixture.url)).await;
    let all = forms(&page, "/account/disconnect").into_iter().find(|form| form.fields.contains_key("all"));
    alice.send(&all.expect("a form")).await;
    assert_eq!([fixture.who(&first).await, fixture.who(&second).await], [Err(401), Err(401)]);
    assert!(fixture.who(&others).await.is_ok(), "of nobody else");
    assert!(alice.open(format!("{}/account", fixture.url)).await.text.contains("No client is connected"));
    for (client, address) in [(&one, WEB), (&two, OTHER)] {
        assert!(alice.open(fixture.authorize(client, address, &[])).await.text.contains("/oauth/consent"));
    }
}

#[tokio::test]
async fn the_last_calls_that_changed_something_are_shown_before_and_after_they_are_kept() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    let grant = fixture.store.grants().await.expect("grants").remove(0).id;
    let (mut alice, page) = account(&fixture).await;
    assert!(!page.text.contains("Last changes"), "{}", page.text);
    for n in 0..30 {
        fixture.writes.note(WriteCall {
            grant: grant.clone(),
            at: fixture.clock.now(),
            tool: format!("tool_{n}"),
            target: "acme/<site>".to_owned(),
            outcome: if n == 29 { "tool-error" } else { "ok" }.into(),
        });
        if n == 20 {
            fixture.writes.flush(&fixture.store).await;
        }
    }
    for _ in 0..2 {
        let page = alice.open(format!("{}/account", fixture.url)).await;
        for part in
            ["Last changes (20)", "<code>tool_29</code> on acme/&#60;site&#62;, just now (tool error)", "tool_10<"]
        {
            assert!(page.text.contains(part), "{part}: {}", page.text);
        }
        assert!(!page.text.contains("tool_9<"), "the last twenty");
        fixture.writes.flush(&fixture.store).await;
    }
}
