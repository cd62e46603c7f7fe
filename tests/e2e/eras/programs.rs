//! Clients that are programs of their own: mcp-remote, the Inspector's command line, and Claude Code's health check.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::{LARGE, LATE, Places, REGION, disturb, names};
use crate::clients::{installed, node};
use crate::{config, real_child, skip, token};
use harness::deployment::Deployment;

/// For one answer.
const TIMEOUT: Duration = Duration::from_mins(1);

/// mcp-remote, spoken to on its near side as a client on this machine does.
struct Remote {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    next: u64,
    progress: u32,
    _home: tempfile::TempDir,
}

impl Remote {
    async fn start(dir: &Path, deployment: &Deployment) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let mut command = node(dir);
        command.arg(dir.join("node/node_modules/mcp-remote/dist/proxy.js")).arg(format!("{}/mcp", deployment.url));
        command.args(["--header", &format!("Authorization: Bearer {}", token(deployment, "alice"))]);
        command.args(["--transport", "http-only"]).env("MCP_REMOTE_CONFIG_DIR", home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("it starts");
        let stdin = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut remote = Self { _child: child, stdin, lines, next: 0, progress: 0, _home: home };
        let client = json!({"name": "t", "version": "1"});
        let initialize = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
        remote.ask("initialize", initialize).await;
        remote.say(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        remote
    }

    async fn say(&mut self, message: Value) {
        self.stdin.write_all(format!("{message}\n").as_bytes()).await.expect("it reads");
    }

    async fn request(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        self.say(json!({"jsonrpc": "2.0", "id": self.next, "method": method, "params": params})).await;
        self.next
    }

    async fn answer(&mut self, id: u64) -> Value {
        loop {
            let line = timeout(TIMEOUT, self.lines.next_line()).await.expect("in time").expect("text");
            let message: Value = serde_json::from_str(&line.expect("an answer")).expect("json");
            if message["method"] == "notifications/progress" {
                self.progress += 1;
            }
            if message["id"] == id {
                return message;
            }
        }
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let id = self.request(method, params).await;
        self.answer(id).await
    }

    async fn call(&mut self, name: &str, arguments: Value) -> String {
        self.ask("tools/call", json!({"name": name, "arguments": arguments})).await.to_string()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mcp_remote_works_to_the_end() {
    let (Some(mut places), Some(dir)) = (Places::set("eras-mcp-remote"), installed()) else { return };
    let (names, real) = (names(), &mut places.real);
    let mut remote = Remote::start(&dir, real).await;
    let tools = remote.ask("tools/list", json!({})).await;
    assert!(tools["result"]["tools"].as_array().is_some_and(|tools| tools.len() >= names.least), "{tools}");
    assert!(remote.call(names.whoami, json!({})).await.contains("alice"));
    let written = remote.call(names.write.0, names.write.1.clone()).await;
    assert!(written.contains("read-only") || written.contains("result"), "{written}");
    assert!(remote.call(names.file, names.file(&format!("big-{LARGE}"))).await.len() >= LARGE);
    disturb(real, "hang", "slow-remote").await;
    let arguments = names.file("slow-remote");
    let id = remote.request("tools/call", json!({"name": names.file, "arguments": arguments})).await;
    disturb(real, "in flight", "slow-remote").await;
    remote.say(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})).await;
    disturb(real, "answer", "slow-remote").await;
    for what in ["restart", "kill"] {
        disturb(real, what, "").await;
        let said = remote.call(names.whoami, json!({})).await;
        assert!(said.contains("alice"), "after a {what}: {said}\n{}", real.output());
    }
    drop(remote);

    let mut remote = Remote::start(&dir, &places.fixture).await;
    let progress = json!({"name": "test_tool_with_progress", "arguments": {}, "_meta": {"progressToken": "p"}});
    assert!(remote.ask("tools/call", progress).await.to_string().contains("Done"));
    assert_eq!(remote.progress, 3);
    let template = remote.ask("resources/read", json!({"uri": "test://template/7/data"})).await;
    assert!(template.to_string().contains("template"), "{template}");
    assert!(remote.call("big", json!({"bytes": LARGE})).await.len() >= LARGE);
    let late = remote.call("big", json!({"bytes": LARGE, "seconds": LATE})).await;
    assert!(late.len() >= LARGE, "late: {}", late.chars().take(300).collect::<String>());
    assert!(remote.call("regional", json!({"region": REGION})).await.contains(REGION));
}

/// One run of the Inspector; what it printed.
async fn inspect(dir: &Path, deployment: &Deployment, era: &str, arguments: &[&str]) -> String {
    let mut command = node(dir);
    command.arg(dir.join("node/node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"));
    command.args(["--cli", &format!("{}/mcp", deployment.url), "--transport", "http", "--protocol-era", era]);
    command.args(["--header", &format!("Authorization: Bearer {}", token(deployment, "alice"))]);
    command.args(["--format", "json"]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(TIMEOUT, command.output()).await.expect("in time").expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if said.is_empty() { String::from_utf8_lossy(&output.stderr).into_owned() } else { said }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inspector_works_in_each_of_its_eras() {
    let (Some(mut places), Some(dir)) = (Places::set("eras-inspector"), installed()) else { return };
    let names = names();
    for era in ["legacy", "auto", "modern"] {
        let list = inspect(&dir, &places.real, era, &["--method", "tools/list"]).await;
        assert!(list.matches("inputSchema").count() >= names.least, "{era}: {list}");
        disturb(&mut places.real, "kill", "").await;
        let call = |name| ["--method", "tools/call", "--tool-name", name];
        let whoami = inspect(&dir, &places.real, era, &call(names.whoami)).await;
        assert!(whoami.contains("alice"), "{era}: {whoami}");
        let mut write = call(names.write.0).to_vec();
        write.extend(["--tool-arg", "owner=alice", "--tool-arg", "repo=alice-notes", "--tool-arg", "title=t"]);
        let written = inspect(&dir, &places.real, era, &write).await;
        assert!(written.contains("read-only") || written.contains("content"), "{era}: {written}");
        let read = ["--method", "resources/read", "--uri", "test://template/7/data"];
        let read = inspect(&dir, &places.fixture, era, &read).await;
        assert!(read.contains("template"), "{era}: {read}");
        let mut big = call("big").to_vec();
        big.extend(["--tool-arg", "bytes=5000000"]);
        assert!(inspect(&dir, &places.fixture, era, &big).await.len() >= LARGE, "{era}");
        let seconds = format!("seconds={LATE}");
        big.extend(["--tool-arg", &seconds]);
        let late = inspect(&dir, &places.fixture, era, &big).await;
        assert!(late.len() >= LARGE, "{era}, late: {}", late.chars().take(300).collect::<String>());
        let mut regional = call("regional").to_vec();
        let region = format!("region={REGION}");
        regional.extend(["--tool-arg", &region]);
        let regional = inspect(&dir, &places.fixture, era, &regional).await;
        assert!(regional.contains(REGION.trim()), "{era}: {regional}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_code_finds_the_broker_healthy() {
    let (Some(child), Some(dir)) = (real_child(), installed()) else {
        return skip("eras-claude-code", "no forgejo-mcp or no clients: run tests/run");
    };
    let program = dir.join("node/node_modules/@anthropic-ai/claude-code-linux-x64/claude");
    let deployment = Deployment::set(config("eras-claude-code", child)).expect("a deployment");
    let home = tempfile::tempdir().expect("a directory");
    let claude = async |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("mcp").args(arguments).current_dir(home.path()).stdin(Stdio::null()).kill_on_drop(true);
        command.env("CLAUDE_CONFIG_DIR", home.path()).env("HOME", home.path());
        let output = timeout(TIMEOUT, command.output()).await.expect("in time").expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let (url, header) =
        (format!("{}/mcp", deployment.url), format!("Authorization: Bearer {}", token(&deployment, "alice")));
    claude(&["add", "--transport", "http", "forgejo", &url, "--header", &header]).await;
    for asked in [["list"].as_slice(), &["get", "forgejo"]] {
        let said = claude(asked).await;
        assert!(said.contains("Connected") && !said.contains("Failed"), "{asked:?}: {said}\n{}", deployment.output());
    }
    // It went as far as a session, and a child.
    assert!(deployment.output().contains("started for alice"), "{}", deployment.output());
}
