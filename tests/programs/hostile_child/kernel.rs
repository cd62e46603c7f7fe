//! Attacks on the kernel and its objects: what outlives the process, what gains rights, what exploits begin with.

use std::process::{Command, Stdio};

use crate::Rows;
use crate::system_call::{Argument, attempt, call};

/// linux/capability.h
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Calls that take their place in a list below by name and number alone: what keeps them out is the number.
const BY_NUMBER: [(&str, libc::c_long); 41] = [
    ("shmget", libc::SYS_shmget),
    ("shmat", libc::SYS_shmat),
    ("shmctl", libc::SYS_shmctl),
    ("semget", libc::SYS_semget),
    ("semop", libc::SYS_semop),
    ("msgget", libc::SYS_msgget),
    ("msgsnd", libc::SYS_msgsnd),
    ("mq_open", libc::SYS_mq_open),
    ("mq_unlink", libc::SYS_mq_unlink),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_setup", libc::SYS_io_setup),
    ("add_key", libc::SYS_add_key),
    ("request_key", libc::SYS_request_key),
    ("keyctl", libc::SYS_keyctl),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("bpf", libc::SYS_bpf),
    ("memfd_secret", libc::SYS_memfd_secret),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("vmsplice", libc::SYS_vmsplice),
    ("remap_file_pages", libc::SYS_remap_file_pages),
    ("mbind", libc::SYS_mbind),
    ("process_mrelease", libc::SYS_process_mrelease),
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("fsopen", libc::SYS_fsopen),
    ("open_tree", libc::SYS_open_tree),
    ("statmount", 457),
    ("listmount", 458),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("lookup_dcookie", libc::SYS_lookup_dcookie),
    ("init_module", libc::SYS_init_module),
    ("kexec_load", libc::SYS_kexec_load),
    ("syslog", libc::SYS_syslog),
    ("quotactl", libc::SYS_quotactl),
    ("adjtimex", libc::SYS_adjtimex),
    ("sethostname", libc::SYS_sethostname),
    ("clone3", libc::SYS_clone3),
];

pub(crate) fn attack(rows: &mut Rows) {
    for (name, number) in BY_NUMBER {
        rows.push((format!("call: {name}"), attempt(number, [])));
    }
    let mut row = |what: &str, ended| rows.push((what.to_owned(), ended));
    for (name, flags) in [("user", libc::CLONE_NEWUSER), ("mount", libc::CLONE_NEWNS), ("network", libc::CLONE_NEWNET)]
    {
        row(&format!("unshare: {name}"), attempt(libc::SYS_unshare, [flags.into()]));
        // With a wrong combination behind it the kernel refuses in its own name, and nothing is cloned.
        let flags = flags | libc::CLONE_THREAD;
        row(&format!("clone: {name}"), attempt(libc::SYS_clone, [flags.into()]));
    }
    row("personality: asked", attempt(libc::SYS_personality, [0xffff_ffff_i64.into()]));
    row("personality: without address randomisation", attempt(libc::SYS_personality, [0x0004_0000.into()]));
    let timer = |clock: i64| {
        let mut id = [0_u8; 8];
        attempt(libc::SYS_timer_create, [clock.into(), 0.into(), (&mut id[..]).into()])
    };
    row("timer: monotonic", timer(libc::CLOCK_MONOTONIC.into()));
    row("timer: of CPU time", timer(libc::CLOCK_PROCESS_CPUTIME_ID.into()));
    row("timer: of another's CPU time", timer(-6));
    row("a call newer than the lists", attempt(470, []));
    row("a call of x32", attempt(0x4000_0000 + libc::SYS_getpid, []));
    rights(&mut row);
    row("landlock", landlock());
}

/// What would make it more than it is.
fn rights(row: &mut impl FnMut(&str, String)) {
    row("become root", attempt(libc::SYS_setresuid, [0.into(), 0.into(), 0.into()]));
    row("take root's group", attempt(libc::SYS_setresgid, [0.into(), 0.into(), 0.into()]));
    row("take groups", attempt(libc::SYS_setgroups, [1.into(), (&mut [0_u8; 4][..]).into()]));
    let mut header = CAPABILITY_VERSION_3.to_ne_bytes().to_vec();
    header.extend([0; 4]);
    row(
        "take capabilities",
        attempt(libc::SYS_capset, [header.as_mut_slice().into(), (&mut [0xff_u8; 24][..]).into()]),
    );
    let prctl =
        |option: i32, value: i64| attempt(libc::SYS_prctl, [option.into(), value.into(), 0.into(), 0.into(), 0.into()]);
    row("drop no_new_privs", prctl(libc::PR_SET_NO_NEW_PRIVS, 0));
    row("drop seccomp", prctl(libc::PR_SET_SECCOMP, 0));
    // This very program has the set-user-ID bit, and is root's.
    let itself = |argument: &str| {
        std::env::current_exe().and_then(|program| Command::new(program).arg(argument).stderr(Stdio::null()).output())
    };
    let ended = itself("i386").map_or_else(|e| e.to_string(), |output| output.status.to_string());
    row("a call of another architecture", ended.split(" (").next().unwrap_or_default().replace(": ", " "));
    let uid =
        itself("whoami").map_or_else(|e| e.to_string(), |said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
    row("run a set-user-ID program: uid", uid);
    let limit = |mut wanted: Vec<u8>| {
        let resource = i64::from(libc::RLIMIT_CORE);
        attempt(libc::SYS_prlimit64, [0.into(), resource.into(), wanted.as_mut_slice().into()])
    };
    row("allow itself cores", limit(vec![0xff; 16]));
    // What keeps a handler behind a pipe from its environment: 1, and not 0.
    let mut found = [0_u8; 16];
    let asked: [Argument<'_>; 4] = [0.into(), i64::from(libc::RLIMIT_CORE).into(), 0.into(), (&mut found[..]).into()];
    let asked = call(libc::SYS_prlimit64, asked);
    row("core limit", asked.map_or_else(|e| format!("{e:?}"), |_| format!("{}", found.first().copied().unwrap_or(0))));
}

/// The version of Landlock's interface, for the reader of the rows.
fn landlock() -> String {
    let version = call(libc::SYS_landlock_create_ruleset, [0.into(), 0.into(), 1.into()]);
    version.map_or_else(|errno| format!("{errno:?}"), |version| version.to_string())
}
