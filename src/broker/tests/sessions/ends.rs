//! Every request is answered exactly once, however its child ends.

use crate::auth::principal::Principal;
use axum::http::StatusCode;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use wire::ending::{Ending, Limit, Whose};
use wire::message::Exit;

use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, initialize};

/// Asks until the session is unknown; each other answer shows that its end is still on the way.
pub(crate) async fn until_unknown(fixture: &Fixture, caller: &Principal, id: &str) {
    while fixture.registry.find(id, caller).is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_crashes_answers_every_pending_request_with_its_own_id_and_ends_the_session() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let number = fixture.posting(&alice, Some(&id), call(7, "a"));
    let text = fixture.posting(&alice, Some(&id), call("7", "b"));
    child.hears().await.expect("one");
    child.hears().await.expect("the other");
    child.ends(Exit::Signal(9));
    for (calling, own) in [(number, json!(7)), (text, json!("7"))] {
        let response = calling.await.expect("no panic");
        assert_eq!(response.status(), StatusCode::OK);
        let answer = body(response).await;
        assert_eq!(answer["id"], own);
        assert!(answer["error"]["message"].as_str().expect("a message").contains("signal 9"));
    }
    until_unknown(&fixture, &alice, &id).await;
    assert_eq!(fixture.registry.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_is_told_which_limit_ended_its_child_also_where_the_pipes_close_first() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    for (close_input, limit, words) in [
        (
            false,
            Limit::Memory { whose: Whose::User, bytes: 512 << 20 },
            "killed: memory limit 512 MiB of this user reached",
        ),
        (true, Limit::CpuTime { seconds: 60 }, "killed: CPU limit 60 s of a process reached"),
    ] {
        let (id, mut child) = fixture.open(&alice).await;
        let calling = fixture.posting(&alice, Some(&id), call(1, "big"));
        child.hears().await.expect("the call");
        if close_input {
            child.closes_its_input();
        }
        child.ends(Ending { limit: Some(limit), ..Ending::from(Exit::Signal(9)) });
        let answer = body(calling.await.expect("no panic")).await;
        let message = answer["error"]["message"].as_str().expect("a message");
        assert_eq!(message, format!("the forgejo-mcp process ended ({words}) before it answered"));
        until_unknown(&fixture, &alice, &id).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_child_said_before_it_ended_is_not_lost() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "last"));
    child.answers(json!({"last": "words"})).await;
    child.ends(Exit::Code(0));
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["last"], "words");
}

#[tokio::test(start_paused = true)]
async fn a_lost_supervisor_fails_what_is_pending_and_keeps_the_session() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    child.hears().await.expect("the call");
    child.loses_the_supervisor();
    assert!(body(calling.await.expect("no panic")).await["error"].is_object());
    let again = fixture.posting(&alice, Some(&id), call(2, "x"));
    let mut next = fixture.child().await;
    next.comes_up().await;
    next.answers(json!({"back": true})).await;
    assert_eq!(body(again.await.expect("no panic")).await["result"]["back"], true);
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_requests_finish_stops_every_child_and_keeps_the_records() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut busy) = fixture.open(&alice).await;
    let (_, mut idle) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let heard = busy.hears().await.expect("the call");
    let registry = fixture.registry.clone();
    let stopping = tokio::spawn(async move { registry.shut_down(Duration::from_secs(30)).await });
    busy.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"done": true}})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["done"], true);
    busy.is_stopped().await;
    idle.is_stopped().await;
    stopping.await.expect("no panic");
    assert_eq!(fixture.registry.counts().1, 0);
    assert_eq!(fixture.post(&alice, None, initialize()).await.status(), StatusCode::SERVICE_UNAVAILABLE);

    let mut after = Fixture::over(config(), fixture.records.clone()).await;
    let again = after.posting(&alice, Some(&id), call(2, "x"));
    let mut next = after.child().await;
    assert_eq!(next.welcomes().await["params"], initialize()["params"], "the recorded initialize");
    next.hears().await.expect("initialized");
    next.answers(json!({})).await;
    assert_eq!(again.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn shutdown_answers_what_does_not_finish_in_time_with_an_error() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call("slow", "x"));
    child.hears().await.expect("the call");
    let registry = fixture.registry.clone();
    let stopping = tokio::spawn(async move { registry.shut_down(Duration::from_secs(3)).await });
    child.is_stopped().await;
    let answer = body(calling.await.expect("no panic")).await;
    assert_eq!(answer["id"], "slow");
    assert!(answer["error"].is_object());
    stopping.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn with_respawn_the_session_outlives_its_child_until_it_falls_too_often() {
    let mut config = config();
    config.respawn = true;
    let mut fixture = Fixture::new(config).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    for n in 1..=5 {
        child.ends(Exit::Signal(9));
        child = loop {
            let calling = fixture.posting(&alice, Some(&id), call(n, "x"));
            // A call that met the dying child is answered with an error; the next one starts another.
            let mut next = tokio::select! {
                next = fixture.child() => next,
                answer = calling => {
                    assert!(body(answer.expect("no panic")).await["error"].is_object());
                    continue;
                }
            };
            next.comes_up().await;
            next.hears().await.expect("the call");
            break next;
        };
    }
    child.ends(Exit::Signal(9));
    until_unknown(&fixture, &alice, &id).await;
}

