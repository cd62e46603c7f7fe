//! What really separates two users' children, read from /proc. Needs root.

#[cfg(test)]
use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use harness::cgroups::OwnCgroup;
use harness::supervised::{Client, Supervised, TOKEN, WAITS_FOR_THE_END, gone, own_range, root_or_skip, runs, watch};
use nix::sys::signal::Signal;
use wire::message::{Exit, Refusal, Reply};

/// Answers until its input ends.
const CAT: &str = "echo ready; exec cat";
/// Reads the environment of each pid that it is told.
const PRY: &str = "echo ready; while read pid; do \
                   if cat /proc/$pid/environ >/dev/null 2>&1; then echo leaked; else echo denied; fi; done";

#[tokio::test]
async fn two_users_children_share_nothing_and_can_do_nothing_they_need_not() {
    if !root_or_skip("two_users_children_share_nothing_and_can_do_nothing_they_need_not") {
        return;
    }
    let policy = "[child.environment]\nEXTRA = \"1\"\n[limits]\nopen_files = 99\n[limits.users.2]\nopen_files = 77\n";
    let supervised = Supervised::start(CAT, policy);
    let mut client = Client::connect(&supervised).await;
    let mut kids = [client.spawn(1).await, client.spawn(2).await];
    for kid in &mut kids {
        // Until it echoes it may still be the shell, or loading its libraries through a descriptor of its own.
        kid.tell("up").await;
        assert_eq!(kid.line().await, "up");
    }
    assert!(client.isolation.own_uid && client.isolation.seccomp);

    assert_ne!(kids[0].uid, kids[1].uid);
    for (kid, files) in kids.iter().zip(["99", "77"]) {
        let four = [kid.uid.to_string(), kid.uid.to_string(), kid.uid.to_string(), kid.uid.to_string()].join(" ");
        assert_eq!(kid.status("Uid"), four);
        assert_eq!(kid.status("Gid"), four);
        assert_eq!(kid.status("Groups"), "");
        assert_eq!(kid.status("NoNewPrivs"), "1");
        assert_eq!(kid.status("Seccomp"), "2");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(kid.status(set), "0000000000000000", "{set}");
        }
        assert_eq!(kid.status("Umask"), "0077");
        assert_eq!(kid.proc("stat").split_whitespace().nth(5), Some(kid.pid.to_string().as_str()), "session leader");
        let limits = kid.proc("limits");
        let limit = |name: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("the limit").to_owned();
            line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(limit("Max open files"), [files, files]);
        assert_eq!(limit("Max core file size"), ["1", "1"]);
        assert_eq!(limit("Max file size"), ["0", "0"]);
        assert_eq!(limit("Max processes"), ["256", "256"]);

        let environ: BTreeSet<String> = kid.proc("environ").split_terminator('\0').map(str::to_owned).collect();
        let token = format!("FORGEJO_ACCESS_TOKEN={TOKEN}");
        let expected = [
            "EXTRA=1",
            &token,
            "FORGEJO_URL=http://127.0.0.1:1",
            "HOME=/nonexistent",
            "LANG=C.UTF-8",
            "PATH=/usr/bin:/bin",
            "TMPDIR=/nonexistent",
        ];
        // The shell adds PWD and its like to what it was given.
        let given: BTreeSet<_> = environ
            .iter()
            .map(String::as_str)
            .filter(|v| {
                !v.starts_with("PWD=") && !v.starts_with("OLDPWD=") && !v.starts_with("SHLVL=") && !v.starts_with("_=")
            })
            .collect();
        assert_eq!(given, expected.into_iter().collect());
        assert!(!kid.proc("cmdline").contains(TOKEN));
        let fds: BTreeSet<_> = std::fs::read_dir(format!("/proc/{}/fd", kid.pid))
            .expect("readable")
            .map(|fd| fd.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        assert_eq!(fds, ["0", "1", "2"].map(str::to_owned).into());
        assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", kid.pid)).expect("readable"), Path::new("/"));
    }
    assert!(!supervised.logged().contains(TOKEN));
}

