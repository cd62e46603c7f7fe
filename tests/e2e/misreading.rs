//! A child that answers with what is no message is told of, and its client does not wait for an answer that never comes.

use std::time::Duration;

use harness::mcp_session::Session;
use serde_json::json;
use tokio::time::timeout;

use crate::{stand_in_deployment, token};

#[tokio::test]
async fn an_answer_that_is_no_message_is_an_error_at_once_and_a_line_of_the_journal() {
    let deployment = stand_in_deployment("misreading", &[], |_| {});
    for (how, words, reason) in [
        ("pretty", "several lines", "several-lines"),
        ("both", "both a result and an error", "result-and-error"),
        ("null-id", "neither a request", "not-a-message"),
        ("bom", "byte order mark", "byte-order-mark"),
        ("not-utf-8", "not UTF-8", "not-utf-8"),
    ] {
        // A session each: one line in ten seconds and child is told.
        let mut session = Session::open(&deployment.url, &token(&deployment, how)).await.expect("a session");
        let calling = session.send("tools/call", json!({"name": "misanswer", "arguments": {"how": how}}));
        // The broker's own deadline is five minutes.
        let (status, answer) = timeout(Duration::from_secs(30), calling).await.expect("at once").expect("an answer");
        assert_eq!(status.as_u16(), 200, "{answer}");
        let said = answer.pointer("/error/message").and_then(|message| message.as_str()).unwrap_or_default();
        assert!(said.contains(words), "{how}: {answer}");
        let output = deployment.output();
        assert!(output.contains(&format!("reason=\"{reason}\"")), "{how}: {output}");
        assert_eq!(session.text("echo", json!({"text": "on"})).await.expect("the session goes on"), "on");
        assert!(!output.contains("unread"), "{output}");
    }
}
