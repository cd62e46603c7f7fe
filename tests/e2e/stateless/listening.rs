//! `subscriptions/listen` lasts as long as its child, and ends in order.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{caller, goes_on, pid};
use crate::stand_in_deployment;
use harness::events::Events;
use harness::mcp_stateless::ID;

#[tokio::test]
async fn a_listen_hears_of_changes_and_ends_with_a_result_when_its_child_is_gone() {
    const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
    let deployment = stand_in_deployment("stateless-listen", &[], |_| {});
    let alice = caller(&deployment, "alice");
    for _ in 0..2 {
        let wanted = json!({"notifications": {"toolsListChanged": true, "promptsListChanged": true}});
        let response = alice.send("subscriptions/listen", wanted).await.expect("a stream");
        let mut events = Events::new(response);
        let first = events.next().await.expect("the acknowledgment");
        assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
        assert_eq!(first["params"]["notifications"], json!({"toolsListChanged": true}));
        alice.text("list_changed", json!({})).await.expect("an answer");
        let changed = events.next().await.expect("a change");
        assert_eq!(changed["method"], "notifications/tools/list_changed");
        assert_eq!(changed["params"]["_meta"][SUBSCRIPTION], ID);
        let child = Pid::from_raw(i32::try_from(pid(&alice).await).expect("a pid"));
        kill(child, Signal::SIGKILL).expect("killed");
        let last = events.next().await.expect("a result");
        assert_eq!((&last["id"], &last["result"]["resultType"]), (&json!(ID), &json!("complete")), "{last}");
        assert_eq!(last["result"]["_meta"][SUBSCRIPTION], ID);
        assert_eq!(events.next().await, None);
        goes_on(&alice).await;
    }
}
