//! The cgroup2 tree that the supervisor fills: a node for all children together with a ceiling, below it a node a
//! tenant with the tenant's limits, below that a leaf a child, so that a child can be killed with all that it started
//! and without its tenant's other children.
//!
//! ```text
//! the delegated directory    what systemd gave (`Delegate=`), or `[cgroup] root`
//!   supervisor/              the supervisor itself, on systemd before 254
//!   children/                `[limits.total]`
//!     tenant-42/             `[limits]`, `[limits.users.42]`
//!       child-7/             memory.oom.group: it ends as a whole
//! ```
//!
//! Trusts the directory that it was given to be the supervisor's own to fill. What is written is read back: a limit
//! that the kernel does not hold is an error, and a kind of limit that it does not have is reported as missing. A
//! machine without controllers still gets `cgroup.kill` (cgroup-v2.rst).

pub(crate) mod dir;
pub(crate) mod leaf;

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup::dir::{CONTROLLERS, CgroupError, Dir};
use crate::cgroup::leaf::Leaf;
use crate::rlimit::{ChildLimits, TotalLimits};
use crate::spawn;
use wire::inspection::Group;
use wire::message::{ChildId, Enforced, TenantId};

const ALL: &str = "children";
const TENANT: &str = "tenant-";
/// Where the supervisor itself stays: a cgroup with controllers must hold no process (`DelegateSubgroup=` of the unit
/// names it, on systemd before 254 the supervisor makes it).
const OWN: &str = "supervisor";
/// Names that are tried for a child's directory. One is taken only where a process of an earlier supervisor does not
/// die and keeps it.
const NAMES: u32 = 16;

/// The tree.
#[derive(Debug)]
pub(crate) struct Cgroups {
    all: Dir,
    /// Switched on for tenants; those of a child are checked at each start.
    controllers: Vec<&'static str>,
    /// What there is to share.
    available: Available,
}

/// What the machine, or the cgroup that the supervisor is in, has for all children and the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Available {
    memory: u64,
    pids: u64,
}

/// Left of the memory for whoever else is there, at least: the broker, the supervisor, the system.
const MEMORY_RESERVE: u64 = 512 << 20;
/// Left of the processes.
const PIDS_RESERVE: u64 = 64;

impl Available {
    /// The least of the machine's and of what is set at and above the directory.
    fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let meminfo = text("/proc/meminfo");
        let kib =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
        let threads = text("/proc/sys/kernel/threads-max").trim().parse().unwrap_or(u64::MAX);
        let pids = text("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(u64::MAX);
        let mut least =
            Self { memory: kib.map_or(u64::MAX, |kib: u64| kib.saturating_mul(1024)), pids: pids.min(threads) };
        for dir in root.ancestors().take_while(|dir| dir.join("cgroup.procs").exists()) {
            let dir = Dir::at(dir.to_owned());
            least.memory = dir.number("memory.max").map_or(least.memory, |most| most.min(least.memory));
            least.pids = dir.number("pids.max").map_or(least.pids, |most| most.min(least.pids));
        }
        least
    }

    /// Four fifths, and less where that leaves less than the reserve; half of it at least.
    fn share(available: u64, reserve: u64) -> u64 {
        available - (available / 5).max(reserve.min(available / 2))
    }
}

impl Cgroups {
    /// Uses the directory that the policy names, else one that systemd delegated to this service, else none.
    /// Whatever an earlier supervisor left in it is killed; [`Cgroups::leftovers`] has what does not go at once.
    pub(crate) fn open(configured: Option<&Path>, total: &TotalLimits) -> Result<Option<Self>, CgroupError> {
        let Some(root) = configured.map(Path::to_owned).or_else(delegated) else { return Ok(None) };
        let root = Dir::at(root);
        // Not among the names of a cgroup2: not one.
        if root.read("cgroup.controllers")?.is_none() {
            let source = std::io::ErrorKind::NotFound.into();
            return Err(CgroupError::File { file: root.path().join("cgroup.controllers"), source });
        }
        let on = root.enable(&CONTROLLERS)?;
        let (all, _) = root.make(ALL)?;
        let controllers = all.enable(&on)?;
        let cgroups = Self { all, controllers, available: Available::read(root.path()) };
        for left in cgroups.leftovers()? {
            if let Err(error) = leaf::kill(&left) {
                tracing::error!(reason = "cgroup-stays", %error, "what an earlier supervisor left is not killed");
            }
        }
        for user in cgroups.users()? {
            // Refused where a leaf is left.
            let _ = user.remove();
        }
        cgroups.set_total(total)?;
        Ok(Some(cgroups))
    }

