//! `subscriptions/listen`: acknowledged with what the child tells of, filtered, and over when the child stops.

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{Fixture, body, caller, config, events, header};
use crate::tests::stateless::fixture::{SUBSCRIPTION, call, next_event, request};

#[expect(clippy::needless_pass_by_value, reason = "as `json!` makes it")]
fn listen(id: &str, notifications: Value) -> Value {
    request(id, "subscriptions/listen", json!({"notifications": notifications}))
}

async fn translated(fixture: &mut Fixture, id: &str, notifications: Value) -> (BodyDataStream, FakeChild) {
    let asking = fixture.asking(&caller(1, "g1"), &listen(id, notifications));
    let mut child = fixture.child().await;
    child.speaks_sessions(json!({"tools": {"listChanged": true}, "resources": {"subscribe": true}})).await;
    let response = asking.await.expect("no panic");
    assert_eq!(header(&response, "content-type"), Some("text/event-stream"));
    (response.into_body().into_data_stream(), child)
}

#[tokio::test(start_paused = true)]
async fn of_a_child_of_the_session_era_the_broker_keeps_the_filter() {
    let mut fixture = Fixture::new(config()).await;
    let wanted = json!({"toolsListChanged": true, "promptsListChanged": true, "resourceSubscriptions": ["a:1"]});
    let (mut stream, mut child) = translated(&mut fixture, "s", wanted).await;
    let mut text = String::new();
    let first = next_event(&mut stream, &mut text).await.expect("the acknowledgment");
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(first["params"]["notifications"], json!({"toolsListChanged": true, "resourceSubscriptions": ["a:1"]}));
    assert_eq!(first["params"]["_meta"][SUBSCRIPTION], "s");
    let subscribed = child.hears().await.expect("a subscription");
    assert_eq!((&subscribed["method"], &subscribed["params"]["uri"]), (&json!("resources/subscribe"), &json!("a:1")));
    for (method, params) in [
        ("notifications/resources/list_changed", json!({})),
        ("notifications/tools/list_changed", json!({})),
        ("notifications/resources/updated", json!({"uri": "b:1"})),
        ("notifications/resources/updated", json!({"uri": "a:1"})),
    ] {
        child.says(json!({"jsonrpc": "2.0", "method": method, "params": params})).await;
    }
    let changed = next_event(&mut stream, &mut text).await.expect("a change");
    assert_eq!(changed["method"], "notifications/tools/list_changed");
    assert_eq!(changed["params"]["_meta"][SUBSCRIPTION], "s");
    let updated = next_event(&mut stream, &mut text).await.expect("an update");
    assert_eq!(updated["params"], json!({"uri": "a:1", "_meta": {SUBSCRIPTION: "s"}}));
    drop(stream);
    let gone = child.hears().await.expect("the end of the subscription");
    assert_eq!((&gone["method"], &gone["params"]["uri"]), (&json!("resources/unsubscribe"), &json!("a:1")));
}

#[tokio::test(start_paused = true)]
async fn for_what_the_child_has_not_it_is_acknowledged_with_nothing_and_over_at_once() {
    for relays in [true, false] {
        let mut fixture = Fixture::new(config()).await;
        let asking = fixture.asking(&caller(1, "g1"), &listen("s", json!({"toolsListChanged": true})));
        let mut child = fixture.child().await;
        child.speaks(relays, json!({"tools": {}})).await;
        let events = events(asking.await.expect("no panic")).await;
        assert_eq!(events.len(), 2, "{events:?}");
        assert_eq!(events[0]["params"], json!({"_meta": {SUBSCRIPTION: "s"}, "notifications": {}}));
        assert_eq!((&events[1]["id"], &events[1]["result"]["resultType"]), (&json!("s"), &json!("complete")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_speaks_the_revision_listens_for_itself_and_hears_of_the_end() {
    let mut fixture = Fixture::new(config()).await;
    let asking = fixture.asking(&caller(1, "g1"), &listen("s", json!({"toolsListChanged": true})));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {"listChanged": true}})).await;
    let heard = child.hears().await.expect("the listen");
    let tagged = |method: &str| {
        let meta = json!({SUBSCRIPTION: heard["id"]});
        json!({"jsonrpc": "2.0", "method": method, "params": {"_meta": meta, "notifications": {"toolsListChanged": true}}})
    };
    child.says(tagged("notifications/subscriptions/acknowledged")).await;
    child.says(json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})).await;
    child.says(tagged("notifications/tools/list_changed")).await;
    let mut stream = asking.await.expect("no panic").into_body().into_data_stream();
    let mut text = String::new();
    for method in ["notifications/subscriptions/acknowledged", "notifications/tools/list_changed"] {
        let event = next_event(&mut stream, &mut text).await.expect("an event");
        assert_eq!((&event["method"], &event["params"]["_meta"][SUBSCRIPTION]), (&json!(method), &json!("s")));
    }
    drop(stream);
    let told = child.hears().await.expect("a cancellation");
    assert_eq!((&told["method"], &told["params"]["requestId"]), (&json!("notifications/cancelled"), &heard["id"]));
}

