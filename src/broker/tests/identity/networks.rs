//! Promise: a token is good from its networks only, and from elsewhere its operator hears of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode};
use axum::middleware::from_fn_with_state;
use tower::{Layer, ServiceExt, service_fn};

use crate::auth::bearer::{BearerLayer, require_bearer};
use crate::auth::rates::{Peer, RateLimits, Rates};
use crate::auth::restriction::Restrictions;
use crate::auth::token::AccessToken;
use crate::deadline::Deadline;
use crate::metrics::Metrics;
use crate::tests::captured_log::CapturedLog;
use crate::tests::identity::fixture::{Fixture, START, TTL, fixture, grant};
use wire::telemetry::message_id;

/// A token for one network, behind a proxy that is trusted.
async fn service() -> (Fixture, AccessToken, BearerLayer) {
    let fixture = fixture().await;
    let (mut new, token) = grant(&fixture.vault, "grant-service", 2);
    new.restrictions = Restrictions::parse(None, Some("10.7.0.0/16 2001:db8::/48")).expect("networks");
    fixture.store.insert_grant(&new).await.expect("stored");
    let rates = Rates { registrations: 1, logins: 1, documents: 1, failures: 1 };
    let layer = BearerLayer {
        principals: fixture.principals.clone(),
        limits: Arc::new(RateLimits::new(rates, vec!["192.0.2.80/32".parse().expect("a network")])),
        metrics: Metrics::new().expect("metrics"),
    };
    (fixture, token, layer)
}

async fn send(layer: &BearerLayer, token: &AccessToken, peer: &str, forwarded: Option<&str>) -> Response<Body> {
    let inner = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
    let mut request = Request::builder().header("authorization", format!("Bearer {}", token.expose()));
    if let Some(forwarded) = forwarded {
        request = request.header("x-forwarded-for", forwarded);
    }
    let mut request = request.body(Body::empty()).expect("a request");
    request.extensions_mut().insert(Peer { address: peer.parse().expect("an address"), is_proxy: false });
    request.extensions_mut().insert(Deadline::within(Duration::from_mins(5)));
    let layered = from_fn_with_state(layer.clone(), require_bearer).layer(inner);
    layered.oneshot(request).await.expect("infallible")
}

#[tokio::test]
async fn a_token_comes_in_from_its_networks_only_as_far_as_a_trusted_proxy_says_from_where() {
    let (_fixture, token, layer) = service().await;
    let table = [
        ("10.7.1.2", None, true),
        ("::ffff:10.7.1.2", None, true),
        ("2001:db8:0:9::1", None, true),
        ("10.8.1.2", None, false),
        ("2001:db8:1::1", None, false),
        // What a stranger claims does not count, and of a proxy not its own address.
        ("10.8.1.2", Some("10.7.1.2"), false),
        ("192.0.2.80", Some("10.7.1.2"), true),
        ("192.0.2.80", Some("10.7.1.2, 203.0.113.9"), false),
        ("192.0.2.80", None, false),
    ];
    // Twice: the second time the token is known without a look into the store.
    for (peer, forwarded, good) in table.into_iter().chain(table) {
        let status = send(&layer, &token, peer, forwarded).await.status();
        assert_eq!(status == StatusCode::OK, good, "{peer} {forwarded:?}: {status}");
    }
}

#[tokio::test]
async fn from_elsewhere_it_is_forbidden_without_a_challenge_told_to_the_operator_and_no_use_of_it() {
    let (fixture, token, layer) = service().await;
    let (log, _here) = CapturedLog::begin();
    for _ in 0..50 {
        let refused = send(&layer, &token, "203.0.113.9", None).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert!(!refused.headers().contains_key("www-authenticate"), "a client would log in for it, in vain");
        let body = to_bytes(refused.into_body(), 1024).await.expect("a body");
        assert!(String::from_utf8_lossy(&body).contains("not for the network"), "{body:?}");
    }
    let lines = log.of(message_id::TOKEN_ELSEWHERE);
    assert_eq!(lines.len(), 20, "a flood of them is no flood of lines: {lines:?}");
    for part in ["grant=grant-service", "address=203.0.113.9", "reason=\"wrong-network\""] {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
    assert!(!log.text().contains(token.expose()));
    fixture.principals.flush_uses().await;
    let used = async || {
        let grants = fixture.store.grants().await.expect("listed");
        grants.iter().find(|grant| grant.id.as_str() == "grant-service").expect("there").last_used_at
    };
    assert_eq!(used().await, None);
    assert_eq!(send(&layer, &token, "10.7.0.1", None).await.status(), StatusCode::OK);
    fixture.principals.flush_uses().await;
    assert_eq!(used().await, Some(START));
}

#[tokio::test]
async fn an_expired_one_is_an_invalid_token_wherever_it_comes_from() {
    let (fixture, token, layer) = service().await;
    assert_eq!(send(&layer, &token, "10.7.0.1", None).await.status(), StatusCode::OK);
    fixture.clock.advance(TTL);
    for peer in ["10.7.0.1", "203.0.113.9"] {
        let refused = send(&layer, &token, peer, None).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        let challenge = refused.headers()["www-authenticate"].to_str().expect("text");
        assert!(challenge.contains(r#"error="invalid_token", reason="expired""#), "{challenge}");
    }
}
