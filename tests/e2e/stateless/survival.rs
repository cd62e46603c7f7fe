//! Whatever ends a child, a request in flight has its answer or its connection's end, and the grant goes on.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{ERAS, IN_TIME, blocked, caller, counts, goes_on, pid};
use crate::stand_in_deployment;
use harness::supervised::{gone, watch};

fn message(answer: &Value) -> &str {
    answer.pointer("/error/message").and_then(Value::as_str).unwrap_or_default()
}

#[tokio::test]
async fn a_child_that_is_killed_answers_its_request_with_an_error_and_the_next_one_gets_another_child() {
    for (era, arguments) in ERAS {
        let deployment = stand_in_deployment(&format!("stateless-kill-child-{era}"), arguments, |_| {});
        let alice = caller(&deployment, "alice");
        let first = pid(&alice).await;
        let calling = blocked(&alice).await;
        let child = Pid::from_raw(i32::try_from(first).expect("a pid"));
        kill(child, Signal::SIGKILL).expect("killed");
        let answered = timeout(IN_TIME, calling).await.expect("in time").expect("no panic");
        let (status, answer) = answered.expect("an answer with the request's id");
        assert!(message(&answer).contains("signal 9"), "{era}: {status} {answer}");
        assert_eq!(status, 200, "{era}: clients survive a JSON-RPC error, and some no other status");
        goes_on(&alice).await;
        assert_ne!(pid(&alice).await, first, "{era}");
        assert_eq!(deployment.children().len(), 1, "{era}");
    }
}

#[tokio::test]
async fn a_broker_that_is_killed_leaves_no_child_and_the_next_broker_serves_the_grant() {
    for (era, arguments) in ERAS {
        // With a call, it heeds neither the end of its input nor SIGTERM: somebody has to end it.
        let arguments = [arguments, &["--ignore-term"]].concat();
        let mut deployment = stand_in_deployment(&format!("stateless-kill-broker-{era}"), &arguments, |_| {});
        let alice = caller(&deployment, "alice");
        let ended = watch(pid(&alice).await);
        let calling = blocked(&alice).await;
        let broker = deployment.broker.as_mut().expect("runs");
        broker.signal(Signal::SIGKILL);
        broker.wait().expect("it ends");
        let answered = timeout(IN_TIME, calling).await.expect("in time").expect("no panic");
        assert!(answered.is_err(), "{era}: its connection is closed, and nothing passes for an answer: {answered:?}");
        gone(ended).await;
        deployment.start_broker().expect("the broker starts again");
        goes_on(&alice).await;
        assert_eq!(deployment.children().len(), 1, "{era}");
    }
}

#[tokio::test]
async fn a_supervisor_that_is_killed_costs_the_request_in_flight_and_its_grant_heals_with_the_next() {
    for (era, arguments) in ERAS {
        let mut deployment = stand_in_deployment(&format!("stateless-kill-supervisor-{era}"), arguments, |_| {});
        let alice = caller(&deployment, "alice");
        let ended = watch(pid(&alice).await);
        let calling = blocked(&alice).await;
        let supervisor = deployment.supervisor.as_mut().expect("runs");
        supervisor.signal(Signal::SIGKILL);
        supervisor.wait().expect("it ends");
        let answered = timeout(IN_TIME, calling).await.expect("in time").expect("no panic");
        let (_, answer) = answered.expect("an answer with the request's id");
        assert!(message(&answer).contains("try again"), "{era}: {answer}");
        gone(ended).await;
        // What comes meanwhile waits for the next supervisor.
        let early = alice.clone();
        let early = tokio::spawn(async move { goes_on(&early).await });
        while !deployment.output().contains("no connection to the supervisor") {
            harness::look_again().await;
        }
        assert!(!early.is_finished(), "{era}");
        deployment.start_supervisor().expect("the supervisor starts again");
        timeout(IN_TIME, early).await.expect("in time").expect("it is served");
        goes_on(&alice).await;
        assert_eq!(deployment.children().len(), 1, "{era}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_broker_or_the_supervisor_lets_a_call_end_and_costs_the_grant_nothing() {
    for (era, arguments) in ERAS {
        let mut deployment = stand_in_deployment(&format!("stateless-restart-{era}"), arguments, |_| {});
        let alice = caller(&deployment, "alice");
        for restarted in ["the broker", "the supervisor"] {
            let slow = alice.clone();
            let calling = tokio::spawn(async move { slow.text("sleep", json!({"ms": 1500})).await });
            counts(&alice, "in_flight", 1).await;
            tokio::task::block_in_place(|| {
                let of_broker = restarted == "the broker";
                let running = if of_broker { deployment.broker.as_mut() } else { deployment.supervisor.as_mut() };
                assert!(running.expect("runs").stop().expect("it ends").success(), "{era}");
                let started = if of_broker { deployment.start_broker() } else { deployment.start_supervisor() };
                started.expect("it starts again");
            });
            let said = calling.await.expect("no panic").expect("an answer");
            assert_eq!(said, "slept", "{era}, {restarted}");
            goes_on(&alice).await;
            assert_eq!(deployment.children().len(), 1, "{era}, {restarted}");
        }
    }
}
