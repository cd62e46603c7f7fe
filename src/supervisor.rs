//! The supervisor: the privileged half. One thread, four capabilities, no HTTP, no JSON, no SQL.
//!
//! It trusts its own root-owned configuration and the kernel. It trusts the broker for one thing only: which user a
//! child is for, and that user's token, because the broker has that already. Everything else that the broker says is
//! checked in [`core`], where all refusals live; nothing that a child says ever passes through this process.
//!
//! [`server`] is the loop, [`core`] decides, [`spawn`] forks, [`child`] follows one child to its end; [`uid`],
//! [`rlimit`], [`cgroup`] and [`sandbox`] are what keeps children apart.

pub mod cgroup;
pub mod child;
pub mod config;
mod connection;
pub mod core;
pub mod rlimit;
pub mod sandbox;
pub mod server;
#[allow(unsafe_code, clippy::allow_attributes)]
pub mod spawn;
pub mod uid;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing::{error, info};

use crate::config_file::Section;
use crate::{lifecycle, telemetry};

/// Exit codes of sysexits.h.
mod exit {
    pub(super) const UNAVAILABLE: u8 = 69;
    pub(super) const SOFTWARE: u8 = 70;
    pub(super) const NOPERM: u8 = 77;
    pub(super) const CONFIG: u8 = 78;
}

/// Starts isolated forgejo-mcp processes on behalf of forgejo-mcp-broker.
#[derive(Debug, Parser)]
#[command(name = "forgejo-mcp-supervisor", version)]
pub struct Options {
    /// Configuration file; may be repeated, later files are laid over earlier ones.
    #[arg(long, value_name = "FILE", default_value = "/etc/forgejo-mcp-broker/supervisor.toml")]
    config: Vec<PathBuf>,
    /// Listen on this path instead of a socket from the service manager (for development).
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
    /// Run without root: children keep this process's uid and are NOT isolated from each other.
    #[arg(long)]
    unprivileged: bool,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
}

/// `main` of the supervisor.
pub fn main() -> ExitCode {
    let options = Options::parse();
    telemetry::init();
    // Before any descriptor is opened: the sockets of the service manager are found by number.
    let inherited = listenfd::ListenFd::from_env();
    let root = nix::unistd::geteuid().is_root();
    if !root && !options.unprivileged && !options.check {
        error!(
            "not started as root: without root no child can get a uid of its own. Start it as root (or by systemd), \
             or say --unprivileged to run children without isolation"
        );
        return ExitCode::from(exit::NOPERM);
    }
    let privileged = root && !options.unprivileged;
    let config = match config::Config::read(Section::open(&options.config), &options.config, privileged) {
        Ok(config) => config,
        Err(problems) => {
            error!("the configuration has problems:\n{problems}");
            return ExitCode::from(exit::CONFIG);
        }
    };
    if options.check {
        info!("the configuration is good");
        return ExitCode::SUCCESS;
    }
    // A core file would hold tokens; and nobody with our uid may read our memory.
    rlimit::no_core_files();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            error!(error = %e, "the runtime cannot be built");
            return ExitCode::from(exit::SOFTWARE);
        }
    };
    let stop = lifecycle::Stop::new();
    match runtime.block_on(server::run(config, inherited, options.listen, stop)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            error!(error = %e, cause = e.cause(), "the supervisor cannot go on");
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}
