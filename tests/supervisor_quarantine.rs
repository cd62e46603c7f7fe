//! What does not die: its uid and its cgroup are nobody's until it has gone. Needs root.
//!
//! A process that a debugger holds at its end (`PTRACE_O_TRACEEXIT`, ptrace(2)) is as good as one that hangs in the kernel:
//! no signal ends it, and it keeps its uid, its cgroup and its place among the processes.

#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

#[cfg(test)]
use harness::cgroups::OwnCgroup;
use harness::look_again;
use harness::supervised::{Client, Kid, Supervised, root_or_skip, runs};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use wire::message::{Refusal, Status};

/// Runs each line that it is told.
const OBEY: &str = "echo ready; while read -r line; do eval \"$line\"; done";

/// A process of a child's that is held at its end by this thread.
struct Undying(Pid);

impl Undying {
    async fn of(kid: &mut Kid) -> Self {
        kid.tell("setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!").await;
        let pid = Pid::from_raw(kid.line().await.parse().expect("a pid"));
        ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACEEXIT).expect("root may");
        Self(pid)
    }

    /// Lets it go.
    fn release(self) {
        let flags = Some(WaitPidFlag::__WALL);
        let held = waitpid(self.0, flags);
        assert!(matches!(held, Ok(WaitStatus::PtraceEvent(..))), "{held:?}");
        ptrace::detach(self.0, None).expect("it is held");
    }
}

async fn status_when(client: &mut Client, fits: impl Fn(Status) -> bool) -> Status {
    let begun = std::time::Instant::now();
    loop {
        let status = client.status().await;
        if fits(status) {
            return status;
        }
        assert!(begun.elapsed().as_secs() < 30, "{status:?}");
        look_again().await;
    }
}

/// Two uids; `more` is put before them.
fn supervised(range: u32, more: &str) -> Supervised {
    Supervised::start(
        OBEY,
        &format!("{more}[uids]\nfirst = {range}\ncount = 3\n[caps]\nspawn_burst = 1000\nspawns_per_second = 1000\n"),
    )
}

async fn is_kept_apart(more: &str) {
    let range = harness::supervised::own_range();
    let mut first = supervised(range, more);
    let mut client = Client::connect(&first).await;
    let all = client.status().await.uids_free;
    let mut kid = client.spawn(1).await;
    let undying = Undying::of(&mut kid).await;
    client.stop(&mut kid).await;
    status_when(&mut client, |status| status.uids_unclean == 1 && first.logged().contains("is not used until")).await;
    assert!(runs(undying.0.as_raw().unsigned_abs()), "it does not die: else this shows nothing");

    // Everybody else is served, and nobody under that uid.
    let mut others = Vec::new();
    for tenant in 2..=u64::from(all) {
        others.push(client.spawn(tenant).await);
    }
    assert!(others.iter().all(|other| other.uid != kid.uid));
    assert!(matches!(client.try_spawn(99).await, Err(Refusal::NoFreeUid { .. })));

    // A stop does not wait for it, and the next supervisor knows what is left.
    assert!(first.kill(Signal::SIGTERM).success(), "{}", first.logged());
    drop(client);
    let next = supervised(range, more);
    let mut client = Client::connect(&next).await;
    assert_eq!(client.status().await.uids_unclean, 1, "{}", next.logged());
    let other = client.spawn(1).await;
    assert_ne!(other.uid, kid.uid);

    undying.release();
    status_when(&mut client, |status| status.uids_unclean == 0).await;
    let mut again = false;
    for tenant in 2..=u64::from(all) {
        again |= client.spawn(tenant).await.uid == kid.uid;
    }
    assert!(again, "the uid is used again");
}

#[tokio::test]
async fn a_process_that_no_signal_ends_keeps_its_uid_from_everybody_until_it_is_gone() {
    if root_or_skip("a_process_that_no_signal_ends_keeps_its_uid_from_everybody_until_it_is_gone") {
        is_kept_apart("").await;
    }
}

#[tokio::test]
async fn nor_is_the_uid_used_while_the_process_keeps_a_cgroup() {
    let test = "nor_is_the_uid_used_while_the_process_keeps_a_cgroup";
    if !root_or_skip(test) {
        return;
    }
    let own = OwnCgroup::new("undying").expect("a cgroup of the test's own");
    is_kept_apart(&own.policy()).await;
    let left =
        std::fs::read_dir(own.0.join("children")).map_or(0, |dir| dir.flatten().filter(|e| e.path().is_dir()).count());
    assert_eq!(left, 0, "its directory goes with it");
}
