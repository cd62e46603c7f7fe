//! `forgejo-mcp-broker`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    forgejo_mcp_broker::main()
}
