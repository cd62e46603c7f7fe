//! A stop of the broker has an end, whatever is under way, and is nobody's outage.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::timeout;

use crate::{blocked, stand_in_deployment, token};
use harness::mcp_session::{Session, http, initialize, post};

/// Far above what a stop may take, and far below what an idle child would make of it.
const IN_TIME: Duration = Duration::from_secs(25);

/// Waits until the supervisor has started so many children.
async fn children(deployment: &harness::deployment::Deployment, count: usize) {
    let started = async {
        while deployment.children().len() < count {
            harness::look_again().await;
        }
    };
    timeout(IN_TIME, started).await.expect("the child is started");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_a_child_is_being_started_does_not_wait_for_it_to_become_idle() {
    let mut deployment = stand_in_deployment("stop-starting", &["--slow-init", "2000"], |config| {
        config.broker = "[sessions]\ndrain = \"3s\"\nchild_idle = \"10min\"\n".to_owned();
    });
    let token = token(&deployment, "alice");
    // One that is opening.
    let url = deployment.url.clone();
    let opening = tokio::spawn({
        let (url, token) = (url.clone(), token.clone());
        async move { post(&http(), &url, &token, None, &initialize()).await }
    });
    children(&deployment, 1).await;
    let begun = Instant::now();
    let status = tokio::task::block_in_place(|| deployment.broker.as_mut().expect("runs").stop().expect("it ends"));
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < IN_TIME, "{:?}", begun.elapsed());
    drop(opening.await.expect("no panic"));
    assert!(deployment.children().is_empty(), "no child is left");
    // One that wakes.
    tokio::task::block_in_place(|| deployment.start_broker().expect("it starts again"));
    let session = Session::open(&deployment.url, &token).await.expect("a session");
    deployment.supervisor.as_ref().expect("runs").signal(Signal::SIGKILL);
    tokio::task::block_in_place(|| {
        deployment.supervisor.as_mut().expect("runs").wait().expect("it ends");
        deployment.start_supervisor().expect("the next one");
    });
    let mut waking = session.clone();
    let calling = tokio::spawn(async move { waking.send("tools/list", json!({})).await });
    children(&deployment, 1).await;
    let begun = Instant::now();
    tokio::task::block_in_place(|| deployment.broker.as_mut().expect("runs").stop().expect("it ends"));
    assert!(begun.elapsed() < IN_TIME, "{:?}", begun.elapsed());
    drop(calling.await.expect("no panic"));
    // The session goes on.
    tokio::task::block_in_place(|| deployment.start_broker().expect("it starts again"));
    assert_eq!(session.clone().text("echo", json!({"text": "still here"})).await.expect("an answer"), "still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_endless_call_makes_a_restart_nobodys_outage() {
    let mut deployment = stand_in_deployment("stop-endless", &[], |config| {
        config.broker = "[sessions]\ndrain = \"15s\"\n".to_owned();
    });
    let (alice, bob) = (token(&deployment, "alice"), token(&deployment, "bob"));
    let endless = Session::open(&deployment.url, &alice).await.expect("a session");
    let other = Session::open(&deployment.url, &bob).await.expect("a session");
    let calling = blocked(&endless).await;
    let broker = deployment.broker.as_ref().expect("runs");
    broker.signal(Signal::SIGTERM);
    while !broker.output().contains("stopping") {
        harness::look_again().await;
    }
    // New connections during the drain are served as ever, and at once: nothing of the drain is waited for.
    for n in 0..20 {
        let echoed = other.clone().text("echo", json!({"text": n.to_string()})).await;
        assert_eq!(echoed.expect("an answer"), n.to_string());
    }
    assert!(!calling.is_finished(), "the drain is not over");
    let (_, ended) = calling.await.expect("no panic").expect("an answer");
    assert!(ended.get("error").is_some(), "the endless call gets its error: {ended}");
    tokio::task::block_in_place(|| {
        deployment.broker.as_mut().expect("runs").wait().expect("it ends");
        deployment.start_broker().expect("it starts again");
    });
    assert_eq!(other.clone().text("echo", json!({"text": "y"})).await.expect("an answer"), "y");
}
