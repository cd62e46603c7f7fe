//! A refresh token that comes back: of a lost answer, of a second program with the same login, of a thief; and how a used
//! one is recognised without being kept.

use std::time::Duration;

use rand::rngs::SysRng;
use serde_json::Value;

use crate::auth::token::RefreshToken;
use crate::oauth::families::ReusePolicy;
use crate::tests::oauth::fixture::{Fixture, Terms, WEB};
use harness::user_agent::UserAgent;

async fn connected() -> (Fixture, String, String) {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (_, refresh) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    (fixture, client, refresh)
}

fn text<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer[name].as_str().expect("a token")
}

/// Refreshes every hour; the tokens in the order in which they were given.
async fn refreshed(fixture: &Fixture, client: &str, first: &str, hours: usize) -> Vec<String> {
    let mut tokens = vec![first.to_owned()];
    for _ in 0..hours {
        fixture.clock.advance(Duration::from_hours(1));
        let (status, answer) = fixture.refresh(client, &tokens[tokens.len() - 1]).await;
        assert_eq!(status, 200, "{answer}");
        fixture.who(text(&answer, "access_token")).await.expect("it is used");
        tokens.push(text(&answer, "refresh_token").to_owned());
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

#[tokio::test]
async fn a_used_token_whose_answer_was_lost_is_good_however_late_it_comes() {
    let (fixture, client, refresh) = connected().await;
    let tokens = refreshed(&fixture, &client, &refresh, 3).await;
    assert_eq!(fixture.refresh(&client, &tokens[3]).await.0, 200, "this answer is lost");
    fixture.clock.advance(Duration::from_hours(7 * 24));
    let (status, answer) = fixture.refresh(&client, &tokens[3]).await;
    assert_eq!(status, 200, "{answer}");
    refreshed(&fixture, &client, text(&answer, "refresh_token"), 2).await;
    let (status, answer) = fixture.refresh(&client, &tokens[3]).await;
    assert_eq!(status, 400, "now it was followed");
    let why = answer["error_description"].as_str().expect("a reason");
    assert!(why.contains("used long before came back") && why.contains("log in again"), "{why}");
}

#[tokio::test]
async fn a_token_is_followed_when_what_it_was_exchanged_for_is_used_be_it_the_access_token_alone() {
    let (fixture, client, refresh) = connected().await;
    let (_, second) = fixture.refresh(&client, &refresh).await;
    fixture.who(text(&second, "access_token")).await.expect("it is used");
    fixture.clock.advance(Duration::from_secs(299));
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 200, "a second program, within the window");
    fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400, "after it");
    assert_eq!(fixture.refresh(&client, text(&second, "refresh_token")).await.0, 400, "the family has ended");
}

#[tokio::test]
async fn a_clock_that_is_set_back_opens_no_window_again() {
    let (fixture, client, refresh) = connected().await;
    refreshed(&fixture, &client, &refresh, 1).await;
    fixture.clock.set(fixture.clock.now().minus(Duration::from_hours(1)));
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400);
}

#[tokio::test]
async fn three_programs_that_share_one_login_and_remember_old_tokens_are_never_asked_to_log_in() {
    let (fixture, client, refresh) = connected().await;
    // Each reads the shared file when it starts and after its own refresh; between these it knows what it has read.
    let (mut file, mut known) = (refresh.clone(), [refresh.clone(), refresh.clone(), refresh]);
    for round in 0..6 {
        fixture.clock.advance(Duration::from_mins(57));
        for (program, token) in known.iter_mut().enumerate() {
            fixture.clock.advance(Duration::from_mins(1));
            let (status, answer) = fixture.refresh(&client, token).await;
            assert_eq!(status, 200, "program {program}, round {round}: {answer}");
            fixture.who(text(&answer, "access_token")).await.expect("it is used");
            text(&answer, "refresh_token").clone_into(&mut file);
            // The last one is started anew now and then.
            file.clone_into(token);
        }
        file.clone_into(&mut known[round % 3]);
    }
}

#[tokio::test]
async fn a_login_that_forks_is_shown_to_its_user_and_one_that_ended_for_it_too() {
    let (fixture, client, refresh) = connected().await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.account(&fixture.url, &fixture.forgejo).await;
    assert!(!page.text.contains("second program"), "{}", page.text);
    let (_, second) = fixture.refresh(&client, &refresh).await;
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 200);
    let page = alice.account(&fixture.url, &fixture.forgejo).await;
    assert!(
        page.text.contains("A second program came to use this connection just now, from 127.0.0.0/24"),
        "{}",
        page.text
    );
    fixture.who(text(&second, "access_token")).await.expect("it is used");
    fixture.clock.advance(Duration::from_hours(1));
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 400);
    let page = alice.account(&fixture.url, &fixture.forgejo).await;
    assert!(page.text.contains("used long before came back"), "{}", page.text);
    assert!(!page.text.contains("second program"), "that connection is gone: {}", page.text);
}

#[tokio::test]
async fn where_the_operator_wants_one_branch_the_second_to_refresh_after_the_window_ends_the_family() {
    for (one_branch, status) in [(false, 200), (true, 400)] {
        let reuse = ReusePolicy { window: Duration::from_mins(5), one_branch };
        let fixture = Fixture::with(Terms { reuse, ..Terms::default() }).await;
        let client = fixture.client(WEB).await;
        let (_, refresh) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
        let (_, first) = fixture.refresh(&client, &refresh).await;
        let (_, second) = fixture.refresh(&client, &refresh).await;
        fixture.clock.advance(Duration::from_hours(1));
        let (answered, first) = fixture.refresh(&client, text(&first, "refresh_token")).await;
        assert_eq!(answered, 200, "the first to refresh is settled on");
        assert_eq!(fixture.refresh(&client, text(&second, "refresh_token")).await.0, status, "{one_branch}");
        assert_eq!(fixture.refresh(&client, text(&first, "refresh_token")).await.0, status, "{one_branch}");
    }
}

#[tokio::test]
async fn ten_refreshes_at_once_are_ten_good_answers_and_the_seventeenth_branch_is_refused_and_harms_nobody() {
    let (fixture, client, refresh) = connected().await;
    let answers = futures_util::future::join_all((0..10).map(|_| fixture.refresh(&client, &refresh))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    for _ in 10..16 {
        assert_eq!(fixture.refresh(&client, &refresh).await.0, 200);
    }
    let (status, answer) = fixture.refresh(&client, &refresh).await;
    assert_eq!(status, 400);
    assert!(answer["error_description"].to_string().contains("too many programs"), "{answer}");
    assert_eq!(fixture.refresh(&client, text(&answers[0].1, "refresh_token")).await.0, 200);
}
