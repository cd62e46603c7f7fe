//! Stateless requests go to a warm child of their grant, under the rules of all children, and refuse what is not of their
//! revision without starting one.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::json;
use wire::clock::UnixTime;
use wire::message::Exit;

use crate::session::config::SessionConfig;
use crate::session::quota::Caps;
use crate::tests::sessions::fixture::{self, Fixture, body, caller, caller_until, config, initialize};
use crate::tests::stateless::fixture::{call, post, request};

#[tokio::test(start_paused = true)]
async fn a_grant_keeps_one_warm_child_and_shares_it_with_no_other() {
    let mut fixture = Fixture::new(config()).await;
    let (alice, again) = (caller(1, "g1"), caller(1, "g2"));
    let mut children = Vec::new();
    for who in [&alice, &again] {
        let asking = fixture.asking(who, &call(1, "t"));
        let mut child = fixture.child().await;
        child.speaks_both(json!({"tools": {}})).await;
        child.answers(json!({"resultType": "complete"})).await;
        assert_eq!(asking.await.expect("no panic").status(), StatusCode::OK);
        children.push(child);
    }
    assert_eq!(fixture.registry.counts(), (0, 2), "none of them is a session");
    assert_eq!(fixture.registry.stateless_of(&alice.grant), 1, "live on the page of the account");
    for (who, child) in [(&alice, 0), (&again, 1)] {
        let asking = fixture.asking(who, &call(2, "t"));
        children[child].answers(json!({"resultType": "complete"})).await;
        assert_eq!(body(asking.await.expect("no panic")).await["id"], 2);
    }
    let warm = fixture.registry.warm_children();
    assert_eq!(warm.iter().map(|child| child.grant.as_str()).collect::<Vec<_>>(), ["g1", "g2"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_revision_has_not_is_refused_without_a_child() {
    let fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let mut modern = initialize();
    modern["params"]["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    let refused = fixture.send(&alice, fixture::post(None, modern.to_string())).await;
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    let refused = body(refused).await;
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(0), &json!(-32601)));
    for (method, status, code) in [("ping", 404, -32601), ("tools/list", 400, -32602)] {
        let bare = json!({"jsonrpc": "2.0", "id": "b", "method": method});
        let refused = fixture.ask(&alice, &bare).await;
        assert_eq!(refused.status().as_u16(), status, "{method}");
        let refused = body(refused).await;
        assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!("b"), &json!(code)), "{method}");
    }
    let mut unknown = request(1, "tools/list", json!({}));
    unknown["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2027-01-01");
    let mut asked = post(&unknown);
    asked.headers_mut().insert("mcp-protocol-version", "2027-01-01".parse().expect("a header"));
    let error = body(fixture.send(&alice, asked).await).await["error"].clone();
    assert_eq!(error["data"], json!({"supported": ["2026-07-28"], "requested": "2027-01-01"}));
    let note = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    assert_eq!(fixture.ask(&alice, &note).await.status(), StatusCode::ACCEPTED);
    let answer = json!({"jsonrpc": "2.0", "id": 1, "result": {}});
    assert_eq!(fixture.ask(&alice, &answer).await.status(), StatusCode::BAD_REQUEST);
    for method in [Method::GET, Method::DELETE] {
        let bare = Request::builder().method(&method).uri("/mcp").header("mcp-protocol-version", "2026-07-28");
        let refused = fixture.send(&alice, bare.body(Body::empty()).expect("a request")).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    assert_eq!(fixture.registry.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_idle_child_is_stopped_and_forgotten_and_the_next_request_starts_one() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    for n in 0..2 {
        let asking = fixture.asking(&alice, &call(n, "t"));
        let mut child = fixture.child().await;
        child.speaks_both(json!({"tools": {}})).await;
        child.answers(json!({"resultType": "complete"})).await;
        assert_eq!(body(asking.await.expect("no panic")).await["id"], n);
        tokio::time::advance(Duration::from_secs(301)).await;
        fixture.registry.sweep().await;
        child.is_stopped().await;
        fixture.registry.sweep().await;
    }
    assert_eq!(fixture.registry.stateless_of(&alice.grant), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_keeps_its_child_while_it_is_open_and_no_longer() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &call(1, "t"));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}, "extensions": {"io.modelcontextprotocol/tasks": {}}})).await;
    let task = |kind, status| json!({"resultType": kind, "taskId": "t-1", "status": status, "ttlMs": 3_600_000});
    child.answers(task("task", "working")).await;
    assert_eq!(body(asking.await.expect("no panic")).await["result"]["taskId"], "t-1");
    tokio::time::advance(Duration::from_mins(20)).await;
    fixture.registry.sweep().await;
    assert!(!child.is_asked_to_stop(), "the task lives in it");
    let asking = fixture.asking(&alice, &request(2, "tasks/get", json!({"taskId": "t-1"})));
    child.answers(task("complete", "completed")).await;
    asking.await.expect("no panic");
    tokio::time::advance(Duration::from_secs(301)).await;
    fixture.registry.sweep().await;
    assert!(child.is_asked_to_stop());
}

