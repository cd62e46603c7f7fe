//! Requests without a session, and children of either era.

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use serde_json::{Value, json};

use crate::auth::principal::Principal;
use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{BOTH, Fixture};

pub(crate) const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
pub(crate) const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub(crate) const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// A request of a client that can be asked for nothing.
pub(crate) fn request(id: impl Into<Value>, method: &str, params: Value) -> Value {
    request_by(id, method, params, json!({}))
}

/// A request of a client with these capabilities.
pub(crate) fn request_by(id: impl Into<Value>, method: &str, mut params: Value, capabilities: Value) -> Value {
    let meta = params.as_object_mut().expect("an object").entry("_meta").or_insert(json!({}));
    meta[VERSION] = json!("2026-07-28");
    meta[CAPABILITIES] = capabilities;
    json!({"jsonrpc": "2.0", "id": id.into(), "method": method, "params": params})
}

pub(crate) fn call(id: impl Into<Value>, tool: &str) -> Value {
    request(id, "tools/call", json!({"name": tool, "arguments": {}}))
}

/// With the headers that belong to it.
pub(crate) fn post(message: &Value) -> Request<Body> {
    let mut request = Request::builder().method("POST").uri("/mcp").header("accept", BOTH);
    request = request.header("content-type", "application/json").header("mcp-protocol-version", "2026-07-28");
    request = request.header("mcp-method", message["method"].as_str().unwrap_or_default());
    let named = message.pointer("/params/name").or_else(|| message.pointer("/params/uri"));
    if let Some(name) = named.and_then(Value::as_str) {
        request = request.header("mcp-name", name);
    }
    request.body(Body::from(message.to_string())).expect("a request")
}

impl Fixture {
    pub(crate) async fn ask(&self, caller: &Principal, message: &Value) -> Response {
        self.send(caller, post(message)).await
    }

    /// In the background, so that the test can play the child meanwhile.
    pub(crate) fn asking(&self, caller: &Principal, message: &Value) -> tokio::task::JoinHandle<Response> {
        self.sending(caller, post(message))
    }
}

impl FakeChild {
    /// Says that it speaks the stateless era, with these capabilities.
    pub(crate) async fn speaks_both(&mut self, capabilities: Value) {
        let asked = self.hears().await.expect("the question");
        assert_eq!(asked["method"], "server/discover", "nothing comes before it");
        assert_eq!(asked["params"]["_meta"][VERSION], "2026-07-28");
        let result = json!({
            "resultType": "complete", "supportedVersions": ["2025-11-25", "2026-07-28"], "capabilities": capabilities,
            "ttlMs": 0, "cacheScope": "private",
            "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "fake", "version": "1"}},
        });
        self.says(json!({"jsonrpc": "2.0", "id": asked["id"], "result": result})).await;
        self.tools.get_or_insert(json!([]));
    }

    /// Plays a child of both eras, or of the session era only.
    pub(crate) async fn speaks(&mut self, both: bool, capabilities: Value) {
        if both {
            self.speaks_both(capabilities).await;
        } else {
            self.speaks_sessions(capabilities).await;
        }
    }

    /// Knows only sessions; what it was told in `initialize`.
    pub(crate) async fn speaks_sessions(&mut self, capabilities: Value) -> Value {
        let asked = self.hears().await.expect("the question");
        assert_eq!(asked["method"], "server/discover", "nothing comes before it");
        let error = json!({"code": -32601, "message": "Method server/discover not found"});
        self.says(json!({"jsonrpc": "2.0", "id": asked["id"], "error": error})).await;
        self.is_initialized(capabilities).await
    }

    /// The handshake of a child that was not asked, or has refused.
    pub(crate) async fn is_initialized(&mut self, capabilities: Value) -> Value {
        let initialize = self.hears().await.expect("initialize");
        assert_eq!(initialize["method"], "initialize");
        let result = json!({
            "protocolVersion": "2025-11-25", "capabilities": capabilities, "serverInfo": {"name": "fake", "version": "1"},
            "instructions": "be kind",
        });
        self.says(json!({"jsonrpc": "2.0", "id": initialize["id"], "result": result})).await;
        assert_eq!(self.hears().await.expect("initialized")["method"], "notifications/initialized");
        self.tools.get_or_insert(json!([]));
        initialize["params"].clone()
    }
}

/// The next message of an event stream that goes on.
pub(crate) async fn next_event(stream: &mut axum::body::BodyDataStream, text: &mut String) -> Option<Value> {
    use futures_util::StreamExt;
    loop {
        while let Some((event, rest)) = text.split_once("\n\n") {
            let (event, rest) = (event.to_owned(), rest.to_owned());
            *text = rest;
            if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) {
                return Some(serde_json::from_str(data).expect("json"));
            }
        }
        let chunk = stream.next().await?.expect("a body");
        text.push_str(std::str::from_utf8(&chunk).expect("utf-8"));
    }
}
