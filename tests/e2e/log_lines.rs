//! Outside systemd, log lines are text for people or JSON with the journal's fields, in both programs.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use harness::deployment::{BROKER_UID, Running};
use harness::mcp_session::Session;
use nix::sys::signal::Signal;
use serde_json::Value;
use wire::telemetry::message_id;

use crate::{stand_in_deployment, token};

/// What the broker says of a reload that it has carried out.
pub(crate) const IN_FORCE: &str = "what can change in a running broker is in force";

/// Lays a key over a running program's configuration and waits until it has said something after that.
pub(crate) fn reload(dir: &Path, program: &Running, text: &str, said: &str) {
    let file = dir.join(format!("{}-extra.toml", program.name));
    let from = program.output().len();
    std::fs::write(file, text).expect("written");
    program.signal(Signal::SIGHUP);
    let by = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !program.output().get(from..).is_some_and(|new| new.contains(said)) {
        assert!(std::time::Instant::now() < by, "not said: {said}\n{}", program.output());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn field<'a>(line: &'a Value, name: &str) -> &'a str {
    line.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[tokio::test]
async fn with_json_every_line_of_both_programs_is_an_object_with_the_fields_of_the_journal() {
    let deployment = stand_in_deployment("log_lines", &[], |_| {});
    let alice = token(&deployment, "alice");
    let programs = [&deployment.broker, &deployment.supervisor].map(|program| program.as_ref().expect("runs"));
    let dir = &deployment.config.dir;
    for program in programs {
        reload(dir, program, "log_format = \"json\"\n", "__REALTIME_TIMESTAMP");
    }
    let from = programs.map(|program| program.output().len());
    let session = Session::open(&deployment.url, &alice).await.expect("a session");
    session.end().await.expect("it ends");
    for program in programs {
        reload(dir, program, "", "was read again");
    }
    let mut lines = programs.into_iter().zip(from).map(|(program, from)| -> Vec<Value> {
        let text = program.output();
        let whole = text.get(from..).unwrap_or_default().lines().take_while(|line| line.starts_with('{'));
        let lines = whole.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")));
        lines.collect()
    });
    let (ours, supervisors) = (lines.next().expect("the broker's"), lines.next().expect("the supervisor's"));
    let of = |lines: &[Value], id: &str| {
        let found = lines.iter().find(|line| field(line, "MESSAGE_ID") == id);
        found.unwrap_or_else(|| panic!("{id} is not in {lines:?}")).clone()
    };
    let opened = of(&ours, message_id::SESSION_OPENED);
    assert_eq!((field(&opened, "LOGIN"), field(&opened, "SESSION").len()), ("alice", 8), "{opened}");
    assert_eq!((field(&opened, "PRIORITY"), field(&opened, "SYSLOG_IDENTIFIER")), ("5", "forgejo-mcp-broker"));
    assert!(field(&opened, "MESSAGE").contains("alice"), "{opened}");
    assert!(field(&opened, "__REALTIME_TIMESTAMP").parse::<u64>().is_ok_and(|at| at > 0), "{opened}");
    // Both programs speak of the same child in the same words.
    let (serves, started) = (of(&ours, message_id::CHILD_SERVES), of(&supervisors, message_id::CHILD_STARTED));
    assert_eq!(field(&serves, "CHILD_PID"), field(&started, "CHILD_PID"));
    assert_eq!(field(&started, "SYSLOG_IDENTIFIER"), "forgejo-mcp-supervisor");
    let said: String = programs.map(Running::output).concat();
    assert!(!said.contains(&alice) && !said.contains(&session.id));

    // Why a program does not start is an object, too.
    let program = deployment.config.broker_program.clone();
    let mut second = Command::new(program.unwrap_or_else(|| crate::binaries().join("forgejo-mcp-broker")));
    let files = dir.join("second.toml");
    std::fs::write(&files, "log_format = \"json\"\n").expect("written");
    for file in [dir.join("broker.toml"), files] {
        second.arg("--config").arg(file);
    }
    if deployment.config.privileged {
        second.uid(BROKER_UID).gid(BROKER_UID);
    }
    let second = second.env_remove("JOURNAL_STREAM").output().expect("it runs");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    let last: Value = serde_json::from_str(said.lines().last().expect("a line")).expect(&said);
    assert_eq!((second.status.code(), field(&last, "PRIORITY")), (Some(69), "3"), "{last}");
    assert!(field(&last, "MESSAGE").contains("is in use by another broker"), "{last}");
}

#[test]
fn the_journals_names_in_the_manual_are_the_names_in_the_code() {
    let page = std::fs::read_to_string(harness::workspace().join("packaging/man/forgejo-mcp-broker.8"));
    let page = page.expect("the man page");
    let named: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".It Dv ").or_else(|| line.strip_prefix(".Dv ")))
        .flat_map(|names| names.split(" , "))
        .filter_map(|name| name.split_whitespace().next())
        .filter(|name| name.len() > 3 && !name.starts_with("SIG") && !name.starts_with("MESSAGE"))
        .collect();
    let mut code = String::new();
    for room in ["src/broker", "src/wire"] {
        gather(&harness::workspace().join(room), &mut code);
    }
    let unknown: Vec<_> = named
        .iter()
        .filter(|name| {
            let field = name.to_lowercase();
            !["=", ",", " "].iter().any(|after| code.contains(&format!("{field}{after}"))) && !code.contains(**name)
        })
        .collect();
    assert!(named.len() > 15 && unknown.is_empty(), "{unknown:?} of {named:?}");
}

fn gather(dir: &Path, into: &mut String) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            gather(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(path).expect("text"));
        }
    }
}
