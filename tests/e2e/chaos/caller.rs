//! One who sends requests, notes how each ends, and expects each to end in time.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};

use super::ledger::{Answered, Ledger, Outcome, Promise};
use harness::mcp_session::{initialize, post};

/// How often a request that has no answer yet is asked whether it is late.
const LOOK: Duration = Duration::from_secs(1);

/// Calls from an address of its own. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    http: Client,
    pub(crate) url: Arc<str>,
    pub(crate) login: Arc<str>,
    pub(crate) ledger: Arc<Ledger>,
}

/// What an `initialize` came to.
#[derive(Debug)]
pub(crate) enum Opened {
    /// This session.
    Session(String),
    /// With this status; 0 where the connection was lost.
    Refused(u16),
}

/// A client that calls from 127.0.0.0/17, which the broker takes for proxies; `number` tells one from another.
pub(crate) fn http_from(number: usize) -> Client {
    let [.., high, low] = u32::try_from(number + 256).expect("a few hundred").to_be_bytes();
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, high, low));
    // A connection a request: one that a killed broker has left behind must not be tried again.
    let builder = Client::builder().no_proxy().pool_max_idle_per_host(0).local_address(address);
    builder.build().expect("a client")
}

impl Caller {
    pub(crate) fn new(url: &str, login: &str, number: usize, ledger: &Arc<Ledger>) -> Self {
        let http = http_from(number);
        Self { http, url: url.into(), login: login.into(), ledger: Arc::clone(ledger) }
    }

    /// Sends one message and reads the answer to its end.
    pub(crate) async fn ask(&self, token: &str, session: Option<&str>, message: &Value) -> Outcome {
        let exchange = async {
            let response = post(&self.http, &self.url, token, session, message).await.map_err(drop)?;
            answered(response).await
        };
        self.in_time(&format!("{}: {}", self.login, method(message)), message.to_string().len(), exchange).await
    }

    /// Ends a session; the broker's word that it is ended is a promise.
    pub(crate) async fn end(&self, token: &str, session: &str) -> Outcome {
        let exchange = async {
            let request = self.http.delete(format!("{}/mcp", self.url)).bearer_auth(token);
            let request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-06-18");
            answered(request.send().await.map_err(drop)?).await
        };
        let outcome = self.in_time(&format!("{}: DELETE", self.login), 0, exchange).await;
        if let Outcome::Answered(Answered { status: 204, .. }) = outcome {
            self.ledger.count("session ended by its client");
            self.ledger.promise(Promise::Ended { token: token.to_owned(), session: session.to_owned() });
        }
        outcome
    }

    /// Posts a form to one of the broker's OAuth endpoints.
    pub(crate) async fn form(&self, path: &str, form: &[(&str, &str)]) -> Outcome {
        let exchange = async {
            let request = self.http.post(format!("{}{path}", self.url)).form(form);
            answered(request.send().await.map_err(drop)?).await
        };
        self.in_time(&format!("{}: {path}", self.login), 0, exchange).await
    }

    /// Posts JSON to one of the broker's OAuth endpoints.
    pub(crate) async fn json(&self, path: &str, body: &Value) -> Outcome {
        let exchange = async {
            let request = self.http.post(format!("{}{path}", self.url)).json(body);
            answered(request.send().await.map_err(drop)?).await
        };
        self.in_time(&format!("{}: {path}", self.login), 0, exchange).await
    }

    /// Tries to open a session.
    pub(crate) async fn open(&self, token: &str) -> Opened {
        match self.ask(token, None, &initialize()).await {
            Outcome::Answered(Answered { session: Some(id), .. }) => Opened::Session(id),
            Outcome::Answered(answer) => {
                self.ledger.count(&format!("initialize refused: {}", answer.status));
                Opened::Refused(answer.status)
            }
            Outcome::Lost => {
                // There may be a session now whose id nobody knows.
                self.ledger.count("initialize without an answer");
                Opened::Refused(0)
            }
        }
    }

    async fn in_time(&self, what: &str, bytes: usize, exchange: impl Future<Output = Result<Answered, ()>>) -> Outcome {
        let begun = Instant::now();
        let mut exchange = std::pin::pin!(exchange);
        let outcome = loop {
            match tokio::time::timeout(LOOK, exchange.as_mut()).await {
                Ok(Ok(answered)) => break Outcome::Answered(answered),
                Ok(Err(())) => break Outcome::Lost,
                Err(_) if self.ledger.late(begun) => {
                    self.ledger.broken(format!("{what}: no answer after {:?}", begun.elapsed()));
                    break Outcome::Lost;
                }
                Err(_) => {}
            }
        };
        self.ledger.over(begun, what, &outcome, bytes);
        outcome
    }
}

/// Reads an answer. A stream that ends without a response, when nothing was cancelled, is a lost connection: a broker that
/// was killed says no more.
async fn answered(response: reqwest::Response) -> Result<Answered, ()> {
    let status = response.status().as_u16();
    let headers = response.headers();
    let says_when_to_come_back = headers.contains_key("retry-after");
    let session = headers.get("mcp-session-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let is_stream = headers.get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"text/event"));
    let body = response.text().await.map_err(drop)?;
    let texts: Vec<&str> =
        if is_stream { body.lines().filter_map(|line| line.strip_prefix("data: ")).collect() } else { vec![&*body] };
    let messages = texts.into_iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
    Ok(Answered { status, messages, session, says_when_to_come_back })
}

fn method(message: &Value) -> &str {
    let tool = message.pointer("/params/name").and_then(Value::as_str);
    tool.or_else(|| message.get("method").and_then(Value::as_str)).unwrap_or("a message")
}

/// A call of a tool.
pub(crate) fn call(id: impl Into<Value>, tool: &str, arguments: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}
