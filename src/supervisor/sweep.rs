//! Sees to it that nothing is left under a uid before somebody else gets it.
//!
//! Trusts nothing of what runs: a child may fork, hop from process to process, ignore signals, let its first thread end and
//! leave its group, but not its uid. So everything under the uid is killed first and unseen, and only then is looked
//! whether anything is left. Neither needs a descriptor, a free process slot or `/proc`, which a child could use up, and
//! neither waits. An answer other than "there is nobody" counts as somebody.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, setresuid};
use rustix::process::getpriority_user;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::ipc;
use crate::uid::{ChildUid, UidRange};
use wire::telemetry::message_id;

/// How long a killed process may take to go before its uid is put into quarantine. One that hangs in the kernel
/// (state D) can take for ever, and so can a zombie of somebody else's who does not reap it.
const GONE_TIMEOUT: Duration = Duration::from_secs(2);
/// The reaper says when a process has ended; in pauses that grow from the first to the last of these it is looked
/// again nevertheless, because a process that is another's child ends unheard.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// The same for a uid in quarantine.
const QUARANTINE_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Cleans uids; clones share what is under way.
#[derive(Debug, Clone)]
pub(crate) struct Sweeper {
    range: UidRange,
    under_way: Rc<RefCell<HashMap<u32, Rc<Notify>>>>,
    /// Whether a child may have made objects of System V IPC.
    ipc: Rc<Cell<bool>>,
}

impl Sweeper {
    /// Of this range, whose last uid is its own.
    pub(crate) fn new(range: UidRange) -> Self {
        Self { range, under_way: Rc::default(), ipc: Rc::default() }
    }

    /// From now on children can make objects of System V IPC, which are removed before the next lease. For good, because
    /// a child outlives the policy that it was started with.
    pub(crate) fn expect_ipc(&self) {
        self.ipc.set(true);
    }

    /// Removes all objects of System V IPC that belong to uids of the range, at start: none is anybody's then.
    pub(crate) fn remove_old_ipc(&self) -> io::Result<usize> {
        let left = ipc::objects(|uid| self.range.get(uid).is_some())?;
        for object in &left {
            if let Some(uid) = self.range.get(object.uid) {
                as_uid(uid, self.range.sweeper(), || object.remove())??;
            }
        }
        Ok(left.len())
    }

    /// Removes what the uid has of System V IPC, where it can have any; whether none is left.
    fn has_no_ipc(&self, uid: ChildUid) -> io::Result<bool> {
        if !self.ipc.get() {
            return Ok(true);
        }
        for object in ipc::objects(|of| of == uid.get())? {
            as_uid(uid, self.range.sweeper(), || object.remove())??;
        }
        Ok(ipc::objects(|of| of == uid.get())?.is_empty())
    }

    /// The uids of the range under which something runs. One system call each, together some milliseconds.
    pub(crate) fn dirty(&self) -> Vec<ChildUid> {
        self.range.iter().filter(|&uid| somebody_under(uid)).collect()
    }

    /// Has another try at once at a uid that is being cleaned; whether one is.
    pub(crate) fn nudge(&self, uid: u32) -> bool {
        let bell = self.under_way.borrow().get(&uid).cloned();
        bell.is_some_and(|bell| {
            bell.notify_one();
            true
        })
    }

    /// Kills everything under `uid` until nothing is left, and says so once if that takes too long. For one caller a uid.
    pub(crate) async fn clean(&self, uid: ChildUid, late: impl Fn()) {
        let bell = Rc::new(Notify::new());
        self.under_way.borrow_mut().insert(uid.get(), Rc::clone(&bell));
        let begun = Instant::now();
        let mut in_quarantine = false;
        let (mut pause, mut longest) = PAUSES;
        loop {
            let killed = kill_all_of(uid, self.range.sweeper());
            let killed = if somebody_under(uid) {
                killed
            } else {
                // When nobody is left who could make another.
                match self.has_no_ipc(uid) {
                    Ok(true) => break,
                    other => other.map(drop),
                }
            };
            if !in_quarantine && begun.elapsed() >= GONE_TIMEOUT {
                let error = killed.err().map(tracing::field::display);
                tracing::error!(
                    MESSAGE_ID = message_id::UID_QUARANTINED,
                    child_uid = uid.get(),
                    error,
                    "processes, or objects of System V IPC, do not go away; the uid is not used until they have"
                );
                in_quarantine = true;
                (pause, longest) = QUARANTINE_PAUSES;
                late();
            }
            if timeout(pause, bell.notified()).await.is_err() {
                pause = (pause * 2).min(longest);
            }
        }
        self.under_way.borrow_mut().remove(&uid.get());
    }
}

/// Whether any thread of any process has this as its real uid, which for a child is all of its uids. getpriority(2)
/// walks the kernel's list of all threads and answers ESRCH where none fits. So it counts zombies, and processes whose
/// first thread has ended, and can fail for want of nothing.
fn somebody_under(uid: ChildUid) -> bool {
    getpriority_user(rustix::process::Uid::from_raw(uid.get())) != Err(rustix::io::Errno::SRCH)
}

/// Sends SIGKILL to everything that runs under `uid`, in one stroke that no fork escapes (kill(2), pid -1: the kernel
/// holds off forks while it walks its list).
///
/// This process does it itself, since a helper would need a free process slot, of which children can leave none. For
/// the stroke `uid` is its effective uid, so that it may signal that uid's processes and no others; its real one is the
/// sweeper's, whom no child is, and its saved one stays root's, so that nobody may signal it meanwhile and it finds back.
/// That changes the whole process, because it has one thread.
fn kill_all_of(uid: ChildUid, sweeper: ChildUid) -> io::Result<()> {
    match as_uid(uid, sweeper, || kill(Pid::from_raw(-1), Signal::SIGKILL))? {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Does one thing with `uid` as effective uid.
fn as_uid<T>(uid: ChildUid, sweeper: ChildUid, act: impl FnOnce() -> T) -> io::Result<T> {
    let root = Uid::from_raw(0);
    setresuid(Uid::from_raw(sweeper.get()), Uid::from_raw(uid.get()), root)?;
    let done = act();
    // The kernel makes a process dumpable again that changes its uid, where fs.suid_dumpable says so.
    if setresuid(root, root, root).and_then(|()| prctl::set_dumpable(false)).is_err() {
        // Neither root nor a child: nothing that it is for can be done any more. The service manager starts another,
        // and PDEATHSIG ends the children.
        std::process::abort();
    }
    Ok(done)
}
