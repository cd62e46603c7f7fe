//! Attends one child from its start to its end: the stop ladder, and reaping.
//!
//! Trusts nothing of the child: it may ignore the end of its input and SIGTERM, and leave processes behind.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::watch;

use crate::ipc::message::Exit;
use crate::supervisor::cgroup::Leaf;
use crate::supervisor::config::Ladder;
use crate::supervisor::core::Rung;
use crate::supervisor::spawn::RunningChild;
use crate::supervisor::sweep;

/// How far a child is down the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It may run.
    Run,
    /// The ladder, from this rung on.
    Stop(Rung),
    /// No more waiting.
    Kill,
}

/// Follows the wishes and returns how the child ended, when it is reaped and its cgroup is empty.
pub async fn attend(child: RunningChild, leaf: Option<Leaf>, ladder: Ladder, wish: watch::Receiver<Wish>) -> Exit {
    if !descend(&child, ladder, wish).await {
        child.signal(Signal::SIGKILL);
        if let Some(leaf) = &leaf {
            leaf.kill();
        }
        // SIGKILL cannot be refused; a process that hangs in the kernel is waited for as long as it takes.
        let _ = child.ended().await;
    }
    // What it left behind goes with it.
    let left = leaf.as_ref().map(Leaf::kill).unwrap_or_default();
    let exit = child.reap().unwrap_or(Exit::Signal(0));
    sweep::gone(left, Duration::from_secs(1)).await;
    exit
}

/// The rungs short of SIGKILL; whether the child has ended.
async fn descend(child: &RunningChild, ladder: Ladder, mut wish: watch::Receiver<Wish>) -> bool {
    let stop = tokio::select! {
        _ = child.ended() => return true,
        // A sender that is gone means that the supervisor is ending.
        stop = wish.wait_for(|wish| *wish != Wish::Run) => stop.map_or(Wish::Kill, |wish| *wish),
    };
    let rungs: &[(Option<Signal>, Duration)] = &[(None, ladder.eof_grace), (Some(Signal::SIGTERM), ladder.term_grace)];
    let skip = match stop {
        Wish::Stop(Rung::Eof) | Wish::Run => 0,
        Wish::Stop(Rung::Term) => 1,
        Wish::Kill => 2,
    };
    for (signal, grace) in rungs.iter().skip(skip) {
        if let Some(signal) = signal {
            child.signal(*signal);
        }
        tokio::select! {
            _ = child.ended() => return true,
            _ = wish.wait_for(|wish| *wish == Wish::Kill) => return false,
            () = tokio::time::sleep(*grace) => {}
        }
    }
    false
}
