//! Limits of a child: resource limits (setrlimit(2)) and what its cgroup is given.
//!
//! Both ends are set to the same number, because programs raise the soft end to the hard one. Numbers above what
//! this process itself may have are cut down to that before the fork.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use tracing::warn;

use crate::config_file::Section;

/// For one user's children. Resource limits count per process, but `processes`, which the kernel counts per uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `RLIMIT_NOFILE`.
    pub open_files: u64,
    /// `RLIMIT_NPROC`: threads of all children of the user together. A Go child has 7 to 10.
    pub processes: u64,
    /// `RLIMIT_CPU` in seconds; 0 for none.
    pub cpu_seconds: u64,
    /// `RLIMIT_FSIZE` in bytes. The known programs write no file.
    pub file_size: u64,
    /// `RLIMIT_DATA` in bytes; 0 for none.
    pub data: u64,
    /// `RLIMIT_AS` in bytes; 0 for none. Go reserves address space that it never uses: below 4 GiB it dies on work
    /// that fits in far less memory.
    pub address_space: u64,
    /// `memory.max` of the user's cgroup in bytes.
    pub memory_max: u64,
    /// `memory.swap.max` in bytes.
    pub swap_max: u64,
    /// `pids.max`.
    pub pids_max: u64,
    /// `cpu.max` in percent of one processor.
    pub cpu_percent: u64,
    /// `cpu.weight`, 1 to 10000.
    pub cpu_weight: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            open_files: 256,
            processes: 256,
            cpu_seconds: 0,
            file_size: 0,
            data: 1024 * MIB,
            address_space: 0,
            memory_max: 1024 * MIB,
            swap_max: 0,
            pids_max: 256,
            cpu_percent: 200,
            cpu_weight: 100,
        }
    }
}

impl Limits {
    /// Reads a table of limits; what is absent is as in `base`.
    pub fn read(mut section: Section, base: &Self) -> Self {
        const TIB: u64 = 1 << 40;
        let limits = Self {
            open_files: section.integer("open_files", base.open_files, 16..=1_048_576),
            processes: section.integer("processes", base.processes, 4..=100_000),
            cpu_seconds: section.integer("cpu_seconds", base.cpu_seconds, 0..=31_536_000),
            file_size: section.size("file_size", base.file_size, 0..=TIB),
            data: section.size("data", base.data, 0..=TIB),
            address_space: section.size("address_space", base.address_space, 0..=TIB),
            memory_max: section.size("memory_max", base.memory_max, 16 << 20..=TIB),
            swap_max: section.size("swap_max", base.swap_max, 0..=TIB),
            pids_max: section.integer("pids_max", base.pids_max, 4..=100_000),
            cpu_percent: section.integer("cpu_percent", base.cpu_percent, 1..=100_000),
            cpu_weight: section.integer("cpu_weight", base.cpu_weight, 1..=10_000),
        };
        section.close();
        limits
    }

    /// The resource limits as they can be set from here, for the child to set without asking anything.
    pub fn resources(&self) -> Vec<(Resource, rlim_t)> {
        let wanted = [
            (Resource::RLIMIT_CORE, Some(0)),
            (Resource::RLIMIT_NOFILE, Some(self.open_files)),
            (Resource::RLIMIT_NPROC, Some(self.processes)),
            (Resource::RLIMIT_FSIZE, Some(self.file_size)),
            (Resource::RLIMIT_CPU, (self.cpu_seconds > 0).then_some(self.cpu_seconds)),
            (Resource::RLIMIT_DATA, (self.data > 0).then_some(self.data)),
            (Resource::RLIMIT_AS, (self.address_space > 0).then_some(self.address_space)),
        ];
        let possible = wanted.into_iter().filter_map(|(resource, limit)| {
            // Raising a hard limit needs CAP_SYS_RESOURCE, which a container may not have.
            let hard = getrlimit(resource).map_or(rlim_t::MAX, |(_, hard)| hard);
            Some((resource, limit?.min(hard)))
        });
        possible.collect()
    }
}

/// No core file of this process: it holds tokens for as long as a child takes to start.
pub fn no_core_files() {
    if let Err(e) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        warn!(error = %e, "core files cannot be switched off");
    }
}
