//! Who leaves, leaves at once.

use super::*;

use tokio::task::JoinHandle;

use crate::auth::rates::{RateLimits, Rates};
use crate::http::names::Names;
use crate::http::reload::{ReloadError, Reloader, Sources};
use crate::live::Live;
use crate::mcp::refusal::UnknownSession;
use crate::mcp::tools::Tables;
use crate::tests::sessions::fixture::{self, Fixture};
use harness::forge::state::MEMBERSHIPS;
use wire::config_file::Credentials;

fn denying(entry: &str) -> Access {
    Access { deny: vec![entry.parse().expect("a subject")], ..Access::default() }
}

#[tokio::test]
async fn whom_the_lists_name_is_out_at_once_with_personal_tokens_too_and_while_forgejo_is_away() {
    let mut scene = Scene::new().await;
    let personal = scene.personal().await;
    scene.mode(|mode| mode.fail = Some(503));
    scene.rotation.lists().replace(denying("user:somebody-else"));
    assert_eq!(scene.rotation.apply_lists().await.expect("applied"), 0);
    assert!(scene.upstream().await.is_ok());
    scene.rotation.lists().replace(denying("user:ALICE"));
    assert_eq!(scene.rotation.apply_lists().await.expect("applied"), 1);
    let Some(Change::Lost(mut ended)) = scene.changes.try_recv().ok() else { panic!("nothing has ended") };
    ended.sort();
    assert_eq!(ended, vec![GrantId::new("grant"), personal]);
    scene.principals.forget_grant(&GrantId::new("grant"));
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
    assert_eq!(scene.looks(), 1, "Forgejo was asked about nobody but the one let in");
}

#[tokio::test]
async fn a_deactivated_account_is_found_by_the_first_look_after_a_restart_and_not_an_hour_later() {
    let mut scene = Scene::new().await;
    let personal = scene.personal().await;
    scene.forge.with(|state| state.users.iter_mut().for_each(|user| user.active = false));
    scene.rotation.recheck().await;
    assert!(scene.changes.try_recv().is_err(), "it was good an instant ago");
    // As at the start, and on a reload.
    scene.rotation.apply_lists().await.expect("applied");
    assert!(scene.principals.behind(&personal).await.is_none(), "nobody is served before Forgejo was asked");
    scene.rotation.recheck().await;
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}

#[tokio::test]
async fn a_reload_puts_lists_and_rates_in_force_and_one_with_problems_changes_nothing() {
    let scene = Scene::new().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("broker.toml");
    let database = dir.path().join("broker.db");
    let good = format!(
        "public_url = \"http://127.0.0.1:1\"\n[forgejo]\nurl = \"http://127.0.0.1:2\"\n[store]\npath = {database:?}\n"
    );
    let write = |more: &str| std::fs::write(&file, format!("{good}{more}")).expect("written");
    let rates = Rates { registrations: 1, logins: 1, documents: 1, failures: 1 };
    let limits = Arc::new(RateLimits::new(rates, Vec::new()));
    let sources = Sources { files: vec![file.clone()], credentials: Credentials::None };
    let registry = Fixture::new(fixture::config()).await.registry;
    let (tables, unknown) = (Live::new(Tables::default()), Live::new(UnknownSession::Auto));
    write("");
    let reload = Reloader {
        started: sources.read().expect("a configuration"),
        sources,
        rotation: scene.rotation.clone(),
        limits: Arc::clone(&limits),
        registry: registry.clone(),
        tables: tables.clone(),
        unknown: unknown.clone(),
        names: Live::new(Names::default()),
    };
    let logins = || {
        let source = limits.source(&axum::extract::Request::new(axum::body::Body::empty()));
        (0..9).filter(|_| limits.logins.count(&source).is_ok()).count()
    };
    assert_eq!(logins(), 1);
    write(
        "[access]\ndeny = [\"user:alice\", \"alice\"]\n[rates]\nlogins = 0\nlogin = 5\n[sessions]\nper_user = 7\n\
         [tools]\ncorrect_hints = false\n",
    );
    let Err(ReloadError::Config(problems)) = reload.once().await else { panic!("that is no configuration") };
    assert_eq!(problems.problems().len(), 3, "all at once: {problems}");
    assert!(scene.upstream().await.is_ok());
    assert_eq!(logins(), 0);
    assert_eq!(registry.config().sessions.per_user, fixture::config().sessions.per_user);
    assert!(tables.get().correct_hints);
    write(
        "[access]\ndeny = [\"user:alice\"]\n[rates]\nlogins = 5\n[sessions]\nper_user = 7\ndrain = \"9s\"\n\
         unknown_session_status = 410\n[tools]\ncorrect_hints = false\n[http]\nrequest_timeout = \"77s\"\n",
    );
    assert_eq!(reload.once().await.expect("read"), 1);
    assert_eq!(logins(), 5);
    let sessions = registry.config();
    assert_eq!((sessions.sessions.per_user, sessions.drain.as_secs()), (7, 9));
    assert_eq!(sessions.request_timeout.as_secs(), 77);
    assert!(!tables.get().correct_hints);
    assert_eq!(*unknown.get(), UnknownSession::Gone);
    scene.principals.forget_grant(&GrantId::new("grant"));
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}

