//! The operator's door, asked without a socket.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use nix::unistd::Uid;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::admin::api::{
    CreatedToken, EndedUser, Finding, GrantKind, GrantView, Page, RestrictedToken, State, UserView,
};
use crate::admin::doctor::Surroundings;
use crate::admin::{Admin, router};
use crate::child::supervisor_client::SupervisorSpawner;
use crate::forge::api::Forgejo;
use crate::tests::oauth::fixture::{Fixture, WEB};
use harness::user_agent::UserAgent;

fn door(fixture: &Fixture, dir: &tempfile::TempDir) -> Router {
    door_to(fixture, dir, &fixture.forgejo)
}

fn door_to(fixture: &Fixture, dir: &tempfile::TempDir, forgejo: &str) -> Router {
    router(Admin {
        store: fixture.store.clone(),
        database: dir.path().join("broker.db"),
        copying: Arc::default(),
        vault: Arc::clone(&fixture.vault),
        forgejo: Forgejo::new(forgejo).expect("a client"),
        rotation: fixture.rotation.clone(),
        revocation: fixture.revocation.clone(),
        supervisor: SupervisorSpawner::new(PathBuf::from("/nonexistent"), Uid::effective()),
        clock: fixture.clock.clone(),
        surroundings: Surroundings {
            public_url: fixture.url.clone(),
            lets_log_in: true,
            connections: 100,
            limits: Arc::clone(&fixture.limits),
        },
    })
}

async fn ask<T: DeserializeOwned>(door: &Router, method: Method, path: &str) -> Result<T, StatusCode> {
    tell(door, method, path, &Value::Null).await
}

/// The same with a body.
async fn tell<T: DeserializeOwned>(door: &Router, method: Method, path: &str, body: &Value) -> Result<T, StatusCode> {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).body(body).expect("a request");
    let response = door.clone().oneshot(request).await.expect("an answer");
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    if status.is_success() { Ok(serde_json::from_slice(&body).expect("json")) } else { Err(status) }
}

async fn pages<T: DeserializeOwned>(door: &Router, path: &str) -> Vec<Vec<T>> {
    let (mut pages, mut after) = (Vec::new(), String::new());
    loop {
        let page: Page<T> = ask(door, Method::GET, &format!("{path}{after}")).await.expect("a page");
        pages.push(page.entries);
        let Some(next) = page.next else { return pages };
        after = format!("&after={next}");
    }
}

#[tokio::test]
async fn a_hundred_thousand_grants_come_page_by_page_each_once_and_the_newest_first() {
    let (fixture, dir) = (Fixture::new().await, tempfile::tempdir().expect("a directory"));
    fixture.store.fill_with_grants(100_000).await.expect("filled");
    let door = door(&fixture, &dir);
    let all: Vec<Vec<GrantView>> = pages(&door, "/tokens?limit=1000").await;
    assert_eq!(all.iter().filter(|page| page.len() == 1000).count(), 100);
    let all: Vec<GrantView> = all.into_iter().flatten().collect();
    let ids: HashSet<&str> = all.iter().map(|grant| grant.id.as_str()).collect();
    assert_eq!((all.len(), ids.len()), (100_000, 100_000));
    assert!(all.is_sorted_by_key(|grant| std::cmp::Reverse(grant.created_at)));
    let of_one: Vec<Vec<GrantView>> = pages(&door, "/tokens?limit=1000&user=USER-1").await;
    assert_eq!(of_one.iter().flatten().count(), 10_000, "every tenth");
    assert!(of_one.iter().flatten().all(|grant| grant.number == 1 && grant.user == "user-1"));
    let users: Vec<Vec<UserView>> = pages(&door, "/users?limit=1000").await;
    let users: Vec<UserView> = users.into_iter().flatten().collect();
    assert_eq!(users.len(), 10_000);
    assert_eq!(users.iter().map(|user| user.grants).sum::<i64>(), 100_000);
}

