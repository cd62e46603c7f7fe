//! Whatever a child leaves behind or does to escape its end: nothing of it lives under a uid that another child gets, and
//! nobody else waits for it. Needs root.

#![expect(clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests fail the test")]

#[cfg(test)]
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::look_again;
use harness::supervised::{
    Client, Kid, Supervised, Surroundings, WAITS_FOR_THE_END, gone, own_range, root_or_skip, watch,
};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wire::message::{Exit, Refusal, StartStep, Status};

/// Long enough for a loaded machine; reaching it is a failure.
const DEADLINE: Duration = Duration::from_secs(30);

/// A supervisor whose children are `leftovers`.
fn supervised(surroundings: Surroundings, policy: &str) -> Supervised {
    Supervised::start_as_root(&harness::program("leftovers"), surroundings, policy)
}

/// A policy with that many uids for children, and no cap that comes before them.
fn uids(count: u32) -> String {
    format!(
        "[caps]\nspawns_per_second = 1000\nspawn_burst = 10000\n[uids]\nfirst = {}\ncount = {}\n",
        own_range(),
        count + 1
    )
}

/// Asks until a uid is clean.
async fn spawn_when_clean(client: &mut Client, tenant: u64) -> Kid {
    let begun = Instant::now();
    loop {
        match client.try_spawn(tenant).await {
            Ok(mut kid) => {
                assert_eq!(kid.line().await, "ready");
                return kid;
            }
            Err(Refusal::NoFreeUid { .. }) if begun.elapsed() < DEADLINE => look_again().await,
            Err(other) => panic!("{other:?}"),
        }
    }
}

async fn status_when(client: &mut Client, fits: impl Fn(Status) -> bool) -> Status {
    let begun = Instant::now();
    loop {
        let status = client.status().await;
        if fits(status) {
            return status;
        }
        assert!(begun.elapsed() < DEADLINE, "{status:?}");
        look_again().await;
    }
}

async fn ask(kid: &mut Kid, command: &str) -> String {
    kid.tell(command).await;
    kid.line().await
}

/// Whether nobody holds the other end of a child's standard output any more: neither it nor what it left behind.
fn nobody_is_left(kid: &Kid) -> bool {
    let stdout = kid.stdout.get_ref().as_fd();
    let mut polled = [PollFd::new(&stdout, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("polled");
    polled.iter().all(|fd| fd.revents().contains(PollFlags::HUP))
}

fn status_field(pid: u32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)).map(|rest| rest.trim().to_owned())
}

/// The zombies that are this process's to reap.
fn zombies(parent: u32) -> usize {
    let pids = std::fs::read_dir("/proc").expect("readable").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| status_field(pid, "PPid:") == Some(parent.to_string()))
        .filter(|&pid| status_field(pid, "State:").is_some_and(|state| state.starts_with('Z')))
        .count()
}

/// A cgroup of this test's own; removed at the end.
struct OwnCgroup(PathBuf);

impl OwnCgroup {
    /// Below the first of these that can hold one with that file.
    fn new(roots: &[&str], file: &str) -> Option<Self> {
        roots.iter().find_map(|root| {
            let dir = Path::new(root).join(format!("fmb-left-{}", own_range()));
            std::fs::create_dir(&dir).ok()?;
            let own = Self(dir);
            own.0.join(file).exists().then_some(own)
        })
    }

    fn v2(test: &str) -> Option<Self> {
        if !root_or_skip(test) {
            return None;
        }
        let own = Self::new(&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], "cgroup.kill");
        skip_without(own, test, "a writable cgroup2")
    }

    /// The part of a supervisor's policy that names it.
    fn policy(&self) -> String {
        format!("[cgroup]\nroot = \"{}\"\n", self.0.display())
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.0.join(file), text).expect(file);
    }
}

fn skip_without<T>(what: Option<T>, test: &str, needs: &str) -> Option<T> {
    if what.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} needs {needs}");
        println!("SKIPPED: {test}: needs {needs}");
    }
    what
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn a_process_whose_first_thread_has_ended_is_gone_before_its_uid_is_leased_again() {
    if !root_or_skip("a_process_whose_first_thread_has_ended_is_gone_before_its_uid_is_leased_again") {
        return;
    }
    let supervised = supervised(Surroundings::default(), &uids(1));
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    let left: u32 = ask(&mut kid, "leaderless").await.parse().expect("a pid");
    assert_eq!(status_field(left, "Threads:").as_deref(), Some("2"), "the second thread runs");
    client.stop(&mut kid).await;
    let next = spawn_when_clean(&mut client, 2).await;
    assert_eq!(next.uid, kid.uid);
    assert!(nobody_is_left(&kid), "the second thread runs on beside the next tenant");
}

