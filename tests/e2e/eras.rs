//! Real clients do all that they can, in each of the ways in which they can speak: they list, call, read, cancel, hear
//! of progress, take an answer of five megabytes, and go on after a restart and after a kill of the broker.
//!
//! Against the real child (`real_child`), and against one on the official SDK for what that one has not. What the
//! clients are told to do is in `tests/clients/steps*`; `tests/run` installs them (`tests/clients/install`).

#![expect(clippy::indexing_slicing, reason = "what a client has not said fails the test")]

mod programs;
mod rust;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::clients::{installed, node, script};
use crate::conformance::{Fixture, fixture_deployment};
use crate::{config, real_child, skip, token};
use harness::deployment::Deployment;

/// For all steps of one client.
const TIMEOUT: Duration = Duration::from_mins(2);
/// Of the large answer.
const LARGE: usize = 5_000_000;
/// Seconds, after which the head of an answer has gone out without it.
const LATE: u64 = 12;

/// An argument that no header can say as it is.
const REGION: &str = " Zürich ";

/// The real child and the one on the SDK, each behind a broker.
struct Places {
    real: Deployment,
    fixture: Deployment,
    dir: PathBuf,
    runs: u32,
}

/// What the steps of the real child are called there.
struct Names {
    whoami: &'static str,
    write: (&'static str, Value),
    file: &'static str,
    path: &'static str,
    least: usize,
}

/// The tools of the child that the tests run with; its own names for them.
fn names() -> Names {
    let issue = json!({"owner": "alice", "repo": "alice-notes", "title": "t", "body": "b"});
    let goern = std::env::var_os("FORGEJO_MCP").is_some();
    let (whoami, file, path, least) = if goern {
        ("get_my_user_info", "get_file_content", "filePath", 141)
    } else {
        ("whoami", "get_file_contents", "path", 59)
    };
    Names { whoami, write: ("create_issue", issue), file, path, least }
}

impl Names {
    /// The arguments that ask for a file of the stub's.
    fn file(&self, name: &str) -> Value {
        // Without metadata goern's asks for the raw file, which the stub has not.
        let mut arguments = json!({"owner": "alice", "repo": "alice-notes", "ref": "main", "with_metadata": true});
        arguments[self.path] = json!(name);
        arguments
    }
}

impl Places {
    fn set(test: &str) -> Option<Self> {
        let (Some(child), Some(dir)) = (real_child(), installed()) else {
            skip(test, "no forgejo-mcp or no clients: run tests/run");
            return None;
        };
        let real = Deployment::set(config(test, child)).expect("a deployment");
        let fixture = fixture_deployment(&format!("{test}-sdk"), &dir, Fixture::Dual);
        real.forge_token("alice").expect("a user");
        Some(Self { real, fixture, dir, runs: 0 })
    }