#[tokio::test]
async fn the_doctor_tells_forgejo_from_something_in_front_of_it_and_knows_who_leads_here() {
    let (fixture, dir) = (Fixture::new().await, tempfile::tempdir().expect("a directory"));
    let state = |findings: &[Finding], check: &str| {
        let found = findings.iter().find(|finding| finding.check == check).expect(check);
        (found.state, format!("{} {}", found.found, found.advice.clone().unwrap_or_default()))
    };
    let all: Vec<Finding> = ask(&door(&fixture, &dir), Method::GET, "/doctor").await.expect("findings");
    for check in ["store", "key", "forgejo", "public_url"] {
        assert_eq!(state(&all, check).0, State::Ok, "{:?}", state(&all, check));
    }
    let (supervisor, said) = state(&all, "supervisor");
    assert!(supervisor == State::Fail && said.contains("systemctl status"), "{said}");

    // A shield against crawlers asks every stranger to prove something, in HTML and with a good status.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let shield = format!("http://{}", listener.local_addr().expect("an address"));
    let page = Router::new().fallback(async || axum::response::Html("<p>Making sure you are not a bot"));
    tokio::spawn(async move { axum::serve(listener, page).await });
    let all: Vec<Finding> = ask(&door_to(&fixture, &dir, &shield), Method::GET, "/doctor").await.expect("findings");
    let (forgejo, said) = state(&all, "forgejo");
    assert!(forgejo == State::Fail && said.contains("something in front of Forgejo answers"), "{said}");
    assert!(said.contains("User-Agent") && !said.contains("bot"), "{said}");
}

#[tokio::test]
async fn a_place_that_is_none_and_a_page_beyond_measure_are_refused_and_cut() {
    let (fixture, dir) = (Fixture::new().await, tempfile::tempdir().expect("a directory"));
    fixture.store.fill_with_grants(2000).await.expect("filled");
    let door = door(&fixture, &dir);
    for wrong in ["/tokens?after=yesterday", "/users?after=alice"] {
        assert_eq!(ask::<Page<GrantView>>(&door, Method::GET, wrong).await.err(), Some(StatusCode::BAD_REQUEST));
    }
    let page: Page<GrantView> = ask(&door, Method::GET, "/tokens?limit=4000000000").await.expect("a page");
    assert_eq!(page.entries.len(), 1000);
}

#[tokio::test]
async fn all_that_a_user_has_is_ended_at_once_and_nobody_elses() {
    let (fixture, dir) = (Fixture::new().await, tempfile::tempdir().expect("a directory"));
    let client = fixture.client(WEB).await;
    let (mut alice, mut bob) = (UserAgent::new("alice", "secret"), UserAgent::new("bob", "secret"));
    let (access, refresh) = fixture.connect(&mut alice, &client, WEB).await;
    let (bobs, _) = fixture.connect(&mut bob, &client, WEB).await;
    assert!(fixture.who(&access).await.is_ok());
    let door = door(&fixture, &dir);
    let nobody: Result<Vec<EndedUser>, _> = ask(&door, Method::DELETE, "/users/nobody").await;
    assert_eq!(nobody.err(), Some(StatusCode::NOT_FOUND));
    let ended: Vec<EndedUser> = ask(&door, Method::DELETE, "/users/Alice").await.expect("ended");
    assert_eq!(ended.iter().map(|user| (user.login.as_str(), user.grants)).collect::<Vec<_>>(), [("alice", 1)]);
    assert_eq!(fixture.who(&access).await, Err(401));
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400);
    let page = alice.open(format!("{}/account", fixture.url)).await;
    assert!(page.text.contains("Log in with Forgejo"), "her browser is logged out too");
    assert!(fixture.who(&bobs).await.is_ok());
    let users: Page<UserView> = ask(&door, Method::GET, "/users").await.expect("a page");
    let counts: Vec<_> = users.entries.iter().map(|user| (user.login.as_str(), user.grants)).collect();
    assert_eq!(counts, [("alice", 0), ("bob", 1)]);
}

