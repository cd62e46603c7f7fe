//! Restarts lose no session and leave no process.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::timeout;

use crate::{blocked, has_in_flight, stand_in_deployment, token};
use harness::deployment::{Deployment, Process, Program, processes};
use harness::mcp_session::{Session, http, initialize, post};

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

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
    let mut deployment = stand_in_deployment("graceful", &[], |_| {});
    let token = token(&deployment, "alice");
    let mut session = Session::open(&deployment.url, &token).await.expect("a session");
    let _second = Session::open(&deployment.url, &token).await.expect("a session");
    let pids: Vec<u32> = deployment.children().iter().map(|child| child.pid).collect();
    assert_eq!(pids.len(), 2);
    let status = deployment.broker.as_mut().expect("runs").stop().expect("it ends");
    assert!(status.success(), "{status}");
    assert!(of_program("stand-in", &pids).is_empty(), "no child is left when the broker has ended");
    deployment.start_broker().expect("the broker starts again");
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("an answer"), "back");
    assert_eq!(deployment.children().len(), 1, "one session was used, one child runs");
}

#[tokio::test]
async fn a_killed_broker_leaves_no_child_and_loses_no_session() {
    let mut deployment = stand_in_deployment("killed_broker", &[], |_| {});
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let pids: Vec<u32> = deployment.children().iter().map(|child| child.pid).collect();
    let broker = deployment.broker.as_mut().expect("runs");
    broker.signal(Signal::SIGKILL);
    broker.wait().expect("it ends");
    gone(&pids).await;
    deployment.start_broker().expect("the broker starts again");
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("an answer"), "back");
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_children_along_is_503_while_away_and_heals_by_itself() {
    let mut deployment = stand_in_deployment("killed_supervisor", &[], |_| {});
    let token = token(&deployment, "alice");
    let mut session = Session::open(&deployment.url, &token).await.expect("a session");
    let pids: Vec<u32> = deployment.children().iter().map(|child| child.pid).collect();
    let supervisor = deployment.supervisor.as_mut().expect("runs");
    supervisor.signal(Signal::SIGKILL);
    supervisor.wait().expect("it ends");
    gone(&pids).await;
    let refused = post(&http(), &deployment.url, &token, None, &initialize()).await.expect("an answer");
    assert_eq!(refused.status().as_u16(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let ready = http().get(format!("{}/readyz", deployment.url)).send().await.expect("an answer");
    assert_eq!(ready.status().as_u16(), 503);
    deployment.start_supervisor().expect("the supervisor starts again");
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("an answer"), "back");
}

#[tokio::test]
async fn a_stopped_supervisor_stops_its_children_first() {
    let mut deployment = stand_in_deployment("stopped_supervisor", &[], |_| {});
    let _session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let pids: Vec<u32> = deployment.children().iter().map(|child| child.pid).collect();
    let status = deployment.supervisor.as_mut().expect("runs").stop().expect("it ends");
    assert!(status.success(), "{status}");
    assert!(of_program("stand-in", &pids).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_socket_activation_no_connection_is_refused_while_the_broker_restarts() {
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").expect("a port"));
    let inherited = Arc::clone(&listener);
    let mut deployment = stand_in_deployment("activated", &[], |config| config.inherited = Some(inherited));
    let address = listener.local_addr().expect("an address").to_string();
    assert_eq!(deployment.url, format!("http://{address}"), "the broker serves the inherited socket");
    let token = token(&deployment, "alice");
    let session = Session::open(&deployment.url, &token).await.expect("a session");
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let calling = {
        let (mut session, over, answered) = (session.clone(), Arc::clone(&over), Arc::clone(&answered));
        tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                // Each on a connection of its own. An error with the request's id is an answer; a refused or a broken
                // connection is none.
                let (status, answer) = session.send("ping", json!({})).await.expect("an answer");
                assert!(status.is_success() || status.as_u16() == 503, "{status} {answer}");
                answered.fetch_add(u32::from(status.is_success()), Ordering::SeqCst);
            }
        })
    };
    for _ in 0..5 {
        tokio::task::block_in_place(|| {
            deployment.broker.as_mut().expect("runs").stop().expect("it ends");
            deployment.start_broker().expect("the broker starts again");
        });
        let before = answered.load(Ordering::SeqCst);
        while answered.load(Ordering::SeqCst) == before {
            assert!(!calling.is_finished(), "a request got no answer: {:?}", calling.await);
            harness::look_again().await;
        }
    }
    over.store(true, Ordering::SeqCst);
    calling.await.expect("every request was answered");
}

