//! What is refused is refused in a way that the official clients live with: none waits for an answer that never comes.

use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::StatusCode;
use rmcp::ServiceExt;
use rmcp::model::CallToolRequestParams;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{stand_in_deployment, token};
use harness::mcp_session::{Session, http};

/// More than any refusal takes, and less than clients wait for an answer.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_body_that_says_that_it_is_too_large_is_refused_before_it_is_sent() {
    let deployment = stand_in_deployment("too_large", &[], |_| {});
    let address = deployment.url.strip_prefix("http://").expect("plain");
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: 17000000\r\n\r\n",
        token(&deployment, "alice")
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.expect("in time").expect("closed in order");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("16777216 bytes") && !answer.contains("jsonrpc"), "{answer}");
}

#[tokio::test]
async fn rmcp_hears_of_a_request_that_is_too_large_and_goes_on() {
    let deployment = stand_in_deployment("rmcp_too_large", &[], |_| {});
    let config = StreamableHttpClientTransportConfig::with_uri(format!("{}/mcp", deployment.url))
        .auth_header(token(&deployment, "alice"));
    let client = ().serve(StreamableHttpClientTransport::with_client(http(), config)).await.expect("a session");
    let echo = |text: String| {
        let Value::Object(arguments) = json!({"text": text}) else { unreachable!("an object") };
        client.call_tool(CallToolRequestParams::new("echo").with_arguments(arguments))
    };
    assert!(timeout(SOON, echo("x".repeat(17_000_000))).await.expect("it hears of it").is_err());
    let answer = timeout(SOON, echo("small".to_owned())).await.expect("in time").expect("an answer");
    assert!(serde_json::to_string(&answer).expect("json").contains("small"));
}

#[tokio::test]
async fn a_session_whose_child_cannot_be_had_gets_an_error_with_its_id_and_goes_on_later() {
    let mut deployment = stand_in_deployment("no_child", &[], |config| {
        config.broker = "[http]\nrequest_timeout = \"5s\"\n".to_owned();
    });
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let supervisor = deployment.supervisor.as_mut().expect("runs");
    supervisor.signal(Signal::SIGKILL);
    supervisor.wait().expect("it ends");
    let refused = async {
        loop {
            // A call that was with the child has an error of its own.
            let (status, answer) = session.send("tools/list", json!({})).await.expect("an answer with the id");
            assert_eq!(status, StatusCode::OK, "{answer}");
            if answer.to_string().contains("try again in") {
                return;
            }
        }
    };
    timeout(SOON, refused).await.expect("refused in the end");
    deployment.start_supervisor().expect("the supervisor starts again");
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("an answer"), "back");
}