#[tokio::test(start_paused = true)]
async fn of_what_a_child_acknowledges_with_nothing_the_client_hears_the_end_and_the_child_too() {
    let mut fixture = Fixture::new(config()).await;
    let asking = fixture.asking(&caller(1, "g1"), &listen("s", json!({"unheardOf": true})));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {"listChanged": true}})).await;
    let heard = child.hears().await.expect("the listen");
    let params = json!({"_meta": {SUBSCRIPTION: heard["id"]}, "notifications": {}});
    child.says(json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params})).await;
    let over = tokio::time::timeout(Duration::from_secs(30), events(asking.await.expect("no panic"))).await;
    let events = over.expect("it does not go on");
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[0]["params"], json!({"_meta": {SUBSCRIPTION: "s"}, "notifications": {}}));
    assert_eq!((&events[1]["id"], &events[1]["result"]["resultType"]), (&json!("s"), &json!("complete")));
    let told = child.hears().await.expect("a cancellation");
    assert_eq!((&told["method"], &told["params"]["requestId"]), (&json!("notifications/cancelled"), &heard["id"]));
}

#[tokio::test(start_paused = true)]
async fn a_childs_own_refusal_keeps_its_status() {
    let mut fixture = Fixture::new(config()).await;
    let asking = fixture.asking(&caller(1, "g1"), &listen("s", json!({"toolsListChanged": true})));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {"listChanged": true}})).await;
    let heard = child.hears().await.expect("the listen");
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "error": {"code": -32601, "message": "no"}})).await;
    let refused = asking.await.expect("no panic");
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    assert_eq!(body(refused).await["id"], "s");
}

#[tokio::test(start_paused = true)]
async fn it_keeps_no_child_and_ends_with_a_result_when_that_stops() {
    let mut fixture = Fixture::new(config()).await;
    let (mut stream, mut child) = translated(&mut fixture, "s", json!({"toolsListChanged": true})).await;
    let mut text = String::new();
    next_event(&mut stream, &mut text).await.expect("the acknowledgment");
    assert_eq!(fixture.registry.warm_children().first().map(|child| child.in_flight), Some(0));
    tokio::time::advance(Duration::from_secs(301)).await;
    fixture.registry.sweep().await;
    child.is_stopped().await;
    let last = next_event(&mut stream, &mut text).await.expect("an end");
    assert_eq!((&last["id"], &last["result"]["_meta"][SUBSCRIPTION]), (&json!("s"), &json!("s")));
    assert_eq!(next_event(&mut stream, &mut text).await, None);
}

#[tokio::test(start_paused = true)]
async fn listens_beyond_the_bound_are_refused_and_those_that_hung_up_make_room() {
    let mut fixture = Fixture::new(config()).await;
    let (stream, mut child) = translated(&mut fixture, "0", json!({"toolsListChanged": true})).await;
    let alice = caller(1, "g1");
    let mut open = vec![stream];
    for n in 1..32 {
        let response = fixture.ask(&alice, &listen(&n.to_string(), json!({"toolsListChanged": true}))).await;
        open.push(response.into_body().into_data_stream());
    }
    let refused = fixture.ask(&alice, &listen("more", json!({"toolsListChanged": true}))).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(body(refused).await["id"], "more");
    let calling = fixture.asking(&alice, &call(1, "t"));
    child.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK, "calls have places of their own");
    open.pop();
    let next = fixture.ask(&alice, &listen("more", json!({"toolsListChanged": true}))).await;
    assert_eq!(next.status(), StatusCode::OK);
}
