//! The operator's tool; see `forgejo_mcp_broker::ctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    forgejo_mcp_broker::ctl::main()
}
