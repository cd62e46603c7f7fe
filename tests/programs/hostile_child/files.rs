//! Attacks on files: writing one anywhere, reading what is the supervisor's, the broker's or root's.

use std::fs;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, symlink};

use crate::system_call::{attempt, call, outcome, told};
use crate::{Rows, Targets};

/// Where everybody may write on an ordinary machine, and where a mistake would let them.
const DIRECTORIES: [&str; 14] = [
    ".",
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/dev",
    "/run",
    "/run/lock",
    "/var/lib",
    "/var/log",
    "/home",
    "/root",
    "/etc",
    "/usr/bin",
    "/sys/fs/cgroup",
];
/// Files and devices to write to.
const WRITTEN: [&str; 17] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/console",
    "/dev/kmsg",
    "/dev/mem",
    "/dev/fuse",
    "/dev/kvm",
    "/dev/net/tun",
    "/proc/self/comm",
    "/proc/self/oom_score_adj",
    "/proc/self/coredump_filter",
    "/proc/self/uid_map",
    "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger",
];
const READ: [&str; 6] =
    ["/etc/shadow", "/proc/1/environ", "/proc/kcore", "/proc/keys", "/dev/mem", "/sys/fs/cgroup/cgroup.procs"];

pub(crate) fn attack(targets: &Targets, rows: &mut Rows) {
    let open = targets.text("open_directory");
    for dir in DIRECTORIES.into_iter().chain([open]) {
        let name = if dir == open { "a directory of everybody's" } else { dir };
        let mut row = |what: &str, ended| rows.push((format!("{what} {name}"), ended));
        let path = format!("{dir}/hostile-child");
        row("create a file in", told(File::create_new(&path)));
        row("create a nameless file in", told(OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(dir)));
        row("create a directory in", told(fs::create_dir(&path)));
        row("create a link in", told(symlink("/", &path)));
    }
    for path in WRITTEN {
        rows.push((format!("write {path}"), told(OpenOptions::new().write(true).open(path))));
    }
    for path in READ {
        rows.push((
            format!("read {path}"),
            told(File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut [0; 16]))),
        ));
    }
    let mut row = |what: &str, ended| rows.push((what.to_owned(), ended));
    row("list cgroups", told(fs::read_dir("/sys/fs/cgroup")));
    row("read a file of everybody's", told(File::open(format!("{open}/readable"))));
    row("remove a file of everybody's", told(fs::remove_file(format!("{open}/readable"))));
    row("open the program for writing", told(OpenOptions::new().write(true).open("/proc/self/exe")));
    row(
        "make a device",
        attempt(
            libc::SYS_mknodat,
            [
                libc::AT_FDCWD.into(),
                (&mut b"/tmp/hostile-null\0".to_owned()[..]).into(),
                (libc::S_IFCHR | 0o666).into(),
                0x103.into(),
            ],
        ),
    );
    row(
        "make a pipe with a name",
        attempt(
            libc::SYS_mknodat,
            [
                libc::AT_FDCWD.into(),
                (&mut b"/tmp/hostile-pipe\0".to_owned()[..]).into(),
                (libc::S_IFIFO | 0o666).into(),
            ],
        ),
    );
    in_memory(&mut row);
}

/// A file without a place can be made and run, but with `file_size = 0` nothing can be written into it.
fn in_memory(row: &mut impl FnMut(&str, String)) {
    match call(libc::SYS_memfd_create, [(&mut b"x\0".to_owned()[..]).into(), 0.into()]) {
        Ok(file) => {
            row("make a file in memory", "done".to_owned());
            // Its signal, which would end this program.
            let _ = nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGXFSZ).thread_block();
            row(
                "fill a file in memory",
                attempt(libc::SYS_write, [file.into(), (&mut b"#!".to_owned()[..]).into(), 2.into()]),
            );
            let mut empty = *b"\0";
            // Nothing to run: past the checks of whether it may.
            row(
                "run a file in memory",
                attempt(
                    libc::SYS_execveat,
                    [file.into(), (&mut empty[..]).into(), 0.into(), 0.into(), libc::AT_EMPTY_PATH.into()],
                ),
            );
        }
        Err(errno) => row("make a file in memory", outcome::<()>(Err(errno))),
    }
}
