//! `forgejo-mcp-supervisor`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    forgejo_mcp_supervisor::main()
}
