//! The authorization server before those who look for its faults, a client that verifies every word of it, and the habits of
//! real clients: stores of tokens that several processes share, and a new login under a connection that stays.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::clients::{TIMEOUT, bring_back, installed, log_in_for, node, run, script, start};
use crate::login::{login_deployment, login_deployment_at};
use crate::{skip, stand_in};
use harness::deployment::Deployment;
use harness::user_agent::Decision;

/// A tool of the stand-in that says whose it is.
const TOOL: &str = "get_my_user_info";

#[tokio::test]
async fn a_client_that_verifies_every_word_of_the_server_logs_in_refreshes_and_leaves() {
    let Some(dir) = installed() else { return skip("strict-client", "no clients: run tests/run") };
    let deployment = login_deployment("strict-client", stand_in(&[]), "");
    let mut command = node(&dir);
    command.arg(script("strict.mjs")).arg(format!("{}/mcp", deployment.url));
    let result = run(&deployment, &mut command, &[]).await;
    let scopes = "forgejo:read forgejo:write";
    let metadata = format!("{}/.well-known/oauth-protected-resource/mcp", deployment.url);
    let refused = json!({"status": 401, "error": "invalid_token", "resource_metadata": metadata, "scope": scopes});
    for (what, expected) in [
        ("iss", json!(true)),
        ("called", json!(200)),
        // An answer that was lost on the way, whose asker has proven itself: refused, and the grant goes on.
        ("twice", json!("invalid_grant")),
        ("after", json!(200)),
        ("refreshed", json!(200)),
        ("rotated", json!(true)),
        ("scope", json!(scopes)),
    ] {
        assert_eq!(result.get(what), Some(&expected), "{what}: {result}");
    }
    for token in ["guessed", "revoked"] {
        for (name, value) in refused.as_object().expect("an object") {
            assert_eq!(result.pointer(&format!("/{token}/{name}")), Some(value), "{result}");
        }
    }
}

/// What the scanner cannot find right here, and why.
const EXCEPT: [(&str, &str); 3] = [
    ("TLS-01", "this deployment is plain HTTP on loopback"),
    // Tried with another one below.
    ("TOK-03", "the other resource that it asks a token for is the server's own address, which is the same service"),
    ("ASF-04", "and so it finds that tokens for both are good for both"),
];

#[tokio::test]
async fn a_scanner_of_authorization_servers_finds_nothing_wrong_before_a_login_and_with_its_tokens() {
    let Some(dir) = installed() else { return skip("scanner", "no clients: run tests/run") };
    let deployment = login_deployment("scanner", stand_in(&[]), "");
    let home = tempfile::tempdir().expect("a directory");
    let scanner = |arguments: &[&str]| {
        let mut command = Command::new(dir.join("venv/bin/mcp-authlab"));
        command.args(arguments).arg(format!("{}/mcp", deployment.url));
        // The browser is us.
        command.env("MCP_AUTHLAB_TOKENS", home.path().join("tokens.json")).env("BROWSER", "echo %s");
        command
    };
    log_in_for(&deployment, &mut scanner(&["login", "--thorough", "--timeout", "30"])).await;
    let report = home.path().join("report.json");
    let file = report.display().to_string();
    let scan = ["scan", "--format", "json", "--output", &file];
    log_in_for(&deployment, &mut scanner(&scan)).await;
    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("json");
    let checks = report.get("results").and_then(Value::as_array).expect("results");
    let mut wrong = Vec::new();
    for check in checks {
        let text = |name: &str| check.get(name).and_then(Value::as_str).unwrap_or_default();
        let excepted = EXCEPT.iter().any(|(id, _)| *id == text("id"));
        if excepted == (text("status") == "pass") {
            wrong.push(check);
        }
    }
    assert!(checks.len() >= 33 && wrong.is_empty(), "{} checks, of which wrong: {wrong:#?}", checks.len());
    let elsewhere = ["login", "--timeout", "30", "--foreign-resource", "https://other.example/mcp"];
    let said = log_in_for(&deployment, &mut scanner(&elsewhere)).await;
    assert!(said.contains("invalid_target"), "no token for another's resource:\n{said}");
}

/// A client that calls for each line that it gets.
struct Caller {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Caller {
    fn start(command: &mut Command) -> Self {
        let mut child = start(command.stderr(std::process::Stdio::inherit()));
        let stdin = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { _child: child, stdin, lines }
    }

