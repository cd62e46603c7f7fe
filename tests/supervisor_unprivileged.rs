//! Without root the supervisor does the same work, minus the isolation, and says so.

#[cfg(test)]
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::supervised::{Client, Supervised, Surroundings, hear, runs, say};
use nix::sys::signal::Signal;
use wire::ending::Limit;
use wire::inspection::Bound;
use wire::message::{Enforced, Exit, Farewell, PROTOCOL, Refusal, Reply, Request, StartStep};
use wire::socket::Socket;
use wire::unix_socket::bind_unix;

#[tokio::test]
async fn it_says_that_children_share_a_uid() {
    let supervised = Supervised::start_unprivileged("echo ready; exec cat", "");
    let mut client = Client::connect(&supervised).await;
    let (a, b) = (client.spawn(1).await, client.spawn(2).await);
    assert!(!client.isolation.own_uid);
    assert_eq!(a.uid, b.uid);
    assert_eq!(a.status("NoNewPrivs"), "1");
    assert!(supervised.logged().contains("not isolated: all children run under the supervisor's own uid"));
}

#[tokio::test]
async fn a_limit_on_cores_that_lets_them_go_to_a_handler_is_said() {
    let surroundings = Surroundings { no_cores: true, ..Surroundings::default() };
    let supervised = Supervised::start_in(surroundings, "echo ready; exec cat", "");
    assert!(supervised.logged().contains("set LimitCORE=1"), "{}", supervised.logged());
}

#[tokio::test]
async fn exits_are_told_with_their_status() {
    let supervised = Supervised::start_unprivileged("echo ready; read how; exit $how", "");
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    kid.tell("7").await;
    assert_eq!(client.exit_of(&kid).await, Exit::Code(7));
}

#[tokio::test]
async fn the_caps_hold_and_the_status_counts() {
    let supervised = Supervised::start_unprivileged("echo ready; exec cat", "[caps]\nchildren = 2\n");
    let mut client = Client::connect(&supervised).await;
    let _kids = (client.spawn(1).await, client.spawn(2).await);
    assert_eq!(client.try_spawn(3).await.err(), Some(Refusal::ChildrenTotal { retry_after_ms: 1000 }));
    let status = client.status().await;
    assert_eq!((status.children, status.max_children, status.tenants), (2, 2, 2));
}

#[tokio::test]
async fn one_user_may_have_other_limits_and_variables_than_all() {
    let policy = "[limits]\nopen_files = 99\n[limits.users.2]\nopen_files = 77\nchildren = 1\n\
                  [limits.users.2.environment]\nCOLOUR = \"blue\"\n[child.environment]\nCOLOUR = \"red\"\n";
    let supervised = Supervised::start_unprivileged("echo $COLOUR; exec cat", policy);
    let mut client = Client::connect(&supervised).await;
    for (tenant, colour, files) in [(1, "red", 99), (1, "red", 99), (2, "blue", 77)] {
        let mut kid = client.try_spawn(tenant).await.expect("a child");
        assert_eq!(kid.line().await, colour);
        let seen = client.inspect(&kid).await.expect("it runs");
        assert_eq!((seen.tenant.get(), seen.process.limits.open_files), (tenant, Bound::At(files)));
        std::mem::forget(kid);
    }
    assert_eq!(client.try_spawn(2).await.err(), Some(Refusal::ChildrenOfTenant { retry_after_ms: 1000 }));
}

#[tokio::test]
async fn a_child_that_uses_up_its_cpu_time_ends_with_that_reason() {
    let policy = "[limits]\ncpu_seconds = 1\n";
    let supervised = Supervised::start_unprivileged("echo ready; while :; do :; done", policy);
    let mut client = Client::connect(&supervised).await;
    let kid = client.spawn(1).await;
    let ending = client.ending_of(&kid).await;
    assert_eq!(ending.limit, Some(Limit::CpuTime { seconds: 1 }), "{ending:?}");
    assert_eq!(ending.to_string(), "killed: CPU limit 1 s of a process reached");
    assert!(ending.usage.cpu_usec > 500_000, "{ending:?}");
    let logged = supervised.logged();
    assert!(logged.contains("reason=killed: CPU limit 1 s"), "{logged}");
}

