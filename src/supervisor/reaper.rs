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

use nix::sys::prctl;
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
    attended: Rc<RefCell<HashMap<Pid, watch::Sender<Option<Exit>>>>>,
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
        let (ended, exit) = watch::channel(None);
        self.attended.borrow_mut().insert(pid, ended);
        RunningChild { pid, exit }
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
                    let exit = reap(pid);
                    if let Some(attendant) = attendant {
                        attendant.send_replace(Some(exit));
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

/// Takes a zombie out of the kernel's list.
fn reap(pid: Pid) -> Exit {
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
    exit: watch::Receiver<Option<Exit>>,
}

impl RunningChild {
    /// Waits for its end. Safe to cancel.
    pub(crate) async fn ended(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => *exit,
            // The reaper lives as long as the supervisor.
            _ => std::future::pending().await,
        }
    }

    /// Signals the session that it leads, and so what it started, unless that left the group.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.exit.borrow().is_none() {
            // ESRCH and EPERM: nobody is left in the group that could be signalled.
            let _ = killpg(self.pid, signal);
        }
    }

    /// SIGKILL to itself, however far it has come, and to its group.
    pub(crate) fn kill(&self) {
        if self.exit.borrow().is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }
}
