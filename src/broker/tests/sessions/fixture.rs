//! `/mcp` without network, bearer layer and processes: the router, a caller put into the request, fake children.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::bearer::Challenge;
use crate::auth::principal::{GrantId, Holder, Principal, PrincipalParts, Scopes};
use crate::auth::restriction::Restrictions;
use crate::budget::BudgetCaps;
use crate::deadline::Deadline;
use crate::live::Live;
use crate::mcp::audit::AuditedCalls;
use crate::mcp::endpoint::Endpoint;
use crate::mcp::observed::Observer;
use crate::mcp::refusal::UnknownSession;
use crate::mcp::scope::Scope;
use crate::mcp::tools::Tables;
use crate::mcp::writes::RecentWrites;
use crate::metrics::Metrics;
use crate::session::config::SessionConfig;
use crate::session::quota::Caps;
use crate::session::registry::Registry;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use axum::{Extension, Router};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::ServiceExt;
use wire::clock::{Clock, UnixTime};
use wire::message::{Label, TenantId};
use wire::secret::UpstreamToken;

use crate::tests::sessions::backend::{FakeChild, FakeSpawner};
use crate::tests::sessions::records::{FakeRecords, GIVEN, holder};

pub(crate) const BOTH: &str = "application/json, text/event-stream";

pub(crate) struct Fixture {
    pub(crate) registry: Registry,
    pub(crate) spawner: Arc<FakeSpawner>,
    pub(crate) children: mpsc::UnboundedReceiver<FakeChild>,
    pub(crate) clock: Clock,
    pub(crate) records: FakeRecords,
    pub(crate) metrics: Metrics,
    endpoint: Endpoint,
    pub(crate) writes: RecentWrites,
    spared: Vec<FakeChild>,
}

/// A caller through the one client of tests; callers with the same `grant` are the same login.
pub(crate) fn caller(user: u64, grant: &str) -> Principal {
    caller_with(user, grant, &format!("upstream-token-of-{user}"))
}

pub(crate) fn caller_with(user: u64, grant: &str, upstream: &str) -> Principal {
    caller_until(user, grant, upstream, None)
}

/// A caller whose token of Forgejo's ends.
pub(crate) fn caller_until(user: u64, grant: &str, upstream: &str, ends: Option<UnixTime>) -> Principal {
    caller_but(user, grant, upstream, |parts| parts.upstream_ends = ends)
}

/// A caller who differs from the others in some part.
pub(crate) fn caller_but(
    user: u64,
    grant: &str,
    upstream: &str,
    differ: impl FnOnce(&mut PrincipalParts),
) -> Principal {
    let Holder { tenant, client_id, credential } = holder(TenantId::new(user).expect("an id"));
    let mut parts = PrincipalParts {
        client_id,
        credential,
        tenant,
        login: Label::parse(format!("user{user}")).expect("a label"),
        upstream: UpstreamToken::parse(upstream).expect("a token"),
        upstream_ends: None,
        is_shown: false,
        scopes: Scopes { write: true },
        restrictions: Restrictions::default(),
        grant: GrantId::new(grant),
        granted_at: GIVEN,
    };
    differ(&mut parts);
    Principal::new(parts)
}

pub(crate) fn config() -> SessionConfig {
    SessionConfig {
        sessions: Caps { total: 100, per_user: 50 },
        children: Caps { total: 100, per_user: 50 },
        child_idle: Duration::from_secs(300),
        session_idle: Duration::from_secs(24 * 3600),
        evict_after: Duration::from_secs(60),
        start_timeout: Duration::from_secs(20),
        request_timeout: Duration::from_secs(300),
        memory: BudgetCaps { total: 64 << 20, per_user: 16 << 20 },
        max_line: 1024 * 1024,
        respawn: false,
        drain: Duration::from_secs(5),
    }
}

impl Fixture {
    pub(crate) async fn new(config: SessionConfig) -> Self {
        Self::over(config, FakeRecords::default()).await
    }

    /// A broker that starts over existing records, as after a restart.
    pub(crate) async fn over(config: SessionConfig, records: FakeRecords) -> Self {
        Self::with(config, records, Tables::default()).await
    }

    /// A broker with the operator's word on tools.
    pub(crate) async fn with(config: SessionConfig, records: FakeRecords, tables: Tables) -> Self {
        Self::auditing(config, records, tables, AuditedCalls::Off).await
    }

    /// A broker that tells these calls.
    pub(crate) async fn auditing(
        config: SessionConfig,
        records: FakeRecords,
        tables: Tables,
        audit: AuditedCalls,
    ) -> Self {
        Self::offering(config, records, tables, audit, Scopes { write: true }).await
    }

