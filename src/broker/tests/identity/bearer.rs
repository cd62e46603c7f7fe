//! Promise: nobody gets in without a good token, and whoever is turned away learns only what RFC 6750 says.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::auth::bearer::{BearerLayer, Denied, Principals, require_bearer};
use crate::auth::principal::Principal;
use crate::auth::rates::{Peer, RateLimits, Rates};
use crate::auth::token::AccessToken;
use crate::deadline::Deadline;
use crate::metrics::Metrics;
use crate::tests::captured_log::CapturedLog;
use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use axum::middleware::from_fn_with_state;
use rand::rngs::SysRng;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use wire::clock::UnixTime;

use crate::tests::identity::fixture::{
    Fixture, START, TTL, UPSTREAM, authorization, fixture, grant, principals_over, revoke, vault,
};

const RIDE_ALONG: &str = r#"resource_metadata="https://broker.example/.well-known/oauth-protected-resource/mcp", scope="forgejo:read forgejo:write""#;

/// Sends a request with these headers through the layer; says what came back and how often the inner service ran.
async fn send(principals: &Principals, headers: HeaderMap) -> (Response<Body>, usize) {
    send_within(Duration::from_mins(5), principals, headers).await
}

/// The same for a request that may take so long.
async fn send_within(limit: Duration, principals: &Principals, headers: HeaderMap) -> (Response<Body>, usize) {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let inner = service_fn(move |request: Request<Body>| {
        seen.fetch_add(1, Ordering::SeqCst);
        let principal = request.extensions().get::<Principal>().expect("the layer puts a principal");
        let who = format!("{} {} {}", principal.login, principal.client_id, principal.upstream.expose());
        let leaked = request.headers().contains_key(AUTHORIZATION);
        async move {
            assert!(!leaked, "the token went past the layer");
            Ok::<_, Infallible>(Response::new(Body::from(who)))
        }
    });
    let mut request = Request::new(Body::empty());
    *request.headers_mut() = headers;
    request.extensions_mut().insert(Peer { address: [192, 0, 2, 7].into(), is_proxy: false });
    request.extensions_mut().insert(Deadline::within(limit));
    let response =
        from_fn_with_state(layer(principals), require_bearer).layer(inner).oneshot(request).await.expect("infallible");
    (response, calls.load(Ordering::SeqCst))
}

fn layer(principals: &Principals) -> BearerLayer {
    let rates = Rates { registrations: 1, logins: 1, documents: 1, failures: 1 };
    BearerLayer {
        principals: principals.clone(),
        limits: Arc::new(RateLimits::new(rates, Vec::new())),
        metrics: Metrics::new().expect("metrics"),
    }
}

#[tokio::test]
async fn a_token_that_was_never_one_is_told_with_its_address_and_a_flood_of_them_is_not() {
    let fixture = fixture().await;
    let layer = layer(&fixture.principals);
    let (log, _here) = CapturedLog::begin();
    for _ in 0..100 {
        let mut request = Request::new(Body::empty());
        request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer fjb_at_guessed"));
        request.extensions_mut().insert(Peer { address: [192, 0, 2, 7].into(), is_proxy: false });
        layer.refused(layer.principals.authenticate(request.headers()).await.expect_err("guessed"), &request);
    }
    let lines = log.of(wire::telemetry::message_id::BAD_TOKEN);
    assert_eq!(lines.len(), 20, "{lines:?}");
    assert!(lines[0].contains("refused a bearer token from 192.0.2.7") && lines[0].contains("reason=\"bad-token\""));
    assert!(!log.text().contains("guessed"));
    // Who has no token yet, or an old one, is no attacker.
    let none = Request::new(Body::empty());
    layer.refused(Denied::Malformed, &none);
    layer.refused(Denied::Expired, &none);
    assert_eq!(log.of(wire::telemetry::message_id::BAD_TOKEN).len(), 20);
}

/// The request is turned away with exactly this challenge, an empty body, and the inner service untouched.
async fn assert_challenged(principals: &Principals, headers: HeaderMap, error: &str) {
    let (response, calls) = send(principals, headers).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let challenges: Vec<_> = response.headers().get_all(WWW_AUTHENTICATE).iter().cloned().collect();
    assert_eq!(challenges, [format!("Bearer {error}, {RIDE_ALONG}").as_str()]);
    assert_eq!(to_bytes(response.into_body(), 1024).await.expect("body"), "");
    assert_eq!(calls, 0, "the inner service saw the request");
}

const INVALID_REQUEST: &str = r#"error="invalid_request""#;
const EXPIRED: &str = r#"error="invalid_token", reason="expired""#;
const REVOKED: &str = r#"error="invalid_token", reason="revoked""#;
const UNKNOWN: &str = r#"error="invalid_token", reason="unknown""#;