#[tokio::test]
async fn a_hopping_process_is_gone_before_its_uid_is_leased_again_a_hundred_times() {
    if !root_or_skip("a_hopping_process_is_gone_before_its_uid_is_leased_again_a_hundred_times") {
        return;
    }
    let supervised = supervised(Surroundings::default(), &uids(1));
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    for round in 0..100 {
        assert_eq!(ask(&mut kid, "hop").await, "hopping");
        client.stop(&mut kid).await;
        let next = spawn_when_clean(&mut client, round + 2).await;
        assert!(nobody_is_left(&kid), "in round {round} it hops on beside the next tenant");
        kid = next;
    }
    assert_eq!(zombies(supervised.pid()), 0);
}

#[tokio::test]
async fn a_bomb_that_forks_for_ever_while_it_is_killed_is_gone_before_its_uid_is_leased_again() {
    if !root_or_skip("a_bomb_that_forks_for_ever_while_it_is_killed_is_gone_before_its_uid_is_leased_again") {
        return;
    }
    let supervised = supervised(Surroundings::default(), &format!("[limits]\nprocesses = 48\n{}", uids(1)));
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    for round in 0..10 {
        assert_eq!(ask(&mut kid, "bomb").await, "burning");
        client.stop(&mut kid).await;
        let next = spawn_when_clean(&mut client, round + 2).await;
        assert!(nobody_is_left(&kid), "in round {round} it burns on beside the next tenant");
        kid = next;
    }
    assert_eq!(zombies(supervised.pid()), 0);
}

#[tokio::test]
async fn a_child_that_takes_all_the_descriptors_it_can_takes_its_own_and_no_more() {
    if !root_or_skip("a_child_that_takes_all_the_descriptors_it_can_takes_its_own_and_no_more") {
        return;
    }
    let supervised = supervised(Surroundings::default(), &uids(8));
    let mut client = Client::connect(&supervised).await;
    let (mut kid, mut other) = (client.spawn(1).await, client.spawn(2).await);
    assert_eq!(ask(&mut kid, "descriptors").await, "253", "[limits] open_files, without the pipes");
    assert_eq!(ask(&mut other, "descriptors").await, "253");
    let mut third = client.spawn(3).await;
    assert_eq!(ask(&mut third, "herd 1").await, "1", "the machine has more, for everybody else");
}

async fn herds_are_killed(policy: &str) {
    let surroundings = Surroundings { descriptors: Some((256, 256)), ..Surroundings::default() };
    let supervised = supervised(surroundings, &format!("{policy}{}", uids(8)));
    let mut client = Client::connect(&supervised).await;
    let mut kids = Vec::new();
    for tenant in 1..=8 {
        let mut kid = client.spawn(tenant).await;
        assert_eq!(ask(&mut kid, "herd 200").await, "200");
        kids.push(kid);
    }
    assert!(matches!(client.try_spawn(9).await, Err(Refusal::NoFreeUid { .. })));
    for kid in &mut kids {
        client.stop(kid).await;
    }
    status_when(&mut client, |status| (status.uids_free, status.uids_unclean) == (8, 0)).await;
    assert!(kids.iter().all(nobody_is_left), "a uid is said to be clean and is not");
    assert_eq!(zombies(supervised.pid()), 0);
}

#[tokio::test]
async fn herds_of_detached_processes_are_gone_also_with_few_descriptors() {
    if !root_or_skip("herds_of_detached_processes_are_gone_also_with_few_descriptors") {
        return;
    }
    herds_are_killed("").await;
}

#[tokio::test]
async fn herds_of_detached_processes_are_gone_also_with_few_descriptors_and_a_cgroup() {
    let test = "herds_of_detached_processes_are_gone_also_with_few_descriptors_and_a_cgroup";
    let Some(own) = OwnCgroup::v2(test) else { return };
    herds_are_killed(&own.policy()).await;
    let left = std::fs::read_dir(&own.0).expect("readable").flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(left, 0, "directories of tenants");
}

