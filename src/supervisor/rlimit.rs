//! How much one tenant's children may use: resource limits (setrlimit(2)) of each process, and the cgroup's.
//!
//! Out of `[limits]` of the policy, with `[limits.users.<Forgejo id>]` laid over it user by user.

use std::collections::HashMap;

use nix::sys::resource::{Resource, getrlimit};

use crate::profile::Profile;
use wire::config_file::Section;
use wire::lifecycle::NO_CORE;
use wire::message::TenantId;

/// All limits of one tenant. "0 = none" where it says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChildLimits {
    /// `RLIMIT_NOFILE`: descriptors of a process. Go lifts the soft to the hard limit, so both are set.
    pub(crate) open_files: u64,
    /// `RLIMIT_NPROC`: processes and threads under the tenant's uid; about 10 a child are needed.
    pub(crate) processes: u64,
    /// `RLIMIT_CPU`, seconds in the life of a process; 0 = none. Only the hard limit stops a Go program.
    pub(crate) cpu_seconds: u64,
    /// `RLIMIT_FSIZE`, bytes of a file that it writes; 0 = it writes none.
    pub(crate) file_size: u64,
    /// `RLIMIT_DATA`, bytes; 0 = none.
    pub(crate) data: u64,
    /// `RLIMIT_AS`, bytes; 0 = none.
    pub(crate) address_space: u64,
    /// `memory.max`, bytes for all of the tenant's children; 0 = none.
    pub(crate) memory_max: u64,
    /// `memory.swap.max`, bytes.
    pub(crate) swap_max: u64,
    /// `pids.max`: processes and threads of all of the tenant's children; 0 = none.
    pub(crate) pids_max: u64,
    /// `cpu.max`, per cent of one CPU; 0 = none.
    pub(crate) cpu_max: u64,
    /// `cpu.weight`, 1 to 10000.
    pub(crate) cpu_weight: u64,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const DEFAULTS: ChildLimits = ChildLimits {
    open_files: 256,
    processes: 256,
    cpu_seconds: 3600,
    file_size: 0,
    data: GIB,
    address_space: 0,
    memory_max: 512 * MIB,
    swap_max: 0,
    pids_max: 256,
    cpu_max: 100,
    cpu_weight: 100,
};

/// The limits of everybody, and of those who have others.
#[derive(Debug)]
pub(crate) struct LimitsTable {
    all: ChildLimits,
    users: HashMap<TenantId, ChildLimits>,
}

impl LimitsTable {
    /// Reads `[limits]`; what is wrong is noted in the sections.
    pub(crate) fn read(root: &mut Section, profile: &Profile) -> Self {
        let mut section = root.section("limits");
        let mut users_section = section.section("users");
        let all = ChildLimits::read(&mut section, &DEFAULTS, profile);
        let mut users = HashMap::new();
        for key in users_section.keys() {
            let mut user = users_section.section(&key);
            if let Some(tenant) = key.parse().ok().and_then(|id| TenantId::new(id).ok()) {
                users.insert(tenant, ChildLimits::read(&mut user, &all, profile));
                user.close();
            } else {
                let what = "is no number: write the number that Forgejo gave the user, which is `id` in the answer of \
                            /api/v1/users/LOGIN, because logins change";
                users_section.complain(&key, what);
            }
        }
        users_section.close();
        section.close();
        Self { all, users }
    }

    /// Sets `address_space` where it is 0, for a machine without a cgroup that bounds memory: `data` does not count
    /// shared memory (setrlimit(2)).
    pub(crate) fn bound_address_space(&mut self, bytes: u64) {
        for limits in self.users.values_mut().chain([&mut self.all]) {
            if limits.address_space == 0 {
                limits.address_space = bytes;
            }
        }
    }

    /// The limits of this tenant.
    pub(crate) fn of(&self, tenant: TenantId) -> &ChildLimits {
        self.users.get(&tenant).unwrap_or(&self.all)
    }
}

impl ChildLimits {
    fn read(section: &mut Section, default: &Self, profile: &Profile) -> Self {
        let mut at_least = |key: &str, default: u64, least: u64| {
            let size = section.size(key, default, 0..=u64::MAX);
            if size != 0 && size < least {
                let least = bytesize::ByteSize(least);
                section.complain(key, format!("must be 0 (none) or at least {least} for this child"));
            }
            size
        };
        let address_space = at_least("address_space", default.address_space, profile.least_address_space);
        let memory_max = at_least("memory_max", default.memory_max, profile.least_memory);
        Self {
            open_files: section.integer("open_files", default.open_files, 16..=1_048_576),
            processes: section.integer("processes", default.processes, 1..=1_048_576),
            cpu_seconds: section.integer("cpu_seconds", default.cpu_seconds, 0..=1_000_000_000),
            file_size: section.size("file_size", default.file_size, 0..=u64::MAX),
            data: section.size("data", default.data, 0..=u64::MAX),
            address_space,
            memory_max,
            swap_max: section.size("swap_max", default.swap_max, 0..=u64::MAX),
            pids_max: section.integer("pids_max", default.pids_max, 0..=4_194_304),
            cpu_max: section.integer("cpu_max", default.cpu_max, 0..=100_000),
            cpu_weight: section.integer("cpu_weight", default.cpu_weight, 1..=10_000),
        }
    }

    /// What to set in a child, soft and hard alike. A value above the supervisor's own hard limit is lowered to it,
    /// because raising one needs `CAP_SYS_RESOURCE`. Under a uid that others use, too, `RLIMIT_NPROC` would count
    /// their processes and is left out.
    pub(crate) fn rlimits(&self, own_uid: bool) -> Vec<(Resource, u64)> {
        let wanted = [
            (Resource::RLIMIT_NOFILE, Some(self.open_files)),
            (Resource::RLIMIT_NPROC, own_uid.then_some(self.processes)),
            // A core would hold the token.
            (Resource::RLIMIT_CORE, Some(NO_CORE)),
            (Resource::RLIMIT_FSIZE, Some(self.file_size)),
            (Resource::RLIMIT_CPU, (self.cpu_seconds != 0).then_some(self.cpu_seconds)),
            (Resource::RLIMIT_DATA, (self.data != 0).then_some(self.data)),
            (Resource::RLIMIT_AS, (self.address_space != 0).then_some(self.address_space)),
        ];
        let lowered = |resource, value: u64| getrlimit(resource).map_or(value, |(_, hard)| value.min(hard));
        wanted.into_iter().filter_map(|(r, value)| Some((r, lowered(r, value?)))).collect()
    }

    /// What to write into the tenant's cgroup, as far as its controllers are there.
    pub(crate) fn cgroup_files(&self) -> Vec<(&'static str, String)> {
        let or_max = |n: u64| if n == 0 { "max".to_owned() } else { n.to_string() };
        // cgroup-v2.rst: "$MAX $PERIOD" in microseconds.
        let quota = if self.cpu_max == 0 { "max".to_owned() } else { self.cpu_max.saturating_mul(1000).to_string() };
        vec![
            ("memory.max", or_max(self.memory_max)),
            ("memory.swap.max", self.swap_max.to_string()),
            ("pids.max", or_max(self.pids_max)),
            ("cpu.max", format!("{quota} 100000")),
            ("cpu.weight", self.cpu_weight.to_string()),
        ]
    }
}
