//! One child's cgroup from its making to its removal: how a child gets in, how all that is in it ends, and what the
//! kernel has counted by then.
//!
//! Trusts the kernel's lists and nothing of what runs: a process may fork, ignore signals, leave its session and let its
//! first thread end, but it cannot leave its cgroup.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};

use crate::cgroup::dir::{CgroupError, Dir};
use crate::reaper::Reaped;
use crate::rlimit::ChildLimits;
use crate::spawn;
use wire::ending::{Ending, Limit, Usage, Whose};
use wire::inspection::Group;
use wire::message::Exit;

/// How long killed processes may take to be gone before it is said that they do not go. One that hangs in the kernel
/// (state D) can take for ever.
const GONE_TIMEOUT: Duration = Duration::from_secs(2);
/// When they are killed again within it: one whose first thread was just ending may not have heard the first time.
const AGAIN: Duration = Duration::from_millis(100);

/// What stood in the counters that a user's children share when this one was made.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    /// Times that this level's own `memory.max` was what the kernel killed for.
    user_oom: u64,
    all_oom: u64,
    /// Times that this level's `pids.max` refused a process (Linux 6.11 and later; before, the refused one's own level
    /// counts).
    user_pids: u64,
    all_pids: u64,
    throttled_usec: Option<u64>,
}

impl Counters {
    fn read(user: &Dir, all: &Dir) -> Self {
        let oom = |dir: &Dir| dir.event("memory.events.local", "oom").unwrap_or(0);
        let pids = |dir: &Dir| dir.event("pids.events", "max").unwrap_or(0);
        Self {
            user_oom: oom(user),
            all_oom: oom(all),
            user_pids: pids(user),
            all_pids: pids(all),
            throttled_usec: user.event("cpu.stat", "throttled_usec"),
        }
    }
}

/// What was counted in the life of one child.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "two counters at two levels")]
struct Counted {
    /// Its processes that the kernel killed for memory.
    oom_kills: u64,
    /// Processes that it was refused, as far as its own cgroup counts them.
    own_pids: u64,
    user_oom: bool,
    all_oom: bool,
    user_pids: bool,
    all_pids: bool,
}

/// A child's cgroup, its user's and that of all.
#[derive(Debug)]
pub(crate) struct Leaf {
    own: Dir,
    user: Dir,
    all: Dir,
    before: Counters,
}

impl Leaf {
    /// Of a directory that was made for it just now.
    pub(crate) fn new(own: Dir, user: Dir, all: Dir) -> Self {
        let before = Counters::read(&user, &all);
        Self { own, user, all, before }
    }

    /// What the child writes `0` to, opened by root: it needs no right of its own on the directory.
    pub(crate) fn procs(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.own.path().join("cgroup.procs"))
    }

    /// What the kernel has of its user's cgroup and of its own.
    pub(crate) fn look(&self) -> (Group, Group) {
        (self.user.look(), self.own.look())
    }

    /// Kills all that is in it now.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        kill(&self.own)
    }

    /// Kills all that is in it and waits until the kernel says that nothing is left, two seconds at most.
    pub(crate) async fn empty(&self) -> Result<(), CgroupError> {
        empty(&self.own).await
    }

    /// Removes it, and its user's with the last one; what the kernel counted goes with it.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        self.own.remove()?;
        // Refused while the user has another child.
        let _ = self.user.remove();
        Ok(())
    }

    /// Why the child has ended and what it took; to be asked when nothing is left in it.
    ///
    /// `stopped`: the supervisor ended it, so that no limit did.
    pub(crate) fn ending(&self, reaped: Reaped, limits: &ChildLimits, stopped: bool) -> Ending {
        let now = Counters::read(&self.user, &self.all);
        let counted = Counted {
            oom_kills: self.own.event("memory.events", "oom_kill").unwrap_or(0),
            own_pids: self.own.event("pids.events", "max").unwrap_or(0),
            user_oom: now.user_oom > self.before.user_oom,
            all_oom: now.all_oom > self.before.all_oom,
            user_pids: now.user_pids > self.before.user_pids,
            all_pids: now.all_pids > self.before.all_pids,
        };
        let most = |dir: &Dir, file| dir.number(file).unwrap_or(0);
        let limit = match reached(counted, reaped.exit, stopped) {
            Some(Reached::Memory(Whose::User)) => {
                Some(Limit::Memory { whose: Whose::User, bytes: most(&self.user, "memory.max") })
            }
            Some(Reached::Memory(Whose::All)) => {
                Some(Limit::Memory { whose: Whose::All, bytes: most(&self.all, "memory.max") })
            }
            Some(Reached::Machine) => Some(Limit::MachineMemory),
            Some(Reached::Processes(Whose::User)) => {
                Some(Limit::Processes { whose: Whose::User, most: most(&self.user, "pids.max") })
            }
            Some(Reached::Processes(Whose::All)) => {
                Some(Limit::Processes { whose: Whose::All, most: most(&self.all, "pids.max") })
            }
            None => cpu_limit(reaped, limits, stopped),
        };
        let usage = Usage {
            memory_peak: self.own.number("memory.peak"),
            cpu_usec: self.own.event("cpu.stat", "usage_usec").unwrap_or_else(|| micros(reaped.cpu)),
            throttled_usec: now.throttled_usec.map(|now| now.saturating_sub(self.before.throttled_usec.unwrap_or(0))),
        };
        Ending { exit: reaped.exit, limit, usage }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // Done already but for a child that was never made; whoever holds one that cannot be removed has said so.
        let _ = self.remove();
    }
}