fn with(token: &AccessToken) -> HeaderMap {
    authorization(&[&format!("Bearer {}", token.expose())])
}

#[tokio::test]
async fn a_good_token_comes_in_as_its_user_with_the_upstream_token() {
    let Fixture { principals, token, .. } = fixture().await;
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let (response, calls) = send(&principals, authorization(&[&format!("{scheme} {}", token.expose())])).await;
        assert_eq!((response.status(), calls), (StatusCode::OK, 1));
        let body = to_bytes(response.into_body(), 1024).await.expect("body");
        assert_eq!(body, format!("user1 cli {UPSTREAM}"));
    }
}

#[tokio::test]
async fn the_look_at_a_token_counts_against_the_time_of_its_request() {
    let Fixture { principals, token, store, .. } = fixture().await;
    let readers = store.all_readers().await;
    tokio::time::pause();
    let (limit, begun) = (Duration::from_secs(1), Instant::now());
    let (late, calls) = send_within(limit, &principals, with(&token)).await;
    assert_eq!(begun.elapsed().as_secs(), limit.as_secs(), "the store's own patience is longer");
    tokio::time::resume();
    drop(readers);
    assert_eq!((late.status(), calls), (StatusCode::SERVICE_UNAVAILABLE, 0));
    assert!(late.headers().contains_key(RETRY_AFTER), "it is not the token's fault");
    assert_eq!(send(&principals, with(&token)).await.1, 1);
    // What is known is not waited for.
    assert_eq!(send_within(Duration::ZERO, &principals, with(&token)).await.1, 1);
}

#[tokio::test]
async fn a_principal_carries_what_the_grant_says() {
    let Fixture { principals, token, grant, .. } = fixture().await;
    let principal = principals.authenticate(&with(&token)).await.expect("good token");
    assert_eq!((principal.tenant.get(), &principal.grant, principal.scopes.write), (1, &grant, true));
}

#[tokio::test]
async fn a_missing_header_is_an_invalid_request() {
    assert_challenged(&fixture().await.principals, HeaderMap::new(), INVALID_REQUEST).await;
}

#[tokio::test]
async fn another_scheme_is_an_invalid_request() {
    let Fixture { principals, token, .. } = fixture().await;
    for value in ["Basic YWxpY2U6aHVudGVyMg==", &format!("token {}", token.expose()), token.expose()] {
        assert_challenged(&principals, authorization(&[value]), INVALID_REQUEST).await;
    }
}

#[tokio::test]
async fn an_empty_or_malformed_header_is_an_invalid_request() {
    let Fixture { principals, token, .. } = fixture().await;
    let twice = format!("Bearer {0} {0}", token.expose());
    let quoted = format!("Bearer \"{}\"", token.expose());
    let padded = format!("Bearer {}\t", token.expose());
    for value in ["", "Bearer", "Bearer ", "Bearer    ", "Bearer ===", "Bearer a b", &twice, &quoted, &padded] {
        assert_challenged(&principals, authorization(&[value]), INVALID_REQUEST).await;
    }
    let mut not_ascii = HeaderMap::new();
    not_ascii.insert(AUTHORIZATION, axum::http::HeaderValue::from_bytes(b"Bearer \xff").expect("opaque bytes"));
    assert_challenged(&principals, not_ascii, INVALID_REQUEST).await;
}

#[tokio::test]
async fn two_headers_are_an_invalid_request_even_if_both_are_good() {
    let Fixture { principals, token, .. } = fixture().await;
    let value = format!("Bearer {}", token.expose());
    assert_challenged(&principals, authorization(&[&value, &value]), INVALID_REQUEST).await;
}

#[tokio::test]
async fn a_token_that_was_never_given_out_is_unknown() {
    let Fixture { principals, .. } = fixture().await;
    let stranger = AccessToken::mint(&mut SysRng).expect("entropy");
    assert_challenged(&principals, with(&stranger), UNKNOWN).await;
    assert_challenged(&principals, authorization(&["Bearer gto_of_someone_else"]), UNKNOWN).await;
}

#[tokio::test]
async fn a_token_with_a_bad_checksum_is_unknown_and_costs_no_query() {
    let Fixture { principals, store, token, .. } = fixture().await;
    // With the store closed, any query would end in 503.
    store.close().await;
    let mut text = token.expose().to_owned();
    let last = text.pop().expect("not empty");
    text.push(if last == '0' { '1' } else { '0' });
    assert_challenged(&principals, authorization(&[&format!("Bearer {text}")]), UNKNOWN).await;
}

#[tokio::test]
async fn a_token_past_its_time_is_expired() {
    let Fixture { principals, clock, token, .. } = fixture().await;
    clock.advance(TTL);
    assert_challenged(&principals, with(&token), EXPIRED).await;
}