#[tokio::test]
async fn a_child_is_looked_at_by_its_own_connection_only_and_only_while_it_runs() {
    let supervised = Supervised::start_unprivileged("echo ready; exec cat", "");
    let (mut own, mut other) = (Client::connect(&supervised).await, Client::connect(&supervised).await);
    let mut kid = own.spawn(1).await;
    let seen = own.inspect(&kid).await.expect("it runs");
    assert_eq!((seen.pid, seen.process.uids[0]), (kid.pid, kid.uid));
    assert!(seen.process.no_new_privs);
    assert_eq!((seen.process.seccomp == 2, seen.user), (own.isolation.seccomp, None));
    assert_eq!(other.inspect(&kid).await, None);
    own.stop(&mut kid).await;
    assert_eq!(own.inspect(&kid).await, None);
}

#[tokio::test]
async fn without_a_cgroup_it_is_said_that_memory_is_not_limited() {
    let supervised = Supervised::start_unprivileged("echo ready; exec cat", "");
    let mut client = Client::connect(&supervised).await;
    let status = client.status().await;
    assert_eq!((status.enforced, status.all, client.isolation.cgroup), (Enforced::default(), None, false));
    let logged = supervised.logged();
    assert_eq!(logged.matches("memory is not limited").count(), 1, "{logged}");
}

#[test]
fn every_problem_of_the_configuration_is_told_at_once_with_exit_code_78() {
    let dir = harness::roots_directory().expect("a directory");
    let file = dir.path().join("bad.toml");
    let text = "[child]\nprofile = \"custom\"\nprogram = \"/nonexistent\"\ntoken_variables = [\"LD_PRELOAD\"]\n\
                [uids]\nfirst = 3\n[limits]\nopne_files = 3\n[limits.users.bob]\n";
    std::fs::write(&file, text).expect("write");
    let mut command = Command::new(harness::program("forgejo-mcp-supervisor"));
    let output = command.arg("--check").arg("--config").arg(&file).output().expect("run");
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).expect("text");
    for key in ["broker_user", "forgejo.url", "child.program", "LD_PRELOAD", "uids.first", "opne_files", "users.bob"] {
        assert!(said.contains(key), "{key} is missing in: {said}");
    }
}

#[test]
fn a_policy_that_others_can_write_is_refused() {
    let dir = harness::roots_directory().expect("a directory");
    let file = dir.path().join("open.toml");
    std::fs::write(&file, "").expect("write");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("chmod");
    let mut command = Command::new(harness::program("forgejo-mcp-supervisor"));
    let output = command.arg("--check").arg("--config").arg(&file).output().expect("run");
    assert!(String::from_utf8_lossy(&output.stderr).contains("must be"), "{output:?}");
    assert_eq!(output.status.code(), Some(78));
}

#[tokio::test]
async fn the_watchdog_is_told_also_when_no_descriptor_is_left() {
    let surroundings = Surroundings {
        descriptors: Some((64, 64)),
        watchdog: Some(Duration::from_millis(200)),
        ..Surroundings::default()
    };
    let supervised = Supervised::start_in(surroundings, "echo ready; exec cat", "");
    let mut client = Client::connect(&supervised).await;
    let _kid = client.spawn(1).await;
    // Down to the lowest that is free, which is what the next one would be.
    let is_free = |fd: &u32| !Path::new(&format!("/proc/{}/fd/{fd}", supervised.pid())).is_symlink();
    supervised.limit_descriptors((0..64).find(is_free).expect("a free one"));
    let refused = client.try_spawn(1).await.expect_err("no pipe can be made");
    assert!(matches!(refused, Refusal::StartFailed { .. }), "{refused:?}");
    // More than can have been on their way before.
    for _ in 0..20 {
        supervised.told("WATCHDOG=1");
    }
    assert_eq!(client.status().await.children, 1);
}

