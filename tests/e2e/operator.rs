//! `forgejo-mcp-brokerctl`, as the operator uses it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::log_lines::{IN_FORCE, reload};
use crate::{stand_in_deployment, token};
use harness::deployment::{BROKER_UID, Deployment, others_may_enter};
use harness::mcp_session::Session;

fn run(deployment: &Deployment, arguments: &[&str]) -> Output {
    deployment.ctl().args(arguments).stdin(Stdio::null()).output().expect("brokerctl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_token_is_made_from_a_file_listed_and_revoked_once() {
    let deployment = stand_in_deployment("operator", &[], |_| {});
    let forgejo_token = deployment.forge_token("alice").expect("a Forgejo token");
    let file = deployment.config.dir.join("token");
    std::fs::write(&file, format!("{forgejo_token}\n")).expect("written");
    let file = file.display().to_string();
    let made = run(
        &deployment,
        &["token", "create", "--user", "Alice", "--client", "ci", "--ttl", "1h", "--token-file", &file],
    );
    let (out, err) = (text(&made.stdout), text(&made.stderr));
    assert!(made.status.success(), "{err}");
    assert!(out.starts_with("fjb_at_") && out.lines().count() == 1, "standard output is the token alone: {out}");
    assert!(err.contains("shown only now") && !err.contains(out.trim()), "{err}");
    let list = text(&run(&deployment, &["token", "list"]).stdout);
    assert!(list.contains("alice") && list.contains("ci") && list.contains("active"), "{list}");
    assert!(!list.contains(out.trim()) && !list.contains(&forgejo_token), "{list}");
    let json: Value = serde_json::from_slice(&run(&deployment, &["token", "list", "--json"]).stdout).expect("json");
    let id = json.pointer("/0/id").and_then(Value::as_str).expect("an id").to_owned();
    assert!(run(&deployment, &["token", "revoke", &id]).status.success());
    assert!(text(&run(&deployment, &["token", "list"]).stdout).contains("revoked"));
    let again = run(&deployment, &["token", "revoke", &id]);
    assert_eq!(again.status.code(), Some(65));
    assert!(text(&again.stderr).contains("revoked already"), "{}", text(&again.stderr));
}

#[test]
fn a_token_of_somebody_else_or_of_nobody_is_refused_in_words() {
    let deployment = stand_in_deployment("refused_tokens", &[], |_| {});
    let forgejo_token = deployment.forge_token("alice").expect("a Forgejo token");
    let other = deployment.broker_token("bob", &forgejo_token, &[]).expect_err("another user").to_string();
    assert!(other.contains("`alice`") && other.contains("`bob`"), "{other}");
    let nobody = deployment.broker_token("alice", "0123456789abcdef", &[]).expect_err("nobody").to_string();
    assert!(nobody.contains("does not accept the token"), "{nobody}");
    let empty = run(&deployment, &["token", "create", "--user", "alice"]);
    assert_eq!(empty.status.code(), Some(65));
}

#[test]
fn status_says_what_is_not_isolated_and_a_broker_that_is_away_is_said_with_a_hint() {
    let mut deployment = stand_in_deployment("status", &[], |_| {});
    let status = text(&run(&deployment, &["status"]).stdout);
    assert!(status.contains("sessions: 0") && status.contains("landlock: "), "{status}");
    assert_eq!(status.contains("NOT ISOLATED"), !deployment.config.privileged, "{status}");
    assert!(status.contains("NOT LIMITED"), "no cgroup was given: {status}");
    deployment.supervisor.as_mut().expect("runs").stop().expect("it ends");
    let alone = run(&deployment, &["status"]);
    assert!(text(&alone.stdout).contains("supervisor: cannot be reached"));
    assert_eq!(alone.status.code(), Some(69), "a monitor need not read it");
    deployment.broker.as_mut().expect("runs").stop().expect("it ends");
    let away = run(&deployment, &["status"]);
    assert_eq!(away.status.code(), Some(69));
    let said = text(&away.stderr);
    assert!(said.contains("cannot be reached") && said.contains("hint: "), "{said}");
}

/// The names of all members in a value.
fn members(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            found.insert(name.clone());
            members(value, found);
        }),
        Value::Array(entries) => entries.iter().for_each(|entry| members(entry, found)),
        _ => {}
    }
}

