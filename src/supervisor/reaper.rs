//! Reaps every process that ends as this one's: children, and what they left behind.
//!
//! The supervisor is the subreaper of all that it starts (`PR_SET_CHILD_SUBREAPER`): whose parent has ended comes to it.
//! So it hears of each end by SIGCHLD, and no zombie is left that would count against anybody's limits or keep a uid
//! from being clean. It is the only place that reaps; who attends a child is told here how it ended. Trusts the
//! kernel's list and nothing of what ran: a process that forks and ends for ever has one batch a turn.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::spawn;
use wire::message::Exit;

/// Ends that are taken in one turn, before everybody else has theirs: some hundred microseconds.
const BATCH: usize = 64;

/// A handle; clones share the table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper {
    attended: Rc<RefCell<HashMap<Pid, watch::Sender<Option<Reaped>>>>>,
}

impl Reaper {
    /// Begins to reap; `ended` is told the uid of each that was. Needs a running tokio runtime with a `LocalSet`.
    pub(crate) fn begin(&self, ended: impl Fn(u32) + 'static) -> io::Result<()> {
        prctl::set_child_subreaper(true)?;
        let mut ends = signal(SignalKind::child())?;
        // Whoever started this process may have blocked it.
        SigSet::from(Signal::SIGCHLD).thread_unblock()?;
        let reaper = self.clone();
        tokio::task::spawn_local(async move {
            while ends.recv().await.is_some() {
                while reaper.reap(&ended) {
                    tokio::task::yield_now().await;
                }
            }
        });
        Ok(())
    }

    /// Takes a child under its wings, in the same turn in which it was forked.
    pub(crate) fn attend(&self, pid: Pid) -> RunningChild {
        let (ended, end) = watch::channel(None);
        self.attended.borrow_mut().insert(pid, ended);
        RunningChild { pid, end }
    }

    /// Reaps a batch; whether there may be more.
    fn reap(&self, ended: &impl Fn(u32)) -> bool {
        for _ in 0..BATCH {
            match spawn::next_ended() {
                Ok(Some((pid, uid))) => {
                    let attendant = self.attended.borrow_mut().remove(&pid);
                    if attendant.is_some() {
                        // What is left of its group, as long as the zombie keeps the number from being anybody else's.
                        let _ = killpg(pid, Signal::SIGKILL);
                    }
                    let reaped = reap(pid);
                    if let Some(attendant) = attendant {
                        attendant.send_replace(Some(reaped));
                    }
                    ended(uid);
                }
                Ok(None) => return false,
                Err(errno) => {
                    tracing::error!(%errno, "asking for ended processes failed");
                    return false;
                }
            }
        }
        true
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reaped {
    /// As wait(2) tells it.
    pub(crate) exit: Exit,
    /// CPU time of it and of what it waited for itself.
    pub(crate) cpu: Duration,
}

/// Takes a zombie out of the kernel's list.
fn reap(pid: Pid) -> Reaped {
    // What reaping adds to the time of all that were reaped is this one's (getrusage(2)).
    let before = cpu_of_all();
    let exit = take_exit(pid);
    Reaped { exit, cpu: cpu_of_all().saturating_sub(before) }
}

fn cpu_of_all() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Duration::ZERO };
    let [user, system] = [usage.user_time(), usage.system_time()].map(|time| {
        Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
    });
    user + system
}

fn take_exit(pid: Pid) -> Exit {
    let options = WaitOptions::NOHANG | WaitOptions::from_bits_retain(libc::__WALL.cast_unsigned());
    let reaped = waitpid(rustix::process::Pid::from_raw(pid.as_raw()), options);
    let Ok(Some((_, status))) = reaped else { return Exit::Signal(0) };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

/// A child from the fork on: its number cannot be another's as long as this says that it runs.
#[derive(Debug)]
pub(crate) struct RunningChild {
    pid: Pid,
    end: watch::Receiver<Option<Reaped>>,
}

impl RunningChild {
    /// Waits for its end. Safe to cancel.
    pub(crate) async fn ended(&mut self) -> Reaped {
        match self.end.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reaped)) => *reaped,
            // The reaper lives as long as the supervisor.
            _ => std::future::pending().await,
        }
    }

    /// Signals the session that it leads, and so what it started, unless that left the group.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.end.borrow().is_none() {
            // ESRCH and EPERM: nobody is left in the group that could be signalled.
            let _ = killpg(self.pid, signal);
        }
    }

    /// SIGKILL to itself, however far it has come, and to its group.
    pub(crate) fn kill(&self) {
        if self.end.borrow().is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }
}
