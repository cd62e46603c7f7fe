//! The limits of cgroups, in a kernel that has them: the machine's own, or user-mode-linux (`tests/uml/init`). Needs root.

use std::os::unix::fs::PermissionsExt;

use harness::cgroups::limits_hold;
use harness::supervised::{Client, Kid, Supervised, TOKEN, WAITS_FOR_THE_END, runs};
use wire::ending::{Limit, Whose};
use wire::inspection::Bound;
use wire::message::Exit;

const MIB: u64 = 1 << 20;
/// Runs each line that it is told.
const OBEY: &str = "echo ready; while read -r line; do eval \"$line\"; done";
/// Takes a hundred megabytes: what has no lines is kept as a whole.
const HOG: &str = "head -c 100000000 /dev/zero | tail >/dev/null";

async fn answers(kid: &mut Kid) {
    kid.tell("echo here").await;
    assert_eq!(kid.line().await, "here");
}

#[tokio::test]
async fn memory_max_ends_the_child_that_takes_too_much_and_nobody_else_and_says_so() {
    let Some(own) = limits_hold("memory_max_ends_the_child_that_takes_too_much_and_nobody_else_and_says_so") else {
        return;
    };
    let policy = format!("{WAITS_FOR_THE_END}{}[limits]\nmemory_max = \"32MiB\"\n", own.policy());
    let supervised = Supervised::start(OBEY, &policy);
    let mut client = Client::connect(&supervised).await;
    assert!(client.isolation.cgroup);
    let (mut hog, mut sibling, mut other) = (client.spawn(1).await, client.spawn(1).await, client.spawn(2).await);
    hog.tell(HOG).await;
    let ending = client.ending_of(&hog).await;
    assert_eq!(ending.exit, Exit::Signal(9));
    assert_eq!(ending.limit, Some(Limit::Memory { whose: Whose::User, bytes: 32 * MIB }));
    assert_eq!(ending.to_string(), "killed: memory limit 32 MiB of this user reached");
    let peak = ending.usage.memory_peak.expect("counted");
    // The kernel counts in batches.
    assert!((24 * MIB..=33 * MIB).contains(&peak), "{peak}");
    assert!(ending.usage.cpu_usec > 0);
    answers(&mut sibling).await;
    answers(&mut other).await;
    // A sibling's end after it is not taken for the same.
    let ending = client.stop_and_hear(&mut sibling).await;
    assert_eq!((ending.exit, ending.limit), (Exit::Code(0), None));
    let log = supervised.logged();
    assert!(log.contains("reason=killed: memory limit 32 MiB of this user reached"), "{log}");
    assert!(log.contains(&format!("memory_peak={peak}")), "{log}");
}

#[tokio::test]
async fn all_that_a_child_started_ends_with_it_when_memory_is_used_up() {
    let Some(own) = limits_hold("all_that_a_child_started_ends_with_it_when_memory_is_used_up") else { return };
    let policy = format!("{}[limits]\nmemory_max = \"32MiB\"\n", own.policy());
    let supervised = Supervised::start(OBEY, &policy);
    let mut client = Client::connect(&supervised).await;
    let mut hog = client.spawn(1).await;
    hog.tell("setsid sh -c 'echo $$; exec sleep 1000' </dev/null 2>/dev/null &").await;
    let started: u32 = hog.line().await.parse().expect("a pid");
    let (_, own_group) = client.inspect(&hog).await.map(|seen| (seen.user, seen.own)).expect("it runs");
    assert_eq!(own_group.expect("a cgroup").oom_group, Bound::At(1));
    hog.tell(HOG).await;
    let ending = client.ending_of(&hog).await;
    assert!(matches!(ending.limit, Some(Limit::Memory { .. })), "{ending:?}");
    assert!(!runs(started) && !runs(hog.pid));
    assert!(!own.0.join("children/tenant-1").exists(), "nothing of it is left");
}

#[tokio::test]
async fn a_fork_bomb_stops_at_pids_max_and_its_end_says_so() {
    let Some(own) = limits_hold("a_fork_bomb_stops_at_pids_max_and_its_end_says_so") else { return };
    let policy = format!("{}[limits]\npids_max = 32\nprocesses = 200\n", own.policy());
    let supervised = Supervised::start(OBEY, &policy);
    let mut client = Client::connect(&supervised).await;
    let (mut bomb, mut other) = (client.spawn(1).await, client.spawn(2).await);
    bomb.tell("while :; do sleep 1000 & done").await;
    let ending = client.ending_of(&bomb).await;
    assert_eq!(ending.limit, Some(Limit::Processes { whose: Whose::User, most: 32 }), "{ending:?}");
    let words = ending.to_string();
    assert!(words.ends_with(": process limit 32 of this user reached"), "{words}");
    answers(&mut other).await;
    let peak: u64 = own.read("children/pids.peak").parse().unwrap_or(0);
    // The other user's child is among them.
    assert!((32..=36).contains(&peak), "{peak}");
    assert!(!own.0.join("children/tenant-1").exists(), "nothing of it is left");
}

