//! Attends one child from its start to its end: the stop ladder, and reaping.
//!
//! Trusts nothing of the child: it may ignore the end of its input and SIGTERM, and leave processes behind.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::watch;

use crate::cgroup::Leaf;
use crate::config::StopLadder;
use crate::core::StopStep;
use crate::spawn::RunningChild;
use crate::sweep;
use wire::message::Exit;

/// How far a child is down the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopOrder {
    /// It may run.
    Run,
    /// The ladder, from this step on.
    Stop(StopStep),
    /// No more waiting.
    Kill,
}

/// Follows the `stop_orders` and returns how the child ended, when it is reaped and its cgroup is empty.
pub(crate) async fn attend(
    child: RunningChild,
    leaf: Option<Leaf>,
    ladder: StopLadder,
    stop_order: watch::Receiver<StopOrder>,
) -> Exit {
    if !run_ladder(&child, ladder, stop_order).await {
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
async fn run_ladder(child: &RunningChild, ladder: StopLadder, mut stop_order: watch::Receiver<StopOrder>) -> bool {
    let stop = tokio::select! {
        _ = child.ended() => return true,
        // A sender that is gone means that the supervisor is ending.
        stop = stop_order.wait_for(|stop_order| *stop_order != StopOrder::Run) => stop.map_or(StopOrder::Kill, |stop_order| *stop_order),
    };
    let rungs: &[(Option<Signal>, Duration)] = &[(None, ladder.eof_grace), (Some(Signal::SIGTERM), ladder.term_grace)];
    let skip = match stop {
        StopOrder::Stop(StopStep::Eof) | StopOrder::Run => 0,
        StopOrder::Stop(StopStep::Term) => 1,
        StopOrder::Kill => 2,
    };
    for (signal, grace) in rungs.iter().skip(skip) {
        if let Some(signal) = signal {
            child.signal(*signal);
        }
        tokio::select! {
            _ = child.ended() => return true,
            _ = stop_order.wait_for(|stop_order| *stop_order == StopOrder::Kill) => return false,
            () = tokio::time::sleep(*grace) => {}
        }
    }
    false
}