#[tokio::test]
async fn the_soft_limit_on_descriptors_is_raised_and_a_child_gets_its_own() {
    let surroundings = Surroundings { descriptors: Some((64, 512)), ..Surroundings::default() };
    let supervised = Supervised::start_in(surroundings, "echo ready; exec cat", "[limits]\nopen_files = 99\n");
    let mut client = Client::connect(&supervised).await;
    let kid = client.spawn(1).await;
    let limits = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("readable");
    let open_files = |pid: u32| {
        let limits = limits(pid);
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the limit");
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(open_files(supervised.pid()), ["512", "512"]);
    assert_eq!(open_files(kid.pid), ["99", "99"]);
}

#[tokio::test]
async fn sighup_reads_the_policy_again_for_the_next_children_and_a_bad_one_changes_nothing() {
    let surroundings = Surroundings { watchdog: Some(Duration::from_secs(60)), ..Surroundings::default() };
    let policy = "[caps]\nchildren = 2\n[child.environment]\nCOLOUR = \"red\"\n";
    let mut supervised = Supervised::start_in(surroundings, "echo $COLOUR; exec cat", policy);
    let mut client = Client::connect(&supervised).await;
    let mut old = client.try_spawn(1).await.expect("a child");
    assert_eq!(old.line().await, "red");

    let good = std::fs::read_to_string(supervised.policy()).expect("the policy");
    let bad = good.replace("children = 2", "children = \"many\"\nchlidren = 2");
    let bad = format!("log = \"inof\"\n{bad}");
    std::fs::write(supervised.policy(), bad).expect("written");
    supervised.signal(Signal::SIGHUP);
    assert!(supervised.told("RELOADING=1").contains("MONOTONIC_USEC="));
    supervised.told("READY=1");
    let logged = supervised.logged();
    for problem in ["log: must be a level", "caps.children: must be", "caps.chlidren: is not a known key"] {
        assert!(logged.contains(problem), "{problem} is not told: {logged}");
    }
    assert_eq!(client.status().await.max_children, 2);

    let new = good.replace("children = 2", "children = 3").replace("\"red\"", "\"blue\"");
    let new = format!("log = \"error\"\n{new}");
    let started = supervised.logged().matches(" started for ").count();
    std::fs::write(supervised.policy(), new).expect("written");
    supervised.signal(Signal::SIGHUP);
    supervised.told("RELOADING=1");
    supervised.told("READY=1");
    assert_eq!(client.status().await.max_children, 3);
    let mut new = client.try_spawn(1).await.expect("a child");
    assert_eq!(new.line().await, "blue");
    assert_eq!(supervised.logged().matches(" started for ").count(), started, "only errors are logged");
    old.tell("still here").await;
    assert_eq!(old.line().await, "still here", "what runs goes on");

    // The supervisor has seen them by the time it answers: they were pending before.
    for harmless in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT] {
        supervised.signal(harmless);
        assert_eq!(client.status().await.children, 2, "{harmless}");
    }
    assert!(supervised.kill(Signal::SIGTERM).success());
}

#[tokio::test]
async fn the_numbers_are_told_to_systemd_as_they_change() {
    let surroundings = Surroundings { watchdog: Some(Duration::from_secs(60)), ..Surroundings::default() };
    let supervised = Supervised::start_in(surroundings, "echo ready; exec cat", "[caps]\nchildren = 5\n");
    let mut client = Client::connect(&supervised).await;
    let _kid = client.spawn(1).await;
    loop {
        let told = supervised.told("STATUS=");
        if told == "STATUS=1 of at most 5 children, of 1 users" {
            break;
        }
    }
}

