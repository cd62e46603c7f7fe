//! The trace that a client names reaches its child and every line about the request.

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use serde_json::{Value, json};
use tower::ServiceExt;
use wire::telemetry::message_id::{CALL_REFUSED, SESSION_OPENED, TOOL_CALLED};

use crate::http::traced;
use crate::mcp::audit::AuditedCalls;
use crate::mcp::tools::Tables;
use crate::tests::captured_log::CapturedLog;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, initialize, post, session_of};
use crate::tests::sessions::records::FakeRecords;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn within(message: &Value, session: Option<&str>) -> Request {
    let mut request = post(session, message.to_string());
    request.headers_mut().insert("traceparent", PARENT.parse().expect("a header"));
    request.headers_mut().insert("tracestate", "vendor=1".parse().expect("a header"));
    request
}

#[tokio::test(start_paused = true)]
async fn a_trace_of_the_headers_goes_to_the_child_with_each_request_and_never_into_what_is_replayed() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let opening = fixture.sending(&alice, within(&initialize(), None));
    let mut child = fixture.child().await;
    let heard = child.welcomes().await;
    assert_eq!(heard["params"].get("_meta"), None, "{heard}");
    let id = session_of(&opening.await.expect("no panic")).expect("an id");

    let calling = fixture.sending(&alice, within(&call(1, "x"), Some(&id)));
    let heard = child.hears().await.expect("a call");
    assert_eq!(heard["params"]["_meta"], json!({"traceparent": PARENT, "tracestate": "vendor=1"}));
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    body(calling.await.expect("no panic")).await;

    let own = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-b7ad6b7169203331-00";
    let mut message = call(2, "x");
    message["params"]["_meta"] = json!({"traceparent": own});
    let calling = fixture.sending(&alice, within(&message, Some(&id)));
    let heard = child.hears().await.expect("a call");
    assert_eq!(heard["params"]["_meta"], json!({"traceparent": own}), "what the message says itself stays");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    body(calling.await.expect("no panic")).await;

    let changed = json!({"jsonrpc": "2.0", "method": "notifications/roots/list_changed"});
    fixture.send(&alice, within(&changed, Some(&id))).await;
    assert_eq!(child.hears().await.expect("a notification"), changed, "only requests belong to a trace");
}

#[tokio::test(start_paused = true)]
async fn every_line_about_a_request_has_its_trace_once_refusals_and_the_audit_too() {
    let fixture = Fixture::auditing(config(), FakeRecords::default(), Tables::default(), AuditedCalls::All);
    let mut fixture = fixture.await;
    let (alice, bob) = (caller(1, "g1"), caller(2, "g2"));
    let (log, _here) = CapturedLog::begin();
    let router = fixture.bare_router().layer(traced::lines()).layer(from_fn(traced::begin));
    let send = |from: &crate::auth::principal::Principal, mut request: Request| {
        request.extensions_mut().insert(from.clone());
        let answer = router.clone().oneshot(request);
        tokio::spawn(async move { answer.await.expect("infallible").map(Body::new) })
    };
    let opening = send(&alice, within(&initialize(), None));
    let mut child = fixture.child().await;
    child.welcomes().await;
    let id = session_of(&opening.await.expect("no panic")).expect("an id");
    let calling = send(&alice, within(&call(1, "x"), Some(&id)));
    child.answers(json!({})).await;
    body(calling.await.expect("no panic")).await;
    let refused = send(&bob, within(&call(1, "x"), Some(&id))).await.expect("no panic");
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    for message_id in [SESSION_OPENED, TOOL_CALLED, CALL_REFUSED] {
        let lines = log.of(message_id);
        let once = lines.iter().all(|line| line.matches(TRACE).count() == 1);
        assert!(once && !lines.is_empty(), "{message_id}: {lines:?}\n{}", log.text());
    }
    assert_eq!(log.of(TOOL_CALLED).len(), 2);

    // Without one the broker makes one, the same for both lines.
    let refused = send(&bob, post(Some(&id), call(1, "x").to_string())).await.expect("no panic");
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let trace_of = |message_id: &str| {
        let line = log.of(message_id).pop().expect("a line");
        let at = line.find("trace_id=").expect("a trace");
        line[at + 9..].chars().filter(|c| *c != '"').take(32).collect::<String>()
    };
    assert_eq!(trace_of(CALL_REFUSED), trace_of(TOOL_CALLED));
    assert_ne!(trace_of(CALL_REFUSED), TRACE);
}
