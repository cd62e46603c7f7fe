//! What separates two users, read from /proc: needs root.

use std::collections::HashSet;

use nix::unistd::geteuid;
use serde_json::json;

use crate::{real_deployment, skip, stand_in_deployment, token};
use harness::deployment::{Deployment, Process, processes};
use harness::mcp_session::Session;

fn root(test: &str) -> bool {
    if !geteuid().is_root() {
        skip(test, "needs root");
    }
    geteuid().is_root()
}

async fn two_children(deployment: &Deployment) -> (Vec<Session>, Vec<Process>) {
    let mut sessions = Vec::new();
    for login in ["alice", "bob"] {
        sessions.push(Session::open(&deployment.url, &token(deployment, login)).await.expect("a session"));
    }
    let children = deployment.children();
    assert_eq!(children.len(), 2);
    (sessions, children)
}

#[tokio::test]
async fn two_users_have_two_uids_no_privilege_and_their_limits() {
    if !root("two_uids") {
        return;
    }
    let Some(deployment) = real_deployment("two_uids") else { return };
    let (_sessions, children) = two_children(&deployment).await;
    let uids: HashSet<u32> = children.iter().map(Process::uid).collect();
    assert_eq!(uids.len(), 2, "a uid each");
    for child in &children {
        let uid = child.uid().to_string();
        assert!((73_728..=90_111).contains(&child.uid()));
        assert_eq!(child.field("Uid"), [&*uid; 4].join(" "), "real, effective, saved, file system");
        assert_eq!(child.field("Gid"), [&*uid; 4].join(" "));
        assert_eq!(child.field("Groups"), "");
        assert_eq!(child.field("CapEff"), "0000000000000000");
        assert_eq!(child.field("CapPrm"), "0000000000000000");
        assert_eq!(child.field("NoNewPrivs"), "1");
        assert_eq!(child.field("Seccomp"), "2");
        let same = |limit: &str| (limit.to_owned(), limit.to_owned());
        assert_eq!(child.limit("Max open files"), same("256"));
        assert_eq!(child.limit("Max processes"), same("256"));
        assert_eq!(child.limit("Max core file size"), same("1"));
        assert_eq!(child.limit("Max file size"), same("0"));
        assert_eq!(child.limit("Max data size"), same("1073741824"));
        assert_eq!(child.field("NSsid").split(' ').next(), Some(&*child.pid.to_string()), "a session of its own");
    }
    let supervisor = deployment.supervisor.as_ref().expect("runs").pid();
    for pid in [supervisor, deployment.broker.as_ref().expect("runs").pid()] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("readable");
        let cores = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("the limit");
        assert_eq!(cores.split_whitespace().take(2).collect::<Vec<_>>(), ["1", "1"], "no core holds its secrets");
    }
    let threads = std::fs::read_dir(format!("/proc/{supervisor}/task")).expect("readable").count();
    assert_eq!(threads, 1, "the supervisor forks, so it has one thread");
}

#[tokio::test]
async fn a_child_is_given_its_own_token_in_its_environment_and_nothing_else() {
    if !root("environment") {
        return;
    }
    let deployment = stand_in_deployment("environment", &[], |_| {});
    let login = "alice";
    let forgejo_token = deployment.forge_token(login).expect("a Forgejo token");
    let broker_token = deployment.broker_token(login, &forgejo_token, &[]).expect("a token");
    let mut session = Session::open(&deployment.url, &broker_token).await.expect("a session");
    let names = session.text("env", json!({})).await.expect("names");
    for expected in
        ["FORGEJO_ACCESS_TOKEN", "FORGEJO_URL", "GOMEMLIMIT", "GOMAXPROCS", "HOME", "PATH", "LANG", "TMPDIR"]
    {
        assert!(names.contains(expected), "{expected} is missing: {names}");
    }
    let child = deployment.children().pop().expect("a child");
    let environment = String::from_utf8_lossy(&child.file("environ")).into_owned();
    assert_eq!(environment.split_terminator('\0').count(), 8, "{environment}");
    assert!(environment.contains(&forgejo_token));
    let argv = String::from_utf8_lossy(&child.file("cmdline")).into_owned();
    assert!(!argv.contains(&forgejo_token), "{argv}");
    let open: HashSet<String> = std::fs::read_dir(format!("/proc/{}/fd", child.pid))
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(open, HashSet::from(["0", "1", "2"].map(str::to_owned)), "nothing of the supervisor's is open in it");
}

