//! Logins of different users run side by side, and nobody waits for an account about which Forgejo does not answer.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::forge::rotation::Change;
use crate::tests::oauth::fixture::{Answer, Fixture, START, WEB, alices_number};
use harness::user_agent::{Decision, Page, UserAgent};
use tokio::task::JoinHandle;
use url::Url;

const WHOSE: &str = "/api/v1/user";

/// A browser that comes back from Forgejo, and where to.
async fn at_the_door(fixture: &Fixture, client: &str, login: &str) -> (UserAgent, Url) {
    let mut user_agent = UserAgent::new(login, "secret");
    let to = user_agent.go_up_to("/oauth/callback", &fixture.authorize(client, WEB, &[]), Decision::Allow).await;
    (user_agent, to)
}

fn enter((mut user_agent, to): (UserAgent, Url)) -> JoinHandle<Page> {
    tokio::spawn(async move { user_agent.open(to).await })
}

fn is_in(page: &Page) -> bool {
    page.location().is_some_and(|to| to.as_str().starts_with(&format!("{WEB}?code=")))
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let so = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), so).await.unwrap_or_else(|_| panic!("{what}"));
}

fn asked(fixture: &Fixture, path: &str) -> usize {
    fixture.forge.with(|state| state.requests.iter().filter(|seen| seen.path == path).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_people_log_in_in_little_more_time_than_one() {
    const PEOPLE: u32 = 50;
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    fixture.forge.with(|state| {
        for n in 0..PEOPLE {
            state.add_user(&format!("user{n}"), "secret", false);
        }
    });
    let first = at_the_door(&fixture, &client, "alice").await;
    let mut people = Vec::new();
    for n in 0..PEOPLE {
        people.push(at_the_door(&fixture, &client, &format!("user{n}")).await);
    }
    fixture.misbehave(|mode| mode.slow = Some(300));
    let began = Instant::now();
    assert!(is_in(&enter(first).await.expect("no panic")));
    let one = began.elapsed();
    let began = Instant::now();
    let logins = join_all(people.into_iter().map(enter)).await;
    let all = began.elapsed();
    assert!(logins.into_iter().all(|login| is_in(&login.expect("no panic"))));
    assert!(all < one * PEOPLE / 5, "one takes {one:?}, {PEOPLE} at once {all:?}");
}

#[tokio::test]
async fn an_account_about_which_forgejo_does_not_answer_delays_nobody_but_itself() {
    type Misbehaviour = fn(&mut harness::forge::state::Mode);
    let ways: [Misbehaviour; 2] = [|mode| mode.fail_api_of = Some(1), |mode| mode.hang_api_of = Some(1)];
    for misbehaviour in ways {
        let fixture = Fixture::new().await;
        let client = fixture.client(WEB).await;
        let (alice, bob) = (at_the_door(&fixture, &client, "alice").await, at_the_door(&fixture, &client, "bob").await);
        fixture.misbehave(misbehaviour);
        let alice = enter(alice);
        until("Forgejo is asked who alice is", || asked(&fixture, WHOSE) > 0).await;
        assert!(is_in(&enter(bob).await.expect("no panic")));
        assert!(!alice.is_finished(), "nobody knows yet who she is");
        fixture.misbehave(|_| {});
        assert!(is_in(&alice.await.expect("no panic")), "and she loses nothing");
    }
}

#[tokio::test]
async fn of_two_logins_of_one_user_at_once_the_pair_that_is_good_is_kept_whichever_comes_first() {
    type Misbehaviour = fn(&mut harness::forge::state::Mode);
    // The later answer is of the earlier exchange; the later answer is of the later exchange, which was asked for first.
    let ways: [Misbehaviour; 2] = [|mode| mode.hold_first_pair = true, |mode| mode.hold_first_exchange = true];
    for misbehaviour in ways {
        let mut fixture = Fixture::new().await;
        let client = fixture.client(WEB).await;
        let one = at_the_door(&fixture, &client, "alice").await;
        let two = at_the_door(&fixture, &client, "alice").await;
        fixture.misbehave(misbehaviour);
        let one = enter(one);
        until("the first is held back", || fixture.forge.with(|state| state.holds)).await;
        assert!(is_in(&enter(two).await.expect("no panic")));
        assert!(!one.is_finished());
        fixture.misbehave(|_| {});
        let page = one.await.expect("no panic");
        let (status, tokens) = fixture.redeem(&client, WEB, Answer::of(&page).get("code")).await;
        assert_eq!(status, 200, "{tokens}");
        fixture.clock.advance(Duration::from_mins(56));
        fixture.rotation.sweep().await;
        while let Ok(change) = fixture.changes.try_recv() {
            assert!(matches!(change, Change::Rotated(_)), "the refresh token is good: {change:?}");
        }
        let id = fixture.store.oauth_credential_of(alices_number()).await.expect("read").expect("there");
        let credential = fixture.store.find_credential(&id).await.expect("read").expect("there");
        assert!(credential.expires_at.is_some_and(|end| end > START.plus(Duration::from_mins(61))), "refreshed");
    }
}
