//! Promise: a token of Forgejo's own is taken only where the operator says so, as its user's and with its own rights, for as
//! long as Forgejo takes it; and it is no way to have Forgejo asked as often as somebody likes.

use std::time::Duration;

use crate::forge::access::Access;
use crate::forge::rotation::Change;
use crate::tests::oauth::fixture::{Fixture, Terms};

const SCOPES: &str = "read:user write:issue";

async fn fixture(access: Access) -> Fixture {
    Fixture::with(Terms { access: Access { forgejo_tokens: true, ..access }, ..Terms::default() }).await
}

fn token(fixture: &Fixture, login: &str, scopes: &str) -> String {
    fixture.forge.with(|state| state.add_token(login, scopes)).expect("a token")
}

/// How often Forgejo was asked whose a token is.
fn asked(fixture: &Fixture) -> usize {
    fixture.forge.with(|state| state.requests.iter().filter(|seen| seen.path == "/api/v1/user").count())
}

fn forget(fixture: &Fixture, token: &str) {
    fixture.forge.with(|state| state.tokens.remove(token)).expect("there");
}

/// One of the form that Forgejo mints.
fn guess(n: u32) -> String {
    format!("{n:040x}")
}

#[tokio::test]
async fn it_is_unknown_and_forgejo_is_not_asked_unless_the_operator_lets_it_in() {
    let fixture = Fixture::new().await;
    let token = token(&fixture, "alice", SCOPES);
    let refused = fixture.http.get(format!("{}/mcp", fixture.url)).bearer_auth(&token).send().await.expect("an answer");
    assert_eq!(refused.status(), 401);
    let challenge = refused.headers()["www-authenticate"].to_str().expect("text").to_owned();
    assert!(challenge.contains(r#"error="invalid_token", reason="unknown""#), "{challenge}");
    assert_eq!(asked(&fixture), 0);
    fixture.rotation.lists().replace(Access { forgejo_tokens: true, ..Access::default() });
    // What was refused before is not remembered against it.
    assert_eq!(fixture.who(&token).await.expect("let in"), "alice forgejo:read forgejo:write");
}

#[tokio::test]
async fn forgejo_is_asked_once_a_minute_and_the_token_is_on_no_disk() {
    let fixture = fixture(Access::default()).await;
    let token = token(&fixture, "alice", SCOPES);
    for _ in 0..20 {
        assert!(fixture.who(&token).await.is_ok());
    }
    assert_eq!(asked(&fixture), 1);
    fixture.clock.advance(Duration::from_secs(60));
    let all: Vec<_> = (0..10).map(|_| fixture.who(&token)).collect();
    assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
    assert_eq!(asked(&fixture), 2, "one asks for all");
    fixture.store.close().await;
    let mut files = 0;
    for file in fixture.store.directory().read_dir().expect("a directory").flatten() {
        let bytes = std::fs::read(file.path()).expect("read");
        assert!(!bytes.windows(token.len()).any(|part| part == token.as_bytes()), "{:?} holds it", file.file_name());
        files += 1;
    }
    assert!(files > 0, "the database was looked at");
}

#[tokio::test]
async fn a_token_that_was_deleted_at_forgejo_is_over_at_the_next_look_and_for_good() {
    let mut fixture = fixture(Access::default()).await;
    let (first, second) = (token(&fixture, "alice", SCOPES), token(&fixture, "alice", SCOPES));
    assert!(fixture.who(&first).await.is_ok() && fixture.who(&second).await.is_ok());
    let grants = fixture.store.grants().await.expect("listed");
    assert_eq!(grants.len(), 2, "each is a grant of its own");
    forget(&fixture, &first);
    fixture.clock.advance(Duration::from_secs(61));
    assert_eq!(fixture.who(&first).await, Err(401));
    let Ok(Change::Lost(lost)) = fixture.changes.try_recv() else { panic!("its sessions are ended") };
    assert_eq!(lost.len(), 1);
    let revoked: Vec<_> = fixture.store.grants().await.expect("listed");
    let revoked: Vec<_> = revoked.iter().filter(|grant| grant.revoked_at.is_some()).map(|grant| &grant.id).collect();
    assert_eq!(revoked, [&lost[0]]);
    let before = asked(&fixture);
    fixture.clock.advance(Duration::from_secs(600));
    assert_eq!(fixture.who(&first).await, Err(401));
    assert_eq!(asked(&fixture), before, "Forgejo is not asked about it again");
    assert!(fixture.who(&second).await.is_ok(), "the other one stays");
}

#[tokio::test]
async fn what_the_operator_or_the_user_has_ended_here_stays_ended_although_forgejo_takes_it() {
    let fixture = fixture(Access::default()).await;
    let token = token(&fixture, "alice", SCOPES);
    assert!(fixture.who(&token).await.is_ok());
    let grant = fixture.store.grants().await.expect("listed")[0].id.clone();
    assert!(fixture.revocation.revoke(&grant, "operator").await.expect("revoked"));
    assert_eq!(fixture.who(&token).await, Err(401), "at once");
    fixture.clock.advance(Duration::from_hours(1));
    assert_eq!(fixture.who(&token).await, Err(401));
}

#[tokio::test]
async fn the_lists_and_the_account_count_as_for_everybody_else() {
    let deny = vec!["user:bob".parse().expect("a subject")];
    let fixture = fixture(Access { deny, ..Access::default() }).await;
    let (alices, bobs) = (token(&fixture, "alice", SCOPES), token(&fixture, "bob", SCOPES));
    assert_eq!(fixture.who(&bobs).await, Err(403));
    assert!(fixture.who(&alices).await.is_ok());
    let blind = token(&fixture, "alice", "write:issue");
    assert_eq!(fixture.who(&blind).await, Err(403), "nobody knows whose it is");
    fixture.forge.with(|state| state.users[0].must_change_password = true);
    fixture.clock.advance(Duration::from_secs(61));
    assert_eq!(fixture.who(&alices).await, Err(403));
    fixture.forge.with(|state| state.users[0].must_change_password = false);
    assert_eq!(fixture.who(&alices).await, Err(403), "for ten seconds what was said counts");
    fixture.clock.advance(Duration::from_secs(10));
    assert!(fixture.who(&alices).await.is_ok(), "nothing was over");
    // Lists that are read anew put out who is denied at once, and let in again who is not.
    let deny = vec!["user:alice".parse().expect("a subject")];
    fixture.rotation.lists().replace(Access { forgejo_tokens: true, deny, ..Access::default() });
    fixture.rotation.apply_lists().await.expect("applied");
    fixture.clock.advance(Duration::from_secs(61));
    assert_eq!(fixture.who(&alices).await, Err(403));
    fixture.rotation.lists().replace(Access { forgejo_tokens: true, ..Access::default() });
    fixture.clock.advance(Duration::from_secs(61));
    assert!(fixture.who(&alices).await.is_ok());
    assert!(fixture.who(&bobs).await.is_ok());
}

#[tokio::test]
async fn guesses_cost_forgejo_little_and_what_looks_like_no_personal_token_nothing() {
    let fixture = fixture(Access::default()).await;
    let good = token(&fixture, "alice", SCOPES);
    assert!(fixture.who(&good).await.is_ok());
    let before = asked(&fixture);
    // An OAuth token of another application's is a JWT.
    for other in ["eyJhbGciOiJSUzI1NiJ9.eyJnbnQiOjF9.c2ln", "0123456789ABCDEF0123456789ABCDEF01234567", "short"] {
        assert_eq!(fixture.who(other).await, Err(401));
    }
    assert_eq!(asked(&fixture), before);
    for _ in 0..5 {
        assert_eq!(fixture.who(&guess(0)).await, Err(401));
    }
    assert_eq!(asked(&fixture), before + 1, "what was just refused is refused");
    let statuses: Vec<u16> = {
        let mut statuses = Vec::new();
        for n in 1..40 {
            statuses.push(fixture.who(&guess(n)).await.expect_err("a guess"));
        }
        statuses
    };
    assert!(statuses.contains(&429), "{statuses:?}");
    assert!(asked(&fixture) <= before + 20, "{} questions", asked(&fixture) - before);
    fixture.clock.advance(Duration::from_secs(61));
    assert!(fixture.who(&good).await.is_ok(), "who was good before is not shut out by guesses of their network");
}

#[tokio::test]
async fn while_forgejo_does_not_answer_nobody_is_told_that_the_token_is_bad() {
    let fixture = fixture(Access::default()).await;
    let token = token(&fixture, "alice", SCOPES);
    assert!(fixture.who(&token).await.is_ok());
    fixture.misbehave(|mode| mode.fail_api = true);
    fixture.clock.advance(Duration::from_secs(61));
    assert_eq!(fixture.who(&token).await, Err(503));
    let before = asked(&fixture);
    assert_eq!(fixture.who(&token).await, Err(503));
    assert_eq!(asked(&fixture), before, "nor is Forgejo asked each time");
    fixture.misbehave(|_| {});
    fixture.clock.advance(Duration::from_secs(10));
    assert!(fixture.who(&token).await.is_ok());
}

#[tokio::test]
async fn switched_off_again_what_runs_is_ended_and_switched_on_the_same_grant_goes_on() {
    let mut fixture = fixture(Access::default()).await;
    let token = token(&fixture, "alice", SCOPES);
    assert!(fixture.who(&token).await.is_ok());
    fixture.rotation.lists().replace(Access::default());
    fixture.rotation.apply_lists().await.expect("applied");
    assert!(matches!(fixture.changes.try_recv(), Ok(Change::Lost(lost)) if lost.len() == 1));
    assert_eq!(fixture.who(&token).await, Err(401));
    fixture.rotation.lists().replace(Access { forgejo_tokens: true, ..Access::default() });
    assert!(fixture.who(&token).await.is_ok());
    assert_eq!(fixture.store.grants().await.expect("listed").len(), 1);
}