#[tokio::test]
async fn cpu_max_holds_up_who_spins_and_it_is_reported() {
    let Some(own) = limits_hold("cpu_max_holds_up_who_spins_and_it_is_reported") else { return };
    let policy = format!("{}[limits]\ncpu_max = 10\n", own.policy());
    let supervised = Supervised::start(OBEY, &policy);
    let mut client = Client::connect(&supervised).await;
    let mut spin = client.spawn(1).await;
    spin.tell("while :; do :; done").await;
    let user = loop {
        let user = client.inspect(&spin).await.and_then(|seen| seen.user).expect("it runs in a cgroup");
        if user.throttled_usec.expect("counted") > 0 {
            break user;
        }
    };
    assert_eq!(user.cpu_max, Bound::At(10));
    let ending = client.stop_and_hear(&mut spin).await;
    assert!(ending.usage.throttled_usec.expect("counted") > 0, "{ending:?}");
    assert_eq!(ending.limit, None, "it was stopped, and not for that");
    assert!(supervised.logged().contains("throttled_ms="));
}

#[tokio::test]
async fn the_ceiling_holds_for_all_users_together() {
    let Some(own) = limits_hold("the_ceiling_holds_for_all_users_together") else { return };
    let policy =
        format!("{}[limits]\nmemory_max = 0\n[limits.total]\nmemory_max = \"48MiB\"\npids_max = 64\n", own.policy());
    let supervised = Supervised::start(OBEY, &policy);
    let mut client = Client::connect(&supervised).await;
    let (mut hog, mut other) = (client.spawn(1).await, client.spawn(2).await);
    let all = client.status().await.all.expect("a cgroup");
    assert_eq!((all.memory_max, all.pids_max), (Bound::At(48 * MIB), Bound::At(64)));
    hog.tell(HOG).await;
    let ending = client.ending_of(&hog).await;
    assert_eq!(ending.to_string(), "killed: memory limit 48 MiB of all users together reached");
    answers(&mut other).await;
}

#[tokio::test]
async fn sighup_moves_the_ceiling_of_those_that_run_and_a_bad_policy_leaves_it() {
    let Some(own) = limits_hold("sighup_moves_the_ceiling_of_those_that_run_and_a_bad_policy_leaves_it") else {
        return;
    };
    let total = "[limits]\nmemory_max = 0\n[limits.total]\nmemory_max = \"256MiB\"\npids_max = 64\ncpu_weight = 100\n";
    let supervised = Supervised::start(OBEY, &format!("{}{total}", own.policy()));
    let mut client = Client::connect(&supervised).await;
    let (mut hog, mut other) = (client.spawn(1).await, client.spawn(2).await);
    let policy = std::fs::read_to_string(supervised.policy()).expect("the policy");
    // What it is after the supervisor has read the policy again, which it says in this line.
    let reread = async |client: &mut Client, policy: &str, says: &str| {
        let times = supervised.logged().matches(says).count();
        std::fs::write(supervised.policy(), policy).expect("written");
        supervised.signal(nix::sys::signal::Signal::SIGHUP);
        while supervised.logged().matches(says).count() == times {
            harness::look_again().await;
        }
        let all = client.status().await.all.expect("a cgroup");
        (all.memory_max, all.pids_max, all.cpu_weight)
    };
    let smaller = policy.replace("256MiB", "48MiB").replace("pids_max = 64", "pids_max = 0").replace("= 100", "= 50");
    let now = reread(&mut client, &smaller, "the policy was read again").await;
    assert_eq!(now, (Bound::At(48 * MIB), Bound::Unlimited, Bound::At(50)));
    let read = |file: &str| own.read(&format!("children/{file}"));
    assert_eq!((read("memory.max"), read("pids.max")), ((48 * MIB).to_string(), "max".to_owned()));
    let bad = policy.replace("256MiB", "1KiB");
    assert_eq!(reread(&mut client, &bad, "the policy stays as it was").await, now);
    // It holds for the child that was started before.
    hog.tell(HOG).await;
    let ending = client.ending_of(&hog).await;
    assert_eq!(ending.to_string(), "killed: memory limit 48 MiB of all users together reached");
    answers(&mut other).await;
}