/// An end of a child without a cgroup.
pub(crate) fn ending_without(reaped: Reaped, limits: &ChildLimits, stopped: bool) -> Ending {
    let usage = Usage { memory_peak: None, cpu_usec: micros(reaped.cpu), throttled_usec: None };
    Ending { exit: reaped.exit, limit: cpu_limit(reaped, limits, stopped), usage }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    Memory(Whose),
    Machine,
    Processes(Whose),
}

/// Which limit of its cgroups ended a child.
fn reached(counted: Counted, exit: Exit, stopped: bool) -> Option<Reached> {
    // The group goes as a whole (`memory.oom.group`), so that the child itself was killed, too, whoever was picked.
    if counted.oom_kills > 0 && exit == Exit::Signal(libc::SIGKILL) {
        return Some(match (counted.user_oom, counted.all_oom) {
            (true, _) => Reached::Memory(Whose::User),
            (false, true) => Reached::Memory(Whose::All),
            (false, false) => Reached::Machine,
        });
    }
    // Being refused a process ends nobody: a child that ends well, or was stopped, ended for another reason.
    let failed = exit != Exit::Code(0) && !stopped;
    let refused = counted.own_pids > 0 || counted.user_pids || counted.all_pids;
    (failed && refused).then_some(Reached::Processes(match (counted.user_pids, counted.all_pids) {
        (false, true) => Whose::All,
        _ => Whose::User,
    }))
}

