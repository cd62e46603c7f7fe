//! Many grants of one user come at once, and none of them has a child.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use super::{ERAS, IN_TIME, blocked, caller, goes_on};
use crate::log_lines::{IN_FORCE, reload};
use crate::stand_in_deployment;
use harness::deployment::Deployment;
use harness::mcp_stateless::Caller;

/// Children that a user may have, and grants that want one each.
const CAP: usize = 3;
const GRANTS: usize = 12;

/// Looks at the children of a deployment until it is over; the most that there ever were.
fn watching(deployment: &Arc<Deployment>, over: &Arc<AtomicBool>) -> tokio::task::JoinHandle<usize> {
    let (deployment, over, most) = (Arc::clone(deployment), Arc::clone(over), AtomicUsize::new(0));
    tokio::spawn(async move {
        while !over.load(Ordering::SeqCst) {
            most.fetch_max(deployment.children().len(), Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
        most.into_inner()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_grants_beyond_their_users_cap_are_served_in_turn_with_never_more_children_than_that() {
    for (era, arguments) in ERAS {
        let deployment = stand_in_deployment(&format!("stateless-quota-{era}"), arguments, |config| {
            config.broker = format!("[sessions]\nchildren_per_user = {CAP}\n");
        });
        let grants: Vec<Caller> = (0..GRANTS).map(|_| caller(&deployment, "alice")).collect();
        let bob = caller(&deployment, "bob");
        goes_on(&bob).await;
        let (deployment, over) = (Arc::new(deployment), Arc::<AtomicBool>::default());
        let watching = watching(&deployment, &over);
        let calls = grants.iter().map(|grant| grant.text("sleep", json!({"ms": 200})));
        let served = timeout(IN_TIME, join_all(calls)).await;
        if served.is_ok() {
            // One after the other as well: each finds the place of one that is idle.
            for grant in grants.iter().chain([&bob]) {
                goes_on(grant).await;
            }
        }
        over.store(true, Ordering::SeqCst);
        let most = watching.await.expect("no panic");
        // First: who is beyond the supervisor's own cap waits there.
        assert!((2..=CAP + 1).contains(&most), "{era}: {most} with bob's");
        for said in served.expect("in time") {
            assert_eq!(said.expect("an answer"), "slept", "{era}");
        }
    }
}

#[tokio::test]
async fn a_grant_that_gets_no_place_in_time_is_told_so_with_its_id_and_served_when_there_is_one() {
    const ONE_CHILD: &str = "[sessions]\nchildren_per_user = 1\n";
    let deployment = stand_in_deployment("stateless-no-place", &[], |config| {
        ONE_CHILD.clone_into(&mut config.broker);
    });
    let (busy, waiting) = (caller(&deployment, "alice"), caller(&deployment, "alice"));
    let calling = blocked(&busy).await;
    let broker = deployment.broker.as_ref().expect("runs");
    let reload = |text: &str| reload(&deployment.config.dir, broker, text, IN_FORCE);
    // From now on, so that the call that is in the way goes on.
    reload(&format!("{ONE_CHILD}[http]\nrequest_timeout = \"1s\"\n"));
    let (status, refused) = waiting.ask("tools/list", json!({})).await.expect("an answer with the request's id");
    // Its time is over for the place in line and for the request in the same moment.
    assert!(matches!(status.as_u16(), 429 | 503) && refused.get("error").is_some(), "{status}: {refused}");
    assert!(!calling.is_finished());
    // The rest takes what time it takes.
    reload(ONE_CHILD);
    calling.abort();
    goes_on(&waiting).await;
    goes_on(&busy).await;
    assert_eq!(deployment.children().len(), 1);
}