#[tokio::test]
async fn sessions_clients_and_grants_are_listed_and_ended_by_what_the_lists_show() {
    let deployment = stand_in_deployment("lists", &[], |_| {});
    let (alice, bob) = (crate::token(&deployment, "alice"), crate::token(&deployment, "bob"));
    let mut hers = Session::open(&deployment.url, &alice).await.expect("a session");
    let mut his = Session::open(&deployment.url, &bob).await.expect("a session");
    let json = |arguments: &[&str]| -> Value {
        let output = run(&deployment, &[&["--json"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("json")
    };
    let mut seen = BTreeSet::new();
    let all = json(&["sessions"]);
    members(&all, &mut seen);
    let hers_only = json(&["sessions", "--user", "ALICE"]);
    assert_eq!((all.as_array().map(Vec::len), hers_only.as_array().map(Vec::len)), (Some(2), Some(1)));
    let tag = hers_only[0]["session"].as_str().expect("a tag").to_owned();
    assert!(hers_only[0]["digest"].as_str().expect("a digest").starts_with(&tag) && tag.len() == 8);
    assert!(hers_only[0]["child_pid"].is_u64() && hers_only[0]["user"] == "alice", "{hers_only}");
    let shown = text(&run(&deployment, &["sessions"]).stdout);
    assert!(shown.contains(&tag) && shown.starts_with("SESSION"), "{shown}");
    assert!(!shown.contains(&hers.id), "a session's id is its client's alone");
    // By what the list shows, and by the id itself.
    members(&json(&["session", "end", &tag]), &mut seen);
    assert_eq!(hers.send("tools/list", serde_json::json!({})).await.expect("an answer").0, 404);
    assert_eq!(json(&["session", "end", &his.id])["session"].as_str().map(str::len), Some(8));
    assert_eq!(his.send("tools/list", serde_json::json!({})).await.expect("an answer").0, 404);
    for wrong in [tag.as_str(), "0000", "../users"] {
        assert_eq!(run(&deployment, &["session", "end", wrong]).status.code(), Some(65), "{wrong}");
    }
    members(&json(&["clients"]), &mut seen);
    let grants = json(&["grants"]);
    members(&grants, &mut seen);
    let id = grants[0]["id"].as_str().expect("an id");
    let shown = text(&run(&deployment, &["grants"]).stdout);
    let digits = id.get(..12).expect("long");
    assert!(shown.contains(digits), "{shown}");
    assert_eq!(run(&deployment, &["grant", "revoke", "0123"]).status.code(), Some(65), "too few digits");
    members(&json(&["grant", "revoke", digits]), &mut seen);
    assert!(json(&["grants"])[0]["revoked_at"].is_i64());
    members(&json(&["status"]), &mut seen);
    members(&json(&["users"]), &mut seen);
    members(&json(&["key", "status"]), &mut seen);
    members(&json(&["key", "rotate"]), &mut seen);
    let copy = deployment.config.dir.join("copy.db").display().to_string();
    members(&json(&["backup", &copy]), &mut seen);
    members(&json(&["user", "end", "bob"]), &mut seen);
    // What a program may rely on is written down.
    let page = std::fs::read_to_string(harness::workspace().join("packaging/man/forgejo-mcp-brokerctl.8"));
    let page = page.expect("the man page");
    let page = page.split(".Sh JSON").nth(1).and_then(|rest| rest.split(".Sh FILES").next()).expect("a section");
    let words: BTreeSet<&str> = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let unknown: Vec<_> = seen.iter().filter(|name| !words.contains(name.as_str())).collect();
    assert!(seen.len() > 30 && unknown.is_empty(), "{unknown:?} are not in the man page");
}

/// The configuration files of a deployment, as arguments.
fn files(deployment: &Deployment) -> Vec<String> {
    let file = |name: &str| deployment.config.dir.join(name).display().to_string();
    [
        ["--broker-config".to_owned(), file("broker.toml")],
        ["--broker-config".to_owned(), file("broker-extra.toml")],
        ["--supervisor-config".to_owned(), file("supervisor.toml")],
    ]
    .concat()
}

#[tokio::test]
async fn the_doctor_says_what_is_wrong_and_what_to_do() {
    let mut deployment = stand_in_deployment("doctor", &[], |_| {});
    // Once more, so that its public address is the one that it really has.
    deployment.broker.as_mut().expect("runs").stop().expect("it ends");
    deployment.start_broker().expect("starts");
    let mut session = Session::open(&deployment.url, &crate::token(&deployment, "alice")).await.expect("a session");
    session.tools().await.expect("tools");
    let files = files(&deployment);
    let examine = |deployment: &Deployment| -> (Option<i32>, Vec<Value>) {
        let mut command = deployment.ctl();
        let output = command.args(["doctor", "--json"]).args(&files).output().expect("it runs");
        (output.status.code(), serde_json::from_slice(&output.stdout).expect("json"))
    };
    let of = |findings: &[Value], check: &str| -> Value {
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("{check} was not looked at: {findings:?}")).clone()
    };
    let (_, all) = examine(&deployment);
    for check in [
        "configuration: forgejo-mcp-broker",
        "configuration: forgejo-mcp-supervisor",
        "broker",
        "store",
        "key",
        "forgejo",
        "clock",
        "supervisor",
        "public_url",
        "child",
    ] {
        assert_eq!(of(&all, check)["state"], "ok", "{}", of(&all, check));
    }
    assert!(of(&all, "child")["found"].as_str().is_some_and(|found| found.contains("Forgejo MCP Server")));
    assert!(
        all.iter()
            .all(|finding| finding["state"] == "ok" || finding["state"] == "note" || !finding["advice"].is_null())
    );

    deployment.supervisor.as_mut().expect("runs").stop().expect("it ends");
    let (code, all) = examine(&deployment);
    assert_eq!((code, of(&all, "supervisor")["state"].as_str()), (Some(1), Some("fail")));
    deployment.broker.as_mut().expect("runs").stop().expect("it ends");
    let (code, all) = examine(&deployment);
    assert_eq!((code, of(&all, "broker")["state"].as_str()), (Some(1), Some("fail")));
    let shown = run(&deployment, &[&["doctor"][..], &files.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    assert!(text(&shown.stdout).contains("FAIL  broker: ") && text(&shown.stdout).contains("      -> "));
}

#[tokio::test]
async fn a_support_archive_holds_no_login_no_token_and_no_address() {
    let deployment = stand_in_deployment("support", &[], |_| {});
    let alice = crate::token(&deployment, "alice");
    let session = Session::open(&deployment.url, &alice).await.expect("a session");
    let archive = deployment.config.dir.join("support.tar");
    let mut command = deployment.ctl();
    let made = command.arg("support").arg(&archive).args(files(&deployment)).output().expect("it runs");
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(std::fs::metadata(&archive).expect("there").permissions().mode() & 0o777, 0o600);
    let listed = Command::new("tar").arg("-tf").arg(&archive).output().expect("tar runs");
    for name in ["versions.txt", "status.json", "doctor.json", "broker.json", "supervisor.json"] {
        assert!(text(&listed.stdout).contains(name), "{name} is not in {}", text(&listed.stdout));
    }
    let content = std::fs::read_to_string(&archive).expect("text");
    assert!(content.contains("\"store\"") && content.contains("http://ADDRESS"), "{content}");
    for secret in ["alice", alice.as_str(), session.id.as_str(), "127.0.0.1"] {
        assert!(!content.contains(secret), "{secret} is in the archive: {content}");
    }
    let again = deployment.ctl().arg("support").arg(&archive).output().expect("it runs");
    assert_eq!(again.status.code(), Some(73), "nothing is written over");
}

#[test]
fn nobody_but_root_and_the_broker_may_use_the_door() {
    let deployment = stand_in_deployment("door", &[], |_| {});
    if !deployment.config.privileged {
        return crate::skip("nobody_but_root_and_the_broker_may_use_the_door", "needs root");
    }
    let program = crate::binaries().join("forgejo-mcp-brokerctl");
    if !others_may_enter(&crate::binaries()) {
        return crate::skip("nobody_but_root_and_the_broker_may_use_the_door", "the checkout is out of others' reach");
    }
    let mut command = Command::new(program);
    command.uid(73_700).gid(73_700).arg("--socket").arg(deployment.admin()).arg("status");
    let refused = command.output().expect("it runs");
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused.stderr));
}

#[test]
fn the_key_is_replaced_under_a_running_broker_and_a_backup_is_restored_with_the_key_that_it_needs() {
    let mut deployment = stand_in_deployment("key_rotation", &[], |_| {});
    let forgejo_token = deployment.forge_token("alice").expect("a Forgejo token");
    deployment.broker_token("alice", &forgejo_token, &[]).expect("a token");
    let keys = |deployment: &Deployment| -> Value {
        serde_json::from_slice(&run(deployment, &["key", "status", "--json"]).stdout).expect("json")
    };
    let before = keys(&deployment);
    let file = before["file"].as_str().expect("a file").to_owned();
    let old_key = std::fs::read(&file).expect("the key");
    let copy = deployment.config.dir.join("copy.db").display().to_string();
    let backup = run(&deployment, &["backup", &copy]);
    let said = text(&backup.stderr);
    assert!(backup.status.success() && said.contains(before["key"].as_str().expect("an id")), "{said}");
    assert_eq!(std::fs::metadata(&copy).expect("there").permissions().mode() & 0o777, 0o600);
    let again = run(&deployment, &["backup", &copy]);
    assert_eq!(again.status.code(), Some(73), "nothing is written over: {}", text(&again.stderr));

    let rotated = run(&deployment, &["key", "rotate"]);
    assert!(rotated.status.success(), "{}", text(&rotated.stderr));
    let after = keys(&deployment);
    assert_ne!(before["key"], after["key"]);
    assert_eq!(after["sealed"], serde_json::json!([{"key": after["key"], "credentials": 1}]));
    assert_ne!(std::fs::read(&file).expect("the key"), old_key);

    // The copy of before under the key of now: refused, with what to do.
    deployment.broker.as_mut().expect("runs").stop().expect("it ends");
    let database = std::path::Path::new(&file).with_file_name("broker.db");
    for ending in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{ending}", database.display()));
    }
    std::fs::write(&database, std::fs::read(&copy).expect("the copy")).expect("restored");
    let refused = deployment.start_broker().expect_err("another key").to_string();
    assert!(
        refused.contains("--forget-sealed") && refused.contains(before["key"].as_str().expect("an id")),
        "{refused}"
    );
    std::fs::write(&file, old_key).expect("restored");
    deployment.start_broker().expect("the key that it needs");
    assert!(text(&run(&deployment, &["token", "list"]).stdout).contains("alice"));
}

#[test]
fn a_user_on_the_deny_list_is_out_with_a_hangup_and_no_other_signal_ends_the_broker() {
    let deployment = stand_in_deployment("reload", &[], |_| {});
    let tokens = ["alice", "bob"].map(|login| {
        let forgejo_token = deployment.forge_token(login).expect("a Forgejo token");
        deployment.broker_token(login, &forgejo_token, &[]).expect("a token")
    });
    let broker = deployment.broker.as_ref().expect("runs");
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT] {
        broker.signal(signal);
    }
    let file = deployment.config.dir.join("broker-extra.toml");
    let before = std::fs::read_to_string(&file).expect("readable");
    let reload = |entry: &str, said: &str| {
        let text = format!("{before}\n[access]\ndeny = [\"{entry}\"]\n");
        reload(&deployment.config.dir, broker, &text, said);
    };
    reload("alice", "`alice` must be id:NUMBER, user:LOGIN");
    reload("user:alice", IN_FORCE);
    let listed = run(&deployment, &["token", "list", "--user", "alice", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("json");
    assert!(listed.pointer("/0/revoked_at").is_some_and(Value::is_i64), "{listed}");
    let users = text(&run(&deployment, &["user", "list"]).stdout);
    assert!(users.contains("NUMBER") && users.contains("alice") && users.contains("bob"), "{users}");
    let ended = run(&deployment, &["user", "end", "bob"]);
    assert!(text(&ended.stderr).contains("1 grants are revoked"), "{}", text(&ended.stderr));
    assert_eq!(run(&deployment, &["user", "end", "bob/.."]).status.code(), Some(65));
    drop(tokens);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_has_the_numbers_of_the_broker_and_a_hangup_puts_limits_and_log_in_force_without_ending_a_session() {
    let mut deployment = stand_in_deployment("numbers", &[], |_| {});
    let alice = token(&deployment, "alice");
    let manager = deployment.manage("broker").expect("a socket");
    let told = |line: &str| {
        let mut said = [0; 512];
        loop {
            let length = manager.recv(&mut said).unwrap_or_else(|e| panic!("not told: {line}: {e}"));
            let said = text(said.get(..length).expect("read"));
            if said.contains(line) {
                return said;
            }
        }
    };
    let mut session = Session::open(&deployment.url, &alice).await.expect("a session");
    told("STATUS=1 sessions of 1 users, 1 of at most 500 children; store ok, supervisor connected");

    let file = deployment.config.dir.join("broker-extra.toml");
    let before = std::fs::read_to_string(&file).expect("readable");
    let broker = deployment.broker.as_ref().expect("runs");
    let reload = |text: &str| {
        std::fs::write(&file, text).expect("written");
        broker.signal(Signal::SIGHUP);
        assert!(told("RELOADING=1").contains("MONOTONIC_USEC="));
        told("READY=1")
    };
    let sessions = "[sessions]\nper_user = 1\nchildren_total = 44\nchildren_per_user = 2\n";
    reload(&format!("log = \"loud\"\n{before}\n{sessions}per_usr = 2\n"));
    let said = broker.output();
    for problem in ["log: must be a level", "sessions.per_usr: is not a known key"] {
        assert!(said.contains(problem), "{problem} is not told: {said}");
    }
    let ready = reload(&format!("listen = \"127.0.0.1:1\"\nlog = \"warn\"\n{before}\n{sessions}"));
    assert!(ready.contains("1 of at most 44 children"), "{ready}");
    assert!(broker.output().contains("listen has changed; that takes effect when the broker is restarted"));
    assert!(Session::open(&deployment.url, &alice).await.is_err(), "a second one is above the cap");
    assert_eq!(session.text("echo", json!({"text": "on"})).await.expect("the first goes on"), "on");
    let quiet = broker.output().len();
    session.end().await.expect("it ends");
    told("STATUS=0 sessions of 0 users");
    assert!(!broker.output().get(quiet..).expect("the rest").contains("session ended"), "only warnings are logged");

    let _ = deployment.supervisor.as_mut().expect("runs").stop().expect("it ends");
    told("supervisor away");
}

#[test]
fn a_proxy_of_the_environment_gets_nothing_over_the_operators_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("admin.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the tool");
        let (mut said, mut part) = (Vec::new(), [0; 4096]);
        while !said.windows(4).any(|end| end == b"\r\n\r\n") {
            let length = stream.read(&mut part).expect("a request");
            said.extend_from_slice(part.get(..length).expect("read"));
        }
        stream.write_all(b"HTTP/1.1 500 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").expect("answered");
        text(&said).to_lowercase()
    });
    let mut command = Command::new(crate::binaries().join("forgejo-mcp-brokerctl"));
    command.arg("--socket").arg(&socket).arg("status");
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, "http://somebody:secret@127.0.0.1:9");
    }
    assert_eq!(command.output().expect("it runs").status.code(), Some(76));
    let said = answering.join().expect("no panic");
    assert!(said.starts_with("get /status http/1.1") && !said.contains("proxy-"), "{said}");
}

