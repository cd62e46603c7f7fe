//! The life of a service under systemd or by hand: signals, readiness, watchdog, descriptors, the reason of a failed
//! start. A leaf that both programs use.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::notify;
use crate::notify::tell;
use crate::stderr;
use crate::telemetry;

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

/// Descriptors that are kept for what nobody counts: the store's files, connections to Forgejo, the log, a socket that is
/// just being accepted in order to be refused.
const DESCRIPTOR_RESERVE: u64 = 128;

/// `RLIMIT_CORE` for what must leave no core, in bytes. A file gets nothing of it, because a core of that size is none;
/// and a handler behind a pipe, which is started with a limit of 0 all the same, is not (core(5)).
pub const NO_CORE: u64 = 1;

/// What both programs do before anything else: raises the soft limit on descriptors to the hard one, and opens the
/// service manager's socket while there is a descriptor for it. The soft limit of 1024 is for programs that use
/// select(2), which none of ours does; a child gets limits of its own. Cores would hold secrets, and there are none.
pub fn begin() {
    // A hard limit of 0 is raised where that is allowed; where it is not, it is the least that can be had.
    let no_cores = setrlimit(Resource::RLIMIT_CORE, NO_CORE, NO_CORE);
    if let Err(error) = no_cores.or_else(|_| setrlimit(Resource::RLIMIT_CORE, 0, 0)) {
        tracing::warn!(%error, "the limit on cores could not be set");
    }
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on descriptors could not be raised");
    }
    notify::open();
}

/// Whether cores can go to a handler behind a pipe, because the hard limit is below [`NO_CORE`] and only a privileged
/// process can raise it.
pub fn cores_can_leave() -> bool {
    getrlimit(Resource::RLIMIT_CORE).map_or(true, |(_, hard)| hard < NO_CORE)
}

/// How many descriptors may be used for what is counted, connections and pipes: the limit of the process less a reserve
/// (at most a quarter of it). What goes beyond must be refused, or nothing else can be opened either.
pub fn descriptor_limit() -> usize {
    // A limit that cannot be read is taken for the least that a Linux process is usually given.
    less_reserve(getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft))
}

fn less_reserve(limit: u64) -> usize {
    usize::try_from(limit.saturating_sub(DESCRIPTOR_RESERVE.min(limit / 4))).unwrap_or(usize::MAX)
}

/// Says something on standard error, whatever `RUST_LOG` hides.
pub fn say(program: &str, what: &dyn Display) {
    stderr::line(format!("{program}: {what}\n").as_bytes());
}

/// Says on standard error why the program ends, whatever `RUST_LOG` hides, and makes an exit code of it.
pub fn fail(program: &str, code: u8, what: &dyn Display) -> ExitCode {
    stderr::line(telemetry::as_error(&format!("{program}: {what}")).as_bytes());
    ExitCode::from(code)
}

/// SIGTERM and SIGINT. The first asks for a drain, the second for an end at once; what that means is the caller's.
#[derive(Debug)]
pub struct StopSignals {
    term: Signal,
    int: Signal,
}

impl StopSignals {
    /// Catches both from now on, and makes harmless what would end the program by default and that people send to
    /// services in good faith: SIGHUP (see [`Reload`]), SIGUSR1, SIGUSR2, SIGQUIT. Needs a running tokio runtime.
    pub fn new() -> io::Result<Self> {
        let harmless =
            [SignalKind::hangup(), SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::quit()];
        for kind in harmless {
            // The handler stays when the listener goes (tokio::signal::unix).
            drop(signal(kind)?);
        }
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

/// SIGHUP: what can be read anew while the program runs is to be read.
#[derive(Debug)]
pub struct Reload(Signal);

impl Reload {
    /// Catches it from now on. Needs a running tokio runtime.
    pub fn new() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next one and tells systemd that a reload has begun. Its end must be told with [`ready`], also that of
    /// one that failed, or `systemctl reload` waits (systemd.service(5), `Type=notify-reload`). Safe to cancel.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            return std::future::pending().await;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            // Without the time systemd would take the reload for failed and end the service.
            Err(error) => tracing::debug!(%error, "the service manager could not be told of the reload"),
        }
    }
}

/// Tells systemd that the service is ready, and one line about it.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd one line about the service, for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Tells systemd that the service has begun to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells systemd that the service still runs, twice in each `WatchdogSec=`; ends never. Runs in the program's main loop,
/// so that a loop that hangs is noticed.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut every = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        every.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_kept_and_is_never_all_that_there_is() {
        for (limit, usable) in [(64, 48), (256, 192), (1024, 896), (20_000, 19_872), (0, 0)] {
            assert_eq!(less_reserve(limit), usable, "of {limit}");
        }
        assert!(descriptor_limit() > 0);
    }
}
