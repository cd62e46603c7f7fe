//! Another child program is installed while sessions are open, as package managers do it: by a rename.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use crate::{config, has_in_flight, scratch, stand_in, token};
use harness::deployment::{Deployment, Program};
use harness::mcp_session::Session;
use harness::supervised::{gone, watch};

/// Puts a copy of the stand-in there, like a new version.
fn install(path: &Path) {
    let new = path.with_extension("new");
    harness::copy_program(&stand_in(&[]).path, &new).expect("copied");
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("chmod");
    std::fs::rename(&new, path).expect("renamed");
}

/// Whether the process runs what is installed now.
fn is_current(pid: u32) -> bool {
    let runs = std::fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
    !runs.to_string_lossy().ends_with(" (deleted)")
}

async fn pid(session: &mut Session) -> u32 {
    session.text("pid", json!({})).await.expect("an answer").parse().expect("a number")
}

#[tokio::test]
async fn a_program_that_is_replaced_serves_idle_sessions_at_once_and_cuts_no_call() {
    let dir = scratch("upgrade-program");
    std::fs::create_dir_all(&dir).expect("a directory");
    let path = dir.join("forgejo-mcp");
    install(&path);
    let deployment = Deployment::set(config("upgrade", Program::stand_in(&path, &[]))).expect("a deployment");
    let token = token(&deployment, "alice");
    let mut idle = Session::open(&deployment.url, &token).await.expect("a session");
    let mut busy = Session::open(&deployment.url, &token).await.expect("a session");
    let (first, second) = (pid(&mut idle).await, pid(&mut busy).await);
    assert!(is_current(first) && is_current(second));
    let (first_ends, second_ends) = (watch(first), watch(second));
    let slow = tokio::spawn({
        let mut busy = busy.clone();
        async move { busy.text("sleep", json!({"ms": 10_000})).await }
    });
    has_in_flight(&busy, 1).await;

    install(&path);
    timeout(Duration::from_secs(20), gone(first_ends)).await.expect("the idle child goes by itself");
    assert!(!slow.is_finished(), "so that this shows that the call goes on");
    assert!(!is_current(second));
    let next = pid(&mut idle).await;
    assert!(next != first && is_current(next), "the session's next answer comes from the new program");

    assert_eq!(slow.await.expect("no panic").expect("it is not cut"), "slept");
    timeout(Duration::from_secs(20), gone(second_ends)).await.expect("it goes after its call");
    let next = pid(&mut busy).await;
    assert!(next != second && is_current(next));

    // What is no program replaces nothing.
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, "half").expect("written");
    let refused = Session::open(&deployment.url, &token).await.expect_err("it cannot be run").to_string();
    assert!(refused.contains("cannot be run on the server"), "{refused}");
    assert_eq!(pid(&mut busy).await, next, "what runs goes on");
    let next = watch(next);
    install(&path);
    timeout(Duration::from_secs(20), gone(next)).await.expect("it goes now");
    assert!(is_current(pid(&mut busy).await));
    let said = deployment.output();
    assert!(said.contains("program-replaced"), "{said}");
}