#[tokio::test(start_paused = true)]
async fn a_child_that_ends_answers_its_requests_and_the_next_request_gets_another() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &call("x", "t"));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    child.hears().await.expect("the call");
    child.ends(Exit::Code(1));
    let answer = body(asking.await.expect("no panic")).await;
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!("x"), &json!(-32603)));
    let asking = fixture.asking(&alice, &call(2, "t"));
    let mut next = fixture.child().await;
    next.speaks_both(json!({"tools": {}})).await;
    next.answers(json!({"resultType": "complete"})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["id"], 2);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_grant_stops_its_child_and_a_revoked_one_gets_none() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &call(1, "t"));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    child.answers(json!({"resultType": "complete"})).await;
    asking.await.expect("no panic");
    fixture.registry.end_grant(&alice.grant, "revoked");
    assert!(child.is_asked_to_stop());
    let late = fixture.asking(&caller(1, "revoked"), &call(2, "t"));
    let mut started = fixture.child().await;
    started.is_stopped().await;
    let refused = late.await.expect("no panic");
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(body(refused).await["id"], 2);
}

#[tokio::test(start_paused = true)]
async fn rotation_replaces_the_child_unless_it_holds_what_the_next_could_not_know() {
    let mut fixture = Fixture::new(config()).await;
    let now = fixture.clock.now();
    let ends = |seconds: u64| Some(UnixTime::from_secs(now.secs() + i64::try_from(seconds).expect("small")));
    let (before, after) = (caller_until(1, "g1", "first", ends(600)), caller_until(1, "g1", "second", ends(3600)));
    let asking = fixture.asking(&before, &call(1, "t"));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    child.answers(json!({"resultType": "task", "taskId": "t", "status": "working", "ttlMs": 60_000})).await;
    asking.await.expect("no panic");
    fixture.registry.rotate(&after, Duration::ZERO);
    let asking = fixture.asking(&after, &request(2, "tasks/get", json!({"taskId": "t"})));
    child.answers(json!({"resultType": "complete", "taskId": "t", "status": "completed", "ttlMs": 60_000})).await;
    asking.await.expect("no panic");
    fixture.registry.rotate(&after, Duration::ZERO);
    let mut next = fixture.child().await;
    next.speaks_both(json!({"tools": {}})).await;
    child.is_stopped().await;
    let asking = fixture.asking(&after, &call(3, "t"));
    next.answers(json!({"resultType": "complete"})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["id"], 3);
}

#[tokio::test(start_paused = true)]
async fn a_user_at_the_cap_on_children_loses_the_one_that_is_idle_and_else_is_told_when_time_is_over() {
    let children = Caps { total: 100, per_user: 1 };
    let mut fixture = Fixture::new(SessionConfig { children, ..config() }).await;
    let alice = caller(1, "g1");
    let (_session, mut of_session) = fixture.open(&alice).await;
    let asking = fixture.asking(&alice, &call(1, "t"));
    of_session.is_stopped().await;
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    child.hears().await.expect("the call");
    // Its time is over before that of the call that is in its way.
    fixture.registry.reconfigure(SessionConfig { children, request_timeout: Duration::from_mins(1), ..config() });
    let refused = fixture.ask(&caller(1, "g2"), &call(2, "t")).await;
    let refused = fixture::text(refused).await;
    assert!(refused.starts_with(' '), "it waited, and its client was told");
    assert!(refused.contains("until its time was over"), "{refused}");
    drop(asking);
}

#[tokio::test(start_paused = true)]
async fn many_that_come_to_a_cold_grant_start_one_child() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking: Vec<_> = (0..5).map(|n| fixture.asking(&alice, &call(n, "t"))).collect();
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    for _ in 0..5 {
        child.answers(json!({"resultType": "complete"})).await;
    }
    for (n, asking) in asking.into_iter().enumerate() {
        assert_eq!(body(asking.await.expect("no panic")).await["id"], n);
    }
    assert!(fixture.children.try_recv().is_err());
}
