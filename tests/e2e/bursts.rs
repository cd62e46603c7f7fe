//! Many users at once, with the default caps: everybody waits in line and nobody is refused.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tokio::sync::{Barrier, watch};
use tokio::time::timeout;

use crate::stand_in_deployment;
use harness::deployment::Deployment;
use harness::mcp_session::{http, initialize, message, post};

/// As many as a small instance has at its desk.
const USERS: usize = 150;
/// Uids that no other test uses, enough for all users.
const FIRST_UID: u32 = 80_000;

fn deployment(test: &str) -> Deployment {
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").expect("a port"));
    // As systemd does: with the 128 of the standard library, the kernel drops some of so many who come at once while the
    // broker is away, and they come again seconds later.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXCONN).expect("a longer queue");
    stand_in_deployment(test, &[], |config| {
        config.inherited = Some(listener);
        config.first_uid = FIRST_UID;
        "[uids]\ncount = 400\n".clone_into(&mut config.supervisor);
    })
}

fn tokens(deployment: &Deployment) -> Vec<String> {
    (0..USERS)
        .map(|n| {
            let login = format!("user{n}");
            deployment.user(&login).expect("a user");
            let token = deployment.forge_token(&login).expect("a Forgejo token");
            deployment.broker_token(&login, &token, &[]).expect("a token")
        })
        .collect()
}

/// Opens a session; its id, or the status of the refusal.
async fn open(client: &Client, url: &str, token: &str) -> Result<String, u16> {
    let response = post(client, url, token, None, &initialize()).await.expect("an answer");
    let id = response.headers().get("mcp-session-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let status = response.status().as_u16();
    id.ok_or(status)
}

/// A call as its user saw it.
#[derive(Debug)]
struct Call {
    began: Instant,
    /// 0 where the connection was closed on it.
    status: u16,
    has_result: bool,
}

async fn echo(client: &Client, url: &str, token: &str, id: &str) -> Call {
    let began = Instant::now();
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "echo", "arguments": {"text": "x"}}});
    let Ok(response) = post(client, url, token, Some(id), &call).await else {
        return Call { began, status: 0, has_result: false };
    };
    let status = response.status().as_u16();
    let answer: Value = message(response).await.unwrap_or_default();
    Call { began, status, has_result: answer.get("result").is_some() }
}

/// Calls twice a second, until a call that began after the broker was back is answered.
async fn work(
    client: Client,
    url: String,
    token: String,
    id: String,
    mut back: watch::Receiver<Option<Instant>>,
) -> Vec<Call> {
    let mut calls = Vec::new();
    loop {
        let call = echo(&client, &url, &token, &id).await;
        let since = *back.borrow_and_update();
        let is_served = since.is_some_and(|back| call.began > back);
        calls.push(call);
        if is_served {
            return calls;
        }
        let _ = timeout(Duration::from_millis(500), back.changed()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_all_come_at_once_and_all_come_back_after_a_restart_are_all_served() {
    let mut deployment = deployment("bursts");
    let tokens = tokio::task::block_in_place(|| tokens(&deployment));
    let url = deployment.url.clone();
    // All at the same moment.
    let together = Arc::new(Barrier::new(USERS));
    let opening: Vec<_> = tokens
        .into_iter()
        .map(|token| {
            let (client, url, together) = (http(), url.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                let id = open(&client, &url, &token).await;
                (client, token, id)
            })
        })
        .collect();
    let (came_back, back) = watch::channel(None);
    let mut working = Vec::new();
    for opening in opening {
        let (client, token, id) = opening.await.expect("no panic");
        working.push(tokio::spawn(work(client, url.clone(), token, id.expect("a session"), back.clone())));
    }
    // The broker is restarted meanwhile, so that every child has to be started again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    tokio::task::block_in_place(|| {
        let status = deployment.broker.as_mut().expect("runs").stop().expect("it ends");
        assert!(status.success(), "{status}");
        deployment.start_broker().expect("it starts again");
    });
    came_back.send_replace(Some(Instant::now()));
    let (mut answered, mut errors) = (0, BTreeMap::<u16, usize>::new());
    for working in working {
        let calls = working.await.expect("no panic");
        assert!(calls.last().is_some_and(|call| call.has_result), "somebody is not served any more: {calls:?}");
        assert!(calls.iter().all(|call| !matches!(call.status, 404 | 410)), "a session is lost: {calls:?}");
        assert!(calls.iter().all(|call| call.status != 429), "a burst is refused: {calls:?}");
        // What was in flight at the very end of the old broker may have its error, or on a busy machine, where the stop
        // reaches its bounds, a closed connection. Who comes later waits for the new one.
        let failed: Vec<_> = calls.iter().filter(|call| !call.has_result).collect();
        assert!(failed.len() <= 1, "one restart is felt more than once: {failed:?}");
        answered += calls.iter().filter(|call| call.has_result).count();
        for call in failed {
            *errors.entry(call.status).or_default() += 1;
        }
    }
    println!("bursts: {answered} answered, with an error while the broker was stopping: {errors:?}");
}
