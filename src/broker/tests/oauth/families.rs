//! A used refresh token is recognised without being kept: its family is known, and what is shown is none of its live
//! tokens.

use std::time::Duration;

use rand::rngs::SysRng;

use crate::auth::token::RefreshToken;
use crate::tests::oauth::fixture::{Fixture, WEB};
use harness::user_agent::UserAgent;

async fn connected() -> (Fixture, String, String) {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (_, refresh) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    (fixture, client, refresh)
}

/// Refreshes every hour; the tokens in the order in which they were given.
async fn refreshed(fixture: &Fixture, client: &str, first: &str, hours: usize) -> Vec<String> {
    let mut tokens = vec![first.to_owned()];
    for _ in 0..hours {
        fixture.clock.advance(Duration::from_hours(1));
        let (status, answer) = fixture.refresh(client, &tokens[tokens.len() - 1]).await;
        assert_eq!(status, 200, "{answer}");
        tokens.push(answer["refresh_token"].as_str().expect("a token").to_owned());
    }
    tokens
}

#[tokio::test]
async fn a_client_that_refreshes_every_hour_has_two_rows_and_each_of_its_used_tokens_ends_the_family() {
    for shown in [0, 5, 19] {
        let (fixture, client, refresh) = connected().await;
        let tokens = refreshed(&fixture, &client, &refresh, 20).await;
        assert_eq!(fixture.store.refresh_tokens_kept().await, 2, "the live one, and the one that it was given for");
        fixture.clock.advance(Duration::from_hours(1));
        assert_eq!(fixture.refresh(&client, &tokens[shown]).await.0, 400);
        assert_eq!(fixture.refresh(&client, &tokens[20]).await.0, 400, "token {shown} was used: the family has ended");
    }
}

#[tokio::test]
async fn a_used_token_is_unknown_when_it_would_have_ended_anyway() {
    let (fixture, client, refresh) = connected().await;
    let mut last = refreshed(&fixture, &client, &refresh, 1).await.remove(1);
    for _ in 0..4 {
        fixture.clock.advance(Duration::from_hours(8 * 24));
        last = refreshed(&fixture, &client, &last, 1).await.remove(1);
    }
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400);
    assert_eq!(fixture.refresh(&client, &last).await.0, 200, "the family lives on");
}

#[tokio::test]
async fn who_knows_a_family_and_makes_up_the_rest_gets_no_sibling_and_ends_it() {
    let (fixture, client, refresh) = connected().await;
    let known = RefreshToken::parse(&refresh).expect("a token");
    let made_up = RefreshToken::mint_in(&known.family(), known.name().ends, &mut SysRng).expect("a token");
    let (status, answer) = fixture.refresh(&client, made_up.expose()).await;
    assert_eq!((status, answer["refresh_token"].as_str()), (400, None), "also within the minute of its connection");
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400, "the family has ended");
}

#[tokio::test]
async fn another_client_cannot_end_a_family_with_its_used_token() {
    let (fixture, client, refresh) = connected().await;
    let tokens = refreshed(&fixture, &client, &refresh, 3).await;
    let other = fixture.client("http://localhost:7/callback").await;
    assert_eq!(fixture.refresh(&other, &tokens[0]).await.0, 400);
    assert_eq!(fixture.refresh(&client, &tokens[3]).await.0, 200);
}

#[tokio::test]
async fn tokens_of_before_there_were_families_are_kept_and_their_successors_are_not() {
    let (fixture, client, refresh) = connected().await;
    fixture.store.forget_families().await;
    let tokens = refreshed(&fixture, &client, &refresh, 10).await;
    assert_eq!(fixture.store.refresh_tokens_kept().await, 3, "the first one, which is of no family, and two as usual");
    assert_eq!(fixture.refresh(&client, &tokens[0]).await.0, 400);
    assert_eq!(fixture.refresh(&client, &tokens[10]).await.0, 400, "the family has ended");
}
