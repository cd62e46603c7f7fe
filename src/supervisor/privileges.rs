//! What root's process gives up at start: every capability that it does not use, and whatever it was started with.
//!
//! Trusts nothing that the calls answer: what is left is read back from the kernel (proc(5), `/proc/PID/status`), and a
//! supervisor that holds more than it should does not start. The capabilities are those of capabilities(7):
//!
//! - `CAP_SETUID`, `CAP_SETGID`: a child becomes its user's uid and gid; to kill all of a uid, the supervisor becomes it.
//! - `CAP_KILL`: children are signalled, who run under other uids.
//! - `CAP_SYS_RESOURCE`, where the service manager leaves it: a child's limit may lie above the supervisor's own hard one.
//!
//! Nothing else needs one. cgroup files, the policy and the program belong to root, and an owner is let in without
//! `CAP_DAC_OVERRIDE` (a file that is another's, or in a directory that is, is refused anyway). Raising `oom_score_adj` and
//! niceness is everybody's right. `/proc/PID/status` is readable for all; where `hidepid=` hides it, its group decides, which
//! is root's unless `gid=` says otherwise. Landlock and seccomp take `no_new_privs` for `CAP_SYS_ADMIN`. The one use of
//! `CAP_CHOWN`, the group of a socket made by `--listen`, is over by then.
//!
//! The sets for exec go as well (bounding, inheritable, ambient): a program that root's process would run gets nothing.
//! The securebits stay as they are, so that the permitted set becomes effective again when the uid becomes 0 again.

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Without these no child can be started or stopped.
const NEEDED: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::KILL);
/// What is kept where it is there.
const KEPT: CapabilitySet = NEEDED.union(CapabilitySet::SYS_RESOURCE);

/// Why the supervisor does not hold what it should, and nothing else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegeError {
    /// The service manager left too little.
    #[error("CAP_SETUID, CAP_SETGID and CAP_KILL are needed (CapabilityBoundingSet=), and not all are there: {0:#x}")]
    Missing(u64),
    /// One of the calls failed.
    #[error("{0}: {1}")]
    Call(&'static str, Errno),
    /// The kernel's list cannot be read.
    #[error("reading /proc/self/status: {0}")]
    Status(#[from] io::Error),
    /// The kernel's list says something else than was asked for.
    #[error(
        "{set} is {is:#x} and must be within {most:#x}: leave no more in CapabilityBoundingSet=, or CAP_SETPCAP too"
    )]
    Left {
        /// As `/proc/self/status` calls it.
        set: &'static str,
        /// What it says.
        is: u64,
        /// What it may say.
        most: u64,
    },
}

/// Gives up what is not needed and proves it. For root, when all that needs more is done.
pub(crate) fn give_up() -> Result<(), PrivilegeError> {
    let call = |what| move |e| PrivilegeError::Call(what, e);
    let have = capabilities(None).map_err(call("capget"))?.permitted;
    if !have.contains(NEEDED) {
        return Err(PrivilegeError::Missing(have.bits()));
    }
    let kept = have.intersection(KEPT);
    empty_bounding_set().map_err(call("PR_CAPBSET_DROP"))?;
    clear_ambient_capability_set().map_err(call("PR_CAP_AMBIENT_CLEAR_ALL"))?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(call("capset"))?;
    prove(&std::fs::read_to_string("/proc/self/status")?, kept.bits())
}

/// As far as it can be: without `CAP_SETPCAP` it stays as the service manager made it, which [`prove`] judges.
fn empty_bounding_set() -> Result<(), Errno> {
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match capability_is_in_bounding_set(capability) {
            Ok(true) => match remove_capability_from_bounding_set(capability) {
                Err(Errno::PERM) | Ok(()) => {}
                Err(e) => return Err(e),
            },
            Ok(false) => {}
            // Beyond the last that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Judges the kernel's list; a line that is missing counts as everything.
fn prove(status: &str, kept: u64) -> Result<(), PrivilegeError> {
    for (set, most) in [("CapPrm", kept), ("CapEff", kept), ("CapBnd", KEPT.bits()), ("CapInh", 0), ("CapAmb", 0)] {
        let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':'));
        let is = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(u64::MAX);
        if is & !most != 0 {
            return Err(PrivilegeError::Left { set, is, most });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_more_than_is_kept_or_cannot_be_read_does_not_start() {
        // CAP_KILL 5, CAP_SETGID 6, CAP_SETUID 7, CAP_SYS_RESOURCE 24 (linux/capability.h).
        assert_eq!((NEEDED.bits(), KEPT.bits()), (0xe0, 0x0100_00e0));
        let status = |prm: &str, eff: &str, bnd: &str, inh: &str| {
            format!(
                "Name:\tx\nCapInh:\t{inh}\nCapPrm:\t{prm}\nCapEff:\t{eff}\nCapBnd:\t{bnd}\nCapAmb:\t0000000000000000\n"
            )
        };
        let none = "0000000000000000";
        for (status, good) in [
            (status("00000000000000e0", "00000000000000e0", none, none), true),
            (status("00000000000000e0", "00000000000000e0", "00000000010000e0", none), true),
            (status("00000000000000e2", "00000000000000e0", none, none), false),
            (status("00000000000000e0", "00000000000000e2", none, none), false),
            (status("00000000000000e0", "00000000000000e0", "000001ffffffffff", none), false),
            (status("00000000000000e0", "00000000000000e0", none, "0000000000000001"), false),
            (status("", "00000000000000e0", none, none), false),
            (String::new(), false),
        ] {
            assert_eq!(prove(&status, 0xe0).is_ok(), good, "{status}");
        }
    }
}
