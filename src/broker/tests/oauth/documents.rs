//! Client ID metadata documents: what is fetched, what is believed, and what is never connected to.

use std::time::Duration;

use crate::oauth::config::{DocumentConfig, Fetch};
use serde_json::{Value, json};

use crate::tests::oauth::fixture::{Fixture, Terms};
use harness::https::Server;
use harness::user_agent::{Page, UserAgent};

pub(crate) const CALLBACK: &str = "https://app.example/callback";

/// What these tests do with a server of documents.
pub(crate) trait DocumentServer: Sized {
    async fn with_document(head: &'static str, change: impl Fn(&mut Value) + Send + 'static) -> Self;
    fn documents(&self) -> DocumentConfig;
    async fn fixture(&self) -> Fixture;
}

impl DocumentServer for Server {
    /// One that gives a document, changed by `change`.
    async fn with_document(head: &'static str, change: impl Fn(&mut Value) + Send + 'static) -> Self {
        Self::start(move |port| {
            let mut document = document(port);
            change(&mut document);
            (format!("200 OK\r\n{head}"), document.to_string())
        })
        .await
    }

    fn documents(&self) -> DocumentConfig {
        DocumentConfig {
            fetch: Fetch::On,
            hosts: Vec::new(),
            private_hosts: vec!["localhost".to_owned()],
            ca_file: Some(self.ca.path().to_owned()),
        }
    }

    async fn fixture(&self) -> Fixture {
        Fixture::with(Terms { documents: self.documents(), ..Terms::default() }).await
    }
}

pub(crate) fn document(port: u16) -> Value {
    json!({"client_id": format!("https://localhost:{port}/client.json"), "client_name": "Documented client",
        "redirect_uris": [CALLBACK, "http://127.0.0.1/callback"], "token_endpoint_auth_method": "none"})
}

fn with_keys(document: &mut Value, keys: &Value) {
    document["token_endpoint_auth_method"] = json!("private_key_jwt");
    document["jwks"] = keys.clone();
}

const JSON: &str = "content-type: application/json";

pub(crate) async fn ask(fixture: &Fixture, id: &str) -> Page {
    UserAgent::new("alice", "secret").open(fixture.authorize(id, CALLBACK, &[])).await
}

#[tokio::test]
async fn a_document_makes_a_client_whose_host_is_shown() {
    let server = Server::with_document(JSON, |_| {}).await;
    let fixture = server.fixture().await;
    let page = ask(&fixture, &server.id()).await;
    assert_eq!(page.status, 200, "{}", page.text);
    for part in ["Documented client", "app.example", "The owner of <strong>localhost</strong>"] {
        assert!(page.text.contains(part), "{part}: {}", page.text);
    }
    let mut alice = UserAgent::new("alice", "secret");
    let redirect = "http://127.0.0.1:50123/callback";
    let (access, refresh) = fixture.connect(&mut alice, &server.id(), redirect).await;
    assert!(fixture.who(&access).await.is_ok());
    assert_eq!(fixture.refresh(&server.id(), &refresh).await.0, 200);
}

#[tokio::test]
async fn a_document_is_kept_as_long_as_it_says_and_errors_are_not() {
    let server = Server::with_document("content-type: application/json\r\ncache-control: max-age=60", |_| {}).await;
    let fixture = server.fixture().await;
    for _ in 0..3 {
        assert_eq!(ask(&fixture, &server.id()).await.status, 200);
    }
    assert_eq!(server.asked(), 1);
    fixture.clock.advance(Duration::from_secs(61));
    ask(&fixture, &server.id()).await;
    assert_eq!(server.asked(), 2);
    let failing = Server::start(|_| ("503 Busy".to_owned(), String::new())).await;
    let fixture = failing.fixture().await;
    for _ in 0..2 {
        assert_eq!(ask(&fixture, &failing.id()).await.status, 400);
    }
    assert_eq!(failing.asked(), 2);
}

