//! What a child of the session era asks in the middle of a call becomes an answer of that call, and the call goes on when its
//! client comes back.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::auth::principal::Principal;
use crate::tests::sessions::backend::FakeChild;
use crate::tests::sessions::fixture::{Fixture, body, caller, config};
use crate::tests::stateless::fixture::request_by;

fn able(id: impl Into<Value>, params: Value) -> Value {
    request_by(id, "tools/call", params, json!({"elicitation": {}}))
}

/// A call in which the child has asked: the answer's result, the child, and the number of the call.
async fn asked(fixture: &mut Fixture, alice: &Principal) -> (Value, FakeChild, Value) {
    let asking = fixture.asking(alice, &able("first", json!({"name": "t"})));
    let mut child = fixture.child().await;
    child.speaks_sessions(json!({"tools": {}})).await;
    let heard = child.hears().await.expect("the call");
    child
        .says(json!({"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": {"message": "who?"}}))
        .await;
    let answer = body(asking.await.expect("no panic")).await;
    assert_eq!((&answer["id"], &answer["result"]["resultType"]), (&json!("first"), &json!("input_required")));
    (answer["result"].clone(), child, heard["id"].clone())
}

/// The parameters of the call that brings an answer.
fn back(result: &Value, answer: &Value) -> Value {
    let key = result["inputRequests"].as_object().expect("questions").keys().next().expect("one");
    json!({"name": "t", "requestState": result["requestState"], "inputResponses": {key: answer}})
}

#[tokio::test(start_paused = true)]
async fn the_question_comes_as_an_answer_and_the_call_goes_on_with_what_is_brought() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (result, mut child, number) = asked(&mut fixture, &alice).await;
    let question = result["inputRequests"].as_object().expect("questions").values().next().expect("one");
    assert_eq!(*question, json!({"method": "elicitation/create", "params": {"message": "who?"}}));
    let given = json!({"action": "accept", "content": {"name": "me"}});
    let asking = fixture.asking(&alice, &able("second", back(&result, &given)));
    let told = child.hears().await.expect("the answer");
    assert_eq!(told, json!({"jsonrpc": "2.0", "id": "q", "result": given}));
    child.says(json!({"jsonrpc": "2.0", "id": number, "result": {"content": []}})).await;
    let answer = body(asking.await.expect("no panic")).await;
    assert_eq!((&answer["id"], &answer["result"]["resultType"]), (&json!("second"), &json!("complete")));
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_asked_for_again() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (result, mut child, _number) = asked(&mut fixture, &alice).await;
    let wrong = json!({"name": "t", "requestState": result["requestState"], "inputResponses": {"other": {}}});
    let again = body(fixture.ask(&alice, &able("second", wrong)).await).await["result"].clone();
    assert_eq!(again["resultType"], "input_required");
    assert_eq!(again["inputRequests"], result["inputRequests"]);
    assert_ne!(again["requestState"], result["requestState"]);
    let asking = fixture.asking(&alice, &able("third", back(&again, &json!({"action": "decline"}))));
    assert_eq!(child.hears().await.expect("the answer")["result"]["action"], "decline");
    drop(asking);
}

#[tokio::test(start_paused = true)]
async fn a_state_is_good_once_for_the_same_call_of_the_same_grant() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (result, mut child, number) = asked(&mut fixture, &alice).await;
    let given = back(&result, &json!({"action": "cancel"}));
    let mut other_tool = given.clone();
    other_tool["name"] = json!("u");
    let mut tampered = given.clone();
    tampered["requestState"] = json!(format!("{}-TAMPERED", result["requestState"].as_str().expect("a text")));
    for params in [other_tool, tampered] {
        let refused = fixture.ask(&alice, &able("x", params)).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        let refused = body(refused).await;
        assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!("x"), &json!(-32602)));
    }
    let foreign = fixture.asking(&caller(1, "g2"), &able("y", given.clone()));
    let mut of_other = fixture.child().await;
    of_other.speaks_sessions(json!({"tools": {}})).await;
    tokio::spawn(async move { of_other.is_stopped().await });
    assert_eq!(foreign.await.expect("no panic").status(), StatusCode::BAD_REQUEST);
    let asking = fixture.asking(&alice, &able("second", given.clone()));
    child.hears().await.expect("the answer");
    child.says(json!({"jsonrpc": "2.0", "id": number, "result": {}})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["id"], "second");
    assert_eq!(fixture.ask(&alice, &able("third", given)).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_not_asked_for_what_it_cannot_do_and_the_child_is_told() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let asking = fixture.asking(&alice, &able(1, json!({"name": "t"})));
    let mut child = fixture.child().await;
    child.speaks_sessions(json!({"tools": {}})).await;
    let heard = child.hears().await.expect("the call");
    child.says(json!({"jsonrpc": "2.0", "id": 9, "method": "sampling/createMessage", "params": {}})).await;
    assert_eq!(child.hears().await.expect("a refusal")["error"]["code"], -32601);
    child.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": {}})).await;
    assert_eq!(body(asking.await.expect("no panic")).await["result"]["resultType"], "complete");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_come_back_keeps_its_child_no_longer_than_a_request_may_take() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (result, mut child, number) = asked(&mut fixture, &alice).await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(fixture.registry.warm_children().first().map(|child| child.in_flight), Some(1), "it still waits");
    tokio::time::sleep(Duration::from_secs(102)).await;
    let told = [child.hears().await.expect("a line"), child.hears().await.expect("a line")];
    assert!(told.iter().any(|line| line["params"]["requestId"] == number), "{told:?}");
    assert!(told.iter().any(|line| line["id"] == "q" && line["error"].is_object()), "{told:?}");
    assert_eq!(fixture.registry.warm_children().first().map(|child| child.in_flight), Some(0));
    let late = fixture.ask(&alice, &able(2, back(&result, &json!({"action": "accept"})))).await;
    assert_eq!(late.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ended_while_its_client_was_asked_still_has_its_answer() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (result, mut child, number) = asked(&mut fixture, &alice).await;
    child.says(json!({"jsonrpc": "2.0", "id": number, "result": {"content": ["gave up"]}})).await;
    child.says(json!({"jsonrpc": "2.0", "id": "p", "method": "ping"})).await;
    assert_eq!(child.hears().await.expect("what came before is read")["id"], "p");
    let answer = body(fixture.ask(&alice, &able("second", back(&result, &json!({"action": "accept"})))).await).await;
    assert_eq!((&answer["id"], &answer["result"]["content"]), (&json!("second"), &json!(["gave up"])));
}
