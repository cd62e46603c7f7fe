//! Sees to it that nothing is left under a uid before somebody else gets it.
//!
//! Trusts the kernel's own lists, and nothing of what runs: a child may fork, ignore signals and leave its group, but
//! neither its uid nor its cgroup. The cgroup is asked where there is one, because reading all of `/proc` takes some ten
//! system calls a process of the machine, in root's one thread.

use std::time::Duration;

use nix::unistd::Pid;

use crate::spawn;
use crate::spawn::Pidfd;
use crate::uid::{ChildUid, UidRange};

/// How long a killed process may take to go before its uid is put into quarantine. One that hangs in the kernel
/// (state D) can take for ever.
const GONE_TIMEOUT: Duration = Duration::from_secs(2);
/// A killed process that was half way through a fork may leave one more that is found only by looking again.
const ROUNDS: usize = 3;

/// Kills everything under `uid` and waits for the end of it; whether nothing is left. `held` lists what its tenant's
/// cgroup holds, where there is one that can be asked.
pub(crate) async fn clean(uid: ChildUid, range: UidRange, held: impl Fn() -> Option<Vec<Pid>>) -> bool {
    let left = || -> Vec<Pid> {
        // A tenant who is back has children under another uid in the same cgroup; they are not meant.
        let found = running(held().unwrap_or_else(all), |owner| owner == uid.get());
        found.into_iter().map(|(pid, _)| pid).collect()
    };
    for _ in 0..ROUNDS {
        // Before looking: what is killed cannot fork any more while it is looked for.
        if let Err(error) = spawn::kill_all_of(uid, range.sweeper()) {
            tracing::warn!(uid = uid.get(), %error, "killing all that runs under a uid failed");
        }
        let left = left();
        if left.is_empty() {
            return true;
        }
        gone(left, GONE_TIMEOUT).await;
    }
    left().is_empty()
}

/// The uids of the range under which something runs.
pub(crate) fn dirty(range: UidRange) -> Vec<ChildUid> {
    let mut uids: Vec<_> =
        running(all(), |owner| range.get(owner).is_some()).iter().filter_map(|p| range.get(p.1)).collect();
    uids.sort();
    uids.dedup();
    uids
}

/// Waits until these processes have ended, at most this long.
pub(crate) async fn gone(pids: impl IntoIterator<Item = Pid>, patience: Duration) {
    let watched: Vec<Pidfd> = pids.into_iter().filter_map(|pid| Pidfd::open(pid).ok()).collect();
    let all = async {
        for pidfd in &watched {
            let _ = pidfd.exited().await;
        }
    };
    // Too late is no error here: whoever asked looks again.
    let _ = tokio::time::timeout(patience, all).await;
}

/// Every process of the machine.
fn all() -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw).collect()
}

/// Those of the processes that run under a uid that fits, as any of their four (proc(5), `status`), with that uid.
fn running(pids: Vec<Pid>, fits: impl Fn(u32) -> bool) -> Vec<(Pid, u32)> {
    let one = |pid: Pid| {
        // Not there any more: it ended meanwhile.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
        let uid = field("Uid:")?.split_whitespace().filter_map(|uid| uid.parse().ok()).find(|&uid| fits(uid))?;
        (!is_dead(&status)).then_some((pid, uid))
    };
    pids.into_iter().filter_map(one).collect()
}

/// Whether a process, by its `status` in proc(5), runs nothing and holds nothing any more; whose child it is reaps it.
/// Where only the first of its threads has ended it is called a zombie, too, and the others run on.
fn is_dead(status: &str) -> bool {
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    field("State:").starts_with(['Z', 'X']) && field("Threads:") == "1"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_dead_when_its_last_thread_is() {
        for (status, dead) in [
            ("State:\tZ (zombie)\nThreads:\t1\n", true),
            ("State:\tX (dead)\nThreads:\t1\n", true),
            ("State:\tZ (zombie)\nThreads:\t2\n", false),
            ("State:\tS (sleeping)\nThreads:\t1\n", false),
            ("State:\tZ (zombie)\n", false),
        ] {
            assert_eq!(is_dead(status), dead, "{status:?}");
        }
    }

    #[test]
    fn a_process_of_this_uid_is_seen_as_long_as_it_runs() {
        let own = nix::unistd::getuid().as_raw();
        assert!(running(all(), |uid| uid == own).iter().any(|(pid, _)| *pid == Pid::this()));
    }
}