#[tokio::test]
async fn a_token_is_made_and_changed_with_its_end_its_networks_and_its_tools_and_a_login_is_not() {
    let (fixture, dir) = (Fixture::new().await, tempfile::tempdir().expect("a directory"));
    let door = door(&fixture, &dir);
    let forgejo_token = fixture.forge.with(|state| state.add_token("alice", "write:user")).expect("a token");
    let asked = |more: Value| {
        let mut asked = json!({"user": "alice", "client": "ci", "read_only": false, "expires": {"in": 3600},
            "forgejo_token": forgejo_token});
        asked.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        asked
    };
    let now = fixture.clock.now().secs();
    for bad in [
        json!({"tools": []}),
        json!({"tools": ["create issue"]}),
        json!({"networks": ["example.org"]}),
        json!({"networks": []}),
        json!({"expires": {"in": 0}}),
        json!({"expires": {"in": u64::MAX}}),
        json!({"expires": {"at": now}}),
        json!({"expires": {"at": i64::MAX}}),
    ] {
        let refused = tell::<CreatedToken>(&door, Method::POST, "/tokens", &asked(bad.clone())).await;
        assert_eq!(refused.err(), Some(StatusCode::BAD_REQUEST), "{bad}");
    }
    let lists =
        json!({"tools": ["list_x", "create_x"], "networks": ["127.0.0.1", "10.1.2.3/8"], "expires": {"at": now + 60}});
    let made: CreatedToken = tell(&door, Method::POST, "/tokens", &asked(lists)).await.expect("made");
    assert_eq!(made.expires_at, now + 60);
    let listed = async || {
        let page: Page<GrantView> = ask(&door, Method::GET, "/tokens?user=alice").await.expect("a page");
        page.entries.into_iter().find(|grant| grant.id == made.id).expect("listed")
    };
    let view = listed().await;
    assert_eq!(view.kind, GrantKind::Token);
    assert_eq!(view.tools.expect("a list"), ["create_x", "list_x"]);
    assert_eq!(view.networks.expect("a list"), ["10.0.0.0/8", "127.0.0.1/32"]);
    assert!(fixture.who(&made.token).await.is_ok());

    let path = format!("/tokens/{}", &made.id[..8]);
    let change = json!({"tools": {"only": ["list_x"]}, "networks": "any", "expires": {"in": 7200}});
    let changed: RestrictedToken = tell(&door, Method::PATCH, &path, &change).await.expect("changed");
    assert_eq!((changed.tools, changed.networks), (Some(vec!["list_x".to_owned()]), None));
    let view = listed().await;
    assert_eq!((view.networks, view.expires_at), (None, Some(now + 7200)));
    let elsewhere = json!({"networks": {"only": ["203.0.113.0/24"]}});
    tell::<RestrictedToken>(&door, Method::PATCH, &path, &elsewhere).await.expect("changed");
    assert_eq!(listed().await.tools, Some(vec!["list_x".to_owned()]), "what is left out stays");
    assert_eq!(fixture.who(&made.token).await, Err(403), "the change holds at once");

    let client = fixture.client(WEB).await;
    fixture.connect(&mut UserAgent::new("bob", "secret"), &client, WEB).await;
    let page: Page<GrantView> = ask(&door, Method::GET, "/tokens?user=bob").await.expect("a page");
    assert_eq!(page.entries[0].kind, GrantKind::Login);
    let bobs = format!("/tokens/{}", page.entries[0].id);
    let refused = tell::<RestrictedToken>(&door, Method::PATCH, &bobs, &change).await;
    assert_eq!(refused.err(), Some(StatusCode::CONFLICT), "what a user gave is theirs to change");
    let gone = tell::<RestrictedToken>(&door, Method::PATCH, "/tokens/0123456789", &change).await;
    assert_eq!(gone.err(), Some(StatusCode::NOT_FOUND));
}