    /// Has a client take all steps at both; `command` is one that still lacks endpoint, token and steps.
    async fn work(&mut self, command: impl Fn() -> Command, mode: &str) {
        self.runs += 1;
        let names = names();
        let slow = format!("slow-{}", self.runs);
        let (write, issue) = &names.write;
        let steps = json!([
            {"do": "list"},
            {"do": "call", "name": names.whoami, "arguments": {}},
            {"do": "call", "name": write, "arguments": issue},
            {"do": "call", "name": names.file, "arguments": names.file(&format!("big-{LARGE}"))},
            {"do": "pause", "what": "hang"},
            {"do": "cancel", "name": names.file, "arguments": names.file(&slow)},
            {"do": "pause", "what": "answer"},
            {"do": "pause", "what": "restart"},
            {"do": "call", "name": names.whoami, "arguments": {}},
            {"do": "pause", "what": "kill"},
            {"do": "call", "name": names.whoami, "arguments": {}},
        ]);
        let came = follow(&mut self.real, &slow, with(command(), &steps), mode).await;
        let told = || format!("{mode}: {}\n{}", brief(&came), self.real.output());
        assert!(came[0]["names"].as_array().is_some_and(|all| all.len() >= names.least), "{}", told());
        for whoami in [1, 8, 10] {
            assert!(came[whoami]["text"].as_str().is_some_and(|text| text.contains("alice")), "{whoami}: {}", told());
        }
        // A child that has a token for reading only says so itself: an answer, too.
        assert!(answered(&came[2]), "{}", told());
        assert!(
            came[3]["length"]
                .as_u64()
                .is_some_and(|length| usize::try_from(length).is_ok_and(|length| length >= LARGE)),
            "{}",
            told()
        );
        assert_eq!(came[5], json!({"cancelled": true}), "{}", told());

        let steps = json!([
            {"do": "list"},
            {"do": "call", "name": "test_tool_with_progress", "arguments": {}},
            {"do": "read", "uri": "test://template/7/data"},
            {"do": "call", "name": "big", "arguments": {"bytes": LARGE}},
            {"do": "call", "name": "big", "arguments": {"bytes": LARGE, "seconds": LATE}},
            {"do": "call", "name": "regional", "arguments": {"region": REGION}},
        ]);
        let came = follow(&mut self.fixture, "", with(command(), &steps), mode).await;
        let told = || format!("{mode}: {}\n{}", brief(&came), self.fixture.output());
        assert!(came[0]["names"].as_array().is_some_and(|all| all.len() > 20), "{}", told());
        assert_eq!(came[1]["progress"], 3, "{}", told());
        assert!(came[2]["text"].as_str().is_some_and(|text| text.contains(r#""id":"7""#)), "{}", told());
        assert_eq!(came[3]["length"], LARGE, "{}", told());
        assert_eq!(came[4]["length"], LARGE, "late: {}", told());
        assert_eq!(came[5]["text"], REGION, "{} {}", came[5], told());
    }
}

fn with(mut command: Command, steps: &Value) -> (Command, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    (command, steps.to_string())
}

fn brief(came: &Value) -> String {
    came.to_string().chars().take(3000).collect()
}

/// A result, or the child's own error about the token that it has not.
fn answered(step: &Value) -> bool {
    step.get("text").is_some() || step["error"].as_str().is_some_and(|error| error.contains("read-only"))
}

/// Runs a client, and does to the deployment what it waits for; what its steps came to.
async fn follow(deployment: &mut Deployment, slow: &str, client: (Command, String), mode: &str) -> Value {
    let (mut command, steps) = client;
    command.arg(format!("{}/mcp", deployment.url)).arg(token(deployment, "alice")).args([&steps, mode]);
    let mut child = command.spawn().expect("the client starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut stdin = child.stdin.take().expect("piped");
    let exchange = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if let Some(what) = line.strip_prefix("PAUSE ") {
                disturb(deployment, what, slow).await;
                stdin.write_all(b"\n").await.expect("it reads");
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
    panic!("{mode}: no result; it said:\n{}\n{}", String::from_utf8_lossy(&output.stderr), deployment.output());
}

/// What a client waits for.
async fn disturb(deployment: &mut Deployment, what: &str, slow: &str) {
    match what {
        "hang" => drop(deployment.stub("/stub/mode", r#"{"hang": true}"#).expect("it hangs")),
        "answer" => drop(deployment.stub("/stub/mode", "{}").expect("it answers")),
        "in flight" => {
            while !deployment.stub_says("/stub/requests").expect("a list").contains(slow) {
                harness::look_again().await;
            }
        }
        "restart" => tokio::task::block_in_place(|| {
            deployment.broker.as_mut().expect("runs").stop().expect("it ends");
            deployment.start_broker().expect("the broker starts again");
        }),
        "kill" => tokio::task::block_in_place(|| {
            let broker = deployment.broker.as_mut().expect("runs");
            broker.signal(Signal::SIGKILL);
            broker.wait().expect("it ends");
            deployment.start_broker().expect("the broker starts again");
        }),
        other => panic!("nobody knows how to {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_typescript_sdk_of_the_first_generation_works_to_the_end() {
    let Some(mut places) = Places::set("eras-typescript-v1") else { return };
    let dir = places.dir.clone();
    let command = || {
        let mut command = node(&dir);
        command.arg(script("steps-typescript-v1.mjs"));
        command
    };
    places.work(command, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_typescript_sdk_works_to_the_end_in_each_of_its_modes() {
    let Some(mut places) = Places::set("eras-typescript") else { return };
    let dir = places.dir.clone();
    let command = || {
        let mut command = node(&dir);
        command.arg(script("steps-typescript.mjs"));
        command
    };
    for mode in ["default", "auto", "2026-07-28"] {
        places.work(command, mode).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_of_the_first_generation_works_to_the_end() {
    let Some(mut places) = Places::set("eras-python-v1") else { return };
    let dir = places.dir.clone();
    let command = || {
        let mut command = Command::new(dir.join("venv-v1/bin/python"));
        command.arg(script("steps.py"));
        command
    };
    places.work(command, "v1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_works_to_the_end_in_each_of_its_modes() {
    let Some(mut places) = Places::set("eras-python") else { return };
    let dir = places.dir.clone();
    let command = || {
        let mut command = Command::new(dir.join("venv/bin/python"));
        command.arg(script("steps.py"));
        command
    };
    for mode in ["legacy", "auto", "2026-07-28"] {
        places.work(command, mode).await;
    }
}
