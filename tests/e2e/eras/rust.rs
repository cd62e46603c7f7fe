//! rmcp, in this process, takes the steps of the other clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientRequest, ProgressNotificationParam, ProtocolVersion,
    ReadResourceRequestParams,
};
use rmcp::service::{ClientLifecycleMode, ClientServiceExt, NotificationContext, PeerRequestOptions, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, RoleClient};
use serde_json::{Value, json};

use super::{LARGE, LATE, Places, REGION, disturb, names};
use crate::token;
use harness::deployment::Deployment;

/// A client that counts what it hears of progress.
#[derive(Clone, Default)]
struct Listener(Arc<AtomicU32>);

impl ClientHandler for Listener {
    async fn on_progress(&self, _: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn connect(deployment: &Deployment, mode: &str) -> RunningService<RoleClient, Listener> {
    let config = StreamableHttpClientTransportConfig::with_uri(format!("{}/mcp", deployment.url))
        .auth_header(token(deployment, "alice"));
    let transport = StreamableHttpClientTransport::with_client(harness::mcp_session::http(), config);
    let stateless = vec![ProtocolVersion::V_2026_07_28];
    let lifecycle = match mode {
        "auto" => ClientLifecycleMode::Auto { preferred_versions: stateless, legacy_version: None },
        "modern" => ClientLifecycleMode::Discover { preferred_versions: stateless },
        _ => ClientLifecycleMode::Initialize,
    };
    Listener::default().serve_with_lifecycle(transport, lifecycle).await.expect("connected")
}

fn params(name: &str, arguments: Value) -> CallToolRequestParams {
    let params = CallToolRequestParams::new(name.to_owned());
    params.with_arguments(serde_json::from_value(arguments).expect("an object"))
}

async fn call(client: &RunningService<RoleClient, Listener>, name: &str, arguments: Value) -> String {
    let answer = client.call_tool(params(name, arguments)).await;
    // What the child refuses is an answer of its own.
    answer.map_or_else(|error| error.to_string(), |answer| serde_json::to_string(&answer).expect("json"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rmcp_works_to_the_end_in_each_of_its_modes() {
    let Some(mut places) = Places::set("eras-rmcp") else { return };
    for mode in ["plain", "auto", "modern"] {
        let real = &mut places.real;
        let (names, client) = (names(), connect(real, mode).await);
        assert!(client.list_all_tools().await.expect("tools").len() >= names.least);
        assert!(call(&client, names.whoami, json!({})).await.contains("alice"), "{mode}");
        let written = call(&client, names.write.0, names.write.1.clone()).await;
        assert!(written.contains("read-only") || written.contains("content"), "{mode}: {written}");
        let large = call(&client, names.file, names.file(&format!("big-{LARGE}"))).await;
        assert!(large.len() >= LARGE, "{mode}: {} bytes", large.len());

        let slow = format!("slow-{mode}");
        disturb(real, "hang", &slow).await;
        let request = CallToolRequest::new(params(names.file, names.file(&slow)));
        let request = ClientRequest::CallToolRequest(request);
        let calling = client.send_cancellable_request(request, PeerRequestOptions::no_options()).await.expect("sent");
        disturb(real, "in flight", &slow).await;
        calling.cancel(None).await.expect("cancelled");
        disturb(real, "answer", &slow).await;
        for what in ["restart", "kill"] {
            disturb(real, what, &slow).await;
            let said = call(&client, names.whoami, json!({})).await;
            assert!(said.contains("alice"), "{mode}, after a {what}: {said}");
        }
        client.cancel().await.expect("an end");

        let client = connect(&places.fixture, mode).await;
        let heard = client.service().0.clone();
        assert!(call(&client, "test_tool_with_progress", json!({})).await.contains("Done"), "{mode}");
        // rmcp hands each notification to a task of its own, which the answer may overtake.
        let all = async {
            while heard.load(Ordering::SeqCst) < 3 {
                harness::look_again().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(30), all).await;
        assert_eq!(heard.load(Ordering::SeqCst), 3, "{mode}");
        let template = client.read_resource(ReadResourceRequestParams::new("test://template/7/data")).await;
        assert!(serde_json::to_string(&template.expect("a resource")).expect("json").contains("template"), "{mode}");
        assert!(call(&client, "big", json!({"bytes": LARGE})).await.len() >= LARGE, "{mode}");
        let late = call(&client, "big", json!({"bytes": LARGE, "seconds": LATE})).await;
        assert!(late.len() >= LARGE, "{mode}, late: {}", late.chars().take(300).collect::<String>());
        // Which arguments headers repeat it has from the list.
        assert!(client.list_all_tools().await.expect("tools").iter().any(|tool| tool.name == "regional"), "{mode}");
        let regional = call(&client, "regional", json!({"region": REGION})).await;
        assert!(regional.contains(REGION), "{mode}: {regional}");
        client.cancel().await.expect("an end");
    }
}