#[tokio::test]
async fn when_children_fill_the_supervisors_pids_limit_they_are_killed_all_the_same() {
    let test = "when_children_fill_the_supervisors_pids_limit_they_are_killed_all_the_same";
    if !root_or_skip(test) {
        return;
    }
    let own = OwnCgroup::new(&["/sys/fs/cgroup/pids", "/sys/fs/cgroup"], "pids.max");
    let Some(own) = skip_without(own, test, "a cgroup with the pids controller") else { return };
    own.write("pids.max", "300");
    let mut supervised = supervised(Surroundings::default(), &uids(8));
    own.write("cgroup.procs", &supervised.pid().to_string());
    let mut client = Client::connect(&supervised).await;
    let mut kids = [client.spawn(1).await, client.spawn(2).await, client.spawn(3).await];
    let mut made = 0;
    for kid in &mut kids {
        made += ask(kid, "herd 250").await.parse::<u32>().expect("a number");
    }
    assert!(made < 300, "{made} processes: the limit does not hold");
    let full = Refusal::StartFailed { step: StartStep::Exec, errno: libc::EAGAIN };
    assert_eq!(client.try_spawn(4).await.err(), Some(full));
    for kid in &mut kids {
        client.stop(kid).await;
    }
    status_when(&mut client, |status| (status.uids_free, status.uids_unclean) == (8, 0)).await;
    assert!(kids.iter().all(nobody_is_left));
    let mut kid = client.spawn(4).await;
    ask(&mut kid, "herd 250").await;
    assert!(supervised.kill(Signal::SIGTERM).success());
    assert!(nobody_is_left(&kid), "a stop leaves them");
}

#[tokio::test]
async fn a_child_that_stops_all_it_can_holds_up_nobodys_start() {
    if !root_or_skip("a_child_that_stops_all_it_can_holds_up_nobodys_start") {
        return;
    }
    let policy = format!("[sandbox]\nlandlock = false\n{}", uids(60));
    let supervised = supervised(Surroundings::default(), &policy);
    let mut client = Client::connect(&supervised).await;
    assert!(!client.isolation.landlock);
    let mut kid = client.spawn(1).await;
    kid.tell("storm").await;
    for _ in 0..20 {
        for tenant in [1, 2] {
            let mut other = client.spawn(tenant).await;
            assert_eq!(ask(&mut other, "herd 1").await, "1", "it runs on");
            client.stop(&mut other).await;
        }
    }
    // It may have stopped its own parent, which then hears no end of input.
    client.stop(&mut kid).await;
    status_when(&mut client, |status| status.uids_unclean == 0).await;
    assert!(nobody_is_left(&kid));
}

#[tokio::test]
async fn a_half_made_child_that_is_held_fails_alone_and_in_time() {
    let test = "a_half_made_child_that_is_held_fails_alone_and_in_time";
    let Some(own) = OwnCgroup::v2(test) else { return };
    let supervised = supervised(Surroundings::default(), &format!("{WAITS_FOR_THE_END}{}{}", own.policy(), uids(8)));
    let (mut client, mut other) = (Client::connect(&supervised).await, Client::connect(&supervised).await);
    let mut kid = client.spawn(1).await;
    // Whoever enters the tenant's cgroup from now on stands still, as at the end of its share of CPU.
    own.write("children/tenant-1/cgroup.freeze", "1");
    let begun = Instant::now();
    let held = async {
        let refused = client.try_spawn(1).await.expect_err("it cannot run its program");
        (refused, begun.elapsed())
    };
    let meanwhile = async {
        assert_eq!(status_when(&mut other, |status| status.children == 2).await.tenants, 1, "the half-made one counts");
        let kid = other.spawn(2).await;
        (kid, begun.elapsed())
    };
    let ((refused, held), (_kid, meanwhile)) = tokio::join!(held, meanwhile);
    assert_eq!(refused, Refusal::StartFailed { step: StartStep::Exec, errno: libc::ETIMEDOUT });
    assert!(meanwhile < held, "somebody else's start waits for it: {meanwhile:?}, {held:?}");
    status_when(&mut other, |status| (status.children, status.uids_unclean) == (2, 0)).await;

    // One whose connection goes meanwhile is not waited for.
    let mut third = Client::connect(&supervised).await;
    third.ask_spawn(1).await;
    status_when(&mut other, |status| status.children == 3).await;
    let begun = Instant::now();
    drop(third);
    status_when(&mut other, |status| (status.children, status.uids_unclean) == (2, 0)).await;
    assert!(begun.elapsed() < held, "it was held to its deadline, as the first: {:?}", begun.elapsed());

    own.write("children/tenant-1/cgroup.freeze", "0");
    let mut again = client.spawn(1).await;
    for kid in [&mut kid, &mut again] {
        assert_eq!(client.stop(kid).await, Exit::Code(0));
    }
}

