//! What plays the outside world in tests, benchmarks and the quickstart. Nothing that is installed depends on it.
//!
//! [`forge`] is a stub of Forgejo's API and OAuth provider, [`user_agent`] a browser without a screen, [`mcp_session`] a
//! plain MCP client, [`mcp_stateless`] one without sessions, [`events`] the streams that both read, [`https`] a TLS
//! server; [`deployment`] runs the real programs together, [`supervised`] a real supervisor alone, [`cgroups`] a kernel in
//! which its limits hold. For benchmarks, [`release`] builds what they measure, [`keep_alive`] is their client, [`times`]
//! and [`usage`] are what they measure.

#![expect(
    missing_debug_implementations,
    clippy::missing_panics_doc,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests fail the test"
)]

pub mod cgroups;
pub mod deployment;
pub mod events;
pub mod forge;
pub mod https;
pub mod keep_alive;
pub mod mcp_session;
pub mod mcp_stateless;
pub mod release;
pub mod supervised;
pub mod times;
pub mod usage;
pub mod user_agent;

use std::path::{Path, PathBuf};

/// The top of the checkout.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").to_owned()
}

/// Where cargo puts the programs of this build, seen from a test, a benchmark or a program of it.
pub fn binaries() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let dir = own.parent().expect("a directory");
    if dir.ends_with("deps") { dir.parent().expect("target/PROFILE").to_owned() } else { dir.to_owned() }
}

/// One of the workspace's programs. `cargo test` alone does not build those of other packages.
pub fn program(name: &str) -> PathBuf {
    let path = binaries().join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}

/// A directory that only root can write, all the way, for tests that run as root: what a supervisor takes its files from.
/// Below target/ where the checkout is root's, else in /var/lib. For others it is any temporary directory.
pub fn roots_directory() -> std::io::Result<tempfile::TempDir> {
    if !nix::unistd::geteuid().is_root() {
        return tempfile::tempdir();
    }
    let here = workspace().join("target/tmp");
    std::fs::create_dir_all(&here)?;
    let within = if deployment::is_roots(&here) { here } else { PathBuf::from("/var/lib") };
    let dir = tempfile::Builder::new().prefix("fmb").tempdir_in(within)?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(dir)
}

/// Copies a program that is to be run, with its mode, by a process of its own. A copy that this process wrote itself might
/// be open for writing in a child that another test's thread is just starting, and the kernel runs nothing that is (ETXTBSY).
pub fn copy_program(from: &Path, to: &Path) -> std::io::Result<()> {
    let done = std::process::Command::new("cp").arg("--preserve=mode").arg("--").args([from, to]).status()?;
    if done.success() { Ok(()) } else { Err(std::io::Error::other(format!("cp to {} failed: {done}", to.display()))) }
}

/// Between two looks at what nobody tells of: who looks without a pause takes the processor from what is looked for.
pub async fn look_again() {
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
}

/// A free name for the directory of one test, below target/, short enough for sockets and open to the uids of children.
pub fn scratch(name: &str) -> PathBuf {
    let dir = workspace().join("target/tmp").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.parent().expect("below target/")).expect("made");
    dir
}
