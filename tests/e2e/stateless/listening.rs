//! `subscriptions/listen` tells of what the child tells of, lasts as long as its child, and ends in order.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{ERAS, IN_TIME, caller, counts, goes_on, pid};
use crate::clients::installed;
use crate::conformance::{Fixture, fixture_deployment};
use crate::login::{Client, login_deployment, user_agent};
use crate::{real_deployment, skip, stand_in, stand_in_deployment};
use harness::deployment::{Deployment, Running};
use harness::events::Events;
use harness::mcp_stateless::{Caller, ID};
use harness::user_agent::Decision;

const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// Opens a listen; what of it was acknowledged, and the rest of the stream.
async fn listen(caller: &Caller, notifications: Value) -> (Value, Events) {
    let response = caller.send("subscriptions/listen", json!({"notifications": notifications})).await;
    let mut events = Events::new(response.expect("a stream"));
    let first = events.next().await.expect("the acknowledgment");
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged", "{first}");
    assert_eq!(first["params"]["_meta"][SUBSCRIPTION], ID, "{first}");
    (first["params"]["notifications"].clone(), events)
}

/// A listen to the tools, with which each of these children can do something.
async fn listens_to_tools(caller: &Caller) -> Events {
    let (acknowledged, events) = listen(caller, json!({"toolsListChanged": true, "promptsListChanged": true})).await;
    assert_eq!(acknowledged["toolsListChanged"], true, "{acknowledged}");
    events
}

/// The next message tells of a change, to this listen.
async fn hears_of(events: &mut Events, method: &str) {
    let changed = events.next().await.expect("a change");
    assert_eq!((&changed["method"], &changed["params"]["_meta"][SUBSCRIPTION]), (&json!(method), &json!(ID)));
}

/// The next message is the result of the listen, and the last one.
async fn is_over(events: &mut Events, why: &str) {
    let last = events.next().await.expect("a result");
    assert_eq!((&last["id"], &last["result"]["resultType"]), (&json!(ID), &json!("complete")), "{why}: {last}");
    assert_eq!(last["result"]["_meta"][SUBSCRIPTION], ID, "{why}: {last}");
    assert_eq!(events.next().await, None, "{why}");
}

fn kill_child(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), Signal::SIGKILL).expect("killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listen_hears_of_changes_and_ends_with_a_result_whatever_ends_its_child() {
    /// Ends a child in one way; the programs run again then.
    type End = fn(&mut Deployment, u32);
    fn stop(running: &mut Option<Running>) {
        assert!(running.as_mut().expect("runs").stop().expect("it ends").success());
    }
    let ends: [(&str, End); 4] = [
        ("the child is killed", |_, pid| kill_child(pid)),
        ("the supervisor is killed", |deployment, _| {
            let supervisor = deployment.supervisor.as_mut().expect("runs");
            supervisor.signal(Signal::SIGKILL);
            supervisor.wait().expect("it ends");
            deployment.start_supervisor().expect("the supervisor starts again");
        }),
        ("the supervisor restarts", |deployment, _| {
            stop(&mut deployment.supervisor);
            deployment.start_supervisor().expect("the supervisor starts again");
        }),
        ("the broker restarts", |deployment, _| {
            stop(&mut deployment.broker);
            deployment.start_broker().expect("the broker starts again");
        }),
    ];
    for (era, arguments) in ERAS {
        let mut deployment = stand_in_deployment(&format!("stateless-listen-{era}"), arguments, |_| {});
        let alice = caller(&deployment, "alice");
        for (why, end) in ends {
            let why = format!("{era}, {why}");
            let wanted = json!({"toolsListChanged": true, "promptsListChanged": true, "unheardOf": true});
            let (acknowledged, mut events) = listen(&alice, wanted).await;
            assert_eq!(acknowledged, json!({"toolsListChanged": true}), "{why}: the child tells of no more");
            alice.text("list_changed", json!({})).await.expect("an answer");
            hears_of(&mut events, "notifications/tools/list_changed").await;
            let child = pid(&alice).await;
            tokio::task::block_in_place(|| end(&mut deployment, child));
            is_over(&mut events, &why).await;
            goes_on(&alice).await;
        }
    }
}

