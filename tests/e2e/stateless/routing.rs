//! Which child a request reaches, and with which token.

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::timeout;

use super::{ERAS, IN_TIME, caller, goes_on, pid};
use crate::login::{Client, login_deployment, user_agent};
use crate::{real_deployment, stand_in, stand_in_deployment};
use harness::deployment::{Deployment, Process};
use harness::mcp_stateless::Caller;
use harness::user_agent::Decision;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_requests_of_a_grant_share_a_child_and_two_grants_of_one_user_share_none() {
    for (era, arguments) in ERAS {
        let deployment = stand_in_deployment(&format!("stateless-routing-{era}"), arguments, |_| {});
        let (one, other) = (caller(&deployment, "alice"), caller(&deployment, "alice"));
        // All at once, and none is running.
        let pids = join_all((0..16).map(|_| pid(&one))).await;
        assert!(pids.iter().all(|pid| *pid == pids[0]), "{era}: {pids:?}");
        assert_ne!(pid(&other).await, pids[0], "{era}");
        assert_eq!(pid(&one).await, pids[0], "{era}");
        let children = deployment.children();
        assert_eq!(children.len(), 2, "{era}");
        if deployment.config.privileged {
            assert_ne!(children[0].uid(), children[1].uid(), "{era}: not even of one user");
        }
    }
}

#[tokio::test]
async fn each_user_gets_their_own_answers_without_a_session_as_well() {
    let Some(deployment) = real_deployment("stateless-own-answers") else { return };
    let (alice, bob) = (caller(&deployment, "alice"), caller(&deployment, "bob"));
    let (_, listed) = alice.ask("tools/list", json!({})).await.expect("an answer");
    let known = ["get_my_user_info", "whoami"].into_iter().find(|name| listed.to_string().contains(name));
    let who = known.expect("a tool that says who it works for");
    for _ in 0..2 {
        let (she, he) = tokio::join!(alice.text(who, json!({})), bob.text(who, json!({})));
        let (she, he) = (she.expect("an answer"), he.expect("an answer"));
        assert!(she.contains("alice@example.org") && !she.contains("bob"), "{she}");
        assert!(he.contains("bob@example.org") && !he.contains("alice"), "{he}");
    }
    assert_eq!(deployment.children().len(), 2);
}

/// The Forgejo token in the environment of the child that serves the caller.
async fn forgejo_token(deployment: &Deployment, caller: &Caller) -> (u32, Vec<u8>) {
    let pid = pid(caller).await;
    let children: Vec<Process> = deployment.children().into_iter().filter(|child| child.pid == pid).collect();
    let environment = children.first().map(|child| child.file("environ")).unwrap_or_default();
    let token = environment.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(b"FORGEJO_ACCESS_TOKEN="));
    (pid, token.map(<[u8]>::to_vec).unwrap_or_default())
}

/// The same of a child other than that one, as soon as it has a token.
async fn forgejo_token_beside(deployment: &Deployment, caller: &Caller, other: Option<u32>) -> (u32, Vec<u8>) {
    let found = async {
        loop {
            // The one that a request reached last may be replaced before it is looked at.
            let (pid, token) = forgejo_token(deployment, caller).await;
            if Some(pid) != other && !token.is_empty() {
                return (pid, token);
            }
            harness::look_again().await;
        }
    };
    timeout(IN_TIME, found).await.expect("such a child")
}

#[tokio::test]
async fn a_rotated_token_of_forgejos_is_with_the_child_of_a_later_request() {
    for (era, arguments) in ERAS {
        let deployment = login_deployment(&format!("stateless-rotation-{era}"), stand_in(arguments), "");
        // The strings of a real forge cannot be pulled.
        if deployment.forge.is_none() {
            return;
        }
        deployment.stub("/stub/mode", r#"{"access_ttl": 6}"#).expect("short tokens");
        let (access, _) = Client::register(&deployment).await.connect(&mut user_agent("alice"), Decision::Allow).await;
        let alice = Caller::new(&deployment.url, &access);
        let (first_pid, first) = forgejo_token_beside(&deployment, &alice, None).await;
        deployment.stub("/stub/mode", r#"{"access_ttl": 3600}"#).expect("long tokens");
        let (next_pid, next) = forgejo_token_beside(&deployment, &alice, Some(first_pid)).await;
        assert_ne!(next, first, "{era}");
        assert_eq!(alice.text("whoami", json!({})).await.expect("Forgejo takes it"), "alice", "{era}");
        assert_eq!(pid(&alice).await, next_pid, "{era}: it stays warm");
        let alone = async {
            while deployment.children().len() > 1 {
                harness::look_again().await;
            }
        };
        timeout(IN_TIME, alone).await.expect("the first one goes");
        goes_on(&alice).await;
    }
}
