//! Bad input gets a clear answer, and no child hears of it.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, header, initialize, post, request, text};

#[tokio::test(start_paused = true)]
async fn every_bad_request_is_refused_with_its_own_status_and_code() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, _child) = fixture.open(&alice).await;
    let good = call("i", "x").to_string();
    let with = |name: &'static str, value: &str, body: &str| {
        let mut request = post(Some(&id), body.to_owned());
        request.headers_mut().insert(name, value.parse().expect("a header"));
        request
    };
    let plain = |body: &str| post(Some(&id), body.to_owned());
    let table: Vec<(&str, Request<Body>, u16, i64, Value)> = vec![
        ("not JSON", plain("{"), 400, -32700, Value::Null),
        ("empty", plain(""), 400, -32700, Value::Null),
        ("a batch", plain("[]"), 400, -32600, Value::Null),
        ("no message", plain("{}"), 400, -32600, Value::Null),
        ("not JSON to its end", plain(r#"{"method":"x","id":"i","#), 400, -32700, json!("i")),
        ("another JSON-RPC", plain(r#"{"jsonrpc":"1.0","method":"x","id":"i"}"#), 400, -32600, json!("i")),
        ("a damaged response", plain(r#"{"jsonrpc":"2.0","result":1,"error":{},"id":"i"}"#), 400, -32600, Value::Null),
        ("a null id", plain(r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#), 400, -32600, Value::Null),
        ("another type", with("content-type", "text/plain", &good), 415, -32000, Value::Null),
        ("no form that exists", with("accept", "text/html", &good), 406, -32000, Value::Null),
        ("too large", plain(&format!("{{\"a\":\"{}\"}}", "x".repeat(70_000))), 413, -32000, Value::Null),
        ("an unknown revision", with("mcp-protocol-version", "1999-01-01", &good), 400, -32000, json!("i")),
        ("no revision", with("mcp-protocol-version", "latest", &good), 400, -32000, json!("i")),
        ("no session", post(None, good.clone()), 400, -32000, json!("i")),
        (
            "a modern request",
            post(None, r#"{"jsonrpc":"2.0","id":1,"method":"server/discover"}"#.into()),
            400,
            -32000,
            json!(1),
        ),
    ];
    for (what, request, status, code, id) in table {
        let response = fixture.send(&alice, request).await;
        assert_eq!(response.status().as_u16(), status, "{what}");
        assert_eq!(header(&response, "content-type"), Some("application/json"), "{what}");
        let answer = body(response).await;
        assert_eq!(answer["error"]["code"], code, "{what}: {answer}");
        assert_eq!(answer["id"], id, "{what}");
        // A client that takes it for a message waits on for the answer to its own.
        assert_eq!(answer.get("jsonrpc").is_some(), !id.is_null(), "{what}: {answer}");
    }
    assert_eq!(fixture.registry.counts(), (1, 1), "and the session is none the worse");
}

#[tokio::test(start_paused = true)]
async fn a_missing_session_id_is_named_in_words_that_clients_look_for() {
    let fixture = Fixture::new(config()).await;
    let response = fixture.post(&caller(1, "g1"), None, call(1, "x")).await;
    let message = body(response).await["error"]["message"].as_str().expect("text").to_owned();
    assert!(message.contains("Mcp-Session-Id header is required"));
}

#[tokio::test(start_paused = true)]
async fn the_known_revisions_are_let_through() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    for revision in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let mut asked = post(Some(&id), call(1, "x").to_string());
        asked.headers_mut().insert("mcp-protocol-version", revision.parse().expect("a header"));
        let calling = fixture.sending(&alice, asked);
        child.answers(json!({})).await;
        assert_eq!(calling.await.expect("no panic").status().as_u16(), 200, "{revision}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_session_is_405_with_what_is_allowed() {
    let fixture = Fixture::new(config()).await;
    let response =
        fixture.send(&caller(1, "g1"), request(Method::GET, None).body(Body::empty()).expect("a request")).await;
    assert_eq!(response.status().as_u16(), 405);
    assert_eq!(header(&response, "allow"), Some("POST, DELETE"));
}

#[tokio::test(start_paused = true)]
async fn without_a_caller_nothing_is_served() {
    use tower::ServiceExt;
    let fixture = Fixture::new(config()).await;
    let router = fixture.bare_router();
    let response = router.oneshot(post(None, initialize().to_string())).await.expect("infallible");
    assert_eq!(response.status().as_u16(), 500, "the bearer layer is missing: fail closed");
    assert_eq!(fixture.registry.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_header_that_decides_for_whom_a_message_is_may_not_be_there_twice() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, _child) = fixture.open(&alice).await;
    for method in [Method::POST, Method::GET, Method::DELETE] {
        for (name, value) in [("mcp-session-id", id.as_str()), ("mcp-protocol-version", "2025-06-18")] {
            let mut request = post(Some(&id), call(1, "x").to_string());
            *request.method_mut() = method.clone();
            request.headers_mut().insert("mcp-protocol-version", "2025-06-18".parse().expect("a header"));
            // The same value, too: what reads one of them and what reads the other need not agree tomorrow.
            request.headers_mut().append(name, value.parse().expect("a header"));
            let response = fixture.send(&alice, request).await;
            assert_eq!(response.status().as_u16(), 400, "{method} {name}");
            let said = text(response).await;
            assert!(said.contains(name), "{said}");
        }
    }
    assert_eq!(fixture.registry.counts(), (1, 1), "and nothing was done to the session");
}
