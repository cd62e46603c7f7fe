//! What a child writes that is no message, or one too long, is told, and whoever waits for it hears of it at once.

use serde_json::{Value, json};
use wire::telemetry::message_id::CHILD_MISREAD;

use crate::tests::captured_log::CapturedLog;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, initialize};

/// The error that a request gets for what the child writes instead of its answer. Time stands still, so nothing but the
/// line itself brings it.
async fn error_for(write: impl Fn(&Value) -> String) -> Value {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call("mine", "x"));
    let heard = child.hears().await.expect("a call");
    child.says_raw(&write(&heard["id"])).await;
    let answer = body(calling.await.expect("no panic")).await;
    assert_eq!(answer["id"], "mine", "{answer}");
    assert_eq!(answer["error"]["code"], -32603, "{answer}");
    // The session is none the worse.
    let calling = fixture.posting(&alice, Some(&id), call(2, "x"));
    child.answers(json!({"content": []})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"], json!({"content": []}));
    answer["error"]["message"].clone()
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_read_is_an_error_at_once() {
    let pretty = |id: &Value| format!("{:#}", json!({"jsonrpc": "2.0", "id": id, "result": {"a": "}"}}));
    let both = |id: &Value| json!({"jsonrpc": "2.0", "id": id, "result": {}, "error": {}}).to_string();
    let marked = |id: &Value| format!("\u{feff}{}", json!({"jsonrpc": "2.0", "id": id, "result": {}}));
    let nan = |id: &Value| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"a":NaN}}}}"#);
    let nameless =
        |_: &Value| json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "x"}}).to_string();
    assert!(error_for(pretty).await.as_str().is_some_and(|text| text.contains("several lines")));
    assert!(error_for(both).await.as_str().is_some_and(|text| text.contains("both a result and an error")));
    assert!(error_for(marked).await.as_str().is_some_and(|text| text.contains("byte order mark")));
    assert!(error_for(nan).await.as_str().is_some_and(|text| text.contains("not JSON")));
    assert!(error_for(nameless).await.as_str().is_some_and(|text| text.contains("neither")));
}

#[tokio::test(start_paused = true)]
async fn of_several_in_flight_only_the_one_that_is_named_fails_and_a_greeting_fails_nobody() {
    // Before the child is there: what it is known by is noted then.
    let (log, _here) = CapturedLog::begin();
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let first = fixture.posting(&alice, Some(&id), call(1, "x"));
    let one = child.hears().await.expect("a call");
    child.says_raw("Listening on stdio, it's { up").await;
    let second = fixture.posting(&alice, Some(&id), call(2, "x"));
    let two = child.hears().await.expect("a call");
    child.says_raw(r#"{"jsonrpc":"2.0","error":{"code":1,"message":"whose?"}}"#).await;
    child.says_raw(&json!({"jsonrpc": "2.0", "id": two["id"], "result": {}, "error": {}}).to_string()).await;
    assert_eq!(body(second.await.expect("no panic")).await["error"]["code"], -32603);
    child.says(json!({"jsonrpc": "2.0", "id": one["id"], "result": {}})).await;
    assert_eq!(body(first.await.expect("no panic")).await["result"], json!({}));
    let lines = log.of(CHILD_MISREAD);
    assert_eq!(lines.len(), 1, "one in ten seconds: {lines:?}");
    assert!(lines[0].contains("reason=\"not-json\"") && lines[0].contains("session="), "{lines:?}");
    assert!(!log.text().contains("Listening"), "nothing of it is told");
}

#[tokio::test(start_paused = true)]
async fn an_initialize_that_is_answered_with_what_is_no_message_is_over_at_once() {
    let mut fixture = Fixture::new(config()).await;
    let opening = fixture.posting(&caller(1, "g1"), None, initialize());
    let mut child = fixture.child().await;
    let heard = child.hears().await.expect("initialize");
    let before = tokio::time::Instant::now();
    child.says_raw(&json!({"id": heard["id"], "result": {}}).to_string()).await;
    let answer = body(opening.await.expect("no panic")).await;
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("no JSON-RPC message")), "{answer}");
    assert!(before.elapsed() < std::time::Duration::from_secs(1), "nobody waited");
    assert_eq!(fixture.registry.counts().0, 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_beyond_the_cap_is_an_error_of_its_request_alone_and_the_session_goes_on() {
    let (log, _here) = CapturedLog::begin();
    let mut config = config();
    config.max_line = 200 * 1024;
    let mut fixture = Fixture::new(config).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let other = fixture.posting(&alice, Some(&id), call("other", "x"));
    let others = child.hears().await.expect("a call");
    let text = "x".repeat(300 * 1024);
    for (n, form) in [
        r#"{"jsonrpc":"2.0","id":ID,"result":{"text":"TEXT"}}"#,
        r#"{"result":{"text":"TEXT"},"jsonrpc":"2.0","id":ID}"#,
    ]
    .iter()
    .enumerate()
    {
        let calling = fixture.posting(&alice, Some(&id), call(n, "x"));
        let heard = child.hears().await.expect("a call");
        child.says_raw(&form.replace("ID", &heard["id"].to_string()).replace("TEXT", &text)).await;
        let answer = body(calling.await.expect("no panic")).await;
        let said = answer["error"]["message"].as_str().expect("an error");
        assert!(answer["id"] == n && said.contains("204800 bytes") && said.contains("max_line"), "{answer}");
    }
    // A notification of that size is nobody's answer.
    child
        .says_raw(&json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": text}}).to_string())
        .await;
    child.says(json!({"jsonrpc": "2.0", "id": others["id"], "result": {"still": "there"}})).await;
    assert_eq!(body(other.await.expect("no panic")).await["result"]["still"], "there");
    let lines = log.of(CHILD_MISREAD);
    assert_eq!(lines.len(), 1, "one in ten seconds: {lines:?}");
    assert!(lines[0].contains("reason=\"line-too-long\"") && lines[0].contains("failed_requests=1"), "{lines:?}");
    assert!(!child.is_asked_to_stop());
    assert_eq!(fixture.registry.budgets().used(), 0);
}
