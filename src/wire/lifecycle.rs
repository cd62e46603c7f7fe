//! The life of a service under systemd or by hand: signals, readiness, watchdog. A leaf that both programs use.
//!
//! `NOTIFY_SOCKET` is trusted as whoever started the program set it (`sd_notify(3)`); without it nothing is told.

use std::io;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// `EX_OK`.
pub const EX_OK: u8 = 0;
/// `EX_UNAVAILABLE` (sysexits.h): something that is needed is not there.
pub const EX_UNAVAILABLE: u8 = 69;
/// `EX_SOFTWARE`: something failed that should not.
pub const EX_SOFTWARE: u8 = 70;
/// `EX_OSERR`: the system refused something that is needed.
pub const EX_OSERR: u8 = 71;
/// `EX_NOPERM`: started without the rights that are needed.
pub const EX_NOPERM: u8 = 77;
/// `EX_CONFIG`: the configuration is wrong.
pub const EX_CONFIG: u8 = 78;

/// SIGTERM and SIGINT. The first asks for a drain, the second for an end at once; what that means is the caller's.
#[derive(Debug)]
pub struct StopSignals {
    term: Signal,
    int: Signal,
}

impl StopSignals {
    /// Catches both from now on. Needs a running tokio runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The next one's name. Safe to cancel.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Tells systemd that the service is ready, and one line about it.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd that the service has begun to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells systemd that the service still runs, twice in each `WatchdogSec=`; ends never. Runs in the program's main loop,
/// so that a loop that hangs is noticed.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut every = tokio::time::interval((limit / 2).max(std::time::Duration::from_millis(1)));
    loop {
        every.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}
