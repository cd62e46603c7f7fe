//! What runs as root can be read through: no HTTP, JSON, SQL, URL or regex crate is below the supervisor's package, and
//! README lists what is.

#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::process::Command;

/// Names of crates, of the supervisor's package and all below it, that are linked into its program.
fn tree() -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(harness::workspace())
        .args([
            "tree",
            "--locked",
            "--offline",
            "-p",
            "forgejo-mcp-supervisor",
            "-e",
            "normal,no-proc-macro",
            "--prefix",
            "none",
        ])
        .args(["--format", "{p}"])
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn no_crate_for_http_json_sql_urls_or_regexes_is_below_the_supervisor() {
    let tree = tree();
    assert!(tree.contains("tokio") && tree.contains("nix"), "the tree is not read right: {tree:?}");
    let barred = [
        "http",
        "http-body",
        "httparse",
        "hyper",
        "hyper-util",
        "axum",
        "axum-core",
        "tower",
        "tower-http",
        "reqwest",
        "h2",
        "serde_json",
        "sqlx",
        "sqlx-core",
        "sqlx-sqlite",
        "libsqlite3-sys",
        "rusqlite",
        "url",
        "idna",
        "idna_adapter",
        "percent-encoding",
        "form_urlencoded",
        "regex",
        "regex-automata",
        "regex-syntax",
        "regex-lite",
        "matchers",
        "rustls",
        "ring",
        "askama",
        "askama_template",
    ];
    for name in barred {
        assert!(!tree.contains(name), "{name} is below the supervisor");
    }
}

#[test]
fn readme_lists_what_is_below_the_supervisor() {
    let readme = std::fs::read_to_string(harness::workspace().join("README.md")).expect("README");
    let begin = "All crates in root's process:";
    let text = readme.split(begin).nth(1).unwrap_or_else(|| panic!("README has no «{begin}»"));
    let text = text.split("\n\n").next().unwrap_or_default();
    let said: BTreeSet<_> = text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(said, tree(), "what README says, and what is");
}
