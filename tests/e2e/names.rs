//! Whoever does not call the broker by one of its names, or from a page that may not, gets nothing from it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use harness::deployment::Deployment;
use harness::mcp_session::{http, initialize};

use crate::log_lines::{IN_FORCE, reload};
use crate::{stand_in_deployment, token};

/// What the broker answers to a request as it is written here; `ADDRESS` stands for its address.
fn asks(deployment: &Deployment, head: &str, body: &str) -> (u16, String) {
    let address = deployment.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a deadline");
    let port = address.rsplit(':').next().expect("a port");
    let head = head.replace("ADDRESS", address).replace("PORT", port);
    let is_framed = body.is_empty() || head.contains("transfer-encoding");
    let length = if is_framed { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    write!(stream, "{head}\r\nconnection: close\r\n{length}\r\n{body}").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer)
}

/// The status of a GET without a token: 401 says that the names were good.
fn status(deployment: &Deployment, lines: &str) -> u16 {
    asks(deployment, &format!("GET /mcp HTTP/1.1{}", lines.replace('|', "\r\n")), "").0
}

#[tokio::test]
async fn a_request_is_for_one_of_the_brokers_names_or_refused_whatever_else_it_carries() {
    let more = "public_url = \"https://mcp.example:8443\"\n[http]\nhosts = [\"mcp.internal\"]\n";
    let deployment = stand_in_deployment("names-host", &[], |config| config.broker = more.to_owned());
    for (lines, expected) in [
        ("|host: ADDRESS", 401),
        ("|host: localhost:PORT", 401),
        ("|host: LocalHost.", 401),
        ("|host: [::1]:PORT", 401),
        ("|host: mcp.example", 401),
        ("|host: mcp.example:8443", 401),
        ("|host: MCP.Internal.:1", 401),
        ("|host: evil.example", 421),
        ("|host: evil.example:PORT", 421),
        ("|host: mcp.example.evil", 421),
        ("|host: 10.9.8.7", 421),
        ("", 400),
        ("|host: ", 400),
        ("|host: mcp.example|host: mcp.example", 400),
        ("|host: user@mcp.example", 400),
        ("|host: mcp.example, evil.example", 400),
        ("|host: mcp.example:99999", 400),
    ] {
        assert_eq!(status(&deployment, lines), expected, "{lines}");
    }
    let of = |line: &str| asks(&deployment, line, "").0;
    assert_eq!(of("GET http://mcp.internal/mcp HTTP/1.1\r\nhost: evil.example"), 401, "the target goes before Host");
    assert_eq!(of("GET http://evil.example/mcp HTTP/1.1\r\nhost: mcp.example"), 421);
    assert_eq!(of("GET http://mcp.example/mcp HTTP/1.1"), 400, "and Host must be there all the same");
    assert_eq!(of("GET /mcp HTTP/1.0"), 401, "which HTTP/1.0 does not demand");
    assert_eq!(of("GET /mcp HTTP/1.0\r\nhost: evil.example"), 421);
    for path in ["/", "/oauth/authorize", "/.well-known/oauth-protected-resource/mcp", "/nowhere"] {
        assert_eq!(of(&format!("GET {path} HTTP/1.1\r\nhost: evil.example")), 421, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(of(&format!("GET {path} HTTP/1.1\r\nhost: 10.9.8.7:80")), 200, "{path} is for probes");
        assert_eq!(of(&format!("GET {path} HTTP/1.0")), 200, "{path} is for probes");
        assert_eq!(of(&format!("GET {path} HTTP/1.1")), 400, "{path}");
    }
    let good = token(&deployment, "alice");
    let carrying = format!("POST /mcp HTTP/1.1\r\nauthorization: Bearer {good}\r\ncontent-type: application/json");
    let (code, answer) = asks(&deployment, &format!("{carrying}\r\nhost: evil.example"), &initialize().to_string());
    assert!(code == 421 && answer.contains("[http] hosts") && !answer.contains("jsonrpc"), "{answer}");
    assert!(deployment.children().is_empty(), "nothing was started");
    let told = |host: &str| deployment.output().matches(&format!("refused a request for {host}:")).count();
    assert_eq!((told("evil.example"), told("10.9.8.7"), told("mcp.example")), (1, 1, 0), "each once");
    let (code, answer) = asks(&deployment, &format!("{carrying}\r\nhost: mcp.internal"), &initialize().to_string());
    assert!(code == 200 && answer.contains("mcp-session-id"), "{answer}");
}

#[test]
fn a_foreign_page_is_refused_with_or_without_a_token_and_pages_of_this_machine_are_not_on_it() {
    let more = "[http]\nhosts = [\"mcp.internal\"]\nallowed_origins = [\"https://inspector.example\"]\n";
    let deployment = stand_in_deployment("names-origin", &[], |config| config.broker = more.to_owned());
    for (lines, expected) in [
        ("|host: localhost:PORT|origin: http://localhost:PORT", 401),
        ("|host: localhost:PORT|origin: http://localhost:6274", 401),
        ("|host: ADDRESS|origin: http://ADDRESS", 401),
        ("|host: mcp.internal|origin: https://mcp.internal", 401),
        ("|host: mcp.internal|origin: https://inspector.example", 401),
        ("|host: mcp.internal|origin: http://localhost:6274", 403),
        ("|host: localhost:PORT|origin: http://evil.example", 403),
        ("|host: localhost:PORT|origin: http://localhost.evil.example", 403),
        ("|host: localhost:PORT|origin: null", 403),
        ("|host: localhost:PORT|origin: https://inspector.example|origin: http://evil.example", 403),
        // What a page that rebinds its name sends.
        ("|host: evil.example|origin: http://evil.example", 421),
    ] {
        assert_eq!(status(&deployment, lines), expected, "{lines}");
    }
    let good = token(&deployment, "alice");
    let head =
        format!("GET /mcp HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {good}\r\norigin: http://evil.example");
    assert_eq!(asks(&deployment, &head, "").0, 403);
    let head = "OPTIONS /mcp HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\n\
                access-control-request-method: POST";
    let (code, answer) = asks(&deployment, head, "");
    assert!(code == 403 && !answer.contains("access-control"), "{answer}");
}

#[test]
fn what_comes_in_a_coding_that_nobody_reads_here_is_not_read() {
    let deployment = stand_in_deployment("names-codings", &[], |_| {});
    let good = token(&deployment, "alice");
    let ask = |more: &str, body: &str| {
        let head = format!(
            "POST /mcp HTTP/1.1\r\nhost: ADDRESS\r\nauthorization: Bearer {good}\r\ncontent-type: application/json\r\n{more}"
        );
        asks(&deployment, &head, body)
    };
    let body = initialize().to_string();
    let (code, answer) = ask("content-encoding: gzip", &body);
    assert!(code == 415 && answer.contains("accept-encoding: identity"), "{answer}");
    assert_eq!(ask("content-encoding: identity", &body).0, 200);
    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let chunked = |coding: &str| ask(&format!("transfer-encoding: {coding}"), &chunk).0;
    assert_eq!(chunked("chunked"), 200);
    assert_eq!(chunked("gzip, chunked"), 501);
    // Without `chunked` at the end nobody knows where the body ends (RFC 9112 section 6.3).
    assert_eq!(chunked("gzip"), 400);
}

#[tokio::test]
async fn a_reload_puts_names_and_origins_in_force() {
    let deployment = stand_in_deployment("names-reload", &[], |_| {});
    let lines = "|host: mcp.internal|origin: https://inspector.example";
    assert_eq!(status(&deployment, lines), 421);
    let file = deployment.config.dir.join("broker-extra.toml");
    let before = std::fs::read_to_string(&file).expect("readable");
    let names = "[http]\nhosts = [\"mcp.internal\"]\nallowed_origins = [\"https://inspector.example\"]\n";
    let broker = deployment.broker.as_ref().expect("runs");
    reload(&deployment.config.dir, broker, &format!("{before}\n{names}"), IN_FORCE);
    assert_eq!(status(&deployment, lines), 401);
    let asked = http().request(reqwest::Method::OPTIONS, format!("{}/mcp", deployment.url));
    let asked = asked.header("origin", "https://inspector.example").header("access-control-request-method", "POST");
    let asked = asked.header("access-control-request-headers", "mcp-param-owner,traceparent,x-evil");
    let answer = asked.send().await.expect("an answer");
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
    assert_eq!(header("access-control-allow-origin").as_deref(), Some("https://inspector.example"));
    assert_eq!(header("access-control-allow-headers").as_deref(), Some("mcp-param-owner,traceparent"));
    assert_eq!(header("access-control-max-age").as_deref(), Some("7200"));
}
