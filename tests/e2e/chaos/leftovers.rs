//! What must not be there when all is over, and what the broker may hold in memory until then.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde_json::Value;

use harness::deployment::{Deployment, processes};

/// How long what goes may take to go: a uid is looked at once more after its last process, and a store that is ready is
/// seen every five seconds.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// What the operator's tool says.
pub(crate) fn status(deployment: &Deployment) -> Value {
    let status = deployment.ctl().args(["status", "--json"]).output().expect("brokerctl runs");
    serde_json::from_slice(&status.stdout).expect("json")
}

/// One of its numbers.
pub(crate) fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path}: {status}"))
}

/// What there was before anybody came.
#[derive(Debug)]
pub(crate) struct Before {
    uids_free: u64,
    pub(crate) supervisor_resident: u64,
}

impl Before {
    pub(crate) fn look(deployment: &Deployment) -> Self {
        let supervisor_resident = resident(deployment.supervisor.as_ref().expect("runs").pid()).expect("it runs");
        Self { uids_free: number(&status(deployment), "/supervisor/uids_free"), supervisor_resident }
    }
}

/// Waits until nothing is left: no session, child, process under a uid of the range, uid that is not clean, cgroup or
/// descriptor; and until the store takes everything again.
pub(crate) async fn nothing(
    deployment: &Deployment,
    before: &Before,
    uids: std::ops::Range<u32>,
    cgroup: Option<&Path>,
) {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let mut left = Vec::new();
        let status = status(deployment);
        for path in ["/sessions", "/children", "/supervisor/children", "/supervisor/uids_unclean"] {
            if number(&status, path) > 0 {
                left.push(format!("{path}: {}", number(&status, path)));
            }
        }
        if number(&status, "/supervisor/uids_free") < before.uids_free {
            left.push("a uid is not given back".to_owned());
        }
        let foreign = processes().into_iter().filter(|process| geteuid().is_root() && uids.contains(&process.uid()));
        left.extend(foreign.map(|process| format!("process {} {}", process.pid, process.field("Name"))));
        // The node of all children stays as long as the supervisor.
        let users = cgroup.map(|dir| entries(&dir.join("children"))).unwrap_or_default();
        left.extend(users.iter().map(|path| format!("{}", path.display())));
        let (broker, supervisor) = (&deployment.broker, &deployment.supervisor);
        for (running, may) in [(broker, 40), (supervisor, 25)] {
            let running = running.as_ref().expect("runs");
            let held = descriptors(running.pid());
            if held >= may {
                left.push(format!("{} descriptors of the {}", held, running.name));
            }
        }
        let ready = reqwest::get(format!("{}/readyz", deployment.url)).await.map(|ready| ready.status().as_u16());
        if !matches!(ready, Ok(200)) {
            left.push(format!("readyz: {ready:?}"));
        }
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "something is left: {left:?} {status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The cgroups below one.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// What a process has in memory, in KiB; none where it is gone.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How many a process holds. The supervisor hides that from its own uid (it leaves no core file either), so only root can
/// look.
pub(crate) fn descriptors(pid: u32) -> usize {
    match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries.count(),
        Err(e) if geteuid().is_root() => panic!("the descriptors of {pid} cannot be counted: {e}"),
        Err(_) => 0,
    }
}

/// Watches the memory of whichever process is the broker.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) pid: AtomicU64,
    pub(crate) highest_kib: AtomicU64,
}

impl Watch {
    pub(crate) fn follow(&self, deployment: &Deployment) {
        let pid = deployment.broker.as_ref().expect("runs").pid();
        self.pid.store(u64::from(pid), Ordering::SeqCst);
    }

    /// Looks until it is over.
    pub(crate) async fn look(self: Arc<Self>, over: Arc<AtomicBool>) {
        while !over.load(Ordering::SeqCst) {
            let pid = u32::try_from(self.pid.load(Ordering::SeqCst)).expect("a pid");
            self.highest_kib.fetch_max(resident(pid).unwrap_or_default(), Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A cgroup of this test's own, where the machine has a cgroup2 that may be written at all; removed at the end.
#[derive(Debug)]
pub(crate) struct OwnCgroup(pub(crate) PathBuf);

impl OwnCgroup {
    pub(crate) fn new() -> Option<Self> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let has = |root: &&Path, file: &str| root.join(file).exists();
        let root = roots.into_iter().find(|root| has(root, "cgroup.procs") && has(root, "cgroup.controllers"))?;
        let dir = root.join(format!("fmb-chaos-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        Some(Self(dir))
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
