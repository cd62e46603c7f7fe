//! A client with a session outlives what its child or a quota does, and whoever is refused hears of the very request.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};
use wire::message::Refusal;

use crate::budget::BudgetCaps;
use crate::child::spawner::SpawnError;
use crate::session::quota::Caps;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, header, request, text};

/// A body whose pieces come after a pause each; what comes after them never does, unless they are all.
pub(crate) fn in_pieces(session: Option<&str>, pieces: Vec<Vec<u8>>, pause: Duration, ends: bool) -> Request<Body> {
    let pieces = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, std::io::Error>(Bytes::from(piece))
    });
    let body = if ends { Body::from_stream(pieces) } else { Body::from_stream(pieces.chain(stream::pending())) };
    request(Method::POST, session).header("content-type", "application/json").body(body).expect("a request")
}

#[tokio::test(start_paused = true)]
async fn a_request_of_a_session_whose_child_finds_no_place_is_an_error_and_no_status() {
    let mut config = config();
    config.children = Caps { total: 9, per_user: 1 };
    // Before an answer is begun.
    config.request_timeout = Duration::from_secs(5);
    let mut fixture = Fixture::new(config).await;
    let alice = caller(1, "g1");
    let (cold, mut first) = fixture.open(&alice).await;
    let stopped = tokio::spawn(async move { first.is_stopped().await });
    let (warm, mut child) = fixture.open(&alice).await;
    stopped.await.expect("no panic");
    let _calling = fixture.posting(&alice, Some(&warm), call(1, "slow"));
    child.hears().await.expect("the call");
    let refused = fixture.post(&alice, Some(&cold), call("r", "x")).await;
    assert_eq!((refused.status(), header(&refused, "retry-after")), (StatusCode::OK, None));
    let answer = body(refused).await;
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!("r"), &json!(-32000)), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_child_the_supervisor_refuses_goes_on_and_says_when_to_try_again() {
    let mut config = config();
    config.request_timeout = Duration::from_secs(5);
    let mut fixture = Fixture::new(config).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    child.loses_the_supervisor();
    crate::tests::sessions::starts::until_cold(&fixture).await;
    for (error, when) in [
        (SpawnError::Refused(Refusal::ChildrenOfTenant { retry_after_ms: 1200 }), "try again in 2 s"),
        (SpawnError::Unreachable, "try again in"),
    ] {
        fixture.spawner.refuse(Some(error));
        let refused = fixture.post(&alice, Some(&id), call("r", "x")).await;
        assert_eq!(refused.status(), StatusCode::OK, "{error:?}");
        let answer = body(refused).await;
        assert_eq!(answer["id"], "r");
        assert!(answer["error"]["message"].as_str().expect("text").contains(when), "{answer}");
    }
    fixture.spawner.refuse(None);
    let calling = fixture.posting(&alice, Some(&id), call(2, "x"));
    let mut next = fixture.child().await;
    next.comes_up().await;
    next.answers(json!({"ok": 1})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["ok"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_for_which_there_is_no_memory_is_refused_with_the_id_that_its_client_wrote_last() {
    let mut config = config();
    config.memory = BudgetCaps { total: 8 << 20, per_user: 64 * 1024 };
    let mut fixture = Fixture::new(config).await;
    let alice = caller(1, "g1");
    let (id, _child) = fixture.open(&alice).await;
    let _held = fixture.sending(&alice, in_pieces(None, vec![vec![b' '; 60_000]], Duration::ZERO, false));
    while fixture.registry.budgets().used() < 60_000 {
        tokio::task::yield_now().await;
    }
    let large = || {
        let head = format!(r#"{{"method":"tools/call","params":{{"text":"{}"#, "x".repeat(20_000)).into_bytes();
        vec![head, vec![b'y'; 20_000], br#""},"jsonrpc":"2.0","id":"last"}"#.to_vec()]
    };
    let refused = fixture.send(&alice, in_pieces(Some(&id), large(), Duration::from_millis(1), true)).await;
    assert_eq!(refused.status(), StatusCode::OK);
    let answer = body(refused).await;
    assert_eq!(answer["id"], "last");
    assert!(answer["error"]["message"].as_str().expect("text").contains("65536 bytes"), "{answer}");
    // Where no session could die of it, the status says it, and nothing more is read.
    let refused = fixture.send(&alice, in_pieces(None, large(), Duration::from_millis(1), true)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(!text(refused).await.contains("jsonrpc"));
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_no_error_and_a_silent_one_is_408_with_the_id_that_came() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let message = call(7, "slow").to_string();
    let bytes: Vec<_> = message.as_bytes().chunks(8).map(<[u8]>::to_vec).collect();
    let pause = Duration::from_secs(250) / u32::try_from(bytes.len()).expect("few");
    let calling = fixture.sending(&alice, in_pieces(Some(&id), bytes, pause, true));
    child.answers(json!({"ok": 1})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["ok"], 1);
    for (begun, id_of_it) in [(r#"{"id":7,"method":"#, json!(7)), (r#"{"method":"#, Value::Null)] {
        let silent = in_pieces(Some(&id), vec![begun.as_bytes().to_vec()], Duration::ZERO, false);
        let asked = tokio::time::Instant::now();
        let refused = fixture.send(&alice, silent).await;
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(header(&refused, "connection"), Some("close"));
        assert_eq!(asked.elapsed(), Duration::from_secs(30), "by a clock that only waits move");
        assert_eq!(body(refused).await["id"], id_of_it);
    }
    // However it flows, the whole request has its deadline.
    let endless = in_pieces(Some(&id), vec![b" ".to_vec(); 100], Duration::from_secs(20), true);
    assert_eq!(fixture.send(&alice, endless).await.status(), StatusCode::REQUEST_TIMEOUT);
}
