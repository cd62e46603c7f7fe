//! The limits that hold where the policy says nothing are enough for real work.

use serde_json::json;

use crate::{config, skip, token};
use harness::deployment::{Deployment, Process};
use harness::mcp_session::Session;

const MIB: u64 = 1 << 20;
/// `[limits] memory_max` and `pids_max`, by default.
const MEMORY_MAX: u64 = 512 * MIB;
const PIDS_MAX: u64 = 128;

fn kib(process: &Process, field: &str) -> u64 {
    let text = process.field(field);
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{field}: {text}"))
}

#[tokio::test]
async fn a_file_of_fifty_megabytes_comes_through_within_the_default_limits() {
    let Some(child) = crate::real_child() else {
        return skip("fifty_megabytes", "no forgejo-mcp: run tests/run, or set FORGEJO_MCP");
    };
    let deployment = Deployment::set(config("fifty_megabytes", child)).expect("a deployment");
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let child = deployment.children().pop().expect("a child");
    let tools = session.tools().await.expect("tools");
    let known =
        ["get_file_contents", "get_file_content"].into_iter().find(|name| tools.iter().any(|tool| tool == name));
    let tool = known.expect("a tool that reads files");
    // goern's program takes `ref` and `filePath`, the other one `path`.
    let read = |bytes: u64| {
        let path = format!("big-{bytes}");
        json!({"owner": "alice", "repo": "alice-garden", "path": path, "filePath": path, "ref": "main"})
    };
    for bytes in [5 * MIB, 50 * MIB] {
        let said = session.text(tool, read(bytes)).await.expect("the file");
        assert!(u64::try_from(said.len()).is_ok_and(|length| length >= bytes), "{} of {bytes} bytes", said.len());
    }
    let (memory, threads) = (kib(&child, "VmHWM") * 1024, kib(&child, "Threads"));
    assert!(memory < MEMORY_MAX, "{memory} bytes at most");
    assert!(threads * 8 < PIDS_MAX, "{threads} threads: eight that work must fit");
    assert_eq!(deployment.children().len(), 1, "the same child");
}
