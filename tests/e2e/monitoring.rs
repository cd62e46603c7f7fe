//! `/metrics` on a listener of its own, and what is shipped to read it: all that dashboard and alerts name is there.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use harness::deployment::Deployment;
use harness::mcp_session::{Session, http, initialize, post};
use harness::workspace;
use serde_json::json;

use crate::{stand_in_deployment, token};

const PREFIX: &str = "forgejo_mcp_broker_";

/// Where the broker serves `/metrics`: it was given port 0 and says which it has.
pub(crate) fn address(deployment: &Deployment) -> String {
    let log = deployment.broker.as_ref().expect("runs").output();
    let line = log.lines().find(|line| line.contains("/metrics is served")).expect("it says so");
    let at = line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an address");
    format!("http://{}", at.trim_matches('"'))
}

/// The program that checks Prometheus' files, where `tests/run` has put it or the machine has it.
fn promtool() -> Option<Command> {
    let ours = workspace().join("target/tools/bin/promtool");
    let there = |program: &std::ffi::OsStr| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    [ours.as_os_str(), "promtool".as_ref()].into_iter().find(|program| there(program)).map(Command::new)
}

/// The names in a text that begin as ours do, without what histograms add.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with(PREFIX));
    let family = |word: &str| {
        ["_bucket", "_count", "_sum"]
            .iter()
            .fold(word.to_owned(), |word, end| word.strip_suffix(end).map_or(word.clone(), ToOwned::to_owned))
    };
    words.map(family).collect()
}

fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).expect(series);
    line.parse().expect("a number")
}

#[tokio::test]
async fn prometheus_is_told_what_happened_and_everything_that_dashboard_and_alerts_ask_for() {
    let deployment = stand_in_deployment("monitoring", &[], |config| {
        "[metrics]\nlisten = \"127.0.0.1:0\"\n".clone_into(&mut config.broker);
    });
    let page = async |path: &str| http().get(format!("{}{path}", address(&deployment))).send().await.expect("served");
    let alice = token(&deployment, "alice");
    let mut session = Session::open(&deployment.url, &alice).await.expect("a session");
    session.text("echo", json!({"text": "x"})).await.expect("an answer");
    post(&http(), &deployment.url, "fjb_at_nonsense", None, &initialize()).await.expect("an answer");

    let answer = page("/metrics").await;
    let kind = answer.headers()["content-type"].to_str().expect("ascii").to_owned();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = answer.text().await.expect("text");
    for (series, expected) in [
        (r#"forgejo_mcp_broker_requests_total{method="tools/call",outcome="ok"}"#, 1.0),
        (r#"forgejo_mcp_broker_request_duration_seconds_count{method="tools/call"}"#, 1.0),
        (r#"forgejo_mcp_broker_refusals_total{reason="bad-token"}"#, 1.0),
        (r#"forgejo_mcp_broker_child_starts_total{outcome="ok"}"#, 1.0),
        ("forgejo_mcp_broker_child_start_duration_seconds_count", 1.0),
        ("forgejo_mcp_broker_sessions_opened_total", 1.0),
        ("forgejo_mcp_broker_sessions", 1.0),
        ("forgejo_mcp_broker_children", 1.0),
        ("forgejo_mcp_broker_supervisor_children", 1.0),
        ("forgejo_mcp_broker_supervisor_up", 1.0),
        ("forgejo_mcp_broker_children_max", 500.0),
    ] {
        assert!((value(&text, series) - expected).abs() < f64::EPSILON, "{series} is not {expected}:\n{text}");
    }
    assert!(value(&text, "forgejo_mcp_broker_store_free_bytes") > 0.0);
    assert!(value(&text, "forgejo_mcp_broker_store_file_bytes") > 0.0);
    for secret in ["alice", alice.as_str(), session.id.as_str(), "127.0.0.1"] {
        assert!(!text.contains(secret), "{secret} is on the page");
    }
    assert_eq!(page("/healthz").await.status(), 200);
    assert_eq!(page("/readyz").await.status(), 200);
    let clients = format!("{}/metrics", deployment.url);
    assert_eq!(http().get(clients).send().await.expect("an answer").status(), 404, "it is not for clients");

    session.end().await.expect("ended");
    let later = async || page("/metrics").await.text().await.expect("text");
    let mut ended = later().await;
    // Asked at most once a second, so the end may not be there yet.
    let by = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !ended.contains(r#"child_ends_total{reason="stopped"} 1"#) {
        assert!(std::time::Instant::now() < by, "the end is not counted:\n{ended}");
        ended = later().await;
    }
    assert!(ended.contains(r#"forgejo_mcp_broker_sessions_ended_total{reason="client-ended"} 1"#), "{ended}");
    let known = names(&ended);
    for file in ["packaging/monitoring/dashboard.json", "packaging/monitoring/alerts.yml"] {
        let asked = names(&std::fs::read_to_string(workspace().join(file)).expect(file));
        let unknown: Vec<_> = asked.difference(&known).collect();
        assert!(asked.len() > 8 && unknown.is_empty(), "{file} asks for {unknown:?}");
    }
    let Some(mut promtool) = promtool() else {
        return crate::skip("promtool reads the metrics", "no promtool: run tests/run on Debian");
    };
    let mut check = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    check = check.stderr(Stdio::piped());
    let mut check = check.spawn().expect("it runs");
    check.stdin.take().expect("a pipe").write_all(ended.as_bytes()).expect("read");
    let said = check.wait_with_output().expect("it ends");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

#[test]
fn the_alert_rules_are_good_and_fire_when_they_should() {
    let Some(mut promtool) = promtool() else {
        return crate::skip("promtool tries the alert rules", "no promtool: run tests/run on Debian");
    };
    let tests = workspace().join("tests/e2e/alerts_test.yml");
    let said = promtool.args(["test", "rules"]).arg(tests).output().expect("it runs");
    assert!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
}
