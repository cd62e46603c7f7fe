//! The real programs, end to end: one file a promise of README.
//!
//! The child is the real one that `tests/run` has prepared (`FORGEJO_MCP` names another), or the stand-in where a
//! promise is about a child that misbehaves. Needs the programs: `cargo build --workspace`.

#![expect(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![expect(clippy::print_stderr, reason = "what is skipped is said")]

mod authorization;
mod batches;
mod browser;
mod bursts;
mod chaos;
mod clients;
mod conformance;
mod descriptors;
mod eras;
mod failing_children;
mod forgejo_says_no;
mod forgejo_tokens;
mod front_page;
mod full_disk;
mod hostile_children;
mod isolation;
mod limits;
mod log_lines;
mod login;
mod misreading;
mod monitoring;
mod names;
mod off_and_on_again;
mod operator;
mod quickstart;
mod refusals;
mod restarts;
mod second_broker;
mod secrets;
mod service_tokens;
mod sessions;
mod slow_ends;
mod stateless;
mod stops;
mod streams;
mod upgrades;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use harness::deployment::{Deployment, DeploymentConfig, Program};
use harness::{binaries, mcp_session, workspace};

/// The directory of one test, empty.
fn scratch(name: &str) -> PathBuf {
    harness::scratch(&format!("e2e/{name}"))
}

/// The real child.
fn real_child() -> Option<Program> {
    let pinned = workspace().join("target/children/bin/forgejo-mcp-rs");
    let path = std::env::var_os("FORGEJO_MCP").map_or(pinned, PathBuf::from);
    path.exists().then(|| Program::real(&path))
}

fn stand_in(arguments: &[&str]) -> Program {
    Program::stand_in(&harness::program("stand-in-child"), arguments)
}

/// Says that a test is skipped; in CI that is a failure.
fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} is skipped in CI: {why}");
    eprintln!("SKIPPED: {test}: {why}");
}

/// Sixteen uids that no other deployment of this run has.
fn uids() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(73_728);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

fn config(test: &str, child: Program) -> DeploymentConfig {
    let mut config = DeploymentConfig::new(&binaries(), &scratch(test), child);
    config.first_uid = uids();
    config
}

/// The deployment with the real child, or a skip.
fn real_deployment(test: &str) -> Option<Deployment> {
    let Some(child) = real_child() else {
        skip(test, "no forgejo-mcp: run tests/run, or set FORGEJO_MCP");
        return None;
    };
    Some(Deployment::set(config(test, child)).expect("a deployment"))
}

/// The deployment with a stand-in.
fn stand_in_deployment(test: &str, arguments: &[&str], change: impl FnOnce(&mut DeploymentConfig)) -> Deployment {
    let mut config = config(test, stand_in(arguments));
    change(&mut config);
    Deployment::set(config).expect("a deployment")
}

/// A broker token for a user of the stub.
fn token(deployment: &Deployment, login: &str) -> String {
    let forgejo_token = deployment.forge_token(login).expect("a Forgejo token");
    deployment.broker_token(login, &forgejo_token, &[]).expect("a token")
}

/// Waits until the session's stand-in has so many other calls to answer: that another call was answered shows nothing of
/// one that was sent before, over another connection.
async fn has_in_flight(session: &mcp_session::Session, calls: u64) {
    let (mut asking, status) = (session.clone(), format!(r#""in_flight":{calls}"#));
    let counted = async {
        while !asking.text("status", serde_json::json!({})).await.expect("an answer").contains(&status) {
            harness::look_again().await;
        }
    };
    let patience = std::time::Duration::from_secs(30);
    tokio::time::timeout(patience, counted).await.unwrap_or_else(|_| panic!("{calls} calls are not with the child"));
}

/// A call of the session that is with its stand-in and has no end by itself.
async fn blocked(
    session: &mcp_session::Session,
) -> tokio::task::JoinHandle<mcp_session::Result<(reqwest::StatusCode, serde_json::Value)>> {
    let mut calling = session.clone();
    let block = serde_json::json!({"name": "block", "arguments": {}});
    let blocked = tokio::spawn(async move { calling.send("tools/call", block).await });
    has_in_flight(session, 1).await;
    blocked
}

/// The tool by which the child says who it works for.
async fn who(session: &mut mcp_session::Session) -> String {
    let tools = session.tools().await.expect("tools");
    let known = ["get_my_user_info", "whoami"].into_iter().find(|name| tools.iter().any(|tool| tool == name));
    let tool = known.expect("a tool that says who it works for");
    session.text(tool, serde_json::json!({})).await.expect("an answer")
}