    /// A broker where a client can be given so much at most.
    pub(crate) async fn offering(
        config: SessionConfig,
        records: FakeRecords,
        tables: Tables,
        audit: AuditedCalls,
        offered: Scopes,
    ) -> Self {
        let (spawner, children) = FakeSpawner::new();
        let metrics = Metrics::new().expect("metrics");
        let clock = Clock::manual(UnixTime::from_secs(1_800_000_000));
        let registry =
            Registry::load(config, spawner.clone(), Arc::new(records.clone()), clock.clone(), metrics.clone());
        let registry = registry.await.expect("the records are readable");
        let challenge = Challenge {
            resource_metadata: Some("https://broker.example/.well-known/oauth-protected-resource/mcp".to_owned()),
            scope: "forgejo:read forgejo:write",
            is_bare: false,
        };
        let writes = RecentWrites::default();
        let scope = Scope::new(Live::new(tables), &challenge, offered);
        let observer = Observer::new(metrics.clone(), audit, writes.clone(), clock.clone());
        let unknown = Live::new(UnknownSession::Auto);
        let endpoint = Endpoint::new(registry.clone(), 64 * 1024, unknown, scope, observer, None);
        Self { registry, spawner, children, clock, records, metrics, endpoint, writes, spared: Vec::new() }
    }

    /// Sends one request as `caller`.
    pub(crate) async fn send(&self, caller: &Principal, request: Request<Body>) -> Response {
        let router = Router::new().route("/mcp", self.endpoint.clone().routes());
        let (mut head, body) = request.into_parts();
        head.extensions.insert(caller.clone());
        head.extensions.insert(Deadline::within(self.registry.config().request_timeout));
        router.oneshot(Request::from_parts(head, body)).await.expect("infallible")
    }

    /// The router as it is without the layer that names a caller.
    pub(crate) fn bare_router(&self) -> Router {
        let deadline = Extension(Deadline::within(self.registry.config().request_timeout));
        Router::new().route("/mcp", self.endpoint.clone().routes().layer(deadline))
    }

    pub(crate) async fn post(&self, caller: &Principal, session: Option<&str>, message: Value) -> Response {
        self.send(caller, post(session, message.to_string())).await
    }

    /// Sends a request in the background, so that the test can play the child meanwhile.
    #[expect(clippy::needless_pass_by_value, reason = "as `json!` makes it")]
    pub(crate) fn posting(
        &self,
        caller: &Principal,
        session: Option<&str>,
        message: Value,
    ) -> tokio::task::JoinHandle<Response> {
        self.sending(caller, post(session, message.to_string()))
    }

    pub(crate) fn sending(&self, caller: &Principal, request: Request<Body>) -> tokio::task::JoinHandle<Response> {
        let router = Router::new().route("/mcp", self.endpoint.clone().routes());
        let (mut head, body) = request.into_parts();
        head.extensions.insert(caller.clone());
        head.extensions.insert(Deadline::within(self.registry.config().request_timeout));
        tokio::spawn(async move { router.oneshot(Request::from_parts(head, body)).await.expect("infallible") })
    }

    pub(crate) async fn child(&mut self) -> FakeChild {
        // Beyond every deadline of the broker's, and over at once where nothing else happens: the clock is paused.
        let started = tokio::time::timeout(Duration::from_hours(1), self.children.recv());
        started.await.ok().flatten().expect("a child is started")
    }

    /// Keeps a child running for what comes later.
    pub(crate) fn spare(&mut self, child: FakeChild) {
        self.spared.push(child);
    }

    /// The child that was kept last.
    pub(crate) fn spared(&mut self) -> &mut FakeChild {
        self.spared.last_mut().expect("a child was kept")
    }

    /// Opens a session; its id and its child.
    pub(crate) async fn open(&mut self, caller: &Principal) -> (String, FakeChild) {
        let opening = self.posting(caller, None, initialize());
        let mut child = self.child().await;
        child.welcomes().await;
        let response = opening.await.expect("no panic");
        assert_eq!(response.status(), StatusCode::OK);
        (session_of(&response).expect("an id"), child)
    }

    /// The same with a child that agrees to `revision`, and whose tools are in the table.
    pub(crate) async fn open_in(&mut self, caller: &Principal, revision: &str) -> (String, FakeChild) {
        let opening = self.posting(caller, None, initialize());
        let mut child = self.child().await;
        let server = json!({"name": "Forgejo MCP Server", "version": "1"});
        child.answers(json!({"protocolVersion": revision, "capabilities": {"tools": {}}, "serverInfo": server})).await;
        (session_of(&opening.await.expect("no panic")).expect("an id"), child)
    }
}

pub(crate) fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}})
}

pub(crate) fn call(id: impl Into<Value>, tool: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params": {"name": tool, "arguments": {}}})
}

pub(crate) fn request(method: Method, session: Option<&str>) -> axum::http::request::Builder {
    let mut request = Request::builder().method(method).uri("/mcp").header("accept", BOTH);
    if let Some(session) = session {
        request = request.header("mcp-session-id", session);
    }
    request
}

pub(crate) fn post(session: Option<&str>, body: String) -> Request<Body> {
    let request = request(Method::POST, session).header("content-type", "application/json");
    request.body(Body::from(body)).expect("a request")
}

pub(crate) fn session_of(response: &Response) -> Option<String> {
    Some(response.headers().get("mcp-session-id")?.to_str().expect("ascii").to_owned())
}

pub(crate) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().expect("ascii"))
}

pub(crate) async fn text(response: Response) -> String {
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("utf-8")
}

pub(crate) async fn body(response: Response) -> Value {
    serde_json::from_str(&text(response).await).expect("json")
}

/// The messages of an event stream that has ended.
pub(crate) async fn events(response: Response) -> Vec<Value> {
    let text = text(response).await;
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).expect("json")).collect()
}
