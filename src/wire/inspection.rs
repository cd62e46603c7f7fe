//! What is really in force for a child, read back from the kernel and not from the policy: the answer to `Inspect`.
//! Part of the contract (`message.rs` beside this file): numbers only, of a fixed size.

use serde::{Deserialize, Serialize};

use crate::message::TenantId;

/// One running child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its number in the kernel, for the operator.
    pub pid: u32,
    /// From `/proc/PID/status` and `/proc/PID/limits`.
    pub process: Process,
    /// The cgroup of its user, and so the limits; `None` without cgroups.
    pub user: Option<Group>,
    /// The cgroup of its own.
    pub own: Option<Group>,
}

/// What the kernel says of a process (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Real, effective, saved and file system uid.
    pub uids: [u32; 4],
    /// The same of the gid.
    pub gids: [u32; 4],
    /// Threads of this one process.
    pub threads: u32,
    /// Whether it can gain nothing by exec (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privs: bool,
    /// Mode of seccomp: 0 none, 1 strict, 2 filters.
    pub seccomp: u32,
    /// Its capabilities, one bit each (capabilities(7)).
    pub capabilities: Capabilities,
    /// Its hard resource limits (getrlimit(2)).
    pub limits: ProcessLimits,
}

/// The five sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Kept over exec by files that ask for them.
    pub inheritable: u64,
    /// What it may switch on.
    pub permitted: u64,
    /// What is on.
    pub effective: u64,
    /// What it could ever gain.
    pub bounding: u64,
    /// Kept over every exec.
    pub ambient: u64,
}

/// Hard limits; bytes, seconds, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// `RLIMIT_NOFILE`.
    pub open_files: Bound,
    /// `RLIMIT_NPROC`.
    pub processes: Bound,
    /// `RLIMIT_CPU`.
    pub cpu_seconds: Bound,
    /// `RLIMIT_FSIZE`.
    pub file_size: Bound,
    /// `RLIMIT_DATA`.
    pub data: Bound,
    /// `RLIMIT_AS`.
    pub address_space: Bound,
    /// `RLIMIT_CORE`.
    pub core: Bound,
}

/// A limit as the kernel shows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bound {
    /// The kernel has nothing that would enforce it here.
    #[default]
    Missing,
    /// It is not set.
    Unlimited,
    /// It is this.
    At(u64),
}

/// A cgroup's limits, and what is used of them; `None` where the kernel does not count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// `memory.max`, bytes.
    pub memory_max: Bound,
    /// `memory.high`, bytes.
    pub memory_high: Bound,
    /// `memory.swap.max`, bytes.
    pub swap_max: Bound,
    /// `pids.max`.
    pub pids_max: Bound,
    /// `cpu.max`, per cent of one CPU.
    pub cpu_max: Bound,
    /// `cpu.weight`.
    pub cpu_weight: Bound,
    /// `io.weight`.
    pub io_weight: Bound,
    /// `memory.oom.group`: at the end of memory all of it ends, not one process. 1 is yes.
    pub oom_group: Bound,
    /// `memory.current`, bytes.
    pub memory: Option<u64>,
    /// `memory.peak`, bytes.
    pub memory_peak: Option<u64>,
    /// `pids.current`.
    pub pids: Option<u64>,
    /// `usage_usec` of `cpu.stat`.
    pub cpu_usec: Option<u64>,
    /// `throttled_usec` of `cpu.stat`.
    pub throttled_usec: Option<u64>,
    /// `oom_kill` of `memory.events`.
    pub oom_kills: Option<u64>,
}
