//! A session belongs to the user and the client that opened it, whoever asks and however.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::auth::principal::Principal;
use crate::tests::sessions::fixture::{Fixture, body, call, caller, caller_but, config, post, request};
use crate::tests::sessions::records::{FakeRecords, GIVEN};

/// A later login of the same user through the same client.
pub(crate) fn later(grant: &str) -> Principal {
    caller_but(1, grant, "upstream-token-of-1", |parts| parts.granted_at = GIVEN.plus(Duration::from_secs(60)))
}

async fn delete(fixture: &Fixture, caller: &Principal, id: &str) -> StatusCode {
    let asked = request(Method::DELETE, Some(id)).body(Body::empty()).expect("a request");
    fixture.send(caller, asked).await.status()
}

#[tokio::test(start_paused = true)]
async fn a_session_is_its_users_and_its_clients_by_whatever_login() {
    let upstream = "upstream-token-of-1";
    let table = [
        ("the same token", caller(1, "g1"), 200),
        ("a refreshed token", caller(1, "g1"), 200),
        (
            "a step-up",
            caller_but(1, "g2", upstream, |parts| parts.granted_at = GIVEN.plus(Duration::from_secs(9))),
            200,
        ),
        ("a new login", later("g3"), 200),
        ("the login that it has left", caller(1, "g1"), 200),
        (
            "another client of the same user",
            caller_but(1, "g4", upstream, |parts| parts.client_id = "other".into()),
            403,
        ),
        ("another user through the same client", caller(2, "g5"), 403),
        (
            "a token of the operator's for the same user, under the client's name",
            caller_but(1, "g6", "another-upstream-token", |parts| parts.credential = "another".into()),
            403,
        ),
    ];
    let mut fixture = Fixture::new(config()).await;
    let (id, mut child) = fixture.open(&caller(1, "g1")).await;
    for (who, caller, status) in &table {
        let calling = fixture.posting(caller, Some(&id), call("x", "whoami"));
        if *status == 200 {
            // The child is the same, and the next thing that it hears is not a stranger's.
            assert_eq!(child.answers(json!({})).await["params"]["name"], "whoami", "{who}");
        }
        let answer = calling.await.expect("no panic");
        assert_eq!(answer.status().as_u16(), *status, "{who}");
        assert_eq!(body(answer).await["id"], "x", "{who}");
    }
    for (who, caller, _) in table.iter().filter(|(_, _, status)| *status == 403) {
        assert_eq!(delete(&fixture, caller, &id).await, StatusCode::FORBIDDEN, "{who}");
        let listen = request(Method::GET, Some(&id)).body(Body::empty()).expect("a request");
        assert_eq!(fixture.send(caller, listen).await.status(), StatusCode::FORBIDDEN, "{who}");
    }
    assert_eq!(delete(&fixture, &later("g3"), &id).await, StatusCode::NO_CONTENT);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_moved_ends_with_the_later_login_and_not_with_the_earlier() {
    let records = FakeRecords::default();
    let mut fixture = Fixture::over(config(), records.clone()).await;
    let (first, second) = (caller(1, "g1"), later("g2"));
    let (id, mut child) = fixture.open(&first).await;
    for caller in [&second, &first] {
        let calling = fixture.posting(caller, Some(&id), call(1, "whoami"));
        child.answers(json!({})).await;
        assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
    }
    assert_eq!(
        fixture.registry.end_grant(&first.grant, "revoked"),
        0,
        "a straggler of the earlier does not move it back"
    );
    let calling = fixture.posting(&second, Some(&id), call(1, "whoami"));
    child.answers(json!({})).await;
    assert_eq!(calling.await.expect("no panic").status(), StatusCode::OK);
    fixture.registry.shut_down(Duration::ZERO).await;

    let fixture = Fixture::over(config(), records).await;
    assert_eq!(fixture.registry.end_grant(&first.grant, "revoked"), 0, "nor after a restart");
    assert_eq!(fixture.registry.end_grant(&second.grant, "revoked"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_id_is_410_or_404_where_the_revision_demands_it() {
    let fixture = Fixture::new(config()).await;
    let table = [
        (None, 410),
        (Some("2025-03-26"), 404),
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

#[tokio::test(start_paused = true)]
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

#[tokio::test(start_paused = true)]
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
