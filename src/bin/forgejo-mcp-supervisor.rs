//! The privileged half; see `forgejo_mcp_broker::supervisor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    forgejo_mcp_broker::supervisor::main()
}
