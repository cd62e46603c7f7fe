//! What a benchmark measures: the programs as they are released.

use std::path::PathBuf;
use std::process::Command;

use crate::deployment::Result;

/// Builds them; cargo builds the programs for a benchmark of their own package only. Where they are.
pub fn programs() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status =
        Command::new(cargo).args(["build", "--release", "--locked", "--workspace", "--bins", "--quiet"]).status()?;
    if !status.success() {
        return Err("the programs cannot be built".into());
    }
    let this = std::env::current_exe()?;
    Ok(this.ancestors().nth(2).ok_or("not run by cargo")?.to_owned())
}