#[tokio::test]
async fn nobody_but_the_child_reads_its_token() {
    if !root_or_skip("nobody_but_the_child_reads_its_token") {
        return;
    }
    let supervised = Supervised::start(PRY, "");
    let mut client = Client::connect(&supervised).await;
    let victim = client.spawn(1).await;
    let mut stranger = client.spawn(2).await;
    stranger.tell(&victim.pid.to_string()).await;
    assert_eq!(stranger.line().await, "denied", "another user's child");
    let nobody = Command::new("/bin/cat").arg(format!("/proc/{}/environ", victim.pid)).uid(65_534).output();
    assert!(!nobody.expect("cat").status.success());
    let mut sibling = client.spawn(1).await;
    sibling.tell(&victim.pid.to_string()).await;
    assert_eq!(sibling.line().await, "denied", "another session of the same user");
}

#[tokio::test]
async fn the_sandbox_denies_namespaces_and_the_file_system() {
    if !root_or_skip("the_sandbox_denies_namespaces_and_the_file_system") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let open = dir.path().join("open");
    std::fs::write(&open, "x").expect("write");
    let first = own_range();
    std::os::unix::fs::chown(dir.path(), Some(first), None).expect("chown");
    let script = format!(
        "echo ready; unshare -U true 2>/dev/null && echo bad || echo denied; \
         cat {} >/dev/null 2>&1 && echo bad || echo denied; \
         mkdir {}/new 2>/dev/null && echo bad || echo denied; cat",
        open.display(),
        dir.path().display()
    );
    let supervised = Supervised::start(&script, &format!("[uids]\nfirst = {first}\ncount = 8\n"));
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    assert_eq!(kid.uid, first);
    assert_eq!(kid.line().await, "denied", "a user namespace");
    if client.isolation.landlock {
        assert_eq!(kid.line().await, "denied", "reading a file that its uid may read");
        assert_eq!(kid.line().await, "denied", "a directory where its uid may write");
    }
}