/// Runs the broker's program for one answer of the operator's, under the given uid.
fn once(deployment: &Deployment, uid: u32, arguments: &[&str]) -> (Option<i32>, String) {
    let dir = &deployment.config.dir;
    let program = deployment.config.broker_program.clone();
    let mut command = Command::new(program.unwrap_or_else(|| crate::binaries().join("forgejo-mcp-broker")));
    for file in ["broker.toml", "broker-extra.toml"] {
        command.arg("--config").arg(dir.join(file));
    }
    if deployment.config.privileged {
        command.uid(uid).gid(uid);
    }
    let output = command.args(arguments).output().expect("it runs");
    (output.status.code(), text(&output.stderr))
}

#[test]
fn with_a_forge_that_was_set_up_anew_the_broker_starts_only_when_the_operator_has_said_what_it_is() {
    let mut deployment = stand_in_deployment("forge_reset", &[], |_| {});
    let forgejo_token = deployment.forge_token("alice").expect("a Forgejo token");
    deployment.broker_token("alice", &forgejo_token, &[]).expect("a token");
    deployment.broker.as_mut().expect("runs").stop().expect("it ends");
    deployment.start_broker().expect("the same forge");
    deployment.broker.as_mut().expect("runs").stop().expect("it ends");
    deployment.stub("/stub/reset", "{}").expect("reset");
    let refused = deployment.start_broker().expect_err("another forge").to_string();
    assert!(refused.contains("--adopt-forge other") && refused.contains("signing keys"), "{refused}");
    if deployment.config.privileged {
        let (code, said) = once(&deployment, 0, &["--adopt-forge", "other"]);
        assert!(code == Some(69) && said.contains("runuser"), "{said}");
    }
    let (code, said) = once(&deployment, BROKER_UID, &["--adopt-forge", "other"]);
    assert_eq!(code, Some(0), "{said}");
    deployment.start_broker().expect("it was said");
    let listed = text(&run(&deployment, &["token", "list"]).stdout);
    assert!(listed.contains("alice") && listed.contains("revoked") && !listed.contains("active"), "{listed}");
    deployment.broker.as_mut().expect("runs").stop().expect("it ends");

    // And a key that is lost: what it sealed is given up on the operator's word.
    let forgejo_token = deployment.forge_token("bob").expect("a Forgejo token");
    deployment.start_broker().expect("starts");
    deployment.broker_token("bob", &forgejo_token, &[]).expect("a token");
    deployment.broker.as_mut().expect("runs").stop().expect("it ends");
    let key = deployment.config.dir.join("broker/upstream.key");
    std::fs::remove_file(&key).expect("lost");
    let refused = deployment.start_broker().expect_err("no key").to_string();
    assert!(refused.contains("is not there") && refused.contains("--forget-sealed") && !key.exists(), "{refused}");
    let (code, said) = once(&deployment, BROKER_UID, &["--forget-sealed"]);
    assert_eq!(code, Some(0), "{said}");
    deployment.start_broker().expect("with a new key");
    assert!(!text(&run(&deployment, &["token", "list"]).stdout).contains("active"));
}
