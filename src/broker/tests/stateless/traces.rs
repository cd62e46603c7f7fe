//! A trace that only headers name reaches the child and the journal without a session as well, relayed and translated.

use axum::body::Body;
use axum::http::Request;
use axum::middleware::from_fn;
use serde_json::{Value, json};
use tower::ServiceExt;
use wire::telemetry::message_id::TOOL_CALLED;

use crate::http::traced;
use crate::mcp::audit::AuditedCalls;
use crate::mcp::tools::Tables;
use crate::tests::captured_log::CapturedLog;
use crate::tests::sessions::fixture::{Fixture, body, caller, config};
use crate::tests::sessions::records::FakeRecords;
use crate::tests::stateless::fixture::{CAPABILITIES, VERSION, call, post};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn within(message: &Value) -> Request<Body> {
    let mut request = post(message);
    request.headers_mut().insert("traceparent", PARENT.parse().expect("a header"));
    request.headers_mut().insert("tracestate", "vendor=1".parse().expect("a header"));
    request
}

#[tokio::test(start_paused = true)]
async fn a_child_of_either_era_hears_the_trace_of_the_headers_in_meta() {
    let alice = caller(1, "g1");
    for relays in [true, false] {
        let mut fixture = Fixture::new(config()).await;
        let calling = fixture.sending(&alice, within(&call(1, "t")));
        let mut child = fixture.child().await;
        child.speaks(relays, json!({"tools": {}})).await;
        let heard = child.answers(json!({"resultType": "complete"})).await;
        let mut expected = json!({"traceparent": PARENT, "tracestate": "vendor=1"});
        if relays {
            expected[VERSION] = json!("2026-07-28");
            expected[CAPABILITIES] = json!({});
        }
        assert_eq!(heard["params"]["_meta"], expected, "relayed: {relays}");
        body(calling.await.expect("no panic")).await;

        let own = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-b7ad6b7169203331-00";
        let mut message = call(2, "t");
        message["params"]["_meta"]["traceparent"] = json!(own);
        let calling = fixture.sending(&alice, within(&message));
        let heard = child.answers(json!({"resultType": "complete"})).await;
        assert_eq!(heard["params"]["_meta"]["traceparent"], own, "what the message says itself stays");
        body(calling.await.expect("no panic")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_line_about_a_call_has_the_trace_of_its_headers() {
    let fixture = Fixture::auditing(config(), FakeRecords::default(), Tables::default(), AuditedCalls::All);
    let mut fixture = fixture.await;
    let (log, _here) = CapturedLog::begin();
    let router = fixture.bare_router().layer(traced::lines()).layer(from_fn(traced::begin));
    let mut request = within(&call(1, "t"));
    request.extensions_mut().insert(caller(1, "g1"));
    let calling = tokio::spawn(async move { router.oneshot(request).await.expect("infallible").map(Body::new) });
    let mut child = fixture.child().await;
    child.speaks_sessions(json!({"tools": {}})).await;
    child.answers(json!({})).await;
    body(calling.await.expect("no panic")).await;
    let lines = log.of(TOOL_CALLED);
    assert!(lines.len() == 1 && lines[0].matches(TRACE).count() == 1, "{lines:?}");
}
