//! What a call came to is counted, and told in the journal with nothing of what it said.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use wire::message::Exit;
use wire::telemetry::message_id::TOOL_CALLED;

use crate::mcp::audit::AuditedCalls;
use crate::mcp::tools::{Table, Tables};
use crate::tests::captured_log::CapturedLog;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, events, request, text};
use crate::tests::sessions::records::FakeRecords;
use crate::tests::sessions::scopes::reader;

const TABLE: &str = "server\tfake\nget_issue\tread\ncreate_issue\tadd\n";

async fn auditing(calls: AuditedCalls) -> Fixture {
    let tables = Tables::new(vec![Table::parse(TABLE).expect("a table")], true);
    Fixture::auditing(config(), FakeRecords::default(), tables, calls).await
}

fn issue(tool: &str) -> Value {
    let arguments = json!({"owner": "acme", "repo": "site", "index": 12, "body": "the-users-own-words"});
    json!({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}

/// Whether the page has a request of tools/call with this outcome, and how many.
fn counted(fixture: &Fixture, outcome: &str) -> u64 {
    let text = prometheus::TextEncoder::new().encode_to_string(&fixture.metrics.registry().gather()).expect("text");
    let line = format!(r#"forgejo_mcp_broker_requests_total{{method="tools/call",outcome="{outcome}"}} "#);
    let count = text.lines().find_map(|found| found.strip_prefix(&line)).expect("a line");
    count.parse().expect("a number")
}

#[tokio::test(start_paused = true)]
async fn a_write_is_told_in_one_line_and_nothing_of_its_text_or_its_answer() {
    let mut fixture = auditing(AuditedCalls::Writes).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let (log, _here) = CapturedLog::begin();
    let calling = fixture.posting(&alice, Some(&id), issue("create_issue"));
    child.answers(json!({"content": [{"type": "text", "text": "the-answer"}]})).await;
    body(calling.await.expect("no panic")).await;
    let reading = fixture.posting(&alice, Some(&id), issue("get_issue"));
    child.answers(json!({"content": []})).await;
    body(reading.await.expect("no panic")).await;
    let lines = log.of(TOOL_CALLED);
    assert_eq!(lines.len(), 1, "reads are not told: {lines:?}");
    let kept = fixture.writes.waiting(&alice.grant);
    let kept: Vec<_> = kept.iter().map(|call| (call.tool.as_str(), call.target.as_str(), &*call.outcome)).collect();
    assert_eq!(kept, [("create_issue", "acme/site", "ok")], "the user is shown the same");
    for part in [
        "user1 called create_issue on acme/site #12 with test: ok, after ",
        "owner=\"acme\" repo=\"site\" number=12",
        "effect=\"write\" outcome=\"ok\"",
        "tenant=1 login=user1 grant=g1 client=test",
        "session=",
    ] {
        assert!(lines[0].contains(part), "{part} is not in {}", lines[0]);
    }
    let said = log.text();
    assert!(!said.contains("the-users-own-words") && !said.contains("the-answer") && !said.contains(&id), "{said}");
    assert_eq!(counted(&fixture, "ok"), 2);
}

#[tokio::test(start_paused = true)]
async fn with_all_reads_are_told_and_with_off_nothing_is() {
    for (calls, told) in [(AuditedCalls::All, 1), (AuditedCalls::Off, 0)] {
        let mut fixture = auditing(calls).await;
        let alice = caller(1, "g1");
        let (id, mut child) = fixture.open(&alice).await;
        let (log, _here) = CapturedLog::begin();
        let reading = fixture.posting(&alice, Some(&id), issue("get_issue"));
        child.answers(json!({"content": []})).await;
        body(reading.await.expect("no panic")).await;
        let lines = log.of(TOOL_CALLED);
        assert_eq!(lines.len(), told, "{calls:?}: {lines:?}");
        assert!(lines.iter().all(|line| line.contains("effect=\"read\"")), "{lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_trace_of_the_client_is_told_else_the_brokers_own_request_id() {
    let mut fixture = auditing(AuditedCalls::Writes).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let (log, _here) = CapturedLog::begin();
    let header = |message: &Value, trace: Option<&str>| {
        let mut request = request(axum::http::Method::POST, Some(&id)).header("content-type", "application/json");
        if let Some(trace) = trace {
            request = request.header("traceparent", trace);
        }
        request.body(axum::body::Body::from(message.to_string())).expect("a request")
    };
    let of_meta = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-b7ad6b7169203331-01";
    let of_header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut with_meta = issue("create_issue");
    with_meta["params"]["_meta"] = json!({"traceparent": of_meta});
    let requests =
        [header(&with_meta, Some(of_header)), header(&with_meta, None), header(&issue("create_issue"), Some("junk"))];
    for request in requests {
        let calling = fixture.sending(&alice, request);
        child.answers(json!({})).await;
        body(calling.await.expect("no panic")).await;
    }
    let field = |line: &str, name: &str| {
        let at = line.find(name).expect("the field") + name.len();
        line[at..].split(' ').next().expect("a value").to_owned()
    };
    let lines = log.of(TOOL_CALLED);
    let traces: Vec<String> = lines.iter().map(|line| field(line, " trace_id=")).collect();
    let ids: Vec<String> = lines.iter().map(|line| field(line, " request_id=")).collect();
    assert_eq!(traces[..2], ["0af7651916cd43dd8448eb211c80319c", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]);
    assert_eq!(traces[2], ids[2], "the broker's own in its place");
    assert!(ids.iter().all(|id| id.len() == 32) && ids[0] != ids[1], "{ids:?}");
}

#[tokio::test(start_paused = true)]
async fn every_way_a_call_can_end_is_counted_and_told_as_what_it_was() {
    let mut fixture = auditing(AuditedCalls::Writes).await;
    let alice = caller(1, "g1");
    let (log, _here) = CapturedLog::begin();
    let (id, mut child) = fixture.open(&alice).await;

    let failing = fixture.posting(&alice, Some(&id), issue("create_issue"));
    child.answers(json!({"content": [{"type": "text", "text": "\"isError\":true"}], "isError": false})).await;
    body(failing.await.expect("no panic")).await;
    assert_eq!((counted(&fixture, "ok"), counted(&fixture, "tool-error")), (1, 0));
    let failing = fixture.posting(&alice, Some(&id), issue("create_issue"));
    child.answers(json!({"content": [], "isError": true})).await;
    body(failing.await.expect("no panic")).await;
    assert_eq!(counted(&fixture, "tool-error"), 1);

    let failing = fixture.posting(&alice, Some(&id), issue("create_issue"));
    let heard = child.hears().await.expect("the call");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -1, "message": "no"}})).await;
    body(failing.await.expect("no panic")).await;
    assert_eq!(counted(&fixture, "error"), 1);

    let cancelled = fixture.posting(&alice, Some(&id), issue("create_issue"));
    child.hears().await.expect("the call");
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}});
    fixture.post(&alice, Some(&id), cancel).await;
    child.hears().await.expect("the cancellation");
    events(cancelled.await.expect("no panic")).await;
    assert_eq!(counted(&fixture, "cancelled"), 1);

    // The client hangs up while its stream is open.
    let abandoned = fixture.posting(&alice, Some(&id), issue("create_issue"));
    child.hears().await.expect("the call");
    drop(abandoned.await.expect("an answer that has begun, after some silence"));
    assert_eq!(counted(&fixture, "abandoned"), 1);

    let late = fixture.posting(&alice, Some(&id), issue("create_issue"));
    child.hears().await.expect("the call");
    tokio::time::sleep(Duration::from_secs(301)).await;
    text(late.await.expect("no panic")).await;
    assert_eq!(counted(&fixture, "timed-out"), 1);

    let mut notification = issue("create_issue");
    notification.as_object_mut().expect("an object").remove("id");
    fixture.post(&alice, Some(&id), notification).await;
    assert_eq!(counted(&fixture, "unanswered"), 1);

    let refused = fixture.post(&caller(2, "g2"), Some(&id), issue("create_issue")).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(counted(&fixture, "refused"), 1);

    let gone = fixture.posting(&alice, Some(&id), issue("create_issue"));
    while child.hears().await.expect("a message")["method"] != "tools/call" {}
    child.ends(Exit::Signal(9));
    text(gone.await.expect("no panic")).await;
    assert_eq!(counted(&fixture, "child-gone"), 1);

    let lines = log.of(TOOL_CALLED);
    let outcomes: Vec<&str> =
        lines.iter().filter_map(|line| line.split("outcome=\"").nth(1)?.split('"').next()).collect();
    let expected =
        ["ok", "tool-error", "error", "cancelled", "abandoned", "timed-out", "unanswered", "refused", "child-gone"];
    assert_eq!(outcomes, expected, "{lines:?}");
    assert!(
        lines[7].contains("user2 called create_issue") && lines[7].contains("refused (foreign-session)"),
        "{lines:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_spelling_of_a_call_keeps_it_out_of_the_audit() {
    let mut fixture = auditing(AuditedCalls::Writes).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let (log, _here) = CapturedLog::begin();
    let spellings = [
        r#"{"name":"get_issue","Name":"create_issue","arguments":{}}"#,
        r#"{"name":"get_issue","name":"create_issue","arguments":{}}"#,
        r#"{"name":"unheard_of","arguments":{}}"#,
    ];
    for params in spellings {
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
        let calling = fixture.sending(&alice, crate::tests::sessions::fixture::post(Some(&id), message));
        child.answers(json!({})).await;
        body(calling.await.expect("no panic")).await;
    }
    let lines = log.of(TOOL_CALLED);
    assert_eq!(lines.len(), spellings.len(), "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("effect=\"write\"")), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_table_the_programs_own_hints_tell_reads_from_writes_and_until_then_a_call_is_unknown() {
    let tables = Tables::new(Vec::new(), true);
    let mut fixture = Fixture::auditing(config(), FakeRecords::default(), tables, AuditedCalls::Writes).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let (log, _here) = CapturedLog::begin();
    let calling = fixture.posting(&alice, Some(&id), issue("look"));
    child.answers(json!({})).await;
    body(calling.await.expect("no panic")).await;
    let hint = |name: &str, reads: bool| json!({"name": name, "annotations": {"readOnlyHint": reads}});
    let asked = child.answers(json!({"tools": [hint("look", true), hint("change", false)]})).await;
    assert_eq!(asked["method"], "tools/list", "nobody had to wait for it");
    // Behind what the child has said.
    let after = fixture.posting(&alice, Some(&id), json!({"jsonrpc": "2.0", "id": 6, "method": "prompts/list"}));
    child.answers(json!({"prompts": []})).await;
    body(after.await.expect("no panic")).await;
    for tool in ["look", "change", "unlisted"] {
        let calling = fixture.posting(&alice, Some(&id), issue(tool));
        let heard = child.answers(json!({})).await;
        assert_eq!(heard["params"]["name"], tool, "the child is asked once");
        body(calling.await.expect("no panic")).await;
    }
    let told: Vec<String> = log.of(TOOL_CALLED);
    let expected = [("look", "unknown"), ("change", "write"), ("unlisted", "write")];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (line, (tool, effect)) in told.iter().zip(expected) {
        assert!(line.contains(&format!("called {tool} on ")), "{line}");
        assert!(line.contains(&format!("effect=\"{effect}\"")), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_tries_to_write_is_told_of() {
    let mut fixture = auditing(AuditedCalls::Writes).await;
    let reader = reader();
    let (id, _child) = fixture.open(&reader).await;
    let (log, _here) = CapturedLog::begin();
    assert_eq!(fixture.post(&reader, Some(&id), call(7, "create_issue")).await.status(), StatusCode::FORBIDDEN);
    let lines = log.of(TOOL_CALLED);
    assert!(lines.len() == 1 && lines[0].contains("refused (insufficient-scope)"), "{lines:?}");
    assert!(fixture.writes.waiting(&reader.grant).is_empty(), "nothing was changed");
}
