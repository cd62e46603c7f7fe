//! How much one tenant's children may use: resource limits (setrlimit(2)) of each process, and the cgroup's; and how
//! much all together (`[limits.total]`).
//!
//! Out of `[limits]` of the policy, with `[limits.users.<Forgejo id>]` laid over it user by user.

use std::collections::{BTreeMap, HashMap};

use nix::sys::resource::{Resource, getrlimit};

use crate::cgroup::or_max;
use crate::profile::Profile;
use wire::config_file::Section;
use wire::lifecycle::NO_CORE;
use wire::message::TenantId;

/// All limits of one tenant. "0 = none" where it says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChildLimits {
    /// `RLIMIT_NOFILE`: descriptors of a process. Go lifts the soft to the hard limit, so both are set.
    pub(crate) open_files: u64,
    /// `RLIMIT_NPROC`: processes and threads under a child's uid; about 10 are needed.
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
    /// `memory.high`, bytes: above it they are held up until the kernel has taken memory back; 0 = none.
    pub(crate) memory_high: u64,
    /// `memory.swap.max`, bytes.
    pub(crate) swap_max: u64,
    /// `pids.max`: processes and threads of all of the tenant's children; 0 = none.
    pub(crate) pids_max: u64,
    /// `cpu.max`, per cent of one CPU; 0 = none.
    pub(crate) cpu_max: u64,
    /// `cpu.weight`, 1 to 10000.
    pub(crate) cpu_weight: u64,
    /// `io.weight`, 1 to 10000.
    pub(crate) io_weight: u64,
    /// Children at once; `None`: as `[caps] children_per_tenant` says.
    pub(crate) children: Option<u32>,
    /// Variables over those of the profile.
    pub(crate) environment: BTreeMap<String, String>,
}

/// The limits of all children together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TotalLimits {
    /// `memory.max`, bytes; 0 = none; `None`: by what the machine has.
    pub(crate) memory_max: Option<u64>,
    /// `pids.max`; 0 = none; `None`: by what the machine has.
    pub(crate) pids_max: Option<u64>,
    /// `cpu.weight` beside the supervisor and whatever else is in its cgroup.
    pub(crate) cpu_weight: u64,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Threads that a child needs to start at all, and as many again.
const LEAST_PIDS: u64 = 16;

/// The limits of everybody, and of those who have others.
#[derive(Debug)]
pub(crate) struct LimitsTable {
    all: ChildLimits,
    users: HashMap<TenantId, ChildLimits>,
    total: TotalLimits,
}

impl LimitsTable {
    /// Reads `[limits]`; what is wrong is noted in the sections.
    pub(crate) fn read(root: &mut Section, profile: &Profile) -> Self {
        let mut section = root.section("limits");
        let mut users_section = section.section("users");
        let total = TotalLimits::read(&mut section, profile);
        let all = ChildLimits::read(&mut section, &ChildLimits::DEFAULTS, profile);
        let mut users = HashMap::new();
        for key in users_section.keys() {
            let mut user = users_section.section(&key);
            if let Some(tenant) = key.parse().ok().and_then(|id| TenantId::new(id).ok()) {
                let mut limits = ChildLimits::read(&mut user, &all, profile);
                limits.read_override(&mut user, profile);
                users.insert(tenant, limits);
                user.close();
            } else {
                let what = "is no number: write the number that Forgejo gave the user, which is `id` in the answer of \
                            /api/v1/users/LOGIN, because logins change";
                users_section.complain(&key, what);
            }
        }
        users_section.close();
        section.close();
        Self { all, users, total }
    }

    /// The limits of all children together.
    pub(crate) fn total(&self) -> &TotalLimits {
        &self.total
    }

