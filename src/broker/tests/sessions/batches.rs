//! Batches: in sessions of revision 2025-03-26 each member is carried out as if it came alone, and nowhere else any is.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use wire::telemetry::message_id::TOOL_CALLED;

use crate::auth::principal::Principal;
use crate::mcp::audit::AuditedCalls;
use crate::mcp::tools::Tables;
use crate::tests::captured_log::CapturedLog;
use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, events, header, initialize, post, text};
use crate::tests::sessions::records::FakeRecords;
use crate::tests::sessions::scopes::reader;

async fn batching(fixture: &mut Fixture, caller: &Principal) -> (String, FakeChild) {
    fixture.open_in(caller, "2025-03-26").await
}

fn json_only(session: &str, batch: &Value) -> Request<Body> {
    let mut request = post(Some(session), batch.to_string());
    request.headers_mut().insert("accept", "application/json".parse().expect("a header"));
    request
}

fn note(method: &str) -> Value {
    json!({"jsonrpc": "2.0", "method": method})
}

fn answer_to(heard: &Value, result: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": heard["id"], "result": result})
}

/// Reads the whole answer of a batch meanwhile: what is not read is not sent on.
fn seeing(answering: JoinHandle<Response>) -> JoinHandle<Vec<Value>> {
    tokio::spawn(async move { events(answering.await.expect("no panic")).await })
}

#[tokio::test(start_paused = true)]
async fn each_member_is_a_line_of_its_own_and_each_request_has_one_answer() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = batching(&mut fixture, &alice).await;
    let ping = json!({"jsonrpc": "2.0", "id": "p", "method": "ping"});
    let batch = json!([call("a", "x"), note("notifications/x"), ping, call(7, "y")]);
    let answering = seeing(fixture.posting(&alice, Some(&id), batch));
    let first = child.hears().await.expect("the first");
    assert_eq!(child.hears().await.expect("the second"), note("notifications/x"));
    let last = child.hears().await.expect("the last");
    assert_eq!((&first["params"]["name"], &last["params"]["name"]), (&json!("x"), &json!("y")));
    // In the other order, and one with a word ahead.
    child.says(answer_to(&last, &json!({"of": "y"}))).await;
    child.says(json!({"jsonrpc": "2.0", "id": "s", "method": "sampling/createMessage", "params": {}})).await;
    child.says(answer_to(&first, &json!({"of": "x"}))).await;
    let mut seen = answering.await.expect("no panic");
    let asked = seen.iter().position(|message| message.get("method").is_some()).expect("the child's request");
    assert_eq!(seen.remove(asked)["method"], "sampling/createMessage");
    seen.sort_by_key(ToString::to_string);
    let mut expected = [
        json!({"jsonrpc": "2.0", "id": "a", "result": {"of": "x"}}),
        json!({"jsonrpc": "2.0", "id": "p", "result": {}}),
        json!({"jsonrpc": "2.0", "id": 7, "result": {"of": "y"}}),
    ];
    expected.sort_by_key(ToString::to_string);
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_json_only_gets_one_array_in_the_order_of_its_requests() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = batching(&mut fixture, &alice).await;
    let answering = fixture.sending(&alice, json_only(&id, &json!([call(1, "x"), call(2, "y"), call(3, "z")])));
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(child.hears().await.expect("a member"));
    }
    for heard in heard.iter().rev() {
        child.says(note("notifications/message")).await;
        child.says(answer_to(heard, &json!({}))).await;
    }
    let response = answering.await.expect("no panic");
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    let answer = body(response).await;
    let ids: Vec<&Value> = answer.as_array().expect("an array").iter().map(|answer| &answer["id"]).collect();
    assert_eq!(ids, [&json!(1), &json!(2), &json!(3)]);
}

#[tokio::test(start_paused = true)]
async fn what_wants_no_answer_is_accepted_and_reaches_the_child() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = batching(&mut fixture, &alice).await;
    child.says(json!({"jsonrpc": "2.0", "id": "s-1", "method": "roots/list"})).await;
    let get = crate::tests::sessions::fixture::request(axum::http::Method::GET, Some(&id));
    let listening = fixture.send(&alice, get.body(Body::empty()).expect("a request")).await;
    let mut stream = listening.into_body().into_data_stream();
    let asked = crate::tests::sessions::bridging::next_event(&mut stream).await;
    let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}});
    let response = fixture.post(&alice, Some(&id), json!([note("notifications/x"), answer])).await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert_eq!(text(response).await, "");
    assert_eq!(child.hears().await.expect("a note"), note("notifications/x"));
    assert_eq!(child.hears().await.expect("an answer")["id"], "s-1");
}

