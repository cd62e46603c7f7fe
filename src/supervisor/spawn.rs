//! Between fork and exec: how a process of the supervisor becomes a child that can do nothing but its work.
//!
//! `unsafe` is opened for this module: code between fork and exec may only make system calls, which `pre_exec` cannot
//! check, and a few of them have no safe wrapper. The supervisor has one thread, so the fork copies no lock that
//! somebody else holds; and it stays small, because the cost of a fork grows with its parent.
//!
//! The order of [`confine`] is a contract with README; every step's failure ends the start.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, getpid, getppid, pipe2, setgroups, setresgid, setresuid, setsid};
use seccompiler::BpfProgram;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::config::Profile;
use super::sandbox;
use super::uid::{ChildUid, Range};
use crate::ipc::message::StartStep;
use crate::secret::UpstreamToken;

/// What holds every child, prepared once.
#[derive(Debug, Default)]
pub struct Cage {
    /// A Landlock ruleset.
    pub landlock: Option<OwnedFd>,
    /// Seccomp filters.
    pub seccomp: Vec<BpfProgram>,
}

/// What holds one child.
#[derive(Debug)]
pub struct Confinement {
    /// The uid and gid to become; `None` keeps the supervisor's.
    pub uid: Option<ChildUid>,
    /// Resource limits.
    pub resources: Vec<(Resource, rlim_t)>,
    /// `cgroup.procs` of the tenant's group.
    pub cgroup: Option<OwnedFd>,
}

/// A child that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Readable when the process has ended (`pidfd_open(2)`).
    pidfd: AsyncFd<OwnedFd>,
}

/// The broker's ends of the child's standard input, output and error.
#[derive(Debug)]
pub struct Pipes(pub [OwnedFd; 3]);

/// Why a child was not started.
#[derive(Debug, thiserror::Error)]
#[error("{step:?} failed: {source}")]
pub struct StartError {
    /// What was being done.
    pub step: StartStep,
    /// Why it failed.
    pub source: io::Error,
}

/// Starts one child. Must be called within the supervisor's runtime, from its only thread.
pub fn start(
    profile: &Profile,
    token: &UpstreamToken,
    cage: &Cage,
    hold: Confinement,
) -> Result<(Process, Pipes), StartError> {
    let failed = |step| move |source: io::Error| StartError { step, source };
    let pipes =
        || -> io::Result<_> { Ok((pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?)) };
    let ((stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr)) =
        pipes().map_err(failed(StartStep::Pipes))?;
    let mut command = Command::new(&profile.program);
    command.args(&profile.arguments).env_clear();
    for (name, value) in &profile.environment {
        command.env(name, value);
    }
    command.env(&profile.url.0, &profile.url.1);
    for name in &profile.token_variables {
        command.env(name, token.expose());
    }
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr)).current_dir("/");
    let parent = getpid();
    let landlock = cage.landlock.as_ref().map(AsRawFd::as_raw_fd);
    let seccomp = cage.seccomp.clone();
    // SAFETY: `confine` only makes system calls on values that were prepared before the fork: it neither allocates
    // nor takes a lock, and this process has one thread.
    // JUSTIFICATION: limits, ids and filters must be set in the child itself, after the fork and before the exec.
    unsafe { command.pre_exec(move || confine(&hold, parent, landlock, &seccomp)) };
    let mut child = command.spawn().map_err(failed(StartStep::Exec))?;
    match pidfd(child.id()) {
        Ok(pidfd) => Ok((Process { child, pidfd }, Pipes([to_stdin, from_stdout, from_stderr]))),
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(failed(StartStep::Exec)(e))
        }
    }
}

/// Runs in the child. System calls only.
fn confine(hold: &Confinement, parent: Pid, landlock: Option<RawFd>, seccomp: &[BpfProgram]) -> io::Result<()> {
    if let Some(cgroup) = &hold.cgroup {
        nix::unistd::write(cgroup, b"0")?;
    }
    // Everything but standard input, output and error closes at exec, whoever opened it and however.
    // SAFETY: marks descriptors, touches no memory.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    setsid()?;
    umask(Mode::from_bits_truncate(0o077));
    for &(resource, limit) in &hold.resources {
        setrlimit(resource, limit, limit)?;
    }
    if let Some(uid) = hold.uid {
        setgroups(&[])?;
        let (uid, gid) = (Uid::from_raw(uid.get()), Gid::from_raw(uid.get()));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    // After the change of ids, which clears it (prctl(2)).
    // SAFETY: sets flags of this process, touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }.into())?;
    // A parent that died before that line sends no signal any more.
    if getppid() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: as above.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    if let Some(rules) = landlock {
        // SAFETY: takes a descriptor, touches no memory.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) })?;
    }
    for filter in seccomp {
        sandbox::install(filter)?;
    }
    // Nothing above may have left a way back; if one is left, no program is started.
    if hold.uid.is_some() && setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(io::Error::from_raw_os_error(libc::ENOTRECOVERABLE));
    }
    Ok(())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn pidfd(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: makes a descriptor, touches no memory.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    check(number)?;
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    // SAFETY: pidfd_open has just made this descriptor; nobody else knows its number.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: an OwnedFd is open for as long as it lives and always names the same descriptor.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(|e| e.into_parts().1)
}

impl Process {
    /// The pid; names this process until [`Process::reap`].
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resolves when the process has ended. It stays a zombie, so that its pid and its group's stay its own.
    pub async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(|mut ready| ready.retain_ready())
    }

    /// Signals the process and everything that it left in its group.
    pub fn signal_group(&self, signal: Signal) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // ESRCH: nobody is left, which is what the signal is for.
            let _ = kill(Pid::from_raw(group.saturating_neg()), signal);
        }
    }

    /// Kills what is left of its group and reaps it. Call it after [`Process::ended`], or it waits.
    pub fn reap(mut self) -> io::Result<std::process::ExitStatus> {
        // Before the reaping: afterwards the number could be somebody else's.
        self.signal_group(Signal::SIGKILL);
        self.child.wait()
    }
}

/// Kills every process of a uid at once: a process that becomes the uid may signal all of its processes, and the
/// kernel does it in one step that no fork can outrun (kill(2), pid -1).
pub fn kill_all_of(uid: ChildUid) -> io::Result<()> {
    // SAFETY: the child makes four system calls and ends; this process has one thread.
    // JUSTIFICATION: the signal must be sent by a process of that uid.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
            Ok(())
        }
        ForkResult::Child => {
            let (id, gid) = (Uid::from_raw(uid.get()), Gid::from_raw(uid.get()));
            let became = setgroups(&[]).is_ok() && setresgid(gid, gid, gid).is_ok() && setresuid(id, id, id).is_ok();
            if became {
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
            }
            // SAFETY: ends this copy of the process without running what the original still needs (exit handlers).
            unsafe { libc::_exit(0) }
        }
    }
}

/// The uids of the range under which something runs, zombies aside: those hold nothing and cannot act.
pub fn uids_in_use(range: Range) -> io::Result<HashSet<ChildUid>> {
    let mut found = HashSet::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // A process that has ended since the directory was read is one that does not count.
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        if status.lines().any(|line| line.starts_with("State:\tZ")) {
            continue;
        }
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let ids = ids.split_ascii_whitespace().filter_map(|id| range.uid(id.parse().ok()?));
        found.extend(ids);
    }
    Ok(found)
}
