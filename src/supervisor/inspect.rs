//! What is really in force for a running child, asked of the kernel: `/proc/PID/status` and `/proc/PID/limits` (proc(5)).
//!
//! Two small files of one process; the machine is never scanned. Trusts the kernel's text; a line that is missing or
//! reads otherwise counts as no protection, or as a limit that is missing.

use std::fs;
use std::io;

use crate::cgroup::leaf::Leaf;
use wire::inspection::{Bound, Capabilities, Inspection, Process, ProcessLimits};
use wire::message::TenantId;

/// Looks at a running child.
pub(crate) fn child(tenant: TenantId, pid: i32, leaf: Option<&Leaf>) -> io::Result<Inspection> {
    let process = process(pid)?;
    let (user, own) = leaf.map(Leaf::look).unzip();
    Ok(Inspection { tenant, pid: pid.unsigned_abs(), process, user, own })
}

/// Looks at a process that nobody has reaped yet.
fn process(pid: i32) -> io::Result<Process> {
    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}"));
    Ok(parse(&read("status")?, &read("limits")?))
}

fn parse(status: &str, limits: &str) -> Process {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace()
    };
    let ids = |name| {
        let mut ids = field(name).map(|id| id.parse().unwrap_or(0));
        // Where it cannot be read it is root's, which nobody overlooks.
        [(); 4].map(|()| ids.next().unwrap_or(0))
    };
    let number = |name: &str| field(name).next().and_then(|n| n.parse().ok()).unwrap_or(0);
    // All of them where it cannot be read.
    let set = |name: &str| field(name).next().and_then(|n| u64::from_str_radix(n, 16).ok()).unwrap_or(u64::MAX);
    let limit = |name| hard_limit(limits, name);
    Process {
        uids: ids("Uid"),
        gids: ids("Gid"),
        threads: number("Threads"),
        no_new_privs: number("NoNewPrivs") == 1,
        seccomp: number("Seccomp"),
        capabilities: Capabilities {
            inheritable: set("CapInh"),
            permitted: set("CapPrm"),
            effective: set("CapEff"),
            bounding: set("CapBnd"),
            ambient: set("CapAmb"),
        },
        limits: ProcessLimits {
            open_files: limit("Max open files"),
            processes: limit("Max processes"),
            cpu_seconds: limit("Max cpu time"),
            file_size: limit("Max file size"),
            data: limit("Max data size"),
            address_space: limit("Max address space"),
            core: limit("Max core file size"),
        },
    }
}

/// The second column of numbers: "Max open files  256  256  files".
fn hard_limit(limits: &str, name: &str) -> Bound {
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    match line.and_then(|line| line.split_whitespace().nth(1)) {
        Some("unlimited") => Bound::Unlimited,
        Some(number) => number.parse().map_or(Bound::Missing, Bound::At),
        None => Bound::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read_as_it_is_written() {
        let status = "Name:\tsh\nThreads:\t3\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nNoNewPrivs:\t1\nSeccomp:\t2\n\
                      CapInh:\t0000000000000000\nCapPrm:\t00000000000000ff\nCapEff:\t0000000000000000\n\
                      CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n";
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max cpu time              10                   20                   seconds   \n\
                      Max file size             0                    0                    bytes     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max open files            256                  512                  files     \n";
        let seen = parse(status, limits);
        assert_eq!((seen.uids, seen.gids, seen.threads), ([1, 2, 3, 4], [5, 6, 7, 8], 3));
        assert_eq!((seen.no_new_privs, seen.seccomp, seen.capabilities.permitted), (true, 2, 0xff));
        let limits = seen.limits;
        assert_eq!((limits.cpu_seconds, limits.file_size), (Bound::At(20), Bound::At(0)));
        assert_eq!((limits.data, limits.open_files, limits.core), (Bound::Unlimited, Bound::At(512), Bound::Missing));
    }

    #[test]
    fn what_cannot_be_read_counts_as_unprotected() {
        let seen = parse("", "");
        assert_eq!((seen.uids, seen.no_new_privs, seen.seccomp), ([0; 4], false, 0));
        assert_eq!((seen.capabilities.effective, seen.limits.open_files), (u64::MAX, Bound::Missing));
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let seen = process(std::process::id().cast_signed()).expect("it runs");
        assert_eq!(seen.uids[0], nix::unistd::getuid().as_raw());
        assert!(seen.threads > 0);
    }
}