#[test]
fn what_only_a_restart_puts_in_force_is_named_by_its_key_and_nothing_else_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let read = |more: &str| {
        let database = dir.path().join("broker.db");
        let text = format!("store.path = {database:?}\n{more}");
        let public = if more.starts_with("public_url") { "" } else { "public_url = \"http://127.0.0.1:1\"\n" };
        let forge = if more.contains("forgejo.url") { "" } else { "forgejo.url = \"http://127.0.0.1:2\"\n" };
        let root = wire::config_file::Section::from_text("broker.toml", &format!("{public}{forge}{text}"));
        crate::config::Config::read(root, &Credentials::None).expect("a configuration")
    };
    let started = read("");
    for (more, keys) in [
        ("sessions.per_user = 7\nlog = \"debug\"\nrates.logins = 9\ntools.correct_hints = false", &[][..]),
        ("http.request_timeout = \"77s\"\naccess.deny = [\"user:alice\"]", &[]),
        ("public_url = \"http://localhost:1\"", &["public_url"]),
        ("listen = \"127.0.0.1:9\"\nadmin.socket = \"/x\"", &["listen", "[admin] socket"]),
        (
            "forgejo.url = \"http://127.0.0.1:3\"\nforgejo.refresh_lead = \"9s\"",
            &["[forgejo] url", "[forgejo] public_url", "[forgejo] refresh_lead"],
        ),
        ("forgejo.public_url = \"http://127.0.0.1:3\"", &["[forgejo] public_url"]),
        ("store.key_file = \"/x\"\noauth.login_ttl = \"1h\"", &["[oauth]", "[store] key_file"]),
        (
            "http.max_body = 4096\nhttp.max_connections = 9\nhttp.connections_per_address = 3",
            &["[http] max_body", "[http] max_connections", "[http] connections_per_address"],
        ),
        (
            "http.trusted_proxies = [\"10.0.0.1\"]\nhttp.allowed_origins = [\"https://a.example\"]\nhttp.hosts = [\"a\"]",
            &["[http] trusted_proxies"],
        ),
        ("supervisor.socket = \"/x\"", &["[supervisor] socket"]),
    ] {
        assert_eq!(started.needs_restart(&read(more)), keys, "{more}");
    }
}

/// A look that a list of organizations hangs at, while others come by which its user may not stay.
async fn overtaken_look(of_a_new_token: bool) -> (Scene, JoinHandle<()>) {
    let scene = Scene::new().await;
    let denying_org = |name: &str| denying(&format!("org:{name}"));
    scene.forge.with(|state| {
        state.users.iter_mut().for_each(|user| user.teams = vec![("guests".to_owned(), "all".to_owned())]);
    });
    let scope = "read:user read:organization";
    scene.forge.with(|state| state.grants.iter_mut().for_each(|grant| scope.clone_into(&mut grant.scope)));
    scene.rotation.lists().replace(denying_org("others"));
    scene.rotation.apply_lists().await.expect("applied");
    scene.mode(|mode| mode.hang_memberships = true);
    if of_a_new_token {
        scene.pass(61);
    }
    let looking = tokio::spawn({
        let rotation = scene.rotation.clone();
        async move { if of_a_new_token { rotation.sweep().await } else { rotation.recheck().await } }
    });
    while !scene.forge.with(|state| state.requests.iter().any(|seen| seen.path == MEMBERSHIPS)) {
        harness::look_again().await;
    }
    scene.rotation.lists().replace(denying_org("guests"));
    scene.rotation.apply_lists().await.expect("applied");
    (scene, looking)
}

#[tokio::test]
async fn a_look_that_was_begun_by_earlier_lists_does_not_count_by_those_that_came_meanwhile() {
    let (mut scene, looking) = overtaken_look(false).await;
    scene.mode(|_| {});
    looking.await.expect("no panic");
    assert_eq!(scene.changes.try_recv().ok(), None, "by the lists that it was begun with all is well");
    // Had Forgejo been slow, it would be left alone for a moment.
    scene.clock.advance(Duration::from_secs(6));
    scene.rotation.recheck().await;
    assert!(matches!(scene.changes.try_recv(), Ok(Change::Lost(_))), "by those of now it is not");
}

#[tokio::test]
async fn such_a_look_does_not_count_either_while_the_store_does_not_take_that() {
    let (mut scene, looking) = overtaken_look(true).await;
    scene.store.refuse_aging().await;
    scene.mode(|_| {});
    looking.await.expect("no panic");
    scene.clock.advance(Duration::from_secs(6));
    assert!(scene.rotation.fresh(CREDENTIAL).await.is_err());
    assert!(matches!(scene.changes.try_recv(), Ok(Change::Lost(_))));
}
