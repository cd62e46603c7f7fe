//! The unprivileged half; see `forgejo_mcp_broker::frontend`.

use std::process::ExitCode;

fn main() -> ExitCode {
    forgejo_mcp_broker::frontend::server::main()
}