#[tokio::test]
async fn the_next_supervisor_kills_what_a_killed_one_left_threads_without_a_leader_and_hoppers_too() {
    if !root_or_skip("the_next_supervisor_kills_what_a_killed_one_left") {
        return;
    }
    let policy = uids(4);
    let mut first = supervised(Surroundings::default(), &policy);
    let mut client = Client::connect(&first).await;
    let mut kids = [client.spawn(1).await, client.spawn(2).await, client.spawn(3).await];
    let left: u32 = ask(&mut kids[0], "leaderless").await.parse().expect("a pid");
    assert_eq!(ask(&mut kids[1], "hop").await, "hopping");
    assert_eq!(ask(&mut kids[2], "herd 20").await, "20");
    let watched = watch(left);
    first.kill(Signal::SIGKILL);
    assert!(!nobody_is_left(&kids[0]) && !nobody_is_left(&kids[1]), "nothing outlived the first: this shows nothing");
    let next = supervised(Surroundings::default(), &policy);
    gone(watched).await;
    let mut client = Client::connect(&next).await;
    status_when(&mut client, |status| status.uids_unclean == 0).await;
    assert!(kids.iter().all(nobody_is_left));
}

#[tokio::test]
async fn what_is_left_of_a_user_is_removed_beside_their_new_children_and_takes_none_along() {
    let test = "what_is_left_of_a_user_is_removed_beside_their_new_children_and_takes_none_along";
    let Some(own) = OwnCgroup::v2(test) else { return };
    let policy = format!("{}{}", uids(40), own.policy());
    let mut first = supervised(Surroundings::default(), &policy);
    let mut client = Client::connect(&first).await;
    let mut left = Vec::new();
    for _ in 0..8 {
        let mut kid = client.spawn(1).await;
        ask(&mut kid, "herd 20").await;
        left.push(kid);
    }
    first.kill(Signal::SIGKILL);
    let next = supervised(Surroundings::default(), &policy);
    let mut client = Client::connect(&next).await;
    let mut kids = Vec::new();
    for _ in 0..8 {
        kids.push(client.spawn(1).await);
    }
    status_when(&mut client, |status| status.uids_unclean == 0).await;
    assert!(left.iter().all(nobody_is_left));
    let leaves = || {
        let user = std::fs::read_dir(own.0.join("children/tenant-1")).expect("readable").flatten();
        user.filter(|entry| entry.path().is_dir()).count()
    };
    let begun = Instant::now();
    while leaves() > kids.len() {
        assert!(begun.elapsed() < DEADLINE, "{} leaves", leaves());
        look_again().await;
    }
    for kid in &mut kids {
        assert_eq!(ask(kid, "herd 1").await, "1", "it lives");
    }
    assert!(!next.logged().contains("cgroup-stays"), "{}", next.logged());
}

#[tokio::test]
async fn a_cgroup_of_an_earlier_supervisor_that_does_not_go_is_tried_again() {
    let test = "a_cgroup_of_an_earlier_supervisor_that_does_not_go_is_tried_again";
    let Some(own) = OwnCgroup::v2(test) else { return };
    let policy = format!("{}{}", uids(8), own.policy());
    let mut first = supervised(Surroundings::default(), &policy);
    let mut client = Client::connect(&first).await;
    let _kid = client.spawn(1).await;
    let user = own.0.join("children/tenant-1");
    let leaves = std::fs::read_dir(&user).expect("readable").flatten().map(|entry| entry.path());
    let leaf = leaves.filter(|path| path.is_dir()).last().expect("its cgroup");
    first.kill(Signal::SIGKILL);
    // What has another below it cannot be removed.
    let below = leaf.join("below");
    std::fs::create_dir(&below).expect("a cgroup");
    let next = supervised(Surroundings::default(), &policy);
    let begun = Instant::now();
    while !next.logged().contains("cgroup-stays") {
        assert!(begun.elapsed() < DEADLINE, "{}", next.logged());
        look_again().await;
    }
    std::fs::remove_dir(&below).expect("empty");
    while user.exists() {
        assert!(begun.elapsed() < DEADLINE, "{}", next.logged());
        look_again().await;
    }
}

#[tokio::test]
async fn two_children_of_one_user_cannot_touch_each_other() {
    if !root_or_skip("two_children_of_one_user_cannot_touch_each_other") {
        return;
    }
    // Without Landlock, so that it is the uid that is looked at.
    let supervised = supervised(Surroundings::default(), &format!("[sandbox]\nlandlock = false\n{}", uids(8)));
    let mut client = Client::connect(&supervised).await;
    let (mut one, other) = (client.spawn(1).await, client.spawn(1).await);
    assert_ne!(one.uid, other.uid);
    assert_eq!(ask(&mut one, &format!("poke {}", other.pid)).await, "nothing");
    let own = format!("poke {}", one.pid);
    assert!(ask(&mut one, &own).await.contains("kill"), "so that the check above can fail");
}

