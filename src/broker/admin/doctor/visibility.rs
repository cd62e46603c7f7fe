//! What children see of each other: names in `/proc`, and memory under the same uid. As the supervisor read it from the
//! kernel and from the child program; neither is needed for the isolation to hold, so both are notes.

use super::{finding, good};
use crate::admin::api::{Finding, State as Health};
use wire::message::Status;

/// A finding each.
pub(super) fn look(status: &Status) -> [Finding; 2] {
    let list = "isolation: list of processes";
    let list = if status.proc_hidden {
        good(list, "children find their own processes alone")
    } else {
        let advice = "ProtectProc=invisible in the supervisor's unit, as it is packaged, or /proc mounted with \
                      hidepid=invisible: children read names, arguments and cgroups of all processes of this machine";
        finding(list, Health::Note, "children find all processes in /proc", Some(advice))
    };
    let memory = "isolation: dumpable";
    let memory = if status.undumpable {
        good(memory, "children are not: their memory is closed also to processes of the same uid")
    } else {
        let advice = "give the child program mode 0711: whoever may run it and not read it gets a process whose memory the \
                      kernel closes also to processes that it started (a script must be readable)";
        finding(memory, Health::Note, "the child program can be read by everybody", Some(advice))
    };
    [list, memory]
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::message::{Enforced, Isolation};

    #[test]
    fn what_children_see_of_others_is_told_with_what_to_do() {
        let isolation = Isolation { own_uid: true, cgroup: true, landlock: true, seccomp: true };
        let status = |proc_hidden, undumpable| Status {
            isolation,
            children: 0,
            max_children: 1,
            tenants: 0,
            uids_free: 1,
            uids_unclean: 0,
            enforced: Enforced::default(),
            all: None,
            landlock_abi: 0,
            proc_hidden,
            undumpable,
        };
        let told = |proc_hidden, undumpable| look(&status(proc_hidden, undumpable)).map(|found| found.advice);
        assert_eq!(told(true, true), [None, None]);
        let [Some(list), None] = told(false, true) else { panic!("the list of processes is not told of") };
        assert!(list.contains("ProtectProc=") && list.contains("hidepid="), "{list}");
        let [None, Some(memory)] = told(true, false) else { panic!("the mode of the program is not told of") };
        assert!(memory.contains("0711"), "{memory}");
    }
}
