//! A session belongs to the grant that minted it, whoever asks and however.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, post, request};

#[tokio::test]
async fn another_login_gets_403_on_every_method_and_the_child_sees_nothing() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let others = [caller(2, "g2"), caller(1, "another login of the same user")];
    for other in &others {
        let stolen = fixture.post(other, Some(&id), call(7, "whoami")).await;
        assert_eq!(stolen.status(), StatusCode::FORBIDDEN);
        assert_eq!(body(stolen).await["id"], 7);
        for method in [Method::GET, Method::DELETE] {
            let asked = request(method, Some(&id)).body(Body::empty()).expect("a request");
            assert_eq!(fixture.send(other, asked).await.status(), StatusCode::FORBIDDEN);
        }
    }
    // The next thing that the child hears is its owner's.
    let calling = fixture.posting(&alice, Some(&id), call("mine", "whoami"));
    let heard = child.answers(json!({})).await;
    assert_eq!(heard["params"]["name"], "whoami");
    assert_eq!(body(calling.await.expect("no panic")).await["id"], "mine");
}

#[tokio::test]
async fn an_unknown_id_is_410_or_404_where_the_revision_demands_it() {
    let fixture = Fixture::new(config()).await;
    let table = [
        (None, 410),
        (Some("2025-03-26"), 410),
        (Some("2025-06-18"), 404),
        (Some("2025-11-25"), 404),
        (Some("2026-07-28"), 404),
        (Some("nonsense"), 410),
    ];
    for id in ["0".repeat(48), "not an id".to_owned(), String::new()] {
        for (revision, status) in table {
            let mut request = post(Some(&id), call("x", "whoami").to_string());
            if let Some(revision) = revision {
                request.headers_mut().insert("mcp-protocol-version", revision.parse().expect("a header"));
            }
            let response = fixture.send(&caller(1, "g1"), request).await;
            assert_eq!(response.status().as_u16(), status, "{id} {revision:?}");
            let answer = body(response).await;
            assert_eq!(answer["id"], "x", "the request's own id");
            assert_eq!(answer["error"]["code"], -32001);
        }
    }
}

#[tokio::test]
async fn an_ended_session_is_unknown() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let delete = request(Method::DELETE, Some(&id)).body(Body::empty()).expect("a request");
    assert_eq!(fixture.send(&alice, delete).await.status(), StatusCode::NO_CONTENT);
    child.is_stopped().await;
    assert_eq!(fixture.post(&alice, Some(&id), call(1, "whoami")).await.status(), StatusCode::GONE);
    let again = request(Method::DELETE, Some(&id)).body(Body::empty()).expect("a request");
    assert_eq!(fixture.send(&alice, again).await.status(), StatusCode::GONE);
}

#[tokio::test]
async fn revoking_a_grant_ends_its_sessions_and_no_others() {
    let mut fixture = Fixture::new(config()).await;
    let (alice, bob) = (caller(1, "g1"), caller(2, "g2"));
    let (hers, mut her_child) = fixture.open(&alice).await;
    let (his, mut his_child) = fixture.open(&bob).await;
    assert_eq!(fixture.registry.end_grant(&alice.grant, "revoked"), 1);
    her_child.is_stopped().await;
    assert_eq!(fixture.post(&alice, Some(&hers), call(1, "x")).await.status(), StatusCode::GONE);
    let calling = fixture.posting(&bob, Some(&his), call(1, "x"));
    his_child.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
}