    /// Who may have how many children at once, where it is not as for everybody.
    pub(crate) fn children(&self) -> HashMap<TenantId, u32> {
        self.users.iter().filter_map(|(&tenant, limits)| Some((tenant, limits.children?))).collect()
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

impl TotalLimits {
    fn read(limits: &mut Section, profile: &Profile) -> Self {
        let mut section = limits.section("total");
        let memory_max = section.has("memory_max").then(|| size(&mut section, "memory_max", 0, profile.least_memory));
        let pids_max = section.has("pids_max").then(|| number(&mut section, "pids_max", 0, LEAST_PIDS, 4_194_304));
        let cpu_weight = section.integer("cpu_weight", 100, 1..=10_000);
        section.close();
        Self { memory_max, pids_max, cpu_weight }
    }
}

/// A size that is none (0) or at least what a child needs.
fn size(section: &mut Section, key: &str, default: u64, least: u64) -> u64 {
    let size = section.size(key, default, 0..=u64::MAX);
    if size != 0 && size < least {
        let least = bytesize::ByteSize(least);
        section.complain(key, format!("must be 0 (none) or at least {least} for this child"));
    }
    size
}

/// A number that is none (0) or at least what a child needs.
fn number(section: &mut Section, key: &str, default: u64, least: u64, most: u64) -> u64 {
    let number = section.integer(key, default, 0..=most);
    if number != 0 && number < least {
        section.complain(key, format!("must be 0 (none) or at least {least} for a child"));
    }
    number
}

impl ChildLimits {
    /// What holds where the policy says nothing.
    pub(crate) const DEFAULTS: Self = Self {
        open_files: 256,
        processes: 256,
        cpu_seconds: 3600,
        file_size: 0,
        data: GIB,
        address_space: 0,
        memory_max: 512 * MIB,
        memory_high: 0,
        swap_max: 0,
        // Half of what the limit of each process alone would let one child have, and enough for eight that work: a child
        // has eight to ten threads.
        pids_max: 128,
        cpu_max: 100,
        cpu_weight: 100,
        io_weight: 100,
        children: None,
        environment: BTreeMap::new(),
    };

    fn read(section: &mut Section, default: &Self, profile: &Profile) -> Self {
        Self {
            open_files: section.integer("open_files", default.open_files, 16..=1_048_576),
            processes: section.integer("processes", default.processes, LEAST_PIDS..=1_048_576),
            cpu_seconds: section.integer("cpu_seconds", default.cpu_seconds, 0..=1_000_000_000),
            file_size: section.size("file_size", default.file_size, 0..=u64::MAX),
            data: size(section, "data", default.data, profile.least_memory),
            address_space: size(section, "address_space", default.address_space, profile.least_address_space),
            memory_max: size(section, "memory_max", default.memory_max, profile.least_memory),
            memory_high: size(section, "memory_high", default.memory_high, profile.least_memory),
            swap_max: section.size("swap_max", default.swap_max, 0..=u64::MAX),
            pids_max: number(section, "pids_max", default.pids_max, LEAST_PIDS, 4_194_304),
            cpu_max: section.integer("cpu_max", default.cpu_max, 0..=100_000),
            cpu_weight: section.integer("cpu_weight", default.cpu_weight, 1..=10_000),
            io_weight: section.integer("io_weight", default.io_weight, 1..=10_000),
            children: default.children,
            environment: default.environment.clone(),
        }
    }

    /// What only a single user has: for all it stands in `[caps]` and `[child.environment]`.
    fn read_override(&mut self, user: &mut Section, profile: &Profile) {
        if user.has("children") {
            self.children = Some(user.integer("children", 8, 1..=1024));
        }
        self.environment = profile.read_extras(user);
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
            // POSIX queues outlive their process and are nobody's to list; without bytes for them none is made, also where
            // no seccomp filter denies it (mq_overview(7)).
            (Resource::RLIMIT_MSGQUEUE, Some(0)),
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
        // cgroup-v2.rst: "$MAX $PERIOD" in microseconds.
        let quota = if self.cpu_max == 0 { "max".to_owned() } else { self.cpu_max.saturating_mul(1000).to_string() };
        vec![
            ("memory.max", or_max(self.memory_max)),
            ("memory.high", or_max(self.memory_high)),
            ("memory.swap.max", self.swap_max.to_string()),
            ("pids.max", or_max(self.pids_max)),
            ("cpu.max", format!("{quota} 100000")),
            ("cpu.weight", self.cpu_weight.to_string()),
            ("io.weight", format!("default {}", self.io_weight)),
        ]
    }
}
