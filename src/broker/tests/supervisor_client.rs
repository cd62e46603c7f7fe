//! The broker's side of the wire against a real supervisor: start, answer, end, loss and recovery.

#[cfg(test)]
use crate::child::spawner::{Backend, Ended, SpawnError, SpawnRequest, Spawner};
use crate::child::supervisor_client::SupervisorSpawner;
use harness::supervised::{Supervised, TOKEN, WAITS_FOR_THE_END};
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use tokio::io::{AsyncBufReadExt, BufReader};
use wire::message::{Exit, Label, Refusal, TenantId};
use wire::secret::UpstreamToken;

const CAT: &str = "echo ready; exec cat";

fn order(tenant: u64) -> SpawnRequest {
    SpawnRequest {
        tenant: TenantId::new(tenant).expect("a tenant"),
        label: Label::parse("alice").expect("a label"),
        token: UpstreamToken::parse(TOKEN).expect("a token"),
    }
}

/// Without root the supervisor runs as who runs the test, or as nobody.
fn spawner_of(supervised: &Supervised) -> SupervisorSpawner {
    SupervisorSpawner::new(supervised.socket(), supervised.uid())
}

async fn echo(backend: &mut Backend, line: &str) {
    let text = format!("{line}\n");
    backend.stdin.writable().await.expect("writable");
    assert_eq!(backend.stdin.try_write(text.as_bytes()).expect("written"), text.len());
    let mut lines = BufReader::new(&mut backend.stdout).lines();
    loop {
        match lines.next_line().await.expect("read") {
            Some(read) if read == "ready" => {}
            other => break assert_eq!(other.as_deref(), Some(line)),
        }
    }
}

/// Of a child that ended of itself.
fn exit<E>(ended: &Result<Ended, E>) -> Option<Exit> {
    match ended {
        Ok(Ended::Exit(ending)) => Some(ending.exit),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_start_answer_and_end_with_their_status() {
    let supervised =
        Supervised::start_unprivileged(CAT, &format!("[caps]\nchildren_per_tenant = 30\n{WAITS_FOR_THE_END}"));
    let spawner = spawner_of(&supervised);
    let tasks: Vec<_> = (1..=20)
        .map(|n| {
            let spawner = spawner.clone();
            tokio::spawn(async move {
                let mut backend = spawner.spawn(order(n)).await.expect("a backend");
                echo(&mut backend, &format!("hello {n}")).await;
                let Backend { stdin, ended, stopper, .. } = backend;
                drop(stdin);
                stopper.stop();
                stopper.stop();
                assert_eq!(exit(&ended.await), Some(Exit::Code(0)));
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let status = spawner.status().await.expect("a status");
    assert_eq!(status.children, 0);
    assert!(!status.isolation.own_uid);
}

#[tokio::test]
async fn a_refusal_comes_back_typed() {
    let supervised = Supervised::start_unprivileged(CAT, "[caps]\nchildren_per_tenant = 1\n");
    let spawner = spawner_of(&supervised);
    let _first = spawner.spawn(order(1)).await.expect("a backend");
    let refused = spawner.spawn(order(1)).await.expect_err("a refusal");
    assert_eq!(refused, SpawnError::Refused(Refusal::ChildrenOfTenant { retry_after_ms: 1000 }));
}

#[tokio::test]
async fn a_lost_supervisor_ends_its_children_and_the_next_one_is_found() {
    let mut supervised = Supervised::start_unprivileged(CAT, "");
    let spawner = spawner_of(&supervised);
    let backend = spawner.spawn(order(1)).await.expect("a backend");
    supervised.kill(Signal::SIGKILL);
    assert!(!matches!(backend.ended.await, Ok(Ended::Exit(_))), "not the child's own end");
    assert_eq!(spawner.spawn(order(1)).await.expect_err("nobody there"), SpawnError::Unreachable);

    let next = Supervised::start_unprivileged(CAT, "");
    std::fs::rename(next.socket(), supervised.socket()).expect("rename");
    let mut backend = spawner.spawn(order(1)).await.expect("a backend again");
    echo(&mut backend, "hello again").await;
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_leaves_no_child() {
    let supervised = Supervised::start_unprivileged(CAT, "");
    let spawner = spawner_of(&supervised);
    spawner.status().await.expect("connected");
    {
        let mut spawning = spawner.spawn(order(1));
        // One poll sends the request; then the caller gives up.
        let polled = futures_util::future::poll_immediate(&mut spawning).await;
        assert!(polled.is_none());
    }
    // Two questions one after the other: the child comes, is stopped, and its end is waited for by asking.
    while spawner.status().await.expect("a status").children != 0 {
        tokio::task::yield_now().await;
    }
    assert!(supervised.logged().contains(", ended: "), "it was started and stopped: {}", supervised.logged());
}

#[tokio::test]
async fn an_end_is_the_childs_own_before_the_supervisor_says_that_it_stops_and_never_after() {
    let policy = "[stop]\ndrain = \"30s\"\n";
    let mut supervised = Supervised::start_unprivileged("echo ready; read line; exit 3", policy);
    let spawner = spawner_of(&supervised);
    let (first, mut second) = (spawner.spawn(order(1)).await, spawner.spawn(order(1)).await.expect("a backend"));
    let mut first = first.expect("a backend");
    let end = async |backend: &mut Backend| {
        backend.stdin.writable().await.expect("writable");
        backend.stdin.try_write(b"end\n").expect("written");
        (&mut backend.ended).await
    };
    assert_eq!(exit(&end(&mut first).await), Some(Exit::Code(3)));
    supervised.signal(Signal::SIGTERM);
    // Refused for it, so the announcement has been heard.
    while spawner.spawn(order(2)).await.err() != Some(SpawnError::Refused(Refusal::ShuttingDown)) {
        tokio::task::yield_now().await;
    }
    assert!(!matches!(end(&mut second).await, Ok(Ended::Exit(_))), "the same end, and not its own");
    assert!(supervised.wait().success(), "the grace ends with the last child");
}

#[tokio::test]
async fn whoever_serves_the_socket_and_may_not_hears_nothing() {
    if !Uid::effective().is_root() {
        eprintln!("SKIPPED: a stranger in the supervisor's place: needs root");
        return;
    }
    let supervised = Supervised::start_unprivileged(CAT, "");
    assert!(!supervised.uid().is_root());
    let spawner = SupervisorSpawner::new(supervised.socket(), Uid::effective());
    assert_eq!(spawner.spawn(order(1)).await.expect_err("not to it"), SpawnError::Unreachable);
    assert!(!supervised.logged().contains(" started for "), "{}", supervised.logged());
    let spawner = spawner_of(&supervised);
    spawner.spawn(order(1)).await.expect("the right one is spoken to");
    assert!(supervised.logged().contains(" started for "), "{}", supervised.logged());
}