#[tokio::test]
async fn a_token_expires_on_time_though_it_is_remembered() {
    let Fixture { principals, clock, token, .. } = fixture().await;
    clock.advance(TTL.saturating_sub(Duration::from_secs(1)));
    assert_eq!(send(&principals, with(&token)).await.0.status(), StatusCode::OK);
    clock.advance(Duration::from_secs(1));
    assert_challenged(&principals, with(&token), EXPIRED).await;
    assert_challenged(&principals, with(&token), EXPIRED).await;
}

#[tokio::test]
async fn a_revoked_token_is_revoked() {
    let Fixture { principals, store, grant, token, .. } = fixture().await;
    assert!(store.revoke_grant(&grant, "operator", START).await.expect("revoked"));
    assert_challenged(&principals, with(&token), REVOKED).await;
}

#[tokio::test]
async fn a_revoked_token_is_revoked_at_once_though_it_is_remembered() {
    let Fixture { principals, store, grant, token, .. } = fixture().await;
    assert_eq!(send(&principals, with(&token)).await.0.status(), StatusCode::OK);
    assert!(revoke(&store, &principals, &grant).await);
    assert_challenged(&principals, with(&token), REVOKED).await;
    assert!(!revoke(&store, &principals, &grant).await);
}

#[tokio::test]
async fn revoking_one_grant_leaves_the_others_alone() {
    let Fixture { principals, store, vault: sealing, grant: first, token, .. } = fixture().await;
    let (other, others_token) = grant(&sealing, "grant-2", 2);
    store.insert_grant(&other).await.expect("grant");
    for token in [&token, &others_token] {
        assert_eq!(send(&principals, with(token)).await.0.status(), StatusCode::OK);
    }
    assert!(revoke(&store, &principals, &first).await);
    assert_eq!(send(&principals, with(&others_token)).await.0.status(), StatusCode::OK);
    assert_challenged(&principals, with(&token), REVOKED).await;
}

#[tokio::test]
async fn the_second_use_of_a_token_costs_no_query() {
    let Fixture { principals, store, token, .. } = fixture().await;
    assert_eq!(send(&principals, with(&token)).await.0.status(), StatusCode::OK);
    store.close().await;
    assert_eq!(send(&principals, with(&token)).await.0.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_store_that_fails_is_503_with_retry_after_and_not_401() {
    let Fixture { principals, store, token, .. } = fixture().await;
    store.close().await;
    let (response, calls) = send(&principals, with(&token)).await;
    assert_eq!((response.status(), calls), (StatusCode::SERVICE_UNAVAILABLE, 0));
    assert_eq!(response.headers()[RETRY_AFTER], "5");
    assert!(!response.headers().contains_key(WWW_AUTHENTICATE));
    assert_eq!(to_bytes(response.into_body(), 1024).await.expect("body"), "");
}

#[tokio::test]
async fn a_credential_that_does_not_open_lets_nobody_in() {
    let Fixture { store, clock, token, .. } = fixture().await;
    let principals = principals_over(store, vault(), clock);
    assert_eq!(principals.authenticate(&with(&token)).await.err(), Some(Denied::Unavailable));
}

#[tokio::test]
async fn uses_reach_the_store_in_a_batch() {
    let Fixture { principals, store, clock, token, .. } = fixture().await;
    for _ in 0..3 {
        clock.advance(Duration::from_mins(1));
        assert_eq!(send(&principals, with(&token)).await.0.status(), StatusCode::OK);
    }
    assert_eq!(last_used(&store).await, None);
    principals.flush_uses().await;
    assert_eq!(last_used(&store).await, Some(START.plus(Duration::from_mins(3))));
}

async fn last_used(store: &crate::store::Store) -> Option<UnixTime> {
    store.grants().await.expect("listed")[0].last_used_at
}

/// Look-ups and a revocation at the same time, many times over: whatever the order was, the revocation stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_during_look_ups_leaves_no_token_behind() {
    let Fixture { principals, store, vault: sealing, .. } = fixture().await;
    for round in 0..50 {
        let (new, token) = grant(&sealing, &format!("race-{round}"), 1);
        store.insert_grant(&new).await.expect("grant");
        let headers = with(&token);
        let asks: Vec<_> = (0..4)
            .map(|_| {
                let (principals, headers) = (principals.clone(), headers.clone());
                tokio::spawn(async move { principals.authenticate(&headers).await.map(drop) })
            })
            .collect();
        assert!(revoke(&store, &principals, &new.grant).await);
        for ask in asks {
            let outcome = ask.await.expect("no panic");
            assert!(matches!(outcome, Ok(()) | Err(Denied::Revoked)), "{outcome:?}");
        }
        let after = principals.authenticate(&headers).await.err();
        assert_eq!(after, Some(Denied::Revoked), "round {round}");
    }
}
