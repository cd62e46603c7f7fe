//! A stateless client cancels by hanging up: the child hears of it, and the place of the request is free.

use serde_json::json;

use crate::tests::sessions::fixture::{Fixture, body, caller, config};
use crate::tests::stateless::fixture::{call, next_event, request};

#[tokio::test(start_paused = true)]
async fn hanging_up_before_the_answer_has_begun_cancels() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &call(1, "t"));
    let mut child = fixture.child().await;
    child.speaks_both(json!({"tools": {}})).await;
    let heard = child.hears().await.expect("the call");
    asking.abort();
    let told = child.hears().await.expect("a cancellation");
    assert_eq!((&told["method"], &told["params"]["requestId"]), (&json!("notifications/cancelled"), &heard["id"]));
    let warm = fixture.registry.warm_children();
    assert_eq!(warm.iter().map(|child| child.in_flight).collect::<Vec<_>>(), [0]);
    // A late answer is nobody's.
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {"resultType": "complete"}})).await;
    let asking = fixture.asking(&alice, &call(2, "t"));
    child.answers(json!({"resultType": "complete"})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["id"], 2);
}

#[tokio::test(start_paused = true)]
async fn closing_the_stream_cancels_whichever_era_the_child_speaks() {
    for relays in [true, false] {
        let mut fixture = Fixture::new(config()).await;
        let alice = caller(1, "g1");
        let calling = request(1, "tools/call", json!({"name": "t", "_meta": {"progressToken": "p"}}));
        let asking = fixture.asking(&alice, &calling);
        let mut child = fixture.child().await;
        child.speaks(relays, json!({"tools": {}})).await;
        let heard = child.hears().await.expect("the call");
        let progress = json!({"progressToken": heard["params"]["_meta"]["progressToken"], "progress": 1});
        child.says(json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": progress})).await;
        let mut stream = asking.await.expect("no panic").into_body().into_data_stream();
        let event = next_event(&mut stream, &mut String::new()).await.expect("progress");
        assert_eq!(event["method"], "notifications/progress");
        drop(stream);
        let told = child.hears().await.expect("a cancellation");
        assert_eq!((&told["method"], &told["params"]["requestId"]), (&json!("notifications/cancelled"), &heard["id"]));
    }
}