#[tokio::test(start_paused = true)]
async fn only_the_sessions_own_revision_allows_batches_also_after_a_restart() {
    let records = FakeRecords::default();
    let mut fixture = Fixture::over(config(), records.clone()).await;
    let alice = caller(1, "g1");
    let (old, _child) = batching(&mut fixture, &alice).await;
    let (new, _other) = fixture.open_in(&alice, "2025-06-18").await;
    let mut fixture = Fixture::over(config(), records).await;
    let batch = json!([call(1, "x")]);
    for session in [Some(new.as_str()), None] {
        let mut request = post(session, batch.to_string());
        // Whatever the request says of itself.
        request.headers_mut().insert("mcp-protocol-version", "2025-03-26".parse().expect("a header"));
        let refused = fixture.send(&alice, request).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        let refused = body(refused).await;
        assert_eq!((&refused["error"]["code"], refused.get("jsonrpc")), (&json!(-32600), None), "{refused}");
    }
    let gone = fixture.post(&alice, Some(&"0".repeat(48)), batch.clone()).await;
    assert_eq!(gone.status(), StatusCode::GONE);
    let mut stateless = post(None, batch.to_string());
    stateless.headers_mut().insert("mcp-protocol-version", "2026-07-28".parse().expect("a header"));
    assert_eq!(fixture.send(&alice, stateless).await.status(), StatusCode::BAD_REQUEST);
    let answering = seeing(fixture.posting(&alice, Some(&old), batch));
    let mut child = fixture.child().await;
    child.comes_up().await;
    child.answers(json!({"went": "on"})).await;
    assert_eq!(answering.await.expect("no panic")[0]["result"]["went"], "on");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_good_as_a_whole_is_refused_as_a_whole() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = batching(&mut fixture, &alice).await;
    let good = call("good", "x");
    let modern = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list",
        "params": {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}});
    let too_many: Vec<Value> = (0..65).map(|n| call(n, "x")).collect();
    for (what, batch) in [
        ("empty", json!([])),
        ("no message", json!([good, 1])),
        ("a batch in it", json!([good, [good]])),
        ("an id that is none", json!([good, {"jsonrpc": "2.0", "id": null, "method": "m"}])),
        ("the same id twice", json!([good, good])),
        ("initialize", json!([good, initialize()])),
        ("a request of the other era", json!([good, modern])),
        ("too many", json!(too_many)),
    ] {
        let refused = fixture.post(&alice, Some(&id), batch).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{what}");
        let refused = body(refused).await;
        assert!(refused.get("jsonrpc").is_none() && refused.get("error").is_some(), "{what}: {refused}");
    }
    let alone = fixture.posting(&alice, Some(&id), call("after", "y"));
    assert_eq!(child.answers(json!({})).await["params"]["name"], "y", "and the child has heard of none");
    assert_eq!(alone.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_reader_gets_nothing_by_a_batch_that_it_would_not_get_alone() {
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = batching(&mut fixture, &reader()).await;
    let hidden = json!({"jsonrpc": "2.0", "id": "h", "method": "tools/call",
        "params": {"name": "get_my_user_info", "Name": "delete_org"}});
    let unknown = json!({"jsonrpc": "2.0", "id": "u", "method": "something/new"});
    let list = json!({"jsonrpc": "2.0", "id": "l", "method": "tools/list"});
    let batch = json!([call("r", "get_my_user_info"), call("w", "delete_org"), hidden, unknown, list]);
    let answering = seeing(fixture.posting(&reader(), Some(&id), batch));
    assert_eq!(child.answers(json!({"content": []})).await["params"]["name"], "get_my_user_info");
    let tools = json!([{"name": "get_my_user_info"}, {"name": "delete_org"}]);
    assert_eq!(child.answers(json!({"tools": tools})).await["method"], "tools/list", "and nothing in between");
    let mut seen = answering.await.expect("no panic");
    assert_eq!(seen.len(), 5, "{seen:?}");
    let mut of = |id: &str| seen.remove(seen.iter().position(|answer| answer["id"] == id).expect(id));
    assert!(of("r").get("result").is_some());
    let names: Vec<Value> =
        of("l")["result"]["tools"].as_array().expect("tools").iter().map(|tool| tool["name"].clone()).collect();
    assert_eq!(names, ["get_my_user_info"], "and only what reads is listed");
    for refused in ["w", "u"] {
        assert!(of(refused)["error"]["message"].as_str().is_some_and(|why| why.contains("forgejo:write")));
    }
    assert_eq!(of("h")["error"]["code"], -32600);
    // What wants no answer cannot be refused in its place.
    let calls = json!({"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "delete_org"}});
    let refused = fixture.post(&reader(), Some(&id), json!([call("r", "get_my_user_info"), calls])).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(header(&refused, "www-authenticate").is_some());
    let alone = fixture.posting(&reader(), Some(&id), call("after", "get_my_user_info"));
    assert_eq!(child.answers(json!({})).await["method"], "tools/call", "the child has heard of neither");
    alone.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_failing_member_has_its_error_and_the_others_their_answers() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = batching(&mut fixture, &alice).await;
    let answering = seeing(fixture.posting(&alice, Some(&id), json!([call(1, "x"), call(2, "y"), call(3, "z")])));
    let heard = child.hears().await.expect("the first");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -5, "message": "no"}})).await;
    child.answers(json!({})).await;
    child.hears().await.expect("the last");
    child.ends(wire::message::Exit::Code(1));
    let mut seen = answering.await.expect("no panic");
    seen.sort_by_key(|answer| answer["id"].as_u64());
    assert_eq!(seen[0]["error"]["code"], -5);
    assert!(seen[1].get("result").is_some());
    assert!(seen[2]["error"]["message"].as_str().is_some_and(|why| why.contains("ended")), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_may_cancel_what_is_in_it() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = batching(&mut fixture, &alice).await;
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    let batch = json!([call(1, "x"), cancel, call(2, "y")]);
    let streaming = seeing(fixture.posting(&alice, Some(&id), batch.clone()));
    is_cancelled(&mut child).await;
    let seen = streaming.await.expect("no panic");
    assert_eq!((seen.len(), &seen[0]["id"]), (1, &json!(2)), "no answer to what was cancelled");
    let answering = fixture.sending(&alice, json_only(&id, &batch));
    is_cancelled(&mut child).await;
    let answer = body(answering.await.expect("no panic")).await;
    assert!(answer[0].get("error").is_some() && answer[1].get("result").is_some(), "{answer}");
}

