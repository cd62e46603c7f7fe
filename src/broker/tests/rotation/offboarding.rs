//! Who leaves, leaves at once.

use super::*;

use crate::auth::rates::{RateLimits, Rates};
use crate::http::reload::{ReloadError, Reloader, Sources};

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
    assert_eq!(scene.forge.with(|state| state.requests.len()), 1, "Forgejo was asked by nobody but the one let in");
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
    let sources = Sources { files: vec![file.clone()], credentials: None };
    let reload = Reloader { sources, rotation: scene.rotation.clone(), limits: Arc::clone(&limits) };
    let logins = || {
        let source = limits.source(&axum::extract::Request::new(axum::body::Body::empty()));
        (0..9).filter(|_| limits.logins.count(&source).is_ok()).count()
    };
    assert_eq!(logins(), 1);
    write("[access]\ndeny = [\"user:alice\", \"alice\"]\n[rates]\nlogins = 0\nlogin = 5\n");
    let Err(ReloadError::Config(problems)) = reload.once().await else { panic!("that is no configuration") };
    assert_eq!(problems.problems().len(), 3, "all at once: {problems}");
    assert!(scene.upstream().await.is_ok());
    assert_eq!(logins(), 0);
    write("[access]\ndeny = [\"user:alice\"]\n[rates]\nlogins = 5\n");
    assert_eq!(reload.once().await.expect("read"), 1);
    assert_eq!(logins(), 5);
    scene.principals.forget_grant(&GrantId::new("grant"));
    assert_eq!(scene.upstream().await, Err(Denied::Revoked));
}
