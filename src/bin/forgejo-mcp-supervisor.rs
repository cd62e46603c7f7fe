//! The privileged half: see `forgejo_mcp_broker::supervisor`.

use clap::Parser;
use forgejo_mcp_broker::supervisor;

fn main() -> std::process::ExitCode {
    supervisor::run(supervisor::Args::parse())
}