#[tokio::test]
async fn what_is_in_force_is_the_policys_and_is_read_back_from_the_kernel() {
    let Some(own) = limits_hold("what_is_in_force_is_the_policys_and_is_read_back_from_the_kernel") else { return };
    let limits = "[limits]\nmemory_max = \"64MiB\"\nmemory_high = \"48MiB\"\nswap_max = \"1MiB\"\npids_max = 40\n\
                  cpu_max = 50\ncpu_weight = 200\nopen_files = 99\n\
                  [limits.users.2]\nmemory_max = \"96MiB\"\ncpu_max = 0\n[limits.users.2.environment]\nOF_TWO = \"2\"\n";
    let supervised = Supervised::start(OBEY, &format!("{}{limits}", own.policy()));
    let mut client = Client::connect(&supervised).await;
    let (one, mut two) = (client.spawn(1).await, client.spawn(2).await);
    let seen = client.inspect(&one).await.expect("it runs");
    assert_eq!((seen.tenant.get(), seen.pid, seen.process.uids), (1, one.pid, [one.uid; 4]));
    assert_eq!(seen.process.limits.open_files, Bound::At(99));
    assert!(seen.process.no_new_privs && seen.process.seccomp == 2);
    assert_eq!(seen.process.capabilities.effective | seen.process.capabilities.permitted, 0);
    let user = seen.user.expect("a cgroup");
    let read = |name: &str| own.read(&format!("children/tenant-1/{name}"));
    for (bound, file) in [
        (user.memory_max, "memory.max"),
        (user.memory_high, "memory.high"),
        (user.swap_max, "memory.swap.max"),
        (user.pids_max, "pids.max"),
        (user.cpu_weight, "cpu.weight"),
    ] {
        let Bound::At(number) = bound else { panic!("{file}: {bound:?}") };
        assert_eq!(number.to_string(), read(file), "{file}");
    }
    assert_eq!((user.memory_max, user.pids_max, user.cpu_weight), (Bound::At(64 * MIB), Bound::At(40), Bound::At(200)));
    assert_eq!((user.cpu_max, read("cpu.max").as_str()), (Bound::At(50), "50000 100000"));
    let user = client.inspect(&two).await.and_then(|seen| seen.user).expect("a cgroup");
    assert_eq!((user.memory_max, user.cpu_max, user.pids_max), (Bound::At(96 * MIB), Bound::Unlimited, Bound::At(40)));
    two.tell("echo $OF_TWO").await;
    assert_eq!(two.line().await, "2");

    let status = client.status().await;
    assert!(status.enforced.memory && status.enforced.pids && status.enforced.cpu);
    assert_eq!(status.enforced.io, own.0.join("children/io.weight").exists());
    let all = status.all.expect("a cgroup");
    let Bound::At(ceiling) = all.memory_max else { panic!("no ceiling: {all:?}") };
    let kib: u64 = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        })
        .expect("the machine's memory");
    assert!(ceiling <= kib * 1024 * 4 / 5, "a reserve is left: {ceiling} of {kib} KiB");
    assert!(all.memory.expect("counted") > 0 && all.pids.expect("counted") >= 2);

    // Not another connection's.
    let mut stranger = Client::connect(&supervised).await;
    assert_eq!(stranger.inspect(&one).await, None);
}

#[tokio::test]
async fn a_crashing_childs_token_does_not_reach_the_machines_handler_of_cores() {
    let test = "a_crashing_childs_token_does_not_reach_the_machines_handler_of_cores";
    if std::env::var_os("INSIDE_UML").is_none() && std::path::Path::new("/usr/bin/linux.uml").exists() {
        // How this machine handles cores is nobody's to change.
        return harness::cgroups::run_in_uml(test);
    }
    let Some(own) = limits_hold(test) else { return };
    assert!(std::env::var_os("INSIDE_UML").is_some(), "not on a machine of somebody's");
    let dir = tempfile::tempdir().expect("a directory");
    let handler = dir.path().join("handler");
    let caught = dir.path().join("core");
    std::fs::write(&handler, format!("#!/bin/sh\nexec cat >>{}\n", caught.display())).expect("written");
    std::fs::set_permissions(&handler, PermissionsExt::from_mode(0o755)).expect("chmod");
    // A process that crashes is reaped when the handler is done with it (proc(5), core_pipe_limit).
    std::fs::write("/proc/sys/kernel/core_pipe_limit", "4").expect("root");
    std::fs::write("/proc/sys/kernel/core_pattern", format!("|{}", handler.display())).expect("root");
    let crash = |limit: &str| {
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", &format!("ulimit -c {limit}; kill -SEGV $$")]).env("TOKEN", TOKEN);
        command.status().expect("a shell");
        std::fs::read(&caught).map_or(0, |core| core.len())
    };
    assert!(crash("0") > 0, "the handler works, and a limit of 0 does not keep anything from it");
    std::fs::remove_file(&caught).expect("removed");

    let supervised = Supervised::start(OBEY, &own.policy());
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    kid.tell("kill -SEGV $$").await;
    assert_eq!(client.exit_of(&kid).await, Exit::Signal(11));
    assert!(!caught.exists() || std::fs::metadata(&caught).is_ok_and(|core| core.len() == 0), "a core was handed over");
}
