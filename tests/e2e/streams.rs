//! A session's own stream over real connections: a second one goes on where the first was read no further.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{stand_in_deployment, token};
use harness::deployment::Deployment;
use harness::events::Events;
use harness::mcp_session::{Session, http, post};

/// More than the kernel keeps for a connection that nobody reads (`tcp_wmem`: 4 MiB), in fewer messages than the broker
/// keeps for a client that reads slowly.
const LINES: usize = 120;
const BYTES: usize = 100_000;

async fn listen(deployment: &Deployment, session: &Session) -> Events {
    let get = http().get(format!("{}/mcp", deployment.url)).bearer_auth(session.token());
    let get = get.header("mcp-session-id", &session.id).header("mcp-protocol-version", "2025-06-18");
    Events::new(get.header("accept", "text/event-stream").send().await.expect("a stream"))
}

/// A call by a client that takes nothing ahead of its answer, so that all the child says goes to the stream.
fn call(deployment: &Deployment, session: &Session, params: &Value) -> tokio::task::JoinHandle<Value> {
    let call = json!({"jsonrpc": "2.0", "id": "c", "method": "tools/call", "params": params});
    let post = http().post(format!("{}/mcp", deployment.url)).bearer_auth(session.token());
    let post = post.header("mcp-session-id", &session.id).header("mcp-protocol-version", "2025-06-18");
    let post = post.header("accept", "application/json").header("content-type", "application/json");
    let sent = post.body(call.to_string()).send();
    tokio::spawn(async move { sent.await.expect("an answer").json().await.expect("json") })
}

/// The messages of a stream: until one is a request, or to the stream's end.
async fn read(stream: &mut Events) -> Vec<Value> {
    let mut messages = Vec::<Value>::new();
    while messages.last().is_none_or(|last| last.get("id").is_none()) {
        let Some(message) = stream.next().await else { break };
        messages.push(message);
    }
    messages
}

/// Which lines of the log messages hold.
fn lines(messages: &[Value]) -> Vec<String> {
    let data = messages.iter().filter_map(|message| message["params"]["data"].as_str());
    data.map(|data| data.split(':').next().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stream_takes_over_what_the_first_has_not_read_a_childs_request_included() {
    let deployment = stand_in_deployment("streams", &[], |_| {});
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let mut first = listen(&deployment, &session).await;
    let log = json!({"name": "log", "arguments": {"count": LINES, "bytes": BYTES}});
    assert!(call(&deployment, &session, &log).await.expect("no panic")["result"].is_object());
    let asking = call(&deployment, &session, &json!({"name": "sample", "arguments": {"text": "well?"}}));
    // By such a client, too: the question would go ahead of the answer to another.
    let status = json!({"name": "status", "arguments": {}});
    while !call(&deployment, &session, &status).await.expect("no panic").to_string().contains(r#"in_flight\":1"#) {
        harness::look_again().await;
    }

    let mut second = listen(&deployment, &session).await;
    let taken_over = read(&mut second).await;
    let question = taken_over.last().expect("messages");
    assert_eq!(question["method"], "sampling/createMessage", "{question}");
    let said = json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "so it is"}});
    let answer = json!({"jsonrpc": "2.0", "id": question["id"], "result": said});
    let accepted = post(&http(), &deployment.url, &session.token(), Some(&session.id), &answer).await;
    assert_eq!(accepted.expect("an answer").status(), StatusCode::ACCEPTED);
    let answered = asking.await.expect("no panic");
    assert_eq!(answered["result"]["content"][0]["text"], "so it is", "{answered}");

    // The first has ended, and each line is on one of the two.
    let had = read(&mut first).await;
    let (before, after) = (lines(&had), lines(&taken_over));
    assert_eq!(had.len(), before.len(), "the question is on the second alone");
    assert!(!before.is_empty() && !after.is_empty(), "{} and {}", before.len(), after.len());
    let all: Vec<String> = (1..=LINES).map(|n| format!("line {n}")).collect();
    assert_eq!([before, after].concat(), all);
    assert_eq!(session.text("echo", json!({"text": "on"})).await.expect("the session goes on"), "on");
}