#[tokio::test]
async fn a_document_that_is_none_makes_no_client() {
    let wrong: [(&str, Server); 13] = [
        (
            "its client_id is not its own address",
            Server::with_document(JSON, |d| d["client_id"] = json!("https://localhost/client.json")).await,
        ),
        ("it needs client_id", Server::with_document(JSON, |d| d["client_name"] = Value::Null).await),
        (
            "none of its redirect_uris",
            Server::with_document(JSON, |d| d["redirect_uris"] = json!(["http://app.example/"])).await,
        ),
        ("cannot have a secret", Server::with_document(JSON, |d| d["client_secret"] = json!("x")).await),
        (
            "cannot have a secret",
            Server::with_document(JSON, |d| d["token_endpoint_auth_method"] = json!("client_secret_basic")).await,
        ),
        (
            "must be none or private_key_jwt",
            Server::with_document(JSON, |d| d["token_endpoint_auth_method"] = json!("tls_client_auth")).await,
        ),
        (
            "either jwks or jwks_uri",
            Server::with_document(JSON, |d| d["token_endpoint_auth_method"] = json!("private_key_jwt")).await,
        ),
        ("its keys are no JWK set", Server::with_document(JSON, |d| with_keys(d, &json!([]))).await),
        ("none of its keys can be used", Server::with_document(JSON, |d| with_keys(d, &json!({"keys": []}))).await),
        (
            "its token_endpoint_auth_signing_alg must be",
            Server::with_document(JSON, |d| {
                with_keys(d, &json!({"keys": []}));
                d["token_endpoint_auth_signing_alg"] = json!("HS256");
            })
            .await,
        ),
        ("its media type is not JSON", Server::with_document("content-type: text/html", |_| {}).await),
        ("it is longer than", Server::with_document(JSON, |d| d["x"] = json!("x".repeat(11_000))).await),
        (
            "status 302",
            Server::start(|port| {
                (format!("302 Found\r\nlocation: https://localhost:{port}/client.json"), String::new())
            })
            .await,
        ),
    ];
    for (why, server) in wrong {
        let fixture = server.fixture().await;
        let page = ask(&fixture, &server.id()).await;
        assert_eq!((page.status.as_u16(), page.location()), (400, None));
        assert!(page.text.contains(why), "{why}: {}", page.text);
        assert_eq!(server.asked(), 1, "redirects are not followed");
    }
}

#[tokio::test]
async fn ssrf_through_a_document_no_special_use_address_is_connected_to() {
    // A name that resolves to this machine, without the operator's word for it.
    let server = Server::with_document(JSON, |_| {}).await;
    let documents = DocumentConfig { private_hosts: Vec::new(), ..server.documents() };
    let fixture = Fixture::with(Terms { documents, ..Terms::default() }).await;
    let page = ask(&fixture, &server.id()).await;
    assert!(page.status == 400 && page.text.contains("not on the public internet"), "{}", page.text);
    assert_eq!(server.asked(), 0, "not even a connection");
    // Addresses themselves, in every range and spelling; the ranges' edges are in document/address.rs.
    let port = server.port;
    for host in [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[2001:db8::1]",
        "[64:ff9b::a00:1]",
        "[2002:7f00:1::]",
        "[100::1]",
        "[2001::1]",
        "2130706433",
        "0x7f.1",
        "017700000001",
        "127.1",
    ] {
        let page = ask(&fixture, &format!("https://{host}:{port}/client.json")).await;
        assert_eq!((page.status.as_u16(), page.location()), (400, None), "{host}");
        let refused = ["not on the public internet", "its address must be https"];
        assert!(refused.iter().any(|why| page.text.contains(why)), "{host}: {}", page.text);
    }
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn ssrf_through_a_document_an_id_that_is_no_plain_https_address_is_not_even_resolved() {
    let server = Server::with_document(JSON, |_| {}).await;
    let fixture = server.fixture().await;
    let port = server.port;
    for id in [
        format!("https://localhost:{port}"),
        format!("https://localhost:{port}/"),
        format!("https://localhost:{port}/a/../client.json"),
        format!("https://localhost:{port}/./client.json"),
        format!("https://user@localhost:{port}/client.json"),
        format!("https://localhost:{port}/client.json#x"),
        format!("https://LOCALHOST:{port}/client.json"),
        format!("https://localhost:{port}\\client.json"),
    ] {
        assert_eq!(ask(&fixture, &id).await.status, 400, "{id}");
    }
    assert_eq!(ask(&fixture, &format!("http://localhost:{port}/client.json")).await.status, 400);
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn the_operator_lets_documents_come_from_some_hosts_or_from_none() {
    let server = Server::with_document(JSON, |_| {}).await;
    let with = |fetch, hosts: &[&str]| {
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Fixture::with(Terms { documents: DocumentConfig { fetch, hosts, ..server.documents() }, ..Terms::default() })
    };
    let allowed = |page: &Page| page.status == 200;
    assert!(allowed(&ask(&with(Fetch::Allowlist, &["localhost"]).await, &server.id()).await));
    assert!(!allowed(&ask(&with(Fetch::Allowlist, &["claude.ai"]).await, &server.id()).await));
    let off = with(Fetch::Off, &["localhost"]).await;
    assert!(!allowed(&ask(&off, &server.id()).await));
    let metadata = off.http.get(format!("{}/.well-known/oauth-authorization-server", off.url)).send().await;
    let metadata: Value = metadata.expect("an answer").json().await.expect("json");
    assert_eq!(metadata["client_id_metadata_document_supported"], false);
    assert!(!metadata.to_string().contains("private_key_jwt"), "keys are published with documents: {metadata}");
}

#[tokio::test]
async fn documents_that_are_not_kept_are_limited_by_address() {
    let server = Server::with_document("content-type: application/json\r\ncache-control: no-store", |_| {}).await;
    let mut terms = Terms { documents: server.documents(), ..Terms::default() };
    terms.rates.documents = 3;
    let fixture = Fixture::with(terms).await;
    for _ in 0..3 {
        assert_eq!(ask(&fixture, &server.id()).await.status, 200);
    }
    assert_eq!(ask(&fixture, &server.id()).await.status, 429);
    assert_eq!(server.asked(), 3);
}
