//! Without root the supervisor does the same work, minus the isolation, and says so.

#[cfg(test)]
use std::process::Command;

use harness::supervised::{Client, Supervised, say};
use wire::message::{Exit, Refusal, Reply, Request, Ticket};

#[tokio::test]
async fn it_says_that_children_share_a_uid() {
    let supervised = Supervised::start_unprivileged("echo ready; exec cat", "");
    let mut client = Client::connect(&supervised).await;
    let (a, b) = (client.spawn(1).await, client.spawn(2).await);
    assert!(!client.isolation.own_uid);
    assert_eq!(a.uid, b.uid);
    assert_eq!(a.status("NoNewPrivs"), "1");
    assert!(supervised.logged().contains("not isolated: all children run under the supervisor's own uid"));
}

#[tokio::test]
async fn exits_are_told_with_their_status() {
    let supervised = Supervised::start_unprivileged("echo ready; read how; exit $how", "");
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    kid.tell("7").await;
    assert_eq!(client.exit_of(&kid).await, Exit::Code(7));
}

#[tokio::test]
async fn the_caps_hold_and_the_status_counts() {
    let supervised = Supervised::start_unprivileged("echo ready; exec cat", "[caps]\nchildren = 2\n");
    let mut client = Client::connect(&supervised).await;
    let _kids = (client.spawn(1).await, client.spawn(2).await);
    assert_eq!(client.try_spawn(3).await.err(), Some(Refusal::ChildrenTotal { retry_after_ms: 1000 }));
    say(&client.socket, &Request::Status { ticket: Ticket(50) }).await;
    let (status, _) =
        client.await_reply(|r| if let Reply::Status { status, .. } = r { Some(*status) } else { None }).await;
    assert_eq!((status.children, status.max_children, status.tenants), (2, 2, 2));
}

#[test]
fn every_problem_of_the_configuration_is_told_at_once_with_exit_code_78() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("bad.toml");
    let text = "[child]\nprofile = \"custom\"\nprogram = \"/nonexistent\"\ntoken_variables = [\"LD_PRELOAD\"]\n\
                [uids]\nfirst = 3\n[limits]\nopne_files = 3\n[limits.users.bob]\n";
    std::fs::write(&file, text).expect("write");
    let mut command = Command::new(harness::program("forgejo-mcp-supervisor"));
    let output = command.arg("--check").arg("--config").arg(&file).output().expect("run");
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).expect("text");
    for key in ["broker_user", "forgejo.url", "child.program", "LD_PRELOAD", "uids.first", "opne_files", "users.bob"] {
        assert!(said.contains(key), "{key} is missing in: {said}");
    }
}

#[test]
fn a_policy_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("open.toml");
    std::fs::write(&file, "").expect("write");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("chmod");
    let mut command = Command::new(harness::program("forgejo-mcp-supervisor"));
    let output = command.arg("--check").arg("--config").arg(&file).output().expect("run");
    assert!(String::from_utf8_lossy(&output.stderr).contains("must be"), "{output:?}");
    assert_eq!(output.status.code(), Some(78));
}
