//! The supervisor has one thread, before and after it has started and stopped children.
#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

#[cfg(test)]
use harness::supervised::{Client, Supervised};

fn threads(supervised: &Supervised) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", supervised.pid())).expect("readable").count()
}

#[tokio::test]
async fn the_supervisor_has_one_thread_whatever_it_does() {
    let supervised = Supervised::start_unprivileged("echo ready; exec cat", "");
    assert_eq!(threads(&supervised), 1, "after the start");
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    assert_eq!(threads(&supervised), 1, "with a child");
    client.stop(&mut kid).await;
    assert_eq!(threads(&supervised), 1, "after the child's end");
}
