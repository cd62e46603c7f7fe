//! A small MCP client over HTTP: one session, blocking on nothing but the answers.

use reqwest::header::HeaderMap;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

/// What went wrong, for a person.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// An open session.
#[derive(Debug, Clone)]
pub struct Session {
    client: Client,
    url: String,
    token: String,
    pub id: String,
    next: u64,
}

/// An HTTP client that needs no TLS.
pub fn http() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A connection a request: one that a killed broker has left behind must not be tried again.
    Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap_or_default()
}

/// `initialize` as most clients send it.
pub fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "tests", "version": "1"}}})
}

/// Sends one message; the answer as it comes.
pub async fn post(client: &Client, url: &str, token: &str, session: Option<&str>, message: &Value) -> Result<Response> {
    let mut request = client
        .post(format!("{url}/mcp"))
        .bearer_auth(token)
        .header("accept", "application/json, text/event-stream")
        .header("content-type", "application/json")
        .body(message.to_string());
    if let Some(session) = session {
        request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-06-18");
    }
    Ok(request.send().await?)
}

/// The last message of an answer, JSON or stream.
pub async fn message(response: Response) -> Result<Value> {
    let is_stream = header(response.headers(), "content-type").starts_with("text/event-stream");
    let text = response.text().await?;
    let text = if is_stream { text.lines().rev().find_map(|line| line.strip_prefix("data: ")) } else { Some(&*text) };
    Ok(serde_json::from_str(text.ok_or("a stream without a message")?)?)
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

impl Session {
    /// Opens a session.
    pub async fn open(url: &str, token: &str) -> Result<Self> {
        let client = http();
        let response = post(&client, url, token, None, &initialize()).await?;
        let (status, id) = (response.status(), header(response.headers(), "mcp-session-id"));
        let answer = message(response).await?;
        if status != StatusCode::OK || id.is_empty() {
            return Err(format!("initialize: {status}: {answer}").into());
        }
        let session = Self { client, url: url.to_owned(), token: token.to_owned(), id, next: 0 };
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        post(&session.client, &session.url, &session.token, Some(&session.id), &initialized).await?;
        Ok(session)
    }

    /// The bearer token.
    pub fn token(&self) -> String {
        self.token.clone()
    }

    /// Goes on with another token.
    pub fn change_token(&mut self, token: &str) {
        token.clone_into(&mut self.token);
    }

    /// Sends a request; the whole answer.
    pub async fn send(&mut self, method: &str, params: Value) -> Result<(StatusCode, Value)> {
        self.next += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.next, "method": method, "params": params});
        let response = post(&self.client, &self.url, &self.token, Some(&self.id), &request).await?;
        let status = response.status();
        let answer = message(response).await?;
        if answer.get("id") != Some(&json!(self.next)) {
            return Err(format!("the answer has another id: {answer}").into());
        }
        Ok((status, answer))
    }

    /// Calls a tool; its result.
    pub async fn call(&mut self, tool: &str, arguments: Value) -> Result<Value> {
        let (_, answer) = self.send("tools/call", json!({"name": tool, "arguments": arguments})).await?;
        answer.get("result").cloned().ok_or_else(|| format!("{tool}: {answer}").into())
    }

    /// The text of a tool's result.
    pub async fn text(&mut self, tool: &str, arguments: Value) -> Result<String> {
        let result = self.call(tool, arguments).await?;
        let text = result.pointer("/content/0/text").and_then(Value::as_str);
        Ok(text.ok_or_else(|| format!("{tool}: {result}"))?.to_owned())
    }

    /// The names of all tools.
    pub async fn tools(&mut self) -> Result<Vec<String>> {
        let (_, answer) = self.send("tools/list", json!({})).await?;
        let tools = answer.pointer("/result/tools").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(tools.iter().filter_map(|tool| Some(tool.get("name")?.as_str()?.to_owned())).collect())
    }

    /// Ends the session.
    pub async fn end(&self) -> Result<StatusCode> {
        let request = self.client.delete(format!("{}/mcp", self.url)).bearer_auth(&self.token);
        Ok(request.header("mcp-session-id", &self.id).send().await?.status())
    }
}
