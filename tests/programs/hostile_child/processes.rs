//! Attacks on other processes: another tenant's child, another session of the same tenant, the supervisor.

use std::fs;
use std::fs::File;

use crate::system_call::{attempt, call, told};
use crate::{Rows, Targets};

/// linux/ptrace.h
const PTRACE_SEIZE: i32 = 0x4206;
/// The ordinary class of linux/ioprio.h.
const BEST_EFFORT: i32 = 2 << 13;

pub(crate) fn attack(targets: &Targets, rows: &mut Rows) {
    for who in ["stranger", "sibling", "supervisor"] {
        let pid = targets.number(who);
        let mut row = |what: &str, ended| rows.push((format!("{who}: {what}"), ended));
        for file in ["environ", "mem", "maps", "auxv", "cmdline", "cgroup"] {
            let read = File::open(format!("/proc/{pid}/{file}"))
                .and_then(|mut file| std::io::Read::read(&mut file, &mut [0; 16]));
            row(&format!("read {file}"), told(read));
        }
        row("list fd", told(fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count)));
        row("read fd 0", told(File::open(format!("/proc/{pid}/fd/0"))));
        row("root directory", told(fs::read_dir(format!("/proc/{pid}/root/"))));
        row("write oom_score_adj", told(fs::write(format!("/proc/{pid}/oom_score_adj"), "1000")));
        on_a_process(pid, &mut row);
    }
    rows.push(("signal everybody".to_owned(), attempt(libc::SYS_kill, [(-1).into(), libc::SIGKILL.into()])));
}

fn on_a_process(pid: i64, row: &mut impl FnMut(&str, String)) {
    row("signal", attempt(libc::SYS_kill, [pid.into(), libc::SIGCONT.into()]));
    row("signal a thread", attempt(libc::SYS_tgkill, [pid.into(), pid.into(), libc::SIGCONT.into()]));
    match call(libc::SYS_pidfd_open, [pid.into()]) {
        Ok(pidfd) => {
            row("signal by pidfd", attempt(libc::SYS_pidfd_send_signal, [pidfd.into(), libc::SIGCONT.into()]));
            row("take a descriptor", attempt(libc::SYS_pidfd_getfd, [pidfd.into(), 0.into()]));
            row("advise its memory", attempt(libc::SYS_process_madvise, [pidfd.into()]));
            row("enter its namespaces", attempt(libc::SYS_setns, [pidfd.into(), libc::CLONE_NEWNS.into()]));
        }
        Err(errno) => row("signal by pidfd", format!("{errno:?}")),
    }
    row("ptrace", attempt(libc::SYS_ptrace, [PTRACE_SEIZE.into(), pid.into()]));
    row("read its memory", attempt(libc::SYS_process_vm_readv, [pid.into()]));
    row("write its memory", attempt(libc::SYS_process_vm_writev, [pid.into()]));
    row("compare with it", attempt(libc::SYS_kcmp, [pid.into(), pid.into()]));
    row("move its pages", attempt(libc::SYS_move_pages, [pid.into()]));
    row(
        "its robust list",
        attempt(libc::SYS_get_robust_list, [pid.into(), (&mut [0_u8; 8][..]).into(), (&mut [0_u8; 8][..]).into()]),
    );
    row("renice", attempt(libc::SYS_setpriority, [libc::PRIO_PROCESS.into(), pid.into(), 19.into()]));
    let mut all = [0xff_u8; 128];
    row("its processors", attempt(libc::SYS_sched_setaffinity, [pid.into(), 128.into(), (&mut all[..]).into()]));
    let mut priority = [0_u8; 4];
    row(
        "its scheduler",
        attempt(libc::SYS_sched_setscheduler, [pid.into(), libc::SCHED_BATCH.into(), (&mut priority[..]).into()]),
    );
    row("its scheduler's attributes", attempt(libc::SYS_sched_setattr, [pid.into(), (&mut [0_u8; 64][..]).into()]));
    row("its disk priority", attempt(libc::SYS_ioprio_set, [1.into(), pid.into(), BEST_EFFORT.into()]));
    // No limit: this alone would not harm it if it went through.
    let mut limit = [0xff_u8; 16];
    let resource = i64::from(libc::RLIMIT_CPU);
    row("set its limits", attempt(libc::SYS_prlimit64, [pid.into(), resource.into(), (&mut limit[..]).into()]));
    let mut limit = [0_u8; 16];
    row(
        "read its limits",
        attempt(libc::SYS_prlimit64, [pid.into(), resource.into(), 0.into(), (&mut limit[..]).into()]),
    );
}
