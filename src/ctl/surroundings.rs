//! Programs of this machine that are asked something, with a deadline: what they say, or why they do not.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// How long one may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// Runs a program to its end, without input.
pub(crate) async fn ask<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A]) -> Result<Output, String> {
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(ANSWERS_WITHIN, command.output()).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(e)) => Err(format!("{}: {e}", program.as_ref().to_string_lossy())),
        Err(_) => Err(format!("{} does not end", program.as_ref().to_string_lossy())),
    }
}

/// One of our own programs: beside this one, or where packages put it.
pub(crate) fn sibling(name: &str, installed: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
    beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(installed))
}

/// Whether systemd runs this machine (`sd_booted(3)`).
pub(crate) fn is_under_systemd() -> bool {
    std::path::Path::new("/run/systemd/system").is_dir()
}
