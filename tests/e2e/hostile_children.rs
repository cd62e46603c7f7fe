//! What a child does to its pipes and its user's memory harms nobody else, on real pipes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{stand_in_deployment, token};
use harness::deployment::Deployment;
use harness::mcp_session::{Session, http, post};

/// Far above what any of this takes when nothing is lost.
const IN_TIME: Duration = Duration::from_secs(30);

/// What the broker has in memory, in MiB.
pub(crate) fn resident(deployment: &Deployment) -> u64 {
    let pid = deployment.broker.as_ref().expect("runs").pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the line");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_child_gets_a_large_and_a_small_call_as_soon_as_it_reads_again() {
    // With `--fast` the tool runs in the thread that reads.
    let deployment = stand_in_deployment("busy-reader", &["--fast"], |_| {});
    let session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let call = |name: &'static str, arguments: Value| {
        let mut session = session.clone();
        tokio::spawn(async move { timeout(IN_TIME, session.text(name, arguments)).await })
    };
    for _ in 0..3 {
        let busy = call("sleep", json!({"ms": 1000}));
        tokio::task::yield_now().await;
        let large = call("echo", json!({"text": "x".repeat(300 * 1024)}));
        // The broker answers pings itself: the large call waits in the full pipe by then.
        for _ in 0..30 {
            session.clone().send("ping", json!({})).await.expect("an answer");
        }
        let small = call("echo", json!({"text": "small"}));
        assert_eq!(busy.await.expect("no panic").expect("in time").expect("an answer"), "slept");
        assert_eq!(large.await.expect("no panic").expect("in time").expect("an answer").len(), 300 * 1024);
        assert_eq!(small.await.expect("no panic").expect("in time").expect("an answer"), "small");
    }
}

#[tokio::test]
async fn a_child_that_closes_its_input_is_stopped_and_its_next_request_gets_an_error() {
    let deployment = stand_in_deployment("closed-input", &["--fast"], |_| {});
    let session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let child = deployment.children().pop().expect("a child").pid;
    let mut closing = session.clone();
    let closing =
        tokio::spawn(async move { closing.send("tools/call", json!({"name": "close_input", "arguments": {}})).await });
    while std::fs::symlink_metadata(format!("/proc/{child}/fd/0")).is_ok() {
        harness::look_again().await;
    }
    let (_, answer) =
        timeout(IN_TIME, session.clone().send("tools/list", json!({}))).await.expect("in time").expect("an answer");
    assert!(answer.to_string().contains("closed its input"), "{answer}");
    let (_, answer) = timeout(IN_TIME, closing).await.expect("in time").expect("no panic").expect("an answer");
    assert!(answer.to_string().contains("closed its input"), "{answer}");
}

/// Has the session's child write such messages for ever; the call has no answer that anybody reads.
fn flood(
    deployment: &Deployment,
    session: &Session,
    method: &str,
    bytes: usize,
) -> tokio::task::JoinHandle<harness::mcp_session::Result<reqwest::Response>> {
    let flood = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "flood", "arguments": {"method": method, "bytes": bytes}}});
    let (client, url, token, id) = (http(), deployment.url.clone(), session.token(), session.id.clone());
    tokio::spawn(async move { post(&client, &url, &token, Some(&id), &flood).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_child_floods_raises_the_brokers_memory_by_no_more_than_its_users_budget() {
    let deployment = stand_in_deployment("output-flood", &[], |config| {
        config.broker = "[sessions]\nmemory_per_user = \"48MiB\"\nmax_line = \"16MiB\"\n".to_owned();
    });
    let bob = Session::open(&deployment.url, &token(&deployment, "bob")).await.expect("a session");
    let before = resident(&deployment);
    for (method, bytes) in [
        ("notifications/message", 8 << 20),
        ("notifications/message", 10),
        ("sampling/createMessage", 100),
        ("sampling/createMessage", 1 << 20),
        ("ping", 100),
    ] {
        let alice = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
        let flooding = flood(&deployment, &alice, method, bytes);
        // A neighbour is served all the while.
        for n in 0..200 {
            let echoed = timeout(IN_TIME, bob.clone().text("echo", json!({"text": n.to_string()}))).await;
            assert_eq!(echoed.expect("in time").expect("an answer"), n.to_string());
        }
        let grown = resident(&deployment).saturating_sub(before);
        assert!(grown < 48 + 48, "{method} of {bytes} bytes: {grown} MiB more");
        alice.end().await.expect("an answer");
        flooding.abort();
    }
}

/// The slowest but one of a hundred of a neighbour's calls that take 20 ms each, as a tool does that asks Forgejo.
async fn slow_call(neighbour: &Session) -> Duration {
    let mut took = Vec::new();
    for _ in 0..100 {
        let begun = Instant::now();
        let slept = timeout(IN_TIME, neighbour.clone().text("sleep", json!({"ms": 20}))).await;
        assert_eq!(slept.expect("in time").expect("an answer"), "slept");
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    *took.get(98).expect("calls")
}

/// What a process has written so far, in bytes.
fn written(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or_default()
}

/// What one child writes is read by the same threads that serve everybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_flood_of_output_a_neighbours_calls_take_less_than_twice_as_long() {
    let deployment = stand_in_deployment("flooded-neighbour", &[], |_| {});
    let bob = Session::open(&deployment.url, &token(&deployment, "bob")).await.expect("a session");
    for (method, bytes) in [("notifications/message", 10), ("notifications/message", 64 << 10), ("ping", 100)] {
        let mut measured = Vec::new();
        // What else the machine does makes both worse, and not evenly.
        for _ in 0..4 {
            let undisturbed = slow_call(&bob).await;
            let others: Vec<u32> = deployment.children().into_iter().map(|child| child.pid).collect();
            let alice = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
            let mut now = deployment.children().into_iter().map(|child| child.pid);
            let pid = now.find(|pid| !others.contains(pid)).expect("alice's child");
            let flooding = flood(&deployment, &alice, method, bytes);
            let begun = async {
                while written(pid) < 1 << 19 {
                    harness::look_again().await;
                }
            };
            timeout(IN_TIME, begun).await.expect("it floods");
            let (before, beside) = (written(pid), slow_call(&bob).await);
            assert!(written(pid) > before, "it floods on");
            alice.end().await.expect("an answer");
            flooding.abort();
            // What else the machine does may have begun meanwhile.
            let undisturbed = undisturbed.max(slow_call(&bob).await);
            measured.push((undisturbed, beside));
            if beside < 2 * undisturbed {
                break;
            }
        }
        println!("a flood of {method} of {bytes} bytes: {measured:?}");
        assert!(measured.iter().any(|(undisturbed, beside)| *beside < 2 * *undisturbed), "each time too slow");
    }
}