/// A call of Alice's that its child hears and, because of what becomes of it then, never answers; what she is told.
async fn lost_call(fixture: &Fixture, id: &str, child: &mut FakeChild, becomes: impl FnOnce(&mut FakeChild)) -> String {
    let calling = fixture.posting(&caller(1, "g1"), Some(id), call(1, "x"));
    child.hears().await.expect("the call");
    becomes(child);
    body(calling.await.expect("no panic")).await["error"]["message"].as_str().expect("an error").to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_child_whose_pipes_close_before_a_busy_supervisor_tells_of_its_own_stop_takes_no_session_along() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    // Whoever waits is answered at once, before anybody knows whose doing it was.
    lost_call(&fixture, &id, &mut child, FakeChild::closes_its_output).await;
    assert!(child.is_asked_to_stop());
    child.loses_the_supervisor();
    let calling = fixture.posting(&alice, Some(&id), call(2, "x"));
    let mut next = fixture.child().await;
    next.comes_up().await;
    next.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK, "the session goes on");
}

#[tokio::test(start_paused = true)]
async fn a_child_that_ends_after_its_supervisor_has_said_that_it_stops_takes_no_session_along_however_late_its_end_is_told()
 {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let spawner = Arc::clone(&fixture.spawner);
    let ends = |child: &mut FakeChild| {
        spawner.leave();
        child.closes_its_output();
    };
    let told = lost_call(&fixture, &id, &mut child, ends).await;
    assert!(told.contains("supervisor"), "not the child's own doing: {told}");
    // Its end is never told: the next supervisor starts another one all the same.
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let coming = async {
        let mut next = fixture.children.recv().await.expect("a child is started");
        next.comes_up().await;
        next.answers(json!({})).await;
        next
    };
    let _next = tokio::time::timeout(Duration::from_secs(3), coming).await.expect("without waiting for the word");
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK, "the session goes on");
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_lost_during_its_handshake_has_not_refused_it() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    lost_call(&fixture, &id, &mut child, FakeChild::loses_the_supervisor).await;
    let calling = fixture.posting(&alice, Some(&id), call(2, "x"));
    let mut next = fixture.child().await;
    next.hears().await.expect("initialize");
    next.closes_its_output();
    next.loses_the_supervisor();
    let answer = body(calling.await.expect("no panic")).await;
    let message = answer["error"]["message"].as_str().expect("an error");
    assert!(message.contains("did not start") && !message.contains("refused"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn idle_children_go_when_the_supervisor_says_that_it_stops_and_busy_ones_with_their_last_answer() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut busy) = fixture.open(&alice).await;
    let (other, mut idle) = fixture.open(&alice).await;
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    let heard = busy.hears().await.expect("the call");
    fixture.spawner.leave();
    idle.is_stopped().await;
    assert!(!busy.is_asked_to_stop());
    busy.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"done": true}})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["done"], true);
    busy.is_stopped().await;
    for session in [id, other] {
        assert!(fixture.registry.find(&session, &alice).is_ok(), "no session is lost");
    }
}
