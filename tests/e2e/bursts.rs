//! Many users at once, with the default caps: everybody waits in line and nobody is refused.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Barrier;

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
async fn open(url: &str, token: &str) -> Result<String, u16> {
    let response = post(&http(), url, token, None, &initialize()).await.expect("an answer");
    let id = response.headers().get("mcp-session-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let status = response.status().as_u16();
    id.ok_or(status)
}

/// One call; the status (0 where the connection was closed on it), and whether it was answered with a result.
async fn echo(url: &str, token: &str, id: &str) -> (u16, bool) {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "echo", "arguments": {"text": "x"}}});
    let Ok(response) = post(&http(), url, token, Some(id), &call).await else { return (0, false) };
    let status = response.status().as_u16();
    let answer: Value = message(response).await.unwrap_or_default();
    (status, answer.get("result").is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_all_come_at_once_and_all_come_back_after_a_restart_are_all_served() {
    let mut deployment = deployment("bursts");
    let tokens = tokio::task::block_in_place(|| tokens(&deployment));
    let url = deployment.url.clone();
    // All at the same moment.
    let together = Arc::new(Barrier::new(USERS));
    let opening: Vec<_> = tokens
        .iter()
        .map(|token| {
            let (url, token, together) = (url.clone(), token.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                open(&url, &token).await
            })
        })
        .collect();
    let mut sessions = Vec::new();
    for (opening, token) in opening.into_iter().zip(&tokens) {
        sessions.push((token.clone(), opening.await.expect("no panic").expect("a session")));
    }
    // Twice a second each, while the broker is restarted: every child has to be started again.
    let until = Instant::now() + Duration::from_secs(12);
    let calling: Vec<_> = sessions
        .into_iter()
        .map(|(token, id)| {
            let url = url.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while Instant::now() < until {
                    seen.push(echo(&url, &token, &id).await);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                seen
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    tokio::task::block_in_place(|| {
        let status = deployment.broker.as_mut().expect("runs").stop().expect("it ends");
        assert!(status.success(), "{status}");
        deployment.start_broker().expect("it starts again");
    });
    let (mut answered, mut errors) = (0, std::collections::BTreeMap::<u16, usize>::new());
    for calling in calling {
        let seen = calling.await.expect("no panic");
        assert!(seen.last().is_some_and(|(_, result)| *result), "somebody is not served any more: {seen:?}");
        for (status, result) in seen {
            assert!(!matches!(status, 404 | 410), "a session is lost");
            assert!(status != 429, "a burst is refused: {status}");
            if result { answered += 1 } else { *errors.entry(status).or_default() += 1 }
        }
    }
    println!("bursts: {answered} answered, with an error while the broker was stopping: {errors:?}");
    assert!(answered > USERS, "{answered} answered only");
    // What was in flight in the last half second of the old broker may have its error, or on a busy machine, where the
    // stop reaches its bounds, a closed connection; nothing after that.
    assert!(errors.values().sum::<usize>() <= USERS, "{errors:?}");
}