#[tokio::test]
async fn what_children_leave_is_the_supervisors_and_reaped() {
    if !root_or_skip("what_children_leave_is_the_supervisors_and_reaped") {
        return;
    }
    let supervised = supervised(Surroundings::default(), &format!("{WAITS_FOR_THE_END}{}", uids(8)));
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    let orphan: u32 = ask(&mut kid, "orphan").await.parse().expect("a pid");
    assert_eq!(status_field(orphan, "PPid:"), Some(supervised.pid().to_string()));
    assert_eq!(ask(&mut kid, "orphans 1000").await, "done", "zombies count against its limit of processes");
    let begun = Instant::now();
    while zombies(supervised.pid()) > 0 {
        assert!(begun.elapsed() < DEADLINE);
        look_again().await;
    }
    assert_eq!(client.stop(&mut kid).await, Exit::Code(0));
}

#[tokio::test]
async fn a_child_starts_without_the_supervisors_niceness_and_ignored_signals() {
    if !root_or_skip("a_child_starts_without_the_supervisors_niceness_and_ignored_signals") {
        return;
    }
    let supervised = supervised(Surroundings::default(), &uids(8));
    let renice = std::process::Command::new("renice").args(["-n", "-5", "-p", &supervised.pid().to_string()]).output();
    assert!(renice.expect("renice of util-linux").status.success());
    let mut client = Client::connect(&supervised).await;
    let kid = client.spawn(1).await;
    assert_eq!(kid.proc("stat").split_whitespace().nth(18), Some("0"), "niceness");
    assert_eq!(kid.proc("oom_score_adj").trim(), "500");
    // A Rust program ignores SIGPIPE by itself.
    assert_eq!((kid.status("SigIgn"), kid.status("SigBlk")), ("0000000000001000".into(), "0000000000000000".into()));
}

/// What may not grow: kilobytes, descriptors, zombies.
fn held(supervised: &Supervised) -> (u32, usize, usize) {
    let rss = status_field(supervised.pid(), "VmRSS:").and_then(|rss| rss.split(' ').next()?.parse().ok());
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", supervised.pid())).expect("readable").count();
    (rss.expect("a number"), descriptors, zombies(supervised.pid()))
}

#[tokio::test]
async fn five_thousand_starts_and_ends_cost_nothing_lasting_whatever_they_leave() {
    if root_or_skip("five_thousand_starts_and_ends_cost_nothing_lasting_whatever_they_leave") {
        starts_and_ends(5000, None).await;
    }
}

#[tokio::test]
async fn nor_do_five_thousand_with_cgroups_of_which_none_is_left() {
    let test = "nor_do_five_thousand_with_cgroups_of_which_none_is_left";
    let Some(own) = OwnCgroup::v2(test) else { return };
    starts_and_ends(5000, Some(&own.0)).await;
}

/// Each tenth child leaves something behind.
async fn starts_and_ends(rounds: u32, cgroup: Option<&Path>) {
    let policy = cgroup.map(|root| format!("[cgroup]\nroot = \"{}\"\n", root.display())).unwrap_or_default();
    let supervised = supervised(Surroundings::default(), &format!("{}{policy}", uids(32)));
    let mut client = Client::connect(&supervised).await;
    let left_behind = ["hop", "leaderless", "herd 5", "orphans 5"];
    let mut early = None;
    for round in 0..rounds {
        let mut kid = spawn_when_clean(&mut client, u64::from(round % 7 + 1)).await;
        if round % 10 == 0 {
            let command = left_behind.iter().cycle().nth(usize::try_from(round / 10).expect("small")).expect("one");
            ask(&mut kid, command).await;
        }
        client.stop(&mut kid).await;
        if round == rounds / 5 {
            status_when(&mut client, |status| status.uids_free == 32).await;
            early = Some(held(&supervised));
        }
    }
    let status = status_when(&mut client, |status| status.uids_free == 32).await;
    assert_eq!((status.children, status.uids_unclean), (0, 0));
    let (early, late) = (early.expect("measured"), held(&supervised));
    assert_eq!((late.1, late.2), (early.1, 0), "descriptors and zombies");
    assert!(late.0 < early.0 + 512, "{} KiB became {} KiB", early.0, late.0);
    if let Some(root) = cgroup {
        let left = std::fs::read_dir(root.join("children")).expect("the node of all").flatten();
        assert_eq!(left.filter(|entry| entry.path().is_dir()).count(), 0, "cgroups");
    }
}
