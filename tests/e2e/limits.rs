//! The limits that hold where the policy says nothing are enough for real work.

use serde_json::json;

use crate::{config, skip, token};
use harness::deployment::{Deployment, Process};
use harness::mcp_session::Session;

const MIB: u64 = 1 << 20;
/// `[limits] memory_max` and `pids_max`, by default.
const MEMORY_MAX: u64 = 512 * MIB;
const PIDS_MAX: u64 = 128;
/// `[sessions] memory_per_user`, by default.
const MEMORY_PER_USER: u64 = 96 * MIB;

fn kib(process: &Process, field: &str) -> u64 {
    let text = process.field(field);
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{field}: {text}"))
}

/// The most that the broker ever had in memory.
fn broker_peak(deployment: &Deployment) -> u64 {
    let pid = deployment.broker.as_ref().expect("runs").pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
    kib(&Process { pid, status }, "VmHWM") * 1024
}

#[tokio::test]
async fn a_file_of_fifty_megabytes_comes_through_within_the_default_limits() {
    let Some(child) = crate::real_child() else {
        return skip("fifty_megabytes", "no forgejo-mcp: run tests/run, or set FORGEJO_MCP");
    };
    let deployment = Deployment::set(config("fifty_megabytes", child)).expect("a deployment");
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let first = deployment.children().pop().expect("a child").pid;
    let tools = session.tools().await.expect("tools");
    let known =
        ["get_file_contents", "get_file_content"].into_iter().find(|name| tools.iter().any(|tool| tool == name));
    let tool = known.expect("a tool that reads files");
    // goern's program takes `ref` and `filePath`, the other one `path`.
    let read = |bytes: u64| {
        let path = format!("big-{bytes}");
        json!({"owner": "alice", "repo": "alice-garden", "path": path, "filePath": path, "ref": "main"})
    };
    let before = broker_peak(&deployment);
    for bytes in [5 * MIB, 50 * MIB] {
        let said = session.text(tool, read(bytes)).await.expect("the file");
        assert!(u64::try_from(said.len()).is_ok_and(|length| length >= bytes), "{} of {bytes} bytes", said.len());
    }
    // The answer is there once: a second copy would be beyond it.
    let grown = broker_peak(&deployment).saturating_sub(before);
    assert!(grown < MEMORY_PER_USER, "the broker took {grown} bytes more");
    let child = deployment.children().pop().expect("the child");
    assert_eq!((child.pid, deployment.children().len()), (first, 1), "the same child");
    let (memory, threads) = (kib(&child, "VmHWM") * 1024, kib(&child, "Threads"));
    assert!(memory < MEMORY_MAX, "{memory} bytes at most");
    assert!(threads * 8 < PIDS_MAX, "{threads} threads: eight that work must fit");
    println!("the child took {memory} bytes and {threads} threads, the broker {grown} bytes more");
}
