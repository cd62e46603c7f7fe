//! Where log lines go. A leaf, used by both programs.
//!
//! Under systemd they go to the journal as fields (`tenant`, `session`, `grant`, `uid`, `child_pid`, `reason`,
//! `duration_ms`), else to standard error as text. `RUST_LOG` filters, `info` by default. A line never holds a token:
//! secrets have no `Display` and a `Debug` that says nothing.

use std::os::fd::AsFd;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Installs the subscriber; the first call in a process counts.
pub fn init() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_the_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        // Without the default `F_` in front: `journalctl TENANT=42` is what an operator types.
        let _ = registry.with(journal.with_field_prefix(None)).try_init();
        return;
    }
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false);
    let _ = registry.with(text).try_init();
}

/// Whether standard error is the stream that systemd connected to the journal (systemd.exec(5), `JOURNAL_STREAM`).
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = nix::sys::stat::fstat(std::io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
