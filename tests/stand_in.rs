//! The stand-in child talks and misbehaves as the tests that lean on it assume.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper of a test fails the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use wire::clock::Clock;

/// One stand-in on bare pipes; killed when dropped.
struct StandIn {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl StandIn {
    fn start(args: &[&str]) -> Self {
        Self::start_at("", "top-secret", args)
    }

    fn start_at(forge: &str, token: &str, args: &[&str]) -> Self {
        let mut child = Command::new(harness::program("stand-in-child"))
            .args(args)
            .env_clear()
            .env("FORGEJO_URL", forge)
            .env("FORGEJO_ACCESS_TOKEN", token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a child");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.stdin.as_mut().unwrap(), "{message}").unwrap();
    }

    fn call(&mut self, id: u64, tool: &str, arguments: &Value) {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": {"name": tool, "arguments": arguments, "_meta": {"progressToken": "bar"}}}));
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn receive(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    fn initialize(&mut self, version: &str) -> Value {
        self.send(
            &json!({"jsonrpc": "2.0", "id": "i", "method": "initialize", "params": {"protocolVersion": version}}),
        );
        self.receive()
    }

    fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stub forge with alice on a runtime of its own; gives its address and a token of hers.
fn forge_of_alice() -> (Runtime, String, String) {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let root = format!("http://{}", listener.local_addr().unwrap());
    let forge = harness::forge::Forge::new(Clock::system());
    let token = forge.with(|state| {
        state.add_user("alice", "", false);
        state.add_token("alice", "read:user").unwrap()
    });
    runtime.spawn(harness::forge::serve(listener, forge));
    (runtime, root, token)
}

#[test]
fn whoami_is_the_user_of_the_token() {
    let (_runtime, root, token) = forge_of_alice();
    let mut child = StandIn::start_at(&root, &token, &["--check-token"]);
    child.call(1, "whoami", &json!({}));
    assert_eq!(child.receive()["result"]["content"][0]["text"], "alice");
}

#[test]
fn a_bad_token_ends_a_child_that_checks_with_the_token_on_stderr() {
    let (_runtime, root, _) = forge_of_alice();
    let mut child = StandIn::start_at(&root, "stale-token", &["--check-token"]);
    assert!(child.stderr().contains("stale-token"));
    assert_eq!(child.code(), Some(1));
}

#[test]
fn a_refused_call_is_an_error_with_the_forges_own_text() {
    let (_runtime, root, _) = forge_of_alice();
    let mut child = StandIn::start_at(&root, "stale-token", &[]);
    child.call(1, "whoami", &json!({}));
    let answer = child.receive();
    assert_eq!(answer["error"]["code"], -32603);
    assert!(answer["error"]["message"].as_str().unwrap().contains("stale-token"));
}

#[test]
fn initialize_agrees_to_the_versions_of_the_session_era_and_offers_the_newest_for_any_other() {
    let mut child = StandIn::start(&[]);
    for (asked, agreed) in [("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("2026-07-28", "2025-11-25")] {
        let answer = child.initialize(asked);
        assert_eq!(answer["id"], "i");
        assert_eq!(answer["result"]["protocolVersion"], agreed);
        assert_eq!(answer["result"]["serverInfo"]["name"], "Forgejo MCP Server");
    }
    let mut old = StandIn::start(&["--era", "2025-03-26"]);
    assert_eq!(old.initialize("2025-11-25")["result"]["protocolVersion"], "2025-03-26");
}

#[test]
fn only_a_child_of_the_newest_era_can_be_discovered() {
    let discover = json!({"jsonrpc": "2.0", "id": 1, "method": "server/discover"});
    let mut child = StandIn::start(&[]);
    child.send(&discover);
    assert_eq!(child.receive()["error"]["code"], -32601);
    let mut modern = StandIn::start(&["--era", "2026-07-28"]);
    modern.send(&discover);
    assert_eq!(modern.receive()["result"]["supportedVersions"][0], "2026-07-28");
}

#[test]
fn all_141_tools_of_the_real_child_are_listed_with_useless_annotations() {
    let mut child = StandIn::start(&[]);
    child.send(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}));
    let answer = child.receive();
    let tools = answer["result"]["tools"].as_array().unwrap();
    assert_eq!(tools.len(), 141 + 23);
    assert!(tools.iter().all(|tool| tool["annotations"]["readOnlyHint"] == false));
}

#[test]
fn echo_answers_with_the_text_and_the_request_id() {
    for args in [&[][..], &["--fast"]] {
        let mut child = StandIn::start(args);
        child.call(7, "echo", &json!({"text": "hé"}));
        assert_eq!(
            child.receive(),
            json!({"jsonrpc": "2.0", "id": 7, "result": {"content": [{"type": "text", "text": "hé"}]}})
        );
    }
}

#[test]
fn progress_comes_in_order_before_the_answer_and_names_the_callers_token() {
    let mut child = StandIn::start(&[]);
    child.call(1, "progress", &json!({"count": 3}));
    for done in 1..=3 {
        let note = child.receive();
        assert_eq!(note["method"], "notifications/progress");
        assert_eq!((&note["params"]["progressToken"], &note["params"]["progress"]), (&json!("bar"), &json!(done)));
    }
    assert_eq!(child.receive()["id"], 1);
}

#[test]
fn a_call_that_blocks_does_not_hold_up_another() {
    let mut child = StandIn::start(&[]);
    child.call(1, "block", &json!({}));
    child.call(2, "echo", &json!({"text": "past"}));
    assert_eq!(child.receive()["id"], 2);
}

#[test]
fn sampling_waits_for_the_clients_answer() {
    let mut child = StandIn::start(&[]);
    child.call(1, "sample", &json!({"text": "hi"}));
    let ask = child.receive();
    assert_eq!(ask["method"], "sampling/createMessage");
    assert!(ask["id"].is_string());
    child.send(&json!({"jsonrpc": "2.0", "id": ask["id"], "result": {"content": {"type": "text", "text": "ho"}}}));
    assert_eq!(child.receive()["result"]["content"][0]["text"], "ho");
}

#[test]
fn the_environment_is_told_by_name_only() {
    let mut child = StandIn::start(&[]);
    child.call(1, "env", &json!({}));
    assert_eq!(child.receive()["result"]["content"][0]["text"], "FORGEJO_ACCESS_TOKEN\nFORGEJO_URL");
}

#[test]
fn bad_input_is_answered_as_the_real_child_answers_it() {
    let mut child = StandIn::start(&[]);
    for line in [json!("no object"), json!([{"jsonrpc": "2.0", "id": 1, "method": "ping"}])] {
        child.send(&line);
        let answer = child.receive();
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &json!(-32700)));
    }
    child.call(3, "no_such_tool", &json!({}));
    assert_eq!(child.receive()["error"]["code"], -32602);
}

#[test]
fn leak_and_garbage_do_what_their_names_say() {
    let mut child = StandIn::start(&[]);
    child.call(1, "leak", &json!({}));
    let answer = child.receive();
    assert_eq!(answer["error"]["code"], -32603);
    assert!(answer["error"]["message"].as_str().unwrap().contains("top-secret"));
    child.call(2, "garbage", &json!({}));
    assert!(serde_json::from_str::<Value>(&child.line()).is_err());
    assert_eq!(child.receive()["id"], 2);
    child.stdin = None;
    assert!(child.stderr().contains("top-secret"));
}

#[test]
fn crash_exits_with_the_code_asked_for() {
    let mut child = StandIn::start(&[]);
    child.call(1, "crash", &json!({"code": 42}));
    assert_eq!(child.code(), Some(42));
}

#[test]
fn a_descendant_outlives_its_parent_and_sigterm_until_sigkill() {
    let mut child = StandIn::start(&[]);
    child.call(1, "descendant", &json!({}));
    let answer = child.receive();
    let pid = answer["result"]["content"][0]["text"].as_str().unwrap().parse().map(Pid::from_raw).unwrap();
    drop(child);
    let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there still");
    while status().contains("SigBlk:\t0000000000000000") {
        std::thread::yield_now();
    }
    kill(pid, Signal::SIGTERM).unwrap();
    kill(pid, Signal::SIGKILL).expect("it is there still");
}

#[test]
fn no_init_explains_itself_on_stderr_and_exits_3() {
    let mut child = StandIn::start(&["--no-init", "cannot start: reasons"]);
    assert_eq!(child.line(), "");
    assert_eq!(child.stderr(), "cannot start: reasons\n");
    assert_eq!(child.code(), Some(3));
}

#[test]
fn hang_init_answers_everything_but_initialize() {
    let mut child = StandIn::start(&["--hang-init"]);
    child.send(&json!({"jsonrpc": "2.0", "id": 1, "method": "initialize"}));
    child.send(&json!({"jsonrpc": "2.0", "id": 2, "method": "ping"}));
    assert_eq!(child.receive()["id"], 2);
}

#[test]
fn an_idle_child_leaves_with_0_on_the_end_of_stdin_and_on_sigterm() {
    let mut child = StandIn::start(&["--ignore-term"]);
    child.initialize("2025-11-25");
    child.stdin = None;
    assert_eq!(child.code(), Some(0));
    let mut child = StandIn::start(&["--ignore-term"]);
    child.initialize("2025-11-25");
    kill(Pid::from_raw(i32::try_from(child.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.code(), Some(0));
}

#[test]
fn with_a_call_in_flight_ignore_term_outlives_sigterm_until_the_call_ends() {
    let mut child = StandIn::start(&["--ignore-term"]);
    child.call(1, "sample", &json!({}));
    let ask = child.receive();
    kill(Pid::from_raw(i32::try_from(child.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    // Answered after the signal was sent: a child that heeded it would die here instead.
    child.call(2, "echo", &json!({"text": "alive"}));
    assert_eq!(child.receive()["id"], 2);
    child.send(&json!({"jsonrpc": "2.0", "id": ask["id"], "result": {"content": {"type": "text", "text": "ho"}}}));
    assert_eq!(child.receive()["id"], 1);
    assert_eq!(child.code(), Some(0));
}

#[test]
fn check_token_with_no_forge_to_ask_exits_1() {
    let mut child = StandIn::start(&["--check-token"]);
    assert_eq!(child.code(), Some(1));
    assert!(!child.stderr().contains("top-secret"), "the forge has to repeat the token for it to leak");
}

#[test]
fn cancellations_are_counted_and_stop_nothing() {
    let mut child = StandIn::start(&[]);
    child.call(1, "block", &json!({}));
    child.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}));
    child.call(2, "status", &json!({}));
    let told: Value = serde_json::from_str(child.receive()["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(told, json!({"in_flight": 1, "cancelled": 1, "listening": 0}));
}

#[test]
fn a_listen_hears_of_tools_until_it_is_cancelled_and_is_acknowledged_with_no_more() {
    let mut child = StandIn::start(&["--era", "2026-07-28"]);
    let wanted = json!({"notifications": {"toolsListChanged": true, "promptsListChanged": true}});
    child.send(&json!({"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": wanted}));
    assert_eq!(child.receive()["params"]["notifications"], json!({"toolsListChanged": true}));
    child.call(1, "list_changed", &json!({}));
    let told = child.receive();
    assert_eq!(told["method"], "notifications/tools/list_changed");
    assert_eq!(told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "l");
    assert_eq!(child.receive()["id"], 1);
    child.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "l"}}));
    child.call(2, "list_changed", &json!({}));
    assert_eq!(child.receive()["params"], json!({}), "nobody listens, so it is told as in the other era");
}

#[test]
fn a_task_works_until_it_is_cancelled_and_is_this_childs_alone() {
    let (mut child, mut other) = (StandIn::start(&["--era", "2026-07-28"]), StandIn::start(&["--era", "2026-07-28"]));
    child.call(1, "task", &json!({}));
    let begun = child.receive()["result"].clone();
    assert_eq!((&begun["resultType"], &begun["status"]), (&json!("task"), &json!("working")));
    for (method, status) in [("tasks/get", "working"), ("tasks/cancel", "cancelled"), ("tasks/get", "cancelled")] {
        let ask = json!({"jsonrpc": "2.0", "id": 2, "method": method, "params": {"taskId": begun["taskId"]}});
        child.send(&ask);
        assert_eq!(child.receive()["result"]["status"], status);
        other.send(&ask);
        assert_eq!(other.receive()["error"]["code"], -32602);
    }
}