#[tokio::test]
async fn a_listen_ends_with_a_result_when_its_child_is_replaced_for_a_rotated_token() {
    for (era, arguments) in ERAS {
        let deployment = login_deployment(&format!("stateless-listen-rotation-{era}"), stand_in(arguments), "");
        // The strings of a real forge cannot be pulled.
        if deployment.forge.is_none() {
            return;
        }
        deployment.stub("/stub/mode", r#"{"access_ttl": 6}"#).expect("short tokens");
        let (access, _) = Client::register(&deployment).await.connect(&mut user_agent("alice"), Decision::Allow).await;
        let alice = Caller::new(&deployment.url, &access);
        let mut events = listens_to_tools(&alice).await;
        let first = pid(&alice).await;
        deployment.stub("/stub/mode", r#"{"access_ttl": 3600}"#).expect("long tokens");
        let rotated = async {
            while pid(&alice).await == first {
                harness::look_again().await;
            }
        };
        timeout(IN_TIME, rotated).await.expect("it is replaced");
        is_over(&mut events, era).await;
        let mut events = listens_to_tools(&alice).await;
        alice.text("list_changed", json!({})).await.expect("an answer");
        hears_of(&mut events, "notifications/tools/list_changed").await;
    }
}

#[tokio::test]
async fn a_listen_to_what_no_child_tells_of_is_acknowledged_with_nothing_and_over_at_once() {
    let unknown = json!({"unheardOf": true, "promptsListChanged": true});
    for (era, arguments) in ERAS {
        let deployment = stand_in_deployment(&format!("stateless-listen-unknown-{era}"), arguments, |_| {});
        let alice = caller(&deployment, "alice");
        for wanted in [&unknown, &json!({})] {
            let (acknowledged, mut events) = listen(&alice, wanted.clone()).await;
            assert_eq!(acknowledged, json!({}), "{era}: {wanted}");
            is_over(&mut events, era).await;
        }
        counts(&alice, "listening", 0).await;
        goes_on(&alice).await;
    }
    let Some(deployment) = real_deployment("stateless-listen-real") else { return };
    let alice = caller(&deployment, "alice");
    let (acknowledged, mut events) = listen(&alice, unknown).await;
    assert_eq!(acknowledged, json!({}));
    is_over(&mut events, "the real child").await;
}

#[tokio::test]
async fn closing_the_stream_of_a_listen_cancels_it_at_the_child_and_no_other() {
    let (_, arguments) = ERAS[1];
    let deployment = stand_in_deployment("stateless-listen-close", arguments, |_| {});
    let alice = caller(&deployment, "alice");
    let closed = listens_to_tools(&alice).await;
    let mut open = listens_to_tools(&alice).await;
    counts(&alice, "listening", 2).await;
    drop(closed);
    counts(&alice, "listening", 1).await;
    counts(&alice, "cancelled", 1).await;
    alice.text("list_changed", json!({})).await.expect("an answer");
    hears_of(&mut open, "notifications/tools/list_changed").await;
}

#[tokio::test]
async fn a_listen_is_relayed_to_a_child_on_the_official_sdk() {
    let Some(dir) = installed() else { return skip("stateless-listen-sdk", "no clients: run tests/run") };
    let deployment = fixture_deployment("stateless-listen-sdk", &dir, Fixture::Dual);
    let alice = caller(&deployment, "alice");
    let wanted = json!({"toolsListChanged": true, "resourceSubscriptions": ["test://watched-resource"]});
    let (acknowledged, mut events) = listen(&alice, wanted.clone()).await;
    assert_eq!(acknowledged, wanted);
    let (acknowledged, mut nothing) = listen(&alice, json!({"unheardOf": true})).await;
    assert_eq!(acknowledged, json!({}));
    is_over(&mut nothing, "nothing to hear of").await;
    // Of prompts this one does not hear.
    for tool in ["test_trigger_prompt_change", "test_trigger_tool_change"] {
        alice.text(tool, json!({})).await.expect("an answer");
    }
    hears_of(&mut events, "notifications/tools/list_changed").await;
    for child in deployment.children() {
        kill_child(child.pid);
    }
    is_over(&mut events, "it is killed").await;
}