#[tokio::test]
async fn a_program_that_is_not_installed_is_told_and_found_when_it_is_back() {
    let program = harness::roots_directory().expect("a directory");
    std::fs::set_permissions(program.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let path = program.path().join("child");
    let policy = "[caps]\nchildren = 4\n";
    let supervised = Supervised::start_program(&path, "echo ready; exec cat", policy);
    let mut client = Client::connect(&supervised).await;
    let missing = Refusal::StartFailed { step: StartStep::Program, errno: 2 };
    assert_eq!(client.try_spawn(1).await.err(), Some(missing));
    assert!(supervised.logged().contains(&format!("{} is not installed", path.display())), "{}", supervised.logged());
    harness::copy_program("/bin/sh".as_ref(), &path).expect("installed");
    let first = client.spawn(1).await;
    // As a package manager does it: another file of the same name.
    harness::copy_program("/bin/sh".as_ref(), &program.path().join("new")).expect("copied");
    std::fs::rename(program.path().join("new"), &path).expect("replaced");
    let second = client.spawn(1).await;
    assert_ne!(first.pid, second.pid);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
    let unusable = Refusal::StartFailed { step: StartStep::Program, errno: 13 };
    assert_eq!(client.try_spawn(1).await.err(), Some(unusable));
}

#[tokio::test]
async fn calls_may_go_on_for_the_grace_and_nothing_new_is_started() {
    let policy = "[stop]\ndrain = \"20s\"\n";
    let mut supervised = Supervised::start_unprivileged("echo ready; exec cat", policy);
    let mut client = Client::connect(&supervised).await;
    let mut kids = [client.spawn(1).await, client.spawn(2).await];
    supervised.signal(Signal::SIGTERM);
    client.await_reply(|reply| matches!(reply, Reply::Draining).then_some(())).await;
    assert_eq!(client.try_spawn(3).await.err(), Some(Refusal::ShuttingDown));
    for kid in &mut kids {
        kid.tell("a call").await;
        assert_eq!(kid.line().await, "a call");
        // Whoever has its answer is stopped by the broker; so the grace ends early.
        client.stop(kid).await;
    }
    client.await_reply(|r| matches!(r, Reply::Goodbye { reason: Farewell::ShuttingDown }).then_some(())).await;
    assert!(supervised.wait().success());
}

#[tokio::test]
async fn a_second_sigterm_ends_the_grace() {
    let mut supervised = Supervised::start_unprivileged("echo ready; exec cat", "[stop]\ndrain = \"60s\"\n");
    let mut client = Client::connect(&supervised).await;
    let kid = client.spawn(1).await;
    supervised.signal(Signal::SIGTERM);
    client.await_reply(|reply| matches!(reply, Reply::Draining).then_some(())).await;
    assert!(supervised.kill(Signal::SIGTERM).success());
    assert!(matches!(client.exit_of(&kid).await, Exit::Signal(_)));
}

#[tokio::test]
async fn every_socket_that_systemd_hands_over_is_served() {
    let dir = harness::roots_directory().expect("a directory");
    let policy = dir.path().join("supervisor.toml");
    let own = nix::unistd::geteuid();
    let text = format!("broker_user = {own}\nforgejo.url = \"http://127.0.0.1:1\"\nchild.program = \"/bin/cat\"\n");
    std::fs::write(&policy, text).expect("written");
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    let [first, second] = paths
        .each_ref()
        .map(|path| bind_unix(path, nix::sys::socket::SockType::SeqPacket, 0o600, None).expect("bound"));
    let script = "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(harness::program("forgejo-mcp-supervisor")).arg("--unprivileged");
    command.arg("--config").arg(&policy).stdin(first.0).stdout(second.0).stderr(std::process::Stdio::null());
    if own.is_root() {
        command.uid(65_534).gid(65_534);
    }
    let mut supervisor = command.spawn().expect("it runs");
    for path in &paths {
        // Waits in the socket until the supervisor is there.
        let socket = Socket::connect(path).await.expect("connected");
        say(&socket, &Request::Hello { protocol: PROTOCOL }).await;
        assert!(matches!(hear(&socket).await, Some((Reply::Welcome { .. }, _))), "{}", path.display());
    }
    let pid = nix::unistd::Pid::from_raw(supervisor.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("signalled");
    assert!(supervisor.wait().expect("it ends").success());
}

#[tokio::test]
async fn the_announcement_comes_first_also_where_systemd_signals_the_children_at_once() {
    let policy = "[caps]\nchildren_per_tenant = 30\n[stop]\ndrain = \"20s\"\n";
    let mut supervised = Supervised::start_unprivileged("echo ready; exec sleep 1000", policy);
    let mut client = Client::connect(&supervised).await;
    let mut pids = Vec::new();
    for _ in 0..20 {
        pids.push(client.spawn(1).await.pid);
    }
    // As with KillMode=control-group, the default: the main process, then all others. It gets its turn when all has
    // happened, which is the worst case.
    supervised.signal(Signal::SIGSTOP);
    supervised.signal(Signal::SIGTERM);
    for &pid in &pids {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).expect("signalled");
    }
    while pids.iter().any(|&pid| runs(pid)) {
        harness::look_again().await;
    }
    supervised.signal(Signal::SIGCONT);
    assert_eq!(hear(&client.socket).await.map(|(reply, _)| reply), Some(Reply::Draining));
    assert!(supervised.wait().success());
}
