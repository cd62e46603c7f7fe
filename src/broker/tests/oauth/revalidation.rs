//! What was fetched is asked about again when its time is over, and never used beyond it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::auth::rates::RateLimits;
use crate::auth::source::Source;
use crate::oauth::document::{Age, DocumentCache, DocumentError};
use crate::oauth::redirect::Schemes;
use crate::tests::oauth::documents::{DocumentServer, document};
use crate::tests::oauth::fixture::{START, Terms};
use harness::https::{Answer, Server};
use tokio::time::{Instant, timeout};
use wire::clock::Clock;

/// The cache alone, at a time that stands still: nothing of a login is asked here.
struct Cache {
    documents: DocumentCache,
    clock: Clock,
}

impl Cache {
    fn of(server: &Server) -> Self {
        let clock = Clock::manual(START);
        let limits = Arc::new(RateLimits::new(Terms::default().rates, Vec::new()));
        let documents = DocumentCache::new(server.documents(), limits, clock.clone()).expect("a client");
        Self { documents, clock }
    }

    /// The name in the document, or why there is none.
    async fn name(&self, server: &Server) -> Result<String, DocumentError> {
        let asking = Source::of_address([192, 0, 2, 1].into());
        let client = self.documents.get(&server.id(), &Schemes::new(Vec::new()), Age::Fresh, asking).await;
        client.map(|client| client.name.to_string())
    }
}

/// A server of the document's `n`th version, which `turn` says; whether the condition in a request names that version is
/// the server's to say. `not_modified` are the headers of its 304.
async fn versioned(turn: &Arc<AtomicUsize>, head: &'static str, not_modified: &'static str) -> Server {
    let (turn, sent) = (Arc::clone(turn), AtomicUsize::new(0));
    Server::answering(move |port, request| {
        let version = turn.load(Ordering::SeqCst);
        let is_known =
            request.contains(&format!("if-none-match: \"v{version}\"")) || request.contains("if-modified-since");
        let (head, body) = if is_known {
            (format!("304 Not Modified\r\n{not_modified}"), String::new())
        } else {
            let mut document = document(port);
            document["client_name"] = format!("Version {version}, sent {}", sent.fetch_add(1, Ordering::SeqCst)).into();
            let head = head.replace("ETAG", &format!("etag: \"v{version}\""));
            (format!("200 OK\r\ncontent-type: application/json\r\n{head}"), document.to_string())
        };
        Answer { head, body, trickles: None }
    })
    .await
}

#[tokio::test]
async fn a_stale_document_is_asked_about_by_its_tag_and_goes_on_where_it_is_unchanged() {
    let turn = Arc::default();
    let server = versioned(&turn, "cache-control: max-age=60\r\nETAG", "etag: \"v0\"").await;
    let cache = Cache::of(&server);
    assert_eq!(cache.name(&server).await.as_deref(), Ok("Version 0, sent 0"));
    cache.clock.advance(Duration::from_secs(61));
    assert_eq!(cache.name(&server).await.as_deref(), Ok("Version 0, sent 0"));
    assert_eq!(server.asked(), 2);
    // For as long again, though the 304 did not repeat for how long.
    cache.clock.advance(Duration::from_secs(59));
    assert_eq!(cache.name(&server).await.as_deref(), Ok("Version 0, sent 0"));
    assert_eq!(server.asked(), 2);
    cache.clock.advance(Duration::from_secs(2));
    turn.store(1, Ordering::SeqCst);
    assert_eq!(cache.name(&server).await.as_deref(), Ok("Version 1, sent 1"), "what has changed comes whole");
    assert_eq!(server.asked(), 3);
}

#[tokio::test]
async fn a_304_may_say_for_how_long_it_holds_and_a_date_is_as_good_as_a_tag() {
    let head = "cache-control: max-age=60\r\nlast-modified: Mon, 23 Nov 2026 12:00:00 GMT";
    let server = versioned(&Arc::default(), head, "cache-control: max-age=600").await;
    let cache = Cache::of(&server);
    for (minutes, asked) in [(0, 1), (2, 2), (9, 2), (2, 3)] {
        cache.clock.advance(Duration::from_mins(minutes));
        assert_eq!(cache.name(&server).await.as_deref(), Ok("Version 0, sent 0"));
        assert_eq!(server.asked(), asked, "after {minutes} minutes");
    }
}

#[tokio::test]
async fn what_must_be_asked_about_before_each_use_is_kept_for_that_and_what_must_not_be_kept_is_not() {
    for (head, conditions) in [("cache-control: no-cache\r\nETAG", 1), ("cache-control: no-store\r\nETAG", 0)] {
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&seen);
        let server = Server::answering(move |port, request| {
            counter.fetch_add(usize::from(request.contains("if-none-match")), Ordering::SeqCst);
            let head = head.replace("ETAG", "etag: \"v0\"");
            let head = format!("200 OK\r\ncontent-type: application/json\r\n{head}");
            Answer { head, body: document(port).to_string(), trickles: None }
        })
        .await;
        let cache = Cache::of(&server);
        for _ in 0..2 {
            assert!(cache.name(&server).await.is_ok());
        }
        assert_eq!((server.asked(), seen.load(Ordering::SeqCst)), (2, conditions), "{head}");
    }
}

#[tokio::test]
async fn a_stale_document_is_not_used_while_its_server_fails() {
    let is_well = Arc::new(AtomicUsize::new(1));
    let switch = Arc::clone(&is_well);
    let server = Server::answering(move |port, request| {
        let (head, body) = match (switch.load(Ordering::SeqCst), request.contains("if-none-match")) {
            (0, _) => ("503 Busy\r\ncache-control: max-age=3600", String::new()),
            (_, true) => ("304 Not Modified", String::new()),
            (_, false) => {
                let head = "200 OK\r\ncontent-type: application/json\r\ncache-control: max-age=60\r\netag: \"v0\"";
                (head, document(port).to_string())
            }
        };
        Answer { head: head.to_owned(), body, trickles: None }
    })
    .await;
    let cache = Cache::of(&server);
    assert!(cache.name(&server).await.is_ok());
    is_well.store(0, Ordering::SeqCst);
    assert!(cache.name(&server).await.is_ok(), "its time is not over");
    cache.clock.advance(Duration::from_secs(61));
    assert_eq!(cache.name(&server).await, Err(DocumentError::Status(503)));
    is_well.store(1, Ordering::SeqCst);
    assert!(cache.name(&server).await.is_ok(), "the error was not kept");
    assert_eq!(server.asked(), 3);
}

#[tokio::test]
async fn a_304_that_nobody_asked_for_is_no_document() {
    let server = Server::start(|_| ("304 Not Modified".to_owned(), String::new())).await;
    assert_eq!(Cache::of(&server).name(&server).await, Err(DocumentError::Status(304)));
}

#[tokio::test]
async fn a_server_that_trickles_is_given_up_after_five_seconds_whatever_has_come() {
    let server = Server::answering(|port, _| Answer {
        head: "200 OK\r\ncontent-type: application/json".to_owned(),
        body: document(port).to_string(),
        trickles: Some(Duration::from_secs(1)),
    })
    .await;
    let (cache, began) = (Cache::of(&server), Instant::now());
    // Of real time: the bytes come by a real connection. The whole would take minutes.
    let outcome = timeout(Duration::from_secs(30), cache.name(&server)).await;
    assert_eq!(outcome.expect("given up"), Err(DocumentError::Unreachable));
    assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
}
