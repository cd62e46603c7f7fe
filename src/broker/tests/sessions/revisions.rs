//! Which revision a client may name with its session, and what one is told whose session is unknown.

use axum::http::Request;
use serde_json::json;

use crate::tests::sessions::fixture::{Fixture, body, call, caller, config, post};

fn naming(revision: &str, session: &str) -> Request<axum::body::Body> {
    let mut request = post(Some(session), call("r", "x").to_string());
    request.headers_mut().insert("mcp-protocol-version", revision.parse().expect("a header"));
    request
}

#[tokio::test(start_paused = true)]
async fn what_a_child_agreed_to_is_right_for_its_session_and_for_no_other() {
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (ahead, mut child) = fixture.open_in(&alice, "2027-04-01").await;
    let calling = fixture.sending(&alice, naming("2027-04-01", &ahead));
    child.answers(json!({"ok": 1})).await;
    assert_eq!(body(calling.await.expect("no panic")).await["result"]["ok"], 1);
    let (other, _child) = fixture.open(&alice).await;
    for (revision, session) in [("2027-04-02", &ahead), ("2027-04-01", &other)] {
        let refused = fixture.send(&alice, naming(revision, session)).await;
        assert_eq!(refused.status().as_u16(), 400, "{revision}");
        assert_eq!(body(refused).await["id"], "r");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_session_is_404_for_every_revision_that_demands_it_and_410_where_none_is_named() {
    let fixture = Fixture::new(config()).await;
    let (alice, unknown) = (caller(1, "g1"), "0".repeat(48));
    for revision in ["2025-03-26", "2025-06-18", "2025-11-25"] {
        let refused = fixture.send(&alice, naming(revision, &unknown)).await;
        assert_eq!(refused.status().as_u16(), 404, "{revision}");
        assert_eq!(body(refused).await["id"], "r");
    }
    assert_eq!(fixture.send(&alice, naming("2024-11-05", &unknown)).await.status().as_u16(), 410);
    assert_eq!(fixture.post(&alice, Some(&unknown), call("r", "x")).await.status().as_u16(), 410);
}
