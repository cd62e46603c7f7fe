//! `forgejo-mcp-brokerctl`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    forgejo_mcp_brokerctl::main()
}
