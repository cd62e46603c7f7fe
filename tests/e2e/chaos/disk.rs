//! A small file system under the database, which fills up and is freed again.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ledger::Ledger;

/// Its size. The database of a few hundred users has one or two MiB, and its WAL up to four.
const SIZE: &str = "size=32m";
/// How long a disk may take to be full again.
const FULL_WITHIN: Duration = Duration::from_secs(30);
/// How often what is given back is taken again.
const LOOK: Duration = Duration::from_millis(50);
/// How long after it is full a busy machine may look at it; shorter than it is free.
const SEEN_WITHIN: Duration = Duration::from_secs(6);
/// Says to the test that it runs in mounts of its own.
const MOUNTS: &str = "CHAOS_MOUNTS";

/// Runs the test with this name again in mounts of its own, which end with the process; whether it must go on here.
pub(crate) fn in_mounts_of_its_own(test: &str) -> bool {
    if std::env::var_os(MOUNTS).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--nocapture"]).env(MOUNTS, "1");
    let status = command.status().expect("unshare(1)");
    assert!(status.success(), "{status}");
    false
}

/// The file system, and whether it is full.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    dir: PathBuf,
    /// When it was full last, up to now if it is.
    full: Mutex<Option<Instant>>,
}

impl SmallDisk {
    /// Mounts it on a directory; `None` where that is not allowed.
    pub(crate) fn mount(dir: &Path) -> Option<Arc<Self>> {
        std::env::var_os(MOUNTS)?;
        std::fs::create_dir_all(dir).expect("a directory");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(dir).status();
        assert!(status.expect("mount(8)").success(), "the small file system is not mounted");
        Some(Arc::new(Self { dir: dir.to_owned(), full: Mutex::default() }))
    }

    /// Whether it has been full since then, which may be seen a little later: a broker has refused to start sooner than the
    /// disk is looked at.
    pub(crate) fn was_full_since(&self, then: Instant) -> bool {
        self.is_seen_full_since(then, SEEN_WITHIN)
    }

    /// Waits until it is full.
    pub(crate) fn wait_until_full(&self) {
        assert!(self.is_seen_full_since(Instant::now(), FULL_WITHIN), "the disk does not fill up");
    }

    fn is_seen_full_since(&self, then: Instant, within: Duration) -> bool {
        let begun = Instant::now();
        while !self.full.lock().is_some_and(|full| full >= then) {
            if begun.elapsed() >= within {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Full for `full`, free for twice as long, until it is over.
    pub(crate) async fn fill_and_free(self: Arc<Self>, full: Duration, ledger: Arc<Ledger>, over: Arc<AtomicBool>) {
        let ballast = self.dir.join("ballast");
        while !over.load(Ordering::SeqCst) {
            tokio::time::sleep(full).await;
            let mut file = std::fs::File::create(&ballast).expect("a file");
            ledger.count("strike: disk full");
            let until = Instant::now() + full;
            while Instant::now() < until && !over.load(Ordering::SeqCst) {
                // What is given back meanwhile is taken again.
                while file.write_all(&[0; 4096]).is_ok() {}
                *self.full.lock() = Some(Instant::now());
                tokio::time::sleep(LOOK).await;
            }
            std::fs::remove_file(&ballast).expect("room");
            drop(file);
            *self.full.lock() = Some(Instant::now());
            tokio::time::sleep(full).await;
        }
    }
}