    /// Whether it called without a login, which is given to it.
    async fn called_alone(&mut self, deployment: &Deployment) -> bool {
        let mut alone = true;
        let exchange = async {
            while let Some(line) = self.lines.next_line().await.expect("text") {
                if let Some(url) = line.strip_prefix("OPEN ") {
                    alone = false;
                    bring_back(deployment, url, Decision::Allow).await;
                } else if let Some(text) = line.strip_prefix("CALLED ") {
                    assert!(text.contains("alice"), "{text}");
                    return alone;
                }
            }
            panic!("the client ended:\n{}", deployment.output());
        };
        timeout(TIMEOUT, exchange).await.expect("in time")
    }

    async fn say(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
    }
}

/// Three processes of one client remember what one login brought, and each refreshes by itself, minutes after the others, for
/// more than an hour of the broker's time.
async fn three_share_a_store(test: &str, client: impl Fn(&Path, &Deployment) -> Command) {
    let Some(dir) = installed() else { return skip(test, "no clients: run tests/run") };
    let Some(library) = harness::deployment::faketime() else { return skip(test, "no libfaketime") };
    let deployment = login_deployment_at(test, stand_in(&[]), "[oauth]\naccess_token_ttl = \"10m\"\n", Some(library));
    let home = tempfile::tempdir().expect("a directory");
    let begin = || {
        let mut command = client(&dir, &deployment);
        command.arg(format!("{}/mcp", deployment.url)).arg(TOOL).arg(home.path().join("tokens.json"));
        Caller::start(&mut command)
    };
    let mut callers = vec![begin()];
    assert!(!callers.first_mut().expect("one").called_alone(&deployment).await, "the first one's login");
    for _ in 0..2 {
        let mut another = begin();
        assert!(another.called_alone(&deployment).await, "it has what the store has");
        callers.push(another);
    }
    let mut now = Duration::ZERO;
    while now < Duration::from_mins(65) {
        // More than the life of an access token.
        now += Duration::from_mins(11);
        for (n, caller) in callers.iter_mut().enumerate() {
            // Each later than the last, which has used what it got, by less than the window.
            now += Duration::from_secs(100);
            deployment.move_clock(now).expect("moved");
            caller.say("").await;
            assert!(caller.called_alone(&deployment).await, "process {n} after {now:?}:\n{}", deployment.output());
        }
    }
}

#[tokio::test]
async fn three_processes_of_the_typescript_sdk_with_one_store_of_tokens_go_on_for_more_than_an_hour() {
    let client = |dir: &Path, _: &Deployment| {
        let mut command = node(dir);
        command.arg(script("shared-store.mjs"));
        command
    };
    three_share_a_store("shared-store-typescript", client).await;
}

fn python(dir: &Path, deployment: &Deployment) -> Command {
    let mut command = Command::new(dir.join("venv/bin/python"));
    command.arg(script("shared_store.py"));
    // It refreshes when its own clock says so.
    deployment.in_moved_time(command.as_std_mut());
    command
}

#[tokio::test]
async fn three_processes_of_the_python_sdk_with_one_store_of_tokens_go_on_for_more_than_an_hour() {
    three_share_a_store("shared-store-python", python).await;
}

#[tokio::test]
async fn a_new_login_of_the_same_client_under_a_connection_that_stays_goes_on_with_its_session() {
    let Some(dir) = installed() else { return skip("login-again", "no clients: run tests/run") };
    let deployment = login_deployment("login-again", stand_in(&[]), "");
    let home = tempfile::tempdir().expect("a directory");
    let mut command = python(&dir, &deployment);
    command.arg(format!("{}/mcp", deployment.url)).arg(TOOL).arg(home.path().join("tokens.json"));
    let mut caller = Caller::start(&mut command);
    assert!(!caller.called_alone(&deployment).await);
    for _ in 0..2 {
        caller.say("login").await;
        assert!(!caller.called_alone(&deployment).await, "a login, and the call that waited for it");
        caller.say("").await;
        assert!(caller.called_alone(&deployment).await, "the session goes on with the new login");
    }
    let opened = deployment.output().matches("session opened").count();
    assert_eq!(opened, 1, "{}", deployment.output());
}
