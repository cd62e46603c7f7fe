//! What a running program has used, by /proc.

use std::fs;
use std::time::Duration;

use crate::deployment::{Process, Running};

/// Resident memory in KiB.
pub fn resident(program: Option<&Running>) -> u64 {
    let Some(pid) = program.map(Running::pid) else { return 0 };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = Process { pid, status }.field("VmRSS");
    field.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or_default()
}

/// Open descriptors.
pub fn descriptors(program: Option<&Running>) -> usize {
    let dir = program.map(|program| fs::read_dir(format!("/proc/{}/fd", program.pid())));
    dir.and_then(Result::ok).map_or(0, Iterator::count)
}

/// Processor time of the threads that a process has now, to the nanosecond: /proc/PID/stat counts hundredths of a second.
pub fn processor_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = threads.filter_map(|thread| {
        let told = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        told.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}
