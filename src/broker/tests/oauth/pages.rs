//! What every page has: the operator's name on it, a way on, and a number that the journal knows.

use std::io::Write;

use crate::oauth::site::{Contact, Logo, Site};
use crate::tests::captured_log::CapturedLog;
use crate::tests::oauth::fixture::{Fixture, Terms, WEB};
use harness::user_agent::{Decision, Page, UserAgent};

fn reference(page: &Page) -> String {
    let behind = page.text.split("Reference <strong>").nth(1).unwrap_or_else(|| panic!("{}", page.text));
    behind.split('<').next().expect("a number").to_owned()
}

#[tokio::test]
async fn a_page_about_what_went_wrong_leads_home_and_is_found_in_the_journal_with_its_cause() {
    let (log, _here) = CapturedLog::begin();
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let tampered = fixture.authorize(&client, "https://evil.example/", &[]);
    for (address, status) in [(tampered, 400), (format!("{}/oauth/callback", fixture.url), 400)] {
        let page = alice.open(&address).await;
        assert_eq!(page.status, status);
        assert!(page.text.contains("href=\"/\""), "{}", page.text);
        let reference = reference(&page);
        assert_eq!(reference.len(), 8);
        let text = log.text();
        assert!(text.contains(&format!("(reference {reference})")), "{text}");
        if address.contains("evil") {
            let cause = text.lines().find(|line| line.contains("redirect-mismatch")).expect("the cause");
            assert!(cause.contains(&reference), "{cause}");
        }
    }
    fixture.misbehave(|mode| mode.fail = Some(502));
    let page = alice.go(&fixture.authorize(&client, WEB, &[]), &fixture.known(), Decision::Allow).await;
    assert_eq!((page.status.as_u16(), page.header("retry-after")), (503, "30"));
    assert!(log.text().contains(&reference(&page)));
}

#[tokio::test]
async fn a_flood_of_bad_requests_does_not_fill_the_journal() {
    let (log, _here) = CapturedLog::begin();
    let fixture = Fixture::new().await;
    let (mut visitor, mut pages) = (UserAgent::new("x", "x"), Vec::new());
    for _ in 0..30 {
        pages.push(visitor.open(format!("{}/oauth/callback", fixture.url)).await);
    }
    let told = pages.iter().filter(|page| page.text.contains("Reference")).count();
    assert_eq!(told, 10);
    assert_eq!(
        log.text().matches("told somebody").count(),
        told,
        "no page has a number that the journal does not know"
    );
}

#[tokio::test]
async fn the_operators_name_contact_and_logo_are_on_every_page() {
    let mut image = Vec::new();
    image.write_all(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>").expect("written");
    let site = Site {
        name: "Tools of <Example>".to_owned(),
        contact: Some(Contact { address: "mailto:ops@example.org".to_owned(), text: "ops@example.org".to_owned() }),
        logo: Some(Logo { media_type: "image/svg+xml", image: image.into() }),
    };
    let fixture = Fixture::with(Terms { site, ..Terms::default() }).await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    for path in ["/", "/account", "/oauth/callback"].map(|path| format!("{}{path}", fixture.url)) {
        let page = alice.open(&path).await;
        for part in ["Tools of &#60;Example&#62;", "href=\"mailto:ops@example.org\"", "<img src=\"/logo\" alt=\"\">"] {
            assert!(page.text.contains(part), "{path}: {part}: {}", page.text);
        }
    }
    let page = alice.open(fixture.authorize(&client, WEB, &[])).await;
    assert!(page.text.contains("Tools of") && page.header("content-security-policy").contains("img-src 'self'"));
    let logo = alice.open(format!("{}/logo", fixture.url)).await;
    assert_eq!((logo.status.as_u16(), logo.header("content-type")), (200, "image/svg+xml"));
    assert!(
        logo.header("content-security-policy").contains("sandbox"),
        "an image that is opened by itself does nothing"
    );
    let plain = Fixture::new().await;
    assert_eq!(alice.open(format!("{}/logo", plain.url)).await.status, 404);
    assert!(!alice.open(&plain.url).await.text.contains("<img"));
}

#[tokio::test]
async fn on_the_consent_page_reading_is_chosen_until_the_person_chooses_otherwise() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let page = UserAgent::new("alice", "secret").open(fixture.authorize(&client, WEB, &[])).await;
    assert_eq!(page.form("/oauth/consent").fields["access"], "read");
    assert!(page.text.contains("value=\"write\""), "writing can be chosen");
}
