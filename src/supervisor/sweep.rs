//! Sees to it that nothing is left under a uid before somebody else gets it.
//!
//! Trusts `/proc`, and nothing of what runs there: a child may fork, ignore signals and leave its group, but not its
//! uid.

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

/// Kills everything under `uid` and waits for the end of it; whether nothing is left.
pub(crate) async fn clean(uid: ChildUid, range: UidRange) -> bool {
    for _ in 0..ROUNDS {
        let left = running(|owner| owner == uid.get());
        if left.is_empty() {
            return true;
        }
        if let Err(error) = spawn::kill_all_of(uid, range.sweeper()) {
            tracing::warn!(uid = uid.get(), %error, "killing all that runs under a uid failed");
        }
        gone(left.into_iter().map(|(pid, _)| pid), GONE_TIMEOUT).await;
    }
    running(|owner| owner == uid.get()).is_empty()
}

/// The uids of the range under which something runs.
pub(crate) fn dirty(range: UidRange) -> Vec<ChildUid> {
    let mut uids: Vec<_> = running(|owner| range.get(owner).is_some()).iter().filter_map(|p| range.get(p.1)).collect();
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

/// Processes that run under a uid that fits, as any of their four (proc(5), `status`), with that uid. Zombies run
/// nothing and hold nothing; whose child they are reaps them.
fn running(fits: impl Fn(u32) -> bool) -> Vec<(Pid, u32)> {
    let Ok(proc) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = proc.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        // Not there any more: it ended meanwhile.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
        let uid = field("Uid:")?.split_whitespace().filter_map(|uid| uid.parse().ok()).find(|&uid| fits(uid))?;
        let dead = field("State:")?.trim_start().starts_with(['Z', 'X']);
        (!dead).then_some((Pid::from_raw(pid), uid))
    })
    .collect()
}