/// `RLIMIT_CPU` at its end: SIGKILL at the hard limit (setrlimit(2)), and the time says so.
fn cpu_limit(reaped: Reaped, limits: &ChildLimits, stopped: bool) -> Option<Limit> {
    let seconds = limits.cpu_seconds;
    let signalled = matches!(reaped.exit, Exit::Signal(libc::SIGKILL | libc::SIGXCPU));
    // The kernel compares what it sampled at its ticks and reports what it measured: a tenth apart, more at first.
    let most = Duration::from_secs(seconds);
    let spent = reaped.cpu + (most / 10).max(Duration::from_millis(500)) >= most;
    (seconds != 0 && signalled && spent && !stopped).then_some(Limit::CpuTime { seconds })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Kills what is in a directory: by `cgroup.kill` (Linux 5.14), which nobody escapes by forking, and each process that
/// is listed by a signal, because `cgroup.kill` does not reach one whose first thread has ended.
pub(crate) fn kill(dir: &Dir) -> Result<(), CgroupError> {
    let killed = dir.write("cgroup.kill", "1").map(drop);
    for pid in listed(dir)? {
        // The number may be another's by now: it counts when it is listed again with the descriptor held.
        let Some(number) = Pid::from_raw(pid) else { continue };
        let Ok(pidfd) = pidfd_open(number, PidfdFlags::empty()) else { continue };
        if listed(dir)?.contains(&pid) {
            // ESRCH: it has ended meanwhile.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    killed
}

/// Kills what is in a directory until the kernel says that nothing is.
pub(crate) async fn empty(dir: &Dir) -> Result<(), CgroupError> {
    let file = dir.path().join("cgroup.events");
    let failed = |source| CgroupError::File { file: file.clone(), source };
    let events = match File::open(&file) {
        Ok(events) => events,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    if !populated(&events).map_err(&failed)? {
        return Ok(());
    }
    let events = spawn::watch(events, Interest::PRIORITY).map_err(&failed)?;
    let by = Instant::now() + GONE_TIMEOUT;
    while Instant::now() < by {
        kill(dir)?;
        let empty = async {
            loop {
                // Reading is what makes the kernel tell of the next change (cgroup-v2.rst, "notified by poll").
                if !populated(events.get_ref())? {
                    return Ok(());
                }
                events.ready(Interest::PRIORITY).await?.clear_ready();
            }
        };
        if let Ok(outcome) = timeout_at(by.min(Instant::now() + AGAIN), empty).await {
            return outcome.map_err(&failed);
        }
    }
    let pids = listed(dir)?.into_iter().collect();
    Err(CgroupError::Populated { dir: dir.path().to_owned(), pids })
}

/// `populated` of an open `cgroup.events`, read anew.
fn populated(events: &File) -> io::Result<bool> {
    let mut text = [0; 256];
    let length = events.read_at(&mut text, 0)?;
    let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
    // What is not said is not gone.
    Ok(!text.lines().any(|line| line == "populated 0"))
}

fn listed(dir: &Dir) -> Result<BTreeSet<i32>, CgroupError> {
    let procs = dir.read("cgroup.procs")?.unwrap_or_default();
    Ok(procs.lines().filter_map(|pid| pid.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_that_ended_a_child_is_told_from_what_the_kernel_counted() {
        let kill = Exit::Signal(libc::SIGKILL);
        let oom = Counted { oom_kills: 1, ..Counted::default() };
        let refused = Counted { own_pids: 1, ..Counted::default() };
        for (name, counted, exit, stopped, expected) in [
            ("nothing", Counted::default(), kill, false, None),
            ("user", Counted { user_oom: true, ..oom }, kill, false, Some(Reached::Memory(Whose::User))),
            ("all", Counted { all_oom: true, ..oom }, kill, false, Some(Reached::Memory(Whose::All))),
            ("machine", oom, kill, false, Some(Reached::Machine)),
            ("killed while it was stopped", oom, kill, true, Some(Reached::Machine)),
            ("another child of the user", Counted { user_oom: true, ..Counted::default() }, kill, false, None),
            ("what it started only", oom, Exit::Code(1), false, None),
            ("processes", refused, Exit::Code(2), false, Some(Reached::Processes(Whose::User))),
            (
                "processes, newer kernel",
                Counted { user_pids: true, ..Counted::default() },
                Exit::Code(2),
                false,
                Some(Reached::Processes(Whose::User)),
            ),
            (
                "processes of all",
                Counted { all_pids: true, ..refused },
                Exit::Code(2),
                false,
                Some(Reached::Processes(Whose::All)),
            ),
            ("refused and well", refused, Exit::Code(0), false, None),
            ("refused and stopped", refused, kill, true, None),
        ] {
            assert_eq!(reached(counted, exit, stopped), expected, "{name}");
        }
    }

    #[test]
    fn the_cpu_limit_is_told_by_signal_and_time_together() {
        let limits = ChildLimits { cpu_seconds: 2, ..ChildLimits::DEFAULTS };
        let end = |signal, cpu: u64, stopped| {
            let reaped = Reaped { exit: Exit::Signal(signal), cpu: Duration::from_millis(cpu) };
            cpu_limit(reaped, &limits, stopped)
        };
        assert_eq!(end(libc::SIGKILL, 1800, false), Some(Limit::CpuTime { seconds: 2 }));
        assert_eq!(end(libc::SIGXCPU, 2005, false), Some(Limit::CpuTime { seconds: 2 }));
        assert_eq!(end(libc::SIGKILL, 1400, false), None);
        assert_eq!(end(libc::SIGSEGV, 2500, false), None);
        assert_eq!(end(libc::SIGKILL, 2500, true), None);
    }
}
