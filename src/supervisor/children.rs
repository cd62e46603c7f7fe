//! Attends one child from its fork to its end: whether it becomes its program in time, and the stop ladder.
//!
//! Trusts nothing of the child: it may be held before it is its program, ignore the end of its input and SIGTERM, and
//! leave processes behind.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::watch;

use crate::cgroup::dir::CgroupError;
use crate::cgroup::leaf::Leaf;
use crate::config::StopLadder;
use crate::core::StopStep;
use crate::reaper::{Reaped, RunningChild};
use crate::spawn::{ExecNews, StartError};
use wire::message::StartStep;

/// From fork to exec: a millisecond is usual, and on a machine whose processors a hundred others want, or with a program on
/// a slow disk, it took seconds. What takes as long as this is held: in its cgroup's CPU limit, or by a file system that
/// does not answer. Nobody else waits meanwhile, and it counts against its user's children.
const EXEC_DEADLINE: Duration = Duration::from_secs(5);
/// What it may take to go when it is killed on its way, before the broker is answered all the same. It never runs
/// anything any more then.
const KILLED_DEADLINE: Duration = Duration::from_secs(1);

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

/// Waits until the child runs its program; one that does not in time, or is to be stopped before, is killed.
pub(crate) async fn await_exec(
    news: &mut ExecNews,
    child: &mut RunningChild,
    stop_orders: &mut watch::Receiver<StopOrder>,
) -> Result<(), StartError> {
    let given_up = |what, errno| Err(StartError { step: StartStep::Exec, what, errno });
    let outcome = tokio::select! {
        biased;
        outcome = news.outcome() => outcome,
        _ = stop_orders.wait_for(|order| *order != StopOrder::Run) => {
            given_up("running the program before it was to be stopped", libc::ECANCELED)
        }
        () = tokio::time::sleep(EXEC_DEADLINE) => given_up("running the program in time", libc::ETIMEDOUT),
    };
    if outcome.is_err() {
        child.kill();
        let _ = tokio::time::timeout(KILLED_DEADLINE, child.ended()).await;
    }
    outcome
}

/// The end of a child.
#[derive(Debug)]
pub(crate) struct End {
    /// What its parent saw.
    pub(crate) reaped: Reaped,
    /// It was to be stopped.
    pub(crate) stopped: bool,
    /// Whether nothing is left in its cgroup.
    pub(crate) emptied: Result<(), CgroupError>,
}

/// Follows the `stop_orders` and returns how the child ended, when it is reaped and nothing is left in its cgroup, or
/// what is left there does not go.
pub(crate) async fn attend(
    child: &mut RunningChild,
    leaf: Option<&Leaf>,
    ladder: StopLadder,
    stop_orders: watch::Receiver<StopOrder>,
) -> End {
    if !run_ladder(child, ladder, stop_orders.clone()).await {
        child.kill();
        // What it started is killed in the same moment; whether that went well is asked below.
        let _ = leaf.map(Leaf::kill);
    }
    // SIGKILL cannot be refused; a process that hangs in the kernel is waited for as long as it takes.
    let reaped = child.ended().await;
    let stopped = *stop_orders.borrow() != StopOrder::Run;
    // What it left behind goes with it.
    let emptied = match leaf {
        Some(leaf) => leaf.empty().await,
        None => Ok(()),
    };
    End { reaped, stopped, emptied }
}

/// The rungs short of SIGKILL; whether the child has ended.
async fn run_ladder(child: &mut RunningChild, ladder: StopLadder, mut stop_order: watch::Receiver<StopOrder>) -> bool {
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
