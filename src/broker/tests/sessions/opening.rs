//! A session is opened by a successful `initialize`, and by nothing else.

use crate::child::spawner::SpawnError;
use axum::http::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use wire::message::{Exit, Refusal, StartStep};

use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, header, initialize, session_of};

#[tokio::test(start_paused = true)]
async fn initialize_starts_a_child_and_the_answer_carries_a_new_id() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let opening = fixture.posting(&alice, None, initialize());
    let mut child = fixture.child().await;
    assert_eq!(child.order.tenant, alice.tenant);
    assert_eq!(child.order.token, alice.upstream);
    let heard = child.welcomes().await;
    assert_eq!(heard["params"], initialize()["params"]);
    let response = opening.await.expect("no panic");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    let id = session_of(&response).expect("an id");
    assert_eq!(id.len(), 48, "192 bits in hex");
    let answer = body(response).await;
    assert_eq!(answer["id"], 0, "the client's own id, type included");
    assert_eq!(answer["result"]["protocolVersion"], "2025-06-18");
    assert_eq!(fixture.registry.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn later_requests_with_the_id_reach_the_same_child() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    for n in 1..=3 {
        let calling = fixture.posting(&alice, Some(&id), call(n, "whoami"));
        child.answers(json!({"n": n})).await;
        let answer = body(calling.await.expect("no panic")).await;
        assert_eq!(answer["result"]["n"], n);
    }
    assert_eq!(fixture.spawner.spawned.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn two_sessions_of_one_user_have_a_child_each() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (first, _one) = fixture.open(&alice).await;
    let (second, _two) = fixture.open(&alice).await;
    assert_ne!(first, second);
    assert_eq!(fixture.registry.counts(), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_refuses_initialize_leaves_no_session_and_its_error_reaches_the_client() {
    let mut fixture = Fixture::new(config()).await;
    let opening = fixture.posting(&caller(1, "g1"), None, initialize());
    let mut child = fixture.child().await;
    let heard = child.hears().await.expect("initialize");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -32602, "message": "no"}})).await;
    let response = opening.await.expect("no panic");
    assert_eq!(session_of(&response), None);
    assert_eq!(body(response).await["error"]["message"], "no");
    child.is_stopped().await;
    assert_eq!(fixture.registry.counts().0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_dies_before_it_answers_is_an_error_that_says_so_without_the_token() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let opening = fixture.posting(&alice, None, initialize());
    let mut child = fixture.child().await;
    child.hears().await.expect("initialize");
    let wrote = format!("FATAL \x1b[31mtoken\x1b[0m {} is bad\n", alice.upstream.expose());
    child.stderr.as_mut().expect("open").write_all(wrote.as_bytes()).await.expect("drained");
    child.ends(Exit::Code(1));
    let response = opening.await.expect("no panic");
    assert_eq!(response.status(), StatusCode::OK, "clients survive a JSON-RPC error, some not a status");
    assert_eq!(session_of(&response), None);
    let answer = body(response).await;
    assert_eq!(answer["id"], 0);
    let message = answer["error"]["message"].as_str().expect("a message");
    assert!(message.contains("exit status 1"), "{message}");
    assert!(message.contains("FATAL token [redacted] is bad"), "{message}");
    assert_eq!(fixture.registry.counts().0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_never_answers_initialize_is_stopped_after_the_limit() {
    let mut fixture = Fixture::new(config()).await;
    let opening = fixture.posting(&caller(1, "g1"), None, initialize());
    let mut child = fixture.child().await;
    child.hears().await.expect("initialize");
    let response = opening.await.expect("no panic");
    assert!(body(response).await["error"]["message"].as_str().expect("a message").contains("in time"));
    child.is_stopped().await;
    assert_eq!(fixture.registry.counts().0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_during_initialize_leaves_no_child() {
    let mut fixture = Fixture::new(config()).await;
    let opening = fixture.posting(&caller(1, "g1"), None, initialize());
    let mut child = fixture.child().await;
    child.hears().await.expect("initialize");
    opening.abort();
    child.is_stopped().await;
    assert_eq!(fixture.registry.counts().0, 0);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_supervisor_is_503_with_retry_after_and_heals_by_itself() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    fixture.spawner.refuse(Some(SpawnError::Unreachable));
    let response = fixture.post(&alice, None, initialize()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(&response, "retry-after"), Some("2"));
    assert_eq!(body(response).await["id"], 0);
    fixture.spawner.refuse(None);
    fixture.open(&alice).await;
}

#[tokio::test(start_paused = true)]
async fn the_supervisors_refusals_keep_their_meaning() {
    let fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let table = [
        (Refusal::ChildrenOfTenant { retry_after_ms: 1200 }, 429, Some("2")),
        (Refusal::ChildrenTotal { retry_after_ms: 1 }, 503, Some("1")),
        (Refusal::SpawnRate { retry_after_ms: 4000 }, 503, Some("4")),
        (Refusal::NoFreeUid { retry_after_ms: 9000 }, 503, Some("9")),
        (Refusal::ShuttingDown, 503, Some("1")),
        (Refusal::StartFailed { step: StartStep::Exec, errno: 2 }, 200, None),
    ];
    for (refusal, status, retry_after) in table {
        fixture.spawner.refuse(Some(SpawnError::Refused(refusal)));
        let response = fixture.post(&alice, None, initialize()).await;
        assert_eq!(response.status().as_u16(), status, "{refusal:?}");
        assert_eq!(header(&response, "retry-after"), retry_after, "{refusal:?}");
        assert!(body(response).await["error"]["message"].as_str().expect("a message").contains(refusal.code()));
    }
}
