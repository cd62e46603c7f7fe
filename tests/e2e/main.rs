//! The real programs, end to end: one file a promise of README.
//!
//! The child is the real one that `tests/run` has prepared (`FORGEJO_MCP` names another), or the stand-in where a
//! promise is about a child that misbehaves. Needs the examples: `cargo build --examples`.

#![expect(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![expect(clippy::print_stderr, reason = "what is skipped is said")]

#[path = "../support/https.rs"]
mod https;
#[path = "../support/person.rs"]
#[expect(dead_code, reason = "shared with the tests of logging in")]
mod person;
#[path = "../support/session.rs"]
mod session;
#[path = "../support/stage.rs"]
#[expect(dead_code, reason = "shared with the quickstart")]
mod stage;

mod browser;
mod chaos;
mod clients;
mod failing_children;
mod isolation;
mod login;
mod operator;
mod quickstart;
mod restarts;
mod secrets;
mod sessions;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use stage::{Program, Setting, Stage};

/// Where cargo puts the programs of this build.
fn binaries() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_forgejo-mcp-broker")).parent().expect("a directory").to_owned()
}

/// The directory of one test below target/, short enough for sockets and open to the uids of children.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

/// The real child.
fn real_child() -> Option<Program> {
    let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/children/bin/forgejo-mcp-rs");
    let path = std::env::var_os("FORGEJO_MCP").map_or(pinned, PathBuf::from);
    path.exists().then(|| Program::real(&path))
}

fn stand_in(arguments: &[&str]) -> Program {
    let path = binaries().join("examples/stand-in-child");
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    Program::stand_in(&path, arguments)
}

/// Says that a test is skipped; in CI that is a failure.
fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} is skipped in CI: {why}");
    eprintln!("SKIPPED: {test}: {why}");
}

/// Sixteen uids that no other stage of this run has.
fn uids() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(73_728);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

fn setting(test: &str, child: Program) -> Setting {
    let mut setting = Setting::new(&binaries(), &scratch(test), child);
    setting.first_uid = uids();
    setting
}

/// The stage with the real child, or a skip.
fn real_stage(test: &str) -> Option<Stage> {
    let Some(child) = real_child() else {
        skip(test, "no forgejo-mcp: run tests/run, or set FORGEJO_MCP");
        return None;
    };
    Some(Stage::set(setting(test, child)).expect("a stage"))
}

/// The stage with a stand-in.
fn stand_in_stage(test: &str, arguments: &[&str], change: impl FnOnce(&mut Setting)) -> Stage {
    let mut setting = setting(test, stand_in(arguments));
    change(&mut setting);
    Stage::set(setting).expect("a stage")
}

/// A broker token for a user of the stub.
fn token(stage: &Stage, login: &str) -> String {
    let forgejo_token = stage.forge_token(login).expect("a Forgejo token");
    stage.broker_token(login, &forgejo_token, &[]).expect("a token")
}

/// The tool by which the child says who it works for.
async fn who(session: &mut session::Session) -> String {
    let tools = session.tools().await.expect("tools");
    let known = ["get_my_user_info", "whoami"].into_iter().find(|name| tools.iter().any(|tool| tool == name));
    let tool = known.expect("a tool that says who it works for");
    session.text(tool, serde_json::json!({})).await.expect("an answer")
}