async fn is_cancelled(child: &mut FakeChild) {
    let first = child.hears().await.expect("the first");
    assert_eq!(child.hears().await.expect("the cancellation")["params"]["requestId"], first["id"]);
    child.answers(json!({})).await;
}

#[tokio::test(start_paused = true)]
async fn every_member_is_counted_and_told_as_a_request_of_its_own() {
    let records = FakeRecords::default();
    let mut fixture = Fixture::auditing(config(), records, Tables::default(), AuditedCalls::All).await;
    let (id, mut child) = batching(&mut fixture, &reader()).await;
    let (log, _here) = CapturedLog::begin();
    let batch = json!([call(1, "get_my_user_info"), call(2, "delete_org"), call(3, "get_my_user_info")]);
    let answering = seeing(fixture.posting(&reader(), Some(&id), batch));
    for _ in 0..2 {
        child.answers(json!({"content": []})).await;
    }
    assert_eq!(answering.await.expect("no panic").len(), 3);
    let lines = log.of(TOOL_CALLED);
    let told = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    assert_eq!((lines.len(), told("session=")), (3, 3), "{lines:?}");
    assert_eq!(told("user1 called get_my_user_info with test: ok, after "), 2, "{lines:?}");
    assert_eq!(told("user1 called delete_org with test: refused (insufficient-scope), after "), 1, "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_held_against_its_users_budget_once_and_until_its_last_message_is_gone() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = batching(&mut fixture, &alice).await;
    // The child reads nothing for now: one fills the pipe, and what comes then waits in front of it.
    let mut large = call("large", "x");
    large["params"]["text"] = json!("x".repeat(62_000));
    let first = fixture.posting(&alice, Some(&id), large);
    let used = || fixture.registry.budgets().used();
    let member = |n: usize| json!({"jsonrpc": "2.0", "id": n, "method": "m", "params": {"text": "x".repeat(2_500)}});
    let batch = json!((0..24).map(member).collect::<Vec<_>>()).to_string();
    let length = batch.len();
    let answering = seeing(fixture.sending(&alice, post(Some(&id), batch)));
    while used() != length {
        tokio::task::yield_now().await;
    }
    for _ in 0..25 {
        child.answers(json!({})).await;
    }
    assert_eq!(answering.await.expect("no panic").len(), 24);
    assert_eq!(body(first.await.expect("no panic")).await["id"], "large");
    assert_eq!(used(), 0);
}
