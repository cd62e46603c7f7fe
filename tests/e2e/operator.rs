//! `forgejo-mcp-brokerctl`, as the operator uses it.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::stage::{Stage, others_may_enter};
use crate::stand_in_stage;

fn run(stage: &Stage, arguments: &[&str]) -> Output {
    stage.ctl().args(arguments).stdin(Stdio::null()).output().expect("brokerctl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_token_is_made_from_a_file_listed_and_revoked_once() {
    let stage = stand_in_stage("operator", &[], |_| {});
    let forgejo_token = stage.forge_token("alice").expect("a Forgejo token");
    let file = stage.setting.dir.join("token");
    std::fs::write(&file, format!("{forgejo_token}\n")).expect("written");
    let file = file.display().to_string();
    let made =
        run(&stage, &["token", "create", "--user", "Alice", "--client", "ci", "--ttl", "1h", "--token-file", &file]);
    let (out, err) = (text(&made.stdout), text(&made.stderr));
    assert!(made.status.success(), "{err}");
    assert!(out.starts_with("fjb_at_") && out.lines().count() == 1, "standard output is the token alone: {out}");
    assert!(err.contains("shown only now") && !err.contains(out.trim()), "{err}");
    let list = text(&run(&stage, &["token", "list"]).stdout);
    assert!(list.contains("alice") && list.contains("ci") && list.contains("active"), "{list}");
    assert!(!list.contains(out.trim()) && !list.contains(&forgejo_token), "{list}");
    let json: Value = serde_json::from_slice(&run(&stage, &["token", "list", "--json"]).stdout).expect("json");
    let id = json.pointer("/0/id").and_then(Value::as_str).expect("an id").to_owned();
    assert!(run(&stage, &["token", "revoke", &id]).status.success());
    assert!(text(&run(&stage, &["token", "list"]).stdout).contains("revoked"));
    let again = run(&stage, &["token", "revoke", &id]);
    assert_eq!(again.status.code(), Some(65));
    assert!(text(&again.stderr).contains("revoked already"), "{}", text(&again.stderr));
}

#[test]
fn a_token_of_somebody_else_or_of_nobody_is_refused_in_words() {
    let stage = stand_in_stage("refused_tokens", &[], |_| {});
    let forgejo_token = stage.forge_token("alice").expect("a Forgejo token");
    let other = stage.broker_token("bob", &forgejo_token, &[]).expect_err("another user").to_string();
    assert!(other.contains("`alice`") && other.contains("`bob`"), "{other}");
    let nobody = stage.broker_token("alice", "0123456789abcdef", &[]).expect_err("nobody").to_string();
    assert!(nobody.contains("does not accept the token"), "{nobody}");
    let empty = run(&stage, &["token", "create", "--user", "alice"]);
    assert_eq!(empty.status.code(), Some(65));
}

#[test]
fn status_says_what_is_not_isolated_and_a_broker_that_is_away_is_said_with_a_hint() {
    let mut stage = stand_in_stage("status", &[], |_| {});
    let status = text(&run(&stage, &["status"]).stdout);
    assert!(status.contains("sessions: 0") && status.contains("landlock: "), "{status}");
    assert_eq!(status.contains("NOT ISOLATED"), !stage.setting.privileged, "{status}");
    stage.supervisor.as_mut().expect("runs").stop().expect("it ends");
    assert!(text(&run(&stage, &["status"]).stdout).contains("supervisor: cannot be reached"));
    stage.broker.as_mut().expect("runs").stop().expect("it ends");
    let away = run(&stage, &["status"]);
    assert_eq!(away.status.code(), Some(69));
    let said = text(&away.stderr);
    assert!(said.contains("cannot be reached") && said.contains("hint: "), "{said}");
}

#[test]
fn nobody_but_root_and_the_broker_may_use_the_door() {
    let stage = stand_in_stage("door", &[], |_| {});
    if !stage.setting.privileged {
        return crate::skip("nobody_but_root_and_the_broker_may_use_the_door", "needs root");
    }
    let program = crate::binaries().join("forgejo-mcp-brokerctl");
    if !others_may_enter(&crate::binaries()) {
        return crate::skip("nobody_but_root_and_the_broker_may_use_the_door", "the checkout is out of others' reach");
    }
    let mut command = Command::new(program);
    command.uid(73_700).gid(73_700).arg("--socket").arg(stage.admin()).arg("status");
    let refused = command.output().expect("it runs");
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused.stderr));
}
