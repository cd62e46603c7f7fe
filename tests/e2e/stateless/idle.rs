//! A child without requests is stopped, unless a task goes on in it; the next request starts another.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{caller, goes_on, pid};
use crate::stand_in_deployment;
use harness::supervised::runs;

/// The broker looks for idle children twice a minute.
const SOON: Duration = Duration::from_secs(90);

async fn ends(pid: u32) {
    let ended = async {
        while runs(pid) {
            harness::look_again().await;
        }
    };
    timeout(SOON, ended).await.expect("it is stopped");
}

#[tokio::test]
async fn an_idle_child_ends_by_itself_unless_it_has_a_task_which_is_its_grants_alone() {
    let deployment = stand_in_deployment("stateless-idle", &["--era", "2026-07-28"], |config| {
        config.broker = "[sessions]\nchild_idle = \"1s\"\n".to_owned();
    });
    let (working, other) = (caller(&deployment, "alice"), caller(&deployment, "alice"));
    let (_, begun) = working.ask("tools/call", json!({"name": "task", "arguments": {}})).await.expect("a task");
    let task = json!({"taskId": begun["result"]["taskId"]});
    assert_eq!(begun["result"]["resultType"], "task", "{begun}");
    let (worker, idle) = (pid(&working).await, pid(&other).await);
    // The other was used last and goes first.
    ends(idle).await;
    assert!(runs(worker), "the task goes on in it");
    let (_, unknown) = other.ask("tasks/get", task.clone()).await.expect("an answer");
    assert_eq!(unknown["error"]["code"], -32602, "another grant of the same user does not find it: {unknown}");
    assert_ne!(pid(&other).await, idle, "its next request started another child");
    goes_on(&other).await;
    let of_task = async |method: &str| -> Value {
        working.ask(method, task.clone()).await.expect("an answer").1["result"]["status"].clone()
    };
    assert_eq!(of_task("tasks/get").await, "working");
    assert_eq!(of_task("tasks/cancel").await, "cancelled");
    ends(worker).await;
    goes_on(&working).await;
    assert_ne!(pid(&working).await, worker);
}
