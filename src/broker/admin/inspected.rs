//! What is really in force for each child, for the operator: the kernel's word, in JSON. A leaf like `api.rs` beside
//! this file.

use serde::{Deserialize, Serialize};

use wire::inspection::{Bound, Group, Inspection};

/// A limit as the kernel shows it; `null` in its place where nothing enforces one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LimitView {
    /// It is this.
    At(u64),
    /// It is `"max"`: not set.
    Word(Unlimited),
}

/// The one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlimited {
    /// As the kernel writes it.
    Max,
}

fn limit(bound: Bound) -> Option<LimitView> {
    match bound {
        Bound::Missing => None,
        Bound::Unlimited => Some(LimitView::Word(Unlimited::Max)),
        Bound::At(n) => Some(LimitView::At(n)),
    }
}

/// A cgroup: its limits, and what is used of them. Bytes, per cent of one CPU, microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct GroupView {
    /// `memory.max`.
    pub memory_max: Option<LimitView>,
    /// `memory.high`.
    pub memory_high: Option<LimitView>,
    /// `memory.swap.max`.
    pub swap_max: Option<LimitView>,
    /// `pids.max`.
    pub pids_max: Option<LimitView>,
    /// `cpu.max`, in per cent of one CPU.
    pub cpu_max: Option<LimitView>,
    /// `cpu.weight`.
    pub cpu_weight: Option<LimitView>,
    /// `io.weight`.
    pub io_weight: Option<LimitView>,
    /// `memory.oom.group`.
    pub oom_group: bool,
    /// `memory.current`.
    pub memory: Option<u64>,
    /// `memory.peak`.
    pub memory_peak: Option<u64>,
    /// `pids.current`.
    pub processes: Option<u64>,
    /// `usage_usec` of `cpu.stat`.
    pub cpu_usec: Option<u64>,
    /// `throttled_usec` of `cpu.stat`.
    pub throttled_usec: Option<u64>,
    /// `oom_kill` of `memory.events`.
    pub oom_kills: Option<u64>,
}

impl From<Group> for GroupView {
    fn from(group: Group) -> Self {
        Self {
            memory_max: limit(group.memory_max),
            memory_high: limit(group.memory_high),
            swap_max: limit(group.swap_max),
            pids_max: limit(group.pids_max),
            cpu_max: limit(group.cpu_max),
            cpu_weight: limit(group.cpu_weight),
            io_weight: limit(group.io_weight),
            oom_group: group.oom_group == Bound::At(1),
            memory: group.memory,
            memory_peak: group.memory_peak,
            processes: group.pids,
            cpu_usec: group.cpu_usec,
            throttled_usec: group.throttled_usec,
            oom_kills: group.oom_kills,
        }
    }
}

/// One running child.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChildView {
    /// Its user, by Forgejo's number; `user list` has the name.
    pub user: u64,
    /// Its process.
    pub pid: u32,
    /// The uid that it runs under, as all four of the kernel's; anything else than one number is an error.
    pub uids: Vec<u32>,
    /// The gids.
    pub gids: Vec<u32>,
    /// Threads of the process.
    pub threads: u32,
    /// Whether it can gain nothing by exec.
    pub no_new_privs: bool,
    /// 0 none, 2 filters.
    pub seccomp: u32,
    /// Inheritable, permitted, effective and ambient capabilities, all of them together; 0 is none.
    pub capabilities: u64,
    /// Resource limits of the process, hard.
    pub rlimits: RlimitsView,
    /// The cgroup of its user, with the user's limits.
    pub user_cgroup: Option<GroupView>,
    /// The cgroup of its own.
    pub own_cgroup: Option<GroupView>,
}

/// setrlimit(2).
#[derive(Debug, Serialize, Deserialize)]
pub struct RlimitsView {
    /// Descriptors.
    pub open_files: Option<LimitView>,
    /// Processes and threads of its uid.
    pub processes: Option<LimitView>,
    /// Seconds of CPU.
    pub cpu_seconds: Option<LimitView>,
    /// Bytes of a file.
    pub file_size: Option<LimitView>,
    /// Bytes of data.
    pub data: Option<LimitView>,
    /// Bytes of address space.
    pub address_space: Option<LimitView>,
    /// Bytes of a core file.
    pub core: Option<LimitView>,
}

impl From<Inspection> for ChildView {
    fn from(inspection: Inspection) -> Self {
        let Inspection { tenant, pid, process, user, own } = inspection;
        let (sets, limits) = (process.capabilities, process.limits);
        Self {
            user: tenant.get(),
            pid,
            uids: process.uids.into(),
            gids: process.gids.into(),
            threads: process.threads,
            no_new_privs: process.no_new_privs,
            seccomp: process.seccomp,
            capabilities: sets.inheritable | sets.permitted | sets.effective | sets.ambient,
            rlimits: RlimitsView {
                open_files: limit(limits.open_files),
                processes: limit(limits.processes),
                cpu_seconds: limit(limits.cpu_seconds),
                file_size: limit(limits.file_size),
                data: limit(limits.data),
                address_space: limit(limits.address_space),
                core: limit(limits.core),
            },
            user_cgroup: user.map(Into::into),
            own_cgroup: own.map(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_max_or_nothing() {
        for (bound, json) in [(Bound::At(7), "7"), (Bound::Unlimited, "\"max\""), (Bound::Missing, "null")] {
            let written = serde_json::to_string(&limit(bound)).expect("JSON");
            assert_eq!(written, json);
            assert_eq!(serde_json::from_str::<Option<LimitView>>(json).expect("JSON"), limit(bound));
        }
    }
}
