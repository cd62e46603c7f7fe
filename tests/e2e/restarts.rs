//! Restarts lose no session and leave no process.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::timeout;

use crate::session::{Session, http, initialize, post};
use crate::stage::{Process, processes};
use crate::{stand_in_stage, token};

fn of_program(name: &str, pids: &[u32]) -> Vec<Process> {
    processes()
        .into_iter()
        .filter(|process| pids.contains(&process.pid) && process.field("Name").starts_with(name))
        .collect()
}

async fn gone(pids: &[u32]) {
    let gone = async {
        while !of_program("stand-in", pids).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), gone).await.expect("the children are gone");
}

#[tokio::test]
async fn a_graceful_stop_leaves_no_child_and_the_session_goes_on_after_the_restart() {
    let mut stage = stand_in_stage("graceful", &[], |_| {});
    let token = token(&stage, "alice");
    let mut session = Session::open(&stage.url, &token).await.expect("a session");
    let _second = Session::open(&stage.url, &token).await.expect("a session");
    let pids: Vec<u32> = stage.children().iter().map(|child| child.pid).collect();
    assert_eq!(pids.len(), 2);
    let status = stage.broker.as_mut().expect("runs").stop().expect("it ends");
    assert!(status.success(), "{status}");
    assert!(of_program("stand-in", &pids).is_empty(), "no child is left when the broker has ended");
    stage.start_broker().expect("the broker starts again");
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("an answer"), "back");
    assert_eq!(stage.children().len(), 1, "one session was used, one child runs");
}

#[tokio::test]
async fn a_killed_broker_leaves_no_child_and_loses_no_session() {
    let mut stage = stand_in_stage("killed_broker", &[], |_| {});
    let mut session = Session::open(&stage.url, &token(&stage, "alice")).await.expect("a session");
    let pids: Vec<u32> = stage.children().iter().map(|child| child.pid).collect();
    let broker = stage.broker.as_mut().expect("runs");
    broker.signal(Signal::SIGKILL);
    broker.wait().expect("it ends");
    gone(&pids).await;
    stage.start_broker().expect("the broker starts again");
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("an answer"), "back");
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_children_along_is_503_while_away_and_heals_by_itself() {
    let mut stage = stand_in_stage("killed_supervisor", &[], |_| {});
    let token = token(&stage, "alice");
    let mut session = Session::open(&stage.url, &token).await.expect("a session");
    let pids: Vec<u32> = stage.children().iter().map(|child| child.pid).collect();
    let supervisor = stage.supervisor.as_mut().expect("runs");
    supervisor.signal(Signal::SIGKILL);
    supervisor.wait().expect("it ends");
    gone(&pids).await;
    let refused = post(&http(), &stage.url, &token, None, &initialize()).await.expect("an answer");
    assert_eq!(refused.status().as_u16(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let ready = http().get(format!("{}/readyz", stage.url)).send().await.expect("an answer");
    assert_eq!(ready.status().as_u16(), 503);
    stage.start_supervisor().expect("the supervisor starts again");
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("an answer"), "back");
}

#[tokio::test]
async fn a_stopped_supervisor_stops_its_children_first() {
    let mut stage = stand_in_stage("stopped_supervisor", &[], |_| {});
    let _session = Session::open(&stage.url, &token(&stage, "alice")).await.expect("a session");
    let pids: Vec<u32> = stage.children().iter().map(|child| child.pid).collect();
    let status = stage.supervisor.as_mut().expect("runs").stop().expect("it ends");
    assert!(status.success(), "{status}");
    assert!(of_program("stand-in", &pids).is_empty());
}