#[tokio::test]
async fn a_uid_is_swept_before_another_user_gets_it() {
    if !root_or_skip("a_uid_is_swept_before_another_user_gets_it") {
        return;
    }
    // One uid for children and one for the sweeper; what the child leaves behind is in a session of its own.
    let script = "setsid sh -c \"echo \\$\\$; exec sleep 1000\" </dev/null 2>/dev/null & echo ready; read end; exit 3";
    let supervised =
        Supervised::start(script, &format!("{WAITS_FOR_THE_END}[uids]\nfirst = {}\ncount = 2\n", own_range()));
    let mut client = Client::connect(&supervised).await;
    let mut first = client.try_spawn(1).await.expect("a child");
    let mut lines = [first.line().await, first.line().await];
    lines.sort();
    let left_behind: u32 = lines[0].parse().expect("a pid");
    assert!(runs(left_behind));
    assert_eq!(client.try_spawn(2).await.err(), Some(Refusal::NoFreeUid { retry_after_ms: 250 }));
    assert_eq!(client.stop(&mut first).await, Exit::Code(3));
    let second = loop {
        match client.try_spawn(2).await {
            Ok(kid) => break kid,
            Err(Refusal::NoFreeUid { .. }) => harness::look_again().await,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(second.uid, first.uid);
    assert!(!runs(left_behind), "the first user's process still runs under the second user's uid");
}

#[tokio::test]
async fn what_runs_in_the_range_at_start_is_killed() {
    if !root_or_skip("what_runs_in_the_range_at_start_is_killed") {
        return;
    }
    let first = own_range();
    let mut stale = Command::new("/bin/sleep").arg("1000").uid(first).gid(first).spawn().expect("sleep");
    let supervised = Supervised::start(CAT, &format!("[uids]\nfirst = {first}\ncount = 8\n"));
    let status = stale.wait().expect("wait");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    let mut client = Client::connect(&supervised).await;
    client.spawn(1).await;
}

#[tokio::test]
async fn a_child_that_ignores_everything_is_killed() {
    if !root_or_skip("a_child_that_ignores_everything_is_killed") {
        return;
    }
    let supervised = Supervised::start("trap \"\" TERM; echo ready; while :; do sleep 1; done", "");
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    assert_eq!(client.stop(&mut kid).await, Exit::Signal(9));
}

#[tokio::test]
async fn a_lost_connection_takes_its_children_along() {
    if !root_or_skip("a_lost_connection_takes_its_children_along") {
        return;
    }
    let supervised = Supervised::start(CAT, "");
    let mut client = Client::connect(&supervised).await;
    let kids = [client.spawn(1).await, client.spawn(2).await];
    let watched = kids.each_ref().map(harness::supervised::Kid::watch);
    // The pipes stay open here: it is the connection that counts.
    drop(client);
    for pidfd in watched {
        gone(pidfd).await;
    }
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_children_along() {
    if !root_or_skip("a_killed_supervisor_takes_its_children_along") {
        return;
    }
    let mut supervised = Supervised::start("trap \"\" TERM HUP; echo ready; exec sleep 1000", "");
    let mut client = Client::connect(&supervised).await;
    let kid = client.spawn(1).await;
    let watched = kid.watch();
    supervised.kill(Signal::SIGKILL);
    gone(watched).await;
}

#[tokio::test]
async fn sigterm_stops_all_children_and_leaves_nothing() {
    if !root_or_skip("sigterm_stops_all_children_and_leaves_nothing") {
        return;
    }
    let mut supervised = Supervised::start(CAT, "");
    let mut client = Client::connect(&supervised).await;
    let kids = [client.spawn(1).await, client.spawn(2).await];
    let status = supervised.kill(Signal::SIGTERM);
    assert!(status.success(), "{status}");
    assert!(kids.iter().all(|kid| !runs(kid.pid)));
    client.await_reply(|reply| matches!(reply, Reply::Draining).then_some(())).await;
    assert_eq!(client.exit_of(&kids[0]).await, Exit::Signal(15), "told after the announcement, never before");
    assert!(!supervised.socket().exists());
}

#[tokio::test]
async fn a_cgroup_holds_each_child_and_all_that_it_starts_and_is_removed() {
    let test = "a_cgroup_holds_each_child_and_all_that_it_starts_and_is_removed";
    if !root_or_skip(test) {
        return;
    }
    let Some(own) = OwnCgroup::new("tenants") else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "no cgroup2 to test in");
        println!("SKIPPED: {test}: needs a writable cgroup2");
        return;
    };
    let script =
        "setsid sh -c \"echo \\$\\$; exec sleep 1000\" </dev/null 2>/dev/null & read pid; echo ready; read end";
    let mut supervised = Supervised::start(script, &own.policy());
    let mut client = Client::connect(&supervised).await;
    let enabled = std::fs::read_to_string(own.0.join("cgroup.subtree_control")).expect("a cgroup2");
    let bounded = ["memory", "pids"].iter().all(|name| enabled.split_whitespace().any(|have| have == *name));
    assert_eq!(client.isolation.cgroup, bounded, "said to be there when it bounds something: `{enabled}`");
    let mut one = client.try_spawn(1).await.expect("a child");
    let mut two = client.try_spawn(1).await.expect("another of the same user");
    let left: u32 = one.line().await.parse().expect("a pid");
    let kept: u32 = two.line().await.parse().expect("a pid");
    let cgroup = one.proc("cgroup");
    assert!(cgroup.lines().any(|l| l.starts_with("0::") && l.contains("/children/tenant-1/child-1")), "{cgroup}");
    let watched = watch(left);
    client.stop(&mut one).await;
    // What a child started in a session of its own dies with it.
    gone(watched).await;
    assert!(runs(two.pid) && runs(kept), "its user's other child lives");
    client.stop(&mut two).await;
    assert!(supervised.kill(Signal::SIGTERM).success());
    assert!(!own.0.join("children/tenant-1").exists());
}
