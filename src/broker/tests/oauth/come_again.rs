//! A login that Forgejo does not end at once: its page comes soon and goes on by itself, and can be reloaded.

use crate::tests::oauth::fixture::{Answer, Fixture, WEB};
use harness::user_agent::{Decision, Page, UserAgent};
use url::Url;

async fn at_the_door(fixture: &Fixture) -> (String, UserAgent, Url) {
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let to = alice.go_up_to("/oauth/callback", &fixture.authorize(&client, WEB, &[]), Decision::Allow).await;
    (client, alice, to)
}

async fn is_connected(fixture: &Fixture, client: &str, page: &Page) {
    let answer = Answer::of(page);
    assert_eq!((answer.address(), answer.get("state")), (WEB.to_owned(), "client-state"));
    assert_eq!(fixture.redeem(client, WEB, answer.get("code")).await.0, 200);
}

/// The address behind the words of a button, as a browser has it.
fn link(page: &Page, words: &str) -> Url {
    let before = page.text.split(&format!(">{words}<")).next().expect("a text");
    assert_ne!(before.len(), page.text.len(), "no {words:?} on {}", page.text);
    let address = before.rsplit("href=\"").next().and_then(|rest| rest.split('"').next()).expect("a link");
    page.url.join(&address.replace("&#38;", "&")).expect("an address")
}

fn exchanges(fixture: &Fixture) -> usize {
    let is_one = |seen: &&harness::forge::state::Seen| seen.path == "/login/oauth/access_token";
    fixture.forge.with(|state| state.requests.iter().filter(is_one).count())
}

#[tokio::test]
async fn after_a_failure_of_forgejo_the_page_can_be_reloaded_and_the_login_succeeds_once() {
    let fixture = Fixture::new().await;
    let (client, mut alice, to) = at_the_door(&fixture).await;
    fixture.misbehave(|mode| mode.fail_tokens = true);
    for _ in 0..2 {
        let page = alice.open(&to).await;
        assert_eq!(page.status, 503);
        assert_eq!(link(&page, "Try again"), to, "{}", page.text);
        assert!(link(&page, "Back to the client").as_str().contains("temporarily_unavailable"));
    }
    fixture.misbehave(|_| {});
    assert_eq!(UserAgent::new("mallory", "secret").open(&to).await.status, 400, "in this browser only");
    is_connected(&fixture, &client, &alice.open(&to).await).await;
    let page = alice.open(&to).await;
    assert!(page.status == 400 && page.text.contains("finished already"), "{}", page.text);
}

#[tokio::test]
async fn a_login_whose_tokens_cannot_be_kept_says_so_at_once_and_goes_on_when_they_can() {
    let fixture = Fixture::new().await;
    let (client, mut alice, to) = at_the_door(&fixture).await;
    fixture.store.refuse_credentials(true).await;
    for _ in 0..2 {
        let page = alice.open(&to).await;
        assert_eq!(page.status, 503);
        assert!(page.text.contains("This service cannot keep anything now"), "{}", page.text);
        assert_eq!(link(&page, "Try again"), to, "{}", page.text);
    }
    assert_eq!(exchanges(&fixture), 1, "what Forgejo has given is still tried");
    fixture.store.refuse_credentials(false).await;
    // Whoever asks does not wait for the rest of the pause between tries.
    is_connected(&fixture, &client, &alice.open(&to).await).await;
}

#[tokio::test]
async fn where_forgejos_answer_was_lost_with_its_code_the_page_starts_again_and_leads_to_the_same_client() {
    let fixture = Fixture::new().await;
    let (client, mut alice, to) = at_the_door(&fixture).await;
    fixture.misbehave(|mode| mode.lose_answer = true);
    assert_eq!(alice.open(&to).await.status, 503);
    fixture.misbehave(|_| {});
    let page = alice.open(&to).await;
    assert_eq!(page.status, 502, "Forgejo takes a code once");
    let again = link(&page, "Start again");
    let page = alice.go(again.as_str(), &fixture.known(), Decision::Allow).await;
    is_connected(&fixture, &client, &page).await;
}

#[tokio::test]
async fn whoever_waits_for_a_forge_that_hangs_is_shown_so_and_the_page_goes_on_by_itself() {
    let fixture = Fixture::new().await;
    let (client, mut alice, to) = at_the_door(&fixture).await;
    fixture.misbehave(|mode| mode.hang = true);
    let before = exchanges(&fixture);
    let page = alice.glance(&to).await;
    assert_eq!((page.status.as_u16(), page.header("refresh")), (202, "1"), "{}", page.text);
    assert!(page.text.contains("Your login goes on") && link(&page, "Look again") == to, "{}", page.text);
    assert_eq!(UserAgent::new("mallory", "secret").open(&to).await.status, 400, "in this browser only");
    fixture.misbehave(|_| {});
    is_connected(&fixture, &client, &alice.open(&to).await).await;
    assert_eq!(exchanges(&fixture), before + 1, "one exchange, however often its browser asks");
}

#[tokio::test]
async fn a_login_that_came_to_nothing_is_tried_again_no_more_often_than_logins_are_begun() {
    let mut terms = crate::tests::oauth::fixture::Terms::default();
    terms.rates.logins = 3;
    let fixture = Fixture::with(terms).await;
    let (_, mut alice, to) = at_the_door(&fixture).await;
    fixture.misbehave(|mode| mode.fail_tokens = true);
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(alice.open(&to).await.status.as_u16());
    }
    assert_eq!(seen, [503, 503, 503, 429, 429]);
}

#[tokio::test]
async fn what_the_store_could_not_take_is_tried_again_without_forgejo() {
    let fixture = Fixture::new().await;
    let (client, mut alice, to) = at_the_door(&fixture).await;
    fixture.store.refuse_visits(true).await;
    let page = alice.open(&to).await;
    assert_eq!((page.status.as_u16(), link(&page, "Try again")), (503, to.clone()));
    fixture.store.refuse_visits(false).await;
    let before = exchanges(&fixture);
    is_connected(&fixture, &client, &alice.open(&to).await).await;
    assert_eq!(exchanges(&fixture), before, "Forgejo's answer was kept");
}
