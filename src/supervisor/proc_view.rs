//! How much of the machine's processes `/proc` shows to a child, which sees it through the supervisor's mount namespace.
//!
//! Trusts the kernel's table of mounts. What cannot be read counts as not hidden.

use std::fs;

/// Whether a child finds only its own processes there: the mount option `hidepid` with the value `invisible` or
/// `ptraceable` (proc(5)), which `ProtectProc=` of a unit sets (systemd.exec(5)).
pub(crate) fn is_small() -> bool {
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| hides(&mounts))
}

/// Of a table as proc(5) describes it. Later lines are mounted over earlier ones.
fn hides(mounts: &str) -> bool {
    let mut proc = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (point, mut after) = (before.split(' ').nth(4)?, after.split(' '));
        (point == "/proc").then(|| (after.next() == Some("proc")).then(|| after.nth(1)).flatten())
    });
    let options = proc.next_back().flatten().unwrap_or_default();
    let mut hiding = options.split(',').filter_map(|option| option.strip_prefix("hidepid="));
    // Numbers are what kernels before 5.8 show.
    hiding.any(|how| matches!(how, "invisible" | "2" | "ptraceable" | "4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_hides_other_processes_from_the_list_counts() {
        let line = |options: &str| {
            format!("22 1 0:20 / /sys rw - sysfs sysfs rw\n23 1 0:21 / /proc rw,nosuid - proc proc {options}\n")
        };
        for (options, hidden) in [
            ("rw", false),
            ("rw,hidepid=invisible", true),
            ("rw,hidepid=2", true),
            ("rw,gid=4,hidepid=ptraceable,subset=pid", true),
            ("rw,hidepid=4", true),
            // Their contents, and not that they are there.
            ("rw,hidepid=noaccess", false),
            ("rw,hidepid=1", false),
            ("rw,hidepid=off", false),
        ] {
            assert_eq!(hides(&line(options)), hidden, "{options}");
        }
        assert!(!hides(""), "what cannot be read");
        assert!(!hides(&(line("rw,hidepid=2") + "24 23 0:22 / /proc rw - proc proc rw\n")), "another one over it");
        assert!(
            hides(&(line("rw,hidepid=2") + "24 23 0:22 / /proc/sys ro - proc proc rw\n")),
            "a part of it elsewhere"
        );
        assert!(!hides(&(line("rw,hidepid=2") + "24 23 0:22 / /proc rw - tmpfs tmpfs rw,hidepid=2\n")));
    }
}
