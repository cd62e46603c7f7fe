//! A small MCP client of the stateless revision (2026-07-28): each request says for itself what it speaks.

use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::mcp_session::{Result, http, message};

/// The one id of all requests, as one hosted client has it: none of them may depend on it.
pub const ID: &str = "1";

/// Whoever has this token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Caller {
    client: Client,
    url: String,
    token: String,
}

/// A request of a client that can be asked for nothing.
pub fn request(method: &str, mut params: Value) -> Value {
    let meta = params.as_object_mut().expect("an object").entry("_meta").or_insert(json!({}));
    meta["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
    meta["io.modelcontextprotocol/clientCapabilities"] = json!({});
    json!({"jsonrpc": "2.0", "id": ID, "method": method, "params": params})
}

impl Caller {
    pub fn new(url: &str, token: &str) -> Self {
        Self { client: http(), url: url.to_owned(), token: token.to_owned() }
    }

    /// A request with the headers that repeat it, not yet sent.
    pub fn post(&self, message: &Value) -> RequestBuilder {
        let mut post = self.client.post(format!("{}/mcp", self.url)).bearer_auth(&self.token);
        let named = message.pointer("/params/name").or_else(|| message.pointer("/params/uri"));
        if let Some(name) = named.and_then(Value::as_str) {
            post = post.header("mcp-name", name);
        }
        post.header("accept", "application/json, text/event-stream")
            .header("content-type", "application/json")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", message["method"].as_str().unwrap_or_default())
            .body(message.to_string())
    }

    /// Sends a request; the answer as it comes.
    pub async fn send(&self, method: &str, params: Value) -> Result<Response> {
        Ok(self.post(&request(method, params)).send().await?)
    }

    /// Sends a request; the whole answer, which has its id.
    pub async fn ask(&self, method: &str, params: Value) -> Result<(StatusCode, Value)> {
        let response = self.send(method, params).await?;
        let status = response.status();
        let answer = message(response).await?;
        if answer["id"] != ID {
            return Err(format!("{status}: the answer has another id: {answer}").into());
        }
        Ok((status, answer))
    }

    /// The text of a tool's result.
    pub async fn text(&self, tool: &str, arguments: Value) -> Result<String> {
        let (status, answer) = self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await?;
        let text = answer.pointer("/result/content/0/text").and_then(Value::as_str);
        Ok(text.ok_or_else(|| format!("{tool}: {status}: {answer}"))?.to_owned())
    }
}