    /// Directories of children that an earlier supervisor left. Never those of their users: these may have new children
    /// before the last leftover is gone.
    pub(crate) fn leftovers(&self) -> Result<Vec<Dir>, CgroupError> {
        let mut left = Vec::new();
        for user in self.users()? {
            left.extend(user.children()?);
        }
        Ok(left)
    }

    fn users(&self) -> Result<impl Iterator<Item = Dir>, CgroupError> {
        let is_user = |dir: &Dir| {
            dir.path().file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(TENANT))
        };
        Ok(self.all.children()?.into_iter().filter(is_user))
    }

    /// Sets the limits of all children together; also of those that run.
    pub(crate) fn set_total(&self, total: &TotalLimits) -> Result<(), CgroupError> {
        let memory = total.memory_max.unwrap_or(Available::share(self.available.memory, MEMORY_RESERVE));
        let pids = total.pids_max.unwrap_or(Available::share(self.available.pids, PIDS_RESERVE));
        let mut files = vec![
            ("memory.max", or_max(memory)),
            ("pids.max", or_max(pids)),
            ("cpu.weight", total.cpu_weight.to_string()),
        ];
        files.retain(|(file, _)| self.has(file));
        for (file, value) in files {
            self.all.set(file, &value)?;
        }
        Ok(())
    }

    fn has(&self, file: &str) -> bool {
        let controller = file.split('.').next().unwrap_or_default();
        self.controllers.contains(&controller)
    }

    /// Which kinds of limits the kernel enforces, and not which are in the policy.
    pub(crate) fn enforced(&self) -> Enforced {
        let on = |name| self.controllers.contains(&name);
        // The weight of a disk's scheduler that the kernel may not have (cgroup-v2.rst, io.weight).
        let io = on("io") && self.all.path().join("io.weight").exists();
        Enforced { memory: on("memory"), pids: on("pids"), cpu: on("cpu"), io }
    }

    /// The limits of all children, and what they use.
    pub(crate) fn look(&self) -> Group {
        self.all.look()
    }

    /// Makes the child's directory, and the tenant's with its limits.
    pub(crate) fn leaf(&self, tenant: TenantId, child: ChildId, limits: &ChildLimits) -> Result<Leaf, CgroupError> {
        let (user, _) = self.all.make(&format!("{TENANT}{tenant}"))?;
        let made = self.fill(&user, child, limits);
        if made.is_err() {
            // Refused where the tenant has another child.
            let _ = user.remove();
        }
        made
    }

    fn fill(&self, user: &Dir, child: ChildId, limits: &ChildLimits) -> Result<Leaf, CgroupError> {
        let on = user.enable(&self.controllers)?;
        if on != self.controllers {
            let file = user.path().join("cgroup.subtree_control");
            return Err(CgroupError::NotInForce { file, wanted: self.controllers.join(" "), found: on.join(" ") });
        }
        for (file, value) in limits.cgroup_files() {
            if self.has(file) {
                user.set(file, &value)?;
            }
        }
        let plain = format!("child-{}", child.0);
        let mut own = user.make(&plain)?;
        for n in 1..NAMES {
            if own.1 {
                break;
            }
            own = user.make(&format!("{plain}-{n}"))?;
        }
        let (own, is_new) = own;
        if !is_new {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(CgroupError::Make { dir: own.path().to_owned(), source });
        }
        let made = Leaf::new(own.clone(), user.clone(), self.all.clone());
        if self.has("memory.oom.group") {
            own.set("memory.oom.group", "1")?;
        }
        Ok(made)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Refused where something is left, which the next supervisor kills.
        let _ = self.all.remove();
    }
}

/// 0 is none.
pub(crate) fn or_max(limit: u64) -> String {
    if limit == 0 { "max".to_owned() } else { limit.to_string() }
}

/// The cgroup that systemd delegated to this service, with the supervisor moved out of the way.
fn delegated() -> Option<PathBuf> {
    let own = own_cgroup()?;
    if own.file_name().is_some_and(|name| name == OWN) {
        return own.parent().filter(|parent| spawn::is_delegated(parent)).map(Path::to_owned);
    }
    if !spawn::is_delegated(&own) {
        return None;
    }
    let (aside, _) = Dir::at(own.clone()).make(OWN).ok()?;
    aside.write("cgroup.procs", "0").ok()?.then_some(own)
}

/// This process's cgroup2 directory: cgroups(7) on `/proc/self/cgroup`, proc(5) on `mountinfo`.
fn own_cgroup() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        after.starts_with("cgroup2 ").then(|| Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_leaves_a_fifth_and_never_less_than_the_reserve() {
        const MIB: u64 = 1 << 20;
        for (available, ceiling) in [(32_000, 25_600), (4_000, 3_200), (2_000, 1_488), (1_000, 500), (256, 128)] {
            assert_eq!(Available::share(available * MIB, MEMORY_RESERVE), ceiling * MIB, "{available} MiB");
        }
    }
}
