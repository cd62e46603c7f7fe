//! Requests without sessions (revision 2026-07-28): each goes to the warm child of its grant, and whatever ends that child,
//! the grant goes on. What such requests may say is in `src/broker/tests/stateless`; here they meet the real programs.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

mod cancelling;
mod idle;
mod listening;
mod mirroring;
mod quotas;
mod routing;
mod survival;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::token;
use harness::deployment::Deployment;
use harness::mcp_stateless::Caller;

/// The stand-in of the session era, whose requests are translated, and of both, which gets them as they are.
const ERAS: [(&str, &[&str]); 2] = [("translated", &[]), ("relayed", &["--era", "2026-07-28"])];

/// Far above what any of this takes when nothing is lost.
const IN_TIME: Duration = Duration::from_secs(30);

/// A caller with a grant of their own.
fn caller(deployment: &Deployment, login: &str) -> Caller {
    Caller::new(&deployment.url, &token(deployment, login))
}

/// The process that serves the caller.
async fn pid(caller: &Caller) -> u32 {
    caller.text("pid", json!({})).await.expect("an answer").parse().expect("a number")
}

/// Whether the caller is served; to be asked after whatever happened.
async fn goes_on(caller: &Caller) {
    assert_eq!(caller.text("echo", json!({"text": "on"})).await.expect("the grant goes on"), "on");
}

/// What the caller's child says of its work: how many other calls it has (`in_flight`), and of how many it has heard that
/// nobody wants them any more (`cancelled`), and how many listens it has open (`listening`).
async fn status(caller: &Caller) -> Value {
    serde_json::from_str(&caller.text("status", json!({})).await.expect("an answer")).expect("json")
}

/// Waits until the caller's child says so many of it.
async fn counts(caller: &Caller, of: &str, many: u64) {
    let counted = async {
        while status(caller).await[of] != many {
            harness::look_again().await;
        }
    };
    timeout(IN_TIME, counted).await.unwrap_or_else(|_| panic!("{of} does not come to {many}"));
}

/// A call that is with the child and has no end by itself.
async fn blocked(caller: &Caller) -> tokio::task::JoinHandle<harness::mcp_session::Result<(u16, Value)>> {
    let calling = caller.clone();
    let blocked = tokio::spawn(async move {
        let answer = calling.ask("tools/call", json!({"name": "block", "arguments": {}})).await;
        answer.map(|(status, answer)| (status.as_u16(), answer))
    });
    counts(caller, "in_flight", 1).await;
    blocked
}