#[tokio::test]
async fn one_users_uid_can_neither_read_nor_signal_the_others_child() {
    if !root("neighbours") {
        return;
    }
    let deployment = stand_in_deployment("neighbours", &[], |_| {});
    let (_sessions, children) = two_children(&deployment).await;
    let (one, other) = (children.first().expect("one"), children.last().expect("other"));
    let as_one = |arguments: &[&str]| {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("/usr/bin/env");
        command.uid(one.uid()).gid(one.uid()).args(arguments).stderr(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).status().expect("runs").success()
    };
    let path = |process: &Process, file: &str| format!("/proc/{}/{file}", process.pid);
    assert!(!as_one(&["cat", &path(other, "environ")]), "the other's token cannot be read");
    assert!(!as_one(&["cat", &path(other, "mem")]));
    assert!(!as_one(&["kill", "-0", &other.pid.to_string()]), "the other's child cannot be signalled");
    assert!(as_one(&["kill", "-0", &one.pid.to_string()]), "so that the check above can fail");
}

#[tokio::test]
async fn nothing_of_a_uid_is_left_when_its_last_child_has_ended() {
    if !root("cleaned_uid") {
        return;
    }
    let deployment = stand_in_deployment("cleaned_uid", &[], |_| {});
    let session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let uid = deployment.children().pop().expect("a child").uid();
    // What a child could leave: a process of its uid in a session of its own, which no group signal reaches.
    let mut left = std::process::Command::new("setsid");
    {
        use std::os::unix::process::CommandExt;
        left.args(["sleep", "600"]).uid(uid).gid(uid);
    }
    let mut left = left.spawn().expect("runs");
    session.end().await.expect("an answer");
    let status = left.wait().expect("it ends");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert!(processes().iter().all(|process| process.uid() != uid));
}

#[tokio::test]
async fn a_child_cannot_write_files_or_leave_the_cage() {
    if !root("cage") {
        return;
    }
    // A shell as the child shows what the kernel lets it do; it answers on standard error.
    let script = "exec 2>&1; (echo x > /tmp/fmb-cage-$$ && echo WROTE) 2>/dev/null; \
                  (cat /root/.profile /home/* >/dev/null && echo READ) 2>/dev/null; \
                  (unshare -U true && echo UNSHARED) 2>/dev/null; (mount -t tmpfs x /mnt && echo MOUNTED) 2>/dev/null; \
                  echo DONE; exit 3";
    let program = harness::deployment::Program {
        profile: "custom",
        path: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), format!("({script}) >&2")],
    };
    let mut config = crate::config("cage", program);
    config.supervisor = "[child]\ntoken_variables = [\"TOKEN\"]\n".to_owned();
    let deployment = Deployment::set(config).expect("a deployment");
    let refused =
        Session::open(&deployment.url, &token(&deployment, "alice")).await.expect_err("a shell is no MCP server");
    let said = refused.to_string();
    assert!(said.contains("exit status 3") && said.contains("DONE"), "{said}");
    for escape in ["WROTE", "READ", "UNSHARED", "MOUNTED"] {
        assert!(!said.contains(escape), "{said}");
    }
}

#[tokio::test]
async fn the_real_child_works_with_the_list_of_allowed_system_calls() {
    let Some(child) = crate::real_child() else {
        return skip("allow_list", "no forgejo-mcp: run tests/run, or set FORGEJO_MCP");
    };
    let mut config = crate::config("allow_list", child);
    config.supervisor = "[sandbox]\nseccomp = \"allow-list\"\n".to_owned();
    let deployment = Deployment::set(config).expect("a deployment");
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let said = crate::who(&mut session).await;
    assert!(said.contains("alice"), "it reaches the forge: {said}");
}
