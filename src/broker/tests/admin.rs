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
use tower::ServiceExt;

use crate::admin::api::{EndedUser, Finding, GrantView, Page, State, UserView};
use crate::admin::doctor::Surroundings;
use crate::admin::{Admin, router};
use crate::child::supervisor_client::SupervisorSpawner;
use crate::forge::api::Forgejo;
use crate::forge::vault::vault_in;
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
        vault: Arc::new(vault_in(dir.path())),
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
    let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
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
