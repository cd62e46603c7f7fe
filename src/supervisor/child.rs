//! Follows one child to its end: the stop ladder, and the news of its exit.

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{Instrument, Span, error, info};

use super::config::Graces;
use super::core::Event;
use super::spawn::Process;
use crate::ipc::message::{ChildId, Exit};

/// A running child, for the loop.
#[derive(Debug)]
pub(super) struct Handle {
    stop: Option<oneshot::Sender<()>>,
}

/// What one child is followed with.
#[derive(Debug)]
pub(super) struct Follow {
    pub(super) child: ChildId,
    pub(super) process: Process,
    pub(super) graces: Graces,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) span: Span,
}

impl Handle {
    /// Begins the stop ladder; once.
    pub(super) fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

/// Starts to follow. Must be called within a `LocalSet`.
pub(super) fn follow(follow: Follow) -> Handle {
    let (stop, stopped) = oneshot::channel();
    let span = follow.span.clone();
    tokio::task::spawn_local(follow.run(stopped).instrument(span));
    Handle { stop: Some(stop) }
}

impl Follow {
    async fn run(self, stopped: oneshot::Receiver<()>) {
        let asked = tokio::select! {
            biased;
            ended = self.process.ended() => { note(ended); false }
            // A handle that is dropped asks for the stop too.
            _ = stopped => { self.ladder().await; true }
        };
        let exit = match self.process.reap() {
            Ok(status) => exit_of(status),
            Err(e) => {
                error!(error = %e, "a child could not be reaped");
                Exit::Code(-1)
            }
        };
        info!(exit = %exit, asked, "child ended");
        let _ = self.events.send(Event::Exited { child: self.child, exit }).await;
    }

    /// The broker has closed the child's input: grace, SIGTERM, grace, SIGKILL. The last rung is needed in practice:
    /// a child with a call in flight ignores the others.
    async fn ladder(&self) {
        for (grace, signal) in [(self.graces.eof, Signal::SIGTERM), (self.graces.term, Signal::SIGKILL)] {
            if let Ok(ended) = timeout(grace, self.process.ended()).await {
                return note(ended);
            }
            self.process.signal_group(signal);
        }
        note(self.process.ended().await);
    }
}

fn note(ended: std::io::Result<()>) {
    if let Err(e) = ended {
        error!(error = %e, "a child's end cannot be watched; waiting for it blocks");
    }
}

fn exit_of(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    }
}
