//! A cgroup for each tenant, below a cgroup v2 directory that was delegated to the supervisor.
//!
//! It bounds what all children of a tenant use together and makes killing them certain (`cgroup.kill`). What the
//! kernel or the delegation does not offer is done without: a missing controller leaves its limit out, no delegation
//! leaves cgroups out altogether, and [`Isolation`](crate::ipc::message::Isolation) says so.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::rlimit::Limits;
use super::uid::ChildUid;

/// Controllers that carry a limit here.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// The period of `cpu.max` in microseconds; the kernel's default.
const PERIOD: u64 = 100_000;

/// The directory below which tenants get theirs.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// Takes the configured directory, or looks for the one that systemd delegated: with `DelegateSubgroup=supervisor`
    /// this process sits in `supervisor`, beside which children may have theirs (systemd.resource-control(5)).
    ///
    /// `Ok(None)` where none is configured and none was delegated; an error where the configured one cannot be used.
    pub fn find(configured: Option<&Path>) -> io::Result<Option<Self>> {
        let root = match configured {
            Some(root) => root.to_owned(),
            None => match delegated() {
                Some(root) => root,
                None => return Ok(None),
            },
        };
        if statfs(&root)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(io::Error::other(format!("{} is not on a cgroup v2 file system", root.display())));
        }
        // Controllers reach the tenants' groups only when switched on here, each by itself: one that is missing must
        // not take the others along.
        for controller in CONTROLLERS {
            let _ = write(&root.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
        Ok(Some(Self(root)))
    }

    fn of(&self, uid: ChildUid) -> PathBuf {
        self.0.join(format!("tenant-{uid}"))
    }

    /// Makes the tenant's group with its limits; its `cgroup.procs`, open for a child to move itself in.
    pub fn enter(&self, uid: ChildUid, limits: &Limits) -> io::Result<OwnedFd> {
        let group = self.of(uid);
        match fs::create_dir(&group) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let quota = limits.cpu_percent.saturating_mul(PERIOD / 100);
        let settings = [
            ("memory.max", limits.memory_max.to_string()),
            ("memory.swap.max", limits.swap_max.to_string()),
            ("memory.oom.group", "0".to_owned()),
            ("pids.max", limits.pids_max.to_string()),
            ("cpu.max", format!("{quota} {PERIOD}")),
            ("cpu.weight", limits.cpu_weight.to_string()),
        ];
        for (file, value) in settings {
            match write(&group.join(file), &value) {
                // No such controller here.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                written => written?,
            }
        }
        Ok(OpenOptions::new().write(true).open(group.join("cgroup.procs"))?.into())
    }

    /// Kills everything in the tenant's group and removes it; what is left is removed by the next call.
    pub fn clear(&self, uid: ChildUid) {
        let group = self.of(uid);
        // A group that never was, or a kernel before 5.14 without cgroup.kill: the uid's processes are killed too.
        let _ = write(&group.join("cgroup.kill"), "1");
        let _ = fs::remove_dir(&group);
    }
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

fn delegated() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let parent = path.strip_suffix("/supervisor")?;
    Some(Path::new("/sys/fs/cgroup").join(parent))
}
