//! What a benchmark measures: the programs as they are released.

use std::path::PathBuf;
use std::process::Command;

use crate::deployment::Result;

/// Builds them; cargo builds the programs for a benchmark of their own package only. Where they are. With
/// `BENCH_PROGRAMS=DIRECTORY` nothing is built, and those that are there are measured.
pub fn programs() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("BENCH_PROGRAMS") {
        return Ok(PathBuf::from(given).canonicalize()?);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status =
        Command::new(cargo).args(["build", "--release", "--locked", "--workspace", "--bins", "--quiet"]).status()?;
    if !status.success() {
        return Err("the programs cannot be built".into());
    }
    let this = std::env::current_exe()?;
    Ok(this.ancestors().nth(2).ok_or("not run by cargo")?.to_owned())
}