/// Ends the supervisor as `systemctl restart` does, and starts the next.
fn restart_supervisor(deployment: &mut Deployment) {
    let status = deployment.supervisor.as_mut().expect("runs").stop().expect("it ends");
    assert!(status.success(), "{status}");
    deployment.start_supervisor().expect("the supervisor starts again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_supervisor_loses_no_session_and_lets_calls_end() {
    let mut deployment = stand_in_deployment("restarted_supervisor", &[], |_| {});
    let token = token(&deployment, "alice");
    let mut idle = Session::open(&deployment.url, &token).await.expect("a session");
    let mut busy = Session::open(&deployment.url, &token).await.expect("a session");
    let mut second = busy.clone();
    let calling = tokio::spawn(async move { second.text("sleep", json!({"ms": 1500})).await });
    has_in_flight(&busy, 1).await;
    tokio::task::block_in_place(|| restart_supervisor(&mut deployment));
    assert_eq!(calling.await.expect("no panic").expect("the call in flight has its answer"), "slept");
    for session in [&mut idle, &mut busy] {
        assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("the session goes on"), "back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_stops_waits_for_nobody_when_nobody_has_a_call() {
    let mut deployment = stand_in_deployment("idle_supervisor", &[], |config| {
        config.supervisor = "[stop]\ndrain = \"60s\"\n".to_owned();
    });
    let token = token(&deployment, "alice");
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(Session::open(&deployment.url, &token).await.expect("a session"));
    }
    let begun = std::time::Instant::now();
    tokio::task::block_in_place(|| restart_supervisor(&mut deployment));
    println!("the supervisor was restarted in {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(30), "it has waited for its grace: {:?}", begun.elapsed());
    for session in &mut sessions {
        assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("the session goes on"), "back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_outlasts_the_grace_of_the_supervisor_gets_an_error_and_its_session_goes_on() {
    let mut deployment = stand_in_deployment("outlasted_supervisor", &[], |config| {
        config.supervisor = "[stop]\ndrain = \"200ms\"\n".to_owned();
    });
    let token = token(&deployment, "alice");
    let mut session = Session::open(&deployment.url, &token).await.expect("a session");
    let calling = blocked(&session).await;
    tokio::task::block_in_place(|| restart_supervisor(&mut deployment));
    let (_, answer) = calling.await.expect("no panic").expect("an answer");
    let message = answer.pointer("/error/message").and_then(serde_json::Value::as_str).unwrap_or_default();
    assert!(message.contains("the supervisor of the forgejo-mcp process is gone; try again"), "{answer}");
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("the session goes on"), "back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_under_way_when_the_supervisor_is_restarted_is_completed() {
    let slow = format!("sleep 1; exec {}", harness::program("stand-in-child").display());
    let mut deployment = stand_in_deployment("restarted_in_a_start", &[], |config| {
        config.child = Program::stand_in(Path::new("/bin/sh"), &["-c", &slow]);
        // The shell is the program that the sandbox knows, and starts another.
        config.supervisor = "[sandbox]\nlandlock = false\n".to_owned();
    });
    let (url, token) = (deployment.url.clone(), token(&deployment, "alice"));
    let opening = tokio::spawn(async move { Session::open(&url, &token).await });
    let started = async {
        while deployment.children().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), started).await.expect("a child is started");
    tokio::task::block_in_place(|| restart_supervisor(&mut deployment));
    let mut session = opening.await.expect("no panic").expect("the session is opened");
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("the session goes on"), "back");
}

#[tokio::test]
async fn no_signal_that_is_sent_in_good_faith_ends_a_program() {
    let deployment = stand_in_deployment("harmless_signals", &[], |_| {});
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT] {
        for program in [&deployment.broker, &deployment.supervisor].into_iter().flatten() {
            program.signal(signal);
        }
        assert_eq!(session.text("echo", json!({"text": "on"})).await.expect("an answer"), "on", "{signal}");
    }
}

#[tokio::test]
async fn a_child_program_that_was_removed_is_named_as_the_reason_and_found_when_it_is_back() {
    let dir = crate::scratch("removed_program_itself");
    std::fs::create_dir_all(&dir).expect("a directory");
    let program = dir.join("forgejo-mcp");
    let install = || harness::copy_program(&harness::program("stand-in-child"), &program).expect("installed");
    let mut deployment = stand_in_deployment("removed_program", &[], |config| {
        // The supervisor starts without it.
        config.child = Program::stand_in(&program, &[]);
    });
    let token = token(&deployment, "alice");
    let refused = Session::open(&deployment.url, &token).await.expect_err("nothing can be started").to_string();
    assert!(refused.contains("its program is not installed on the server"), "{refused}");
    install();
    let mut session = Session::open(&deployment.url, &token).await.expect("a session");
    assert_eq!(session.text("echo", json!({"text": "on"})).await.expect("an answer"), "on");
    // As while a package is being replaced, and the supervisor is restarted by that.
    std::fs::remove_file(&program).expect("removed");
    restart_supervisor(&mut deployment);
    assert!(session.text("echo", json!({"text": "on"})).await.is_err());
    install();
    assert_eq!(session.text("echo", json!({"text": "back"})).await.expect("the session goes on"), "back");
}
