//! Starting and stopping as the service manager sees it. A leaf, used by both programs.
//!
//! The first SIGTERM or SIGINT asks for an orderly stop, the second ends the process at once. Readiness, stopping and
//! the watchdog go to systemd (`sd_notify(3)`) where it listens.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The wish to stop; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    /// Nobody wishes to stop yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wishes to stop.
    pub fn ask(&self) {
        self.0.cancel();
    }

    /// Resolves when somebody wishes to stop.
    pub async fn asked(&self) {
        self.0.cancelled().await;
    }

    /// Asks for the stop on the first SIGTERM or SIGINT; resolves on the second.
    ///
    /// Errors where the handlers cannot be installed.
    pub async fn on_signals(self) -> std::io::Result<()> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        info!("stopping: a signal asks for it");
        self.ask();
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        warn!("stopping at once: a second signal");
        Ok(())
    }
}

/// Tells the service manager that the service is ready.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells the service manager that the service is stopping.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells the service manager, at half the interval that it asks for, that the runtime still turns. Never returns
/// where a watchdog is wanted, and at once where none is.
pub async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    // Without a service manager there is nobody to tell; with one, a failure shows as a start timeout there.
    if let Err(e) = sd_notify::notify(state) {
        warn!(error = %e, "the service manager could not be told");
    }
}
