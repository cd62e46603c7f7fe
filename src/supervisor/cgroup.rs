//! One cgroup2 directory a tenant, with the tenant's limits, and one below it a child, so that a child can be killed
//! with all that it started and without its tenant's other children.
//!
//! Trusts the directory that it was given to be the supervisor's own to fill. `ChildLimits` are set where the controllers
//! are; a machine without them still gets `cgroup.kill` (cgroup-v2.rst).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::rlimit::ChildLimits;
use crate::spawn;
use wire::message::{ChildId, TenantId};

const TENANT: &str = "tenant-";
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Where the supervisor itself stays: a cgroup with controllers must hold no process (`DelegateSubgroup=` of the unit
/// names it, on systemd before 254 the supervisor makes it).
const OWN: &str = "supervisor";

/// The directory that holds the tenants'.
#[derive(Debug)]
pub(crate) struct Cgroups {
    root: PathBuf,
    controllers: Vec<String>,
}

/// Why the directory named in the policy cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the cgroup {} cannot be used: {source}", .root.display())]
pub(crate) struct CgroupError {
    root: PathBuf,
    source: io::Error,
}

impl Cgroups {
    /// Uses the directory that the policy names, else one that systemd delegated to this service, else none.
    /// Whatever an earlier supervisor left in it is killed and removed.
    pub(crate) fn open(configured: Option<&Path>) -> Result<Option<Self>, CgroupError> {
        let Some(root) = configured.map(Path::to_owned).or_else(delegated) else { return Ok(None) };
        let probe = || {
            fs::read_to_string(root.join("cgroup.controllers")).and_then(|known| {
                for name in CONTROLLERS.iter().filter(|name| known.split_whitespace().any(|k| k == **name)) {
                    // Refused where processes sit in the directory itself; what is on is read back below.
                    let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{name}"));
                }
                fs::read_to_string(root.join("cgroup.subtree_control"))
            })
        };
        let enabled = probe().map_err(|source| CgroupError { root: root.clone(), source })?;
        let controllers = enabled.split_whitespace().map(str::to_owned).collect();
        let cgroups = Self { root, controllers };
        for tenant in children_of(&cgroups.root).filter(|dir| name_starts_with(dir, TENANT)) {
            // Best effort: what cannot be removed now has a process that does not die yet, and harms nobody.
            let _ = fs::write(tenant.join("cgroup.kill"), "1");
            remove_tree(&tenant);
        }
        Ok(Some(cgroups))
    }

    /// The controllers that enforce limits; the others' limits do not hold.
    pub(crate) fn controllers(&self) -> &[String] {
        &self.controllers
    }

    /// Whether memory and processes are really bounded. What the kernel has switched on counts, not that there are
    /// directories: without controllers they only help to kill.
    pub(crate) fn bounds_tenants(&self) -> bool {
        ["memory", "pids"].iter().all(|name| self.controllers.iter().any(|have| have == name))
    }

    /// Makes the child's directory, and the tenant's with its limits.
    pub(crate) fn leaf(&self, tenant: TenantId, child: ChildId, limits: &ChildLimits) -> io::Result<Leaf> {
        let dir = self.tenant(tenant);
        make_dir(&dir)?;
        for (file, value) in limits.cgroup_files() {
            let controller = file.split('.').next().unwrap_or_default();
            if self.controllers.iter().any(|c| c == controller) {
                match fs::write(dir.join(file), value) {
                    // memory.swap.max: a kernel without swap accounting.
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        let leaf = Leaf { dir: dir.join(format!("child-{}", child.0)) };
        make_dir(&leaf.dir)?;
        Ok(leaf)
    }

    /// Removes the tenant's directory with all below it, as far as no process is left there.
    pub(crate) fn remove(&self, tenant: TenantId) -> bool {
        remove_tree(&self.tenant(tenant))
    }

    fn tenant(&self, tenant: TenantId) -> PathBuf {
        self.root.join(format!("{TENANT}{tenant}"))
    }
}

/// One child's directory; removed when dropped, as far as no process is left there.
#[derive(Debug)]
pub(crate) struct Leaf {
    dir: PathBuf,
}

impl Leaf {
    /// What the child writes `0` to.
    pub(crate) fn procs(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"))
    }

    /// Kills all that is in it at once, also what left the child's process group; not a process whose first thread has
    /// ended. Fails before Linux 5.14.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.kill"), "1")
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // Refused while a process is left; the tenant's directory is removed with all below it later.
        let _ = fs::remove_dir(&self.dir);
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn children_of(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn name_starts_with(dir: &Path, prefix: &str) -> bool {
    dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
}

/// Whether the directory is gone. The files of a cgroup go with it, so only directories are removed.
fn remove_tree(dir: &Path) -> bool {
    for child in children_of(dir) {
        remove_tree(&child);
    }
    match fs::remove_dir(dir) {
        Ok(()) => true,
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
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
    let aside = own.join(OWN);
    make_dir(&aside).ok()?;
    fs::write(aside.join("cgroup.procs"), "0").ok()?;
    Some(own)
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
