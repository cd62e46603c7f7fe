//! Batches over real connections: in sessions of revision 2025-03-26, and in no other.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

use std::collections::BTreeMap;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::{stand_in_deployment, token};
use harness::deployment::Deployment;
use harness::events::Events;
use harness::mcp_session::{http, initialize, post};

/// A session of a revision before there was a header for it; its id.
async fn open(deployment: &Deployment, token: &str, revision: &str) -> String {
    let mut request = initialize();
    request["params"]["protocolVersion"] = json!(revision);
    let response = post(&http(), &deployment.url, token, None, &request).await.expect("an answer");
    let id = response.headers()["mcp-session-id"].to_str().expect("text").to_owned();
    let answer: Value = response.json().await.expect("json");
    assert_eq!(answer["result"]["protocolVersion"], revision);
    id
}

async fn send(deployment: &Deployment, token: &str, session: &str, accept: &str, batch: &Value) -> Response {
    let request = http().post(format!("{}/mcp", deployment.url)).bearer_auth(token).header("mcp-session-id", session);
    let request = request.header("content-type", "application/json").header("accept", accept);
    request.body(batch.to_string()).send().await.expect("an answer")
}

fn echo(id: impl Into<Value>, text: &str) -> Value {
    let params = json!({"name": "echo", "arguments": {"text": text}});
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params": params})
}

/// What each id was answered with.
fn answers<'a>(all: impl IntoIterator<Item = &'a Value>) -> BTreeMap<String, Value> {
    let text = |one: &Value| one.pointer("/result/content/0/text").cloned().unwrap_or_else(|| one["result"].clone());
    all.into_iter().map(|one| (one["id"].to_string(), text(one))).collect()
}

#[tokio::test]
async fn a_batch_has_an_answer_to_each_of_its_requests_where_the_sessions_revision_allows_it() {
    let deployment = stand_in_deployment("batches", &[], |_| {});
    let token = token(&deployment, "alice");
    let old = open(&deployment, &token, "2025-03-26").await;
    let new = open(&deployment, &token, "2025-06-18").await;
    let slow = json!({"name": "sleep", "arguments": {"ms": 300}});
    let batch = json!([
        {"jsonrpc": "2.0", "id": 0, "method": "tools/call", "params": slow},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        echo("0", "as a text"),
        {"jsonrpc": "2.0", "id": 2, "method": "ping"},
        echo(3, "third"),
    ]);
    let expected = [("0", json!("slept")), ("\"0\"", json!("as a text")), ("2", json!({})), ("3", json!("third"))];
    let expected = BTreeMap::from(expected.map(|(id, answer)| (id.to_owned(), answer)));

    let events = send(&deployment, &token, &old, "application/json, text/event-stream", &batch).await;
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let (mut events, mut said) = (Events::new(events), Vec::new());
    while let Some(message) = events.next().await {
        said.push(message);
    }
    assert_eq!((said.len(), answers(&said)), (4, expected.clone()), "{said:?}");

    let array = send(&deployment, &token, &old, "application/json", &batch).await;
    let array: Value = array.json().await.expect("json");
    let ids: Vec<&Value> = array.as_array().expect("an array").iter().map(|one| &one["id"]).collect();
    assert_eq!(ids, [&json!(0), &json!("0"), &json!(2), &json!(3)], "in the order of the requests");
    assert_eq!(answers(array.as_array().expect("an array")), expected);

    let refused = send(&deployment, &token, &new, "application/json, text/event-stream", &batch).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let refused: Value = refused.json().await.expect("json");
    assert_eq!(refused["error"]["code"], -32600, "{refused}");
    for session in [&old, &new] {
        let on = send(&deployment, &token, session, "application/json", &echo(9, "on")).await;
        let on: Value = on.json().await.expect("json");
        assert_eq!(answers([&on]), BTreeMap::from([("9".to_owned(), json!("on"))]), "the session goes on");
    }
}
