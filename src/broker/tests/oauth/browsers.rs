//! Browsers as they are: several pages at once, and windows that keep no cookies.

use crate::tests::oauth::fixture::{Answer, Fixture, Terms, WEB};
use harness::user_agent::{Decision, Form, Page, UserAgent, decided};

const OTHER: &str = "https://other.example/callback";

async fn agreed(fixture: &Fixture, user_agent: &mut UserAgent, form: Form) -> Answer {
    let sent = user_agent.send(&decided(form, Decision::Allow)).await;
    let to = sent.location().unwrap_or_else(|| panic!("no redirect but {} {}", sent.status, sent.text));
    Answer::of(&user_agent.go(to.as_str(), &fixture.known(), Decision::Deny).await)
}

fn asks(page: &Page) -> Form {
    page.form("/oauth/consent")
}

#[tokio::test]
async fn two_requests_that_are_open_in_one_browser_are_both_answered() {
    let fixture = Fixture::new().await;
    let (one, two) = (fixture.client(WEB).await, fixture.client(OTHER).await);
    let mut alice = UserAgent::new("alice", "secret");
    let first = alice.open(fixture.authorize(&one, WEB, &[])).await;
    let second = alice.open(fixture.authorize(&two, OTHER, &[])).await;
    for (client, address, page) in [(&one, WEB, first), (&two, OTHER, second)] {
        let answer = agreed(&fixture, &mut alice, asks(&page)).await;
        assert_eq!(answer.address(), address);
        assert_eq!(fixture.redeem(client, address, answer.get("code")).await.0, 200);
    }
}

#[tokio::test]
async fn of_two_first_pages_that_are_opened_at_once_the_one_whose_key_is_gone_asks_once_more() {
    let fixture = Fixture::new().await;
    let (one, two) = (fixture.client(WEB).await, fixture.client(OTHER).await);
    let mut alice = UserAgent::new("alice", "secret");
    let first = alice.open(fixture.authorize(&one, WEB, &[])).await;
    // The second request left before the first answer came.
    alice.cookies.clear();
    let second = alice.open(fixture.authorize(&two, OTHER, &[])).await;
    let again = alice.send(&decided(asks(&first), Decision::Allow)).await;
    assert!(again.text.contains("Decide once more"), "{}", again.text);
    assert_eq!(again.header("set-cookie"), "", "the key is that of the page that was opened last");
    for (client, address, page) in [(&two, OTHER, second), (&one, WEB, again)] {
        let answer = agreed(&fixture, &mut alice, asks(&page)).await;
        assert_eq!(fixture.redeem(client, address, answer.get("code")).await.0, 200, "{address}");
    }
}

#[tokio::test]
async fn a_window_that_keeps_no_cookies_leads_to_a_browser_that_does() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut window = UserAgent::new("alice", "secret");
    let page = window.open(fixture.authorize(&client, WEB, &[])).await;
    window.cookies.clear();
    let lost = window.send(&decided(asks(&page), Decision::Allow)).await;
    assert!(lost.status == 403 && lost.text.contains("keeps no cookies"), "{} {}", lost.status, lost.text);
    let link = lost.text.split("href=\"").find(|part| part.starts_with(&fixture.url)).expect("a link");
    let link = link.split('"').next().expect("its end").replace("&#38;", "&").replace("&amp;", "&");
    assert_eq!(link, fixture.authorize(&client, WEB, &[]), "the same request");
    let mut browser = UserAgent::new("alice", "secret");
    let page = browser.open(link).await;
    let answer = agreed(&fixture, &mut browser, asks(&page)).await;
    assert_eq!(fixture.redeem(&client, WEB, answer.get("code")).await.0, 200);
}

#[tokio::test]
async fn a_form_without_cookies_and_without_a_good_request_leads_nowhere() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let page = UserAgent::new("alice", "secret").open(fixture.authorize(&client, WEB, &[])).await;
    let form = asks(&page).with("query", "client_id=nobody&redirect_uri=https%3A%2F%2Fevil.example");
    let refused = UserAgent::new("alice", "secret").send(&form).await;
    assert!(refused.status == 400 && !refused.text.contains("evil.example"), "{} {}", refused.status, refused.text);
}

#[tokio::test]
async fn over_https_browsers_are_held_to_it_and_keep_cookies_that_no_neighbour_can_set() {
    let fixture = Fixture::with(Terms { public_url: Some("https://mcp.example.org"), ..Terms::default() }).await;
    for path in ["/", "/account", "/style.css", "/oauth/authorize", "/.well-known/oauth-authorization-server"] {
        let answer = fixture.http.get(format!("{}{path}", fixture.url)).send().await.expect("an answer");
        assert_eq!(answer.headers()["strict-transport-security"], "max-age=31536000", "{path}");
    }
    let page = UserAgent::new("alice", "secret").open(format!("{}/account", fixture.url)).await;
    let cookie = page.header("set-cookie");
    assert!(cookie.starts_with("__Host-fjb-browser=") && cookie.contains("; Secure"), "{cookie}");
}
