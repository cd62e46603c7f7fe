//! Between fork and exec, and everything else that needs a system call without a safe wrapper.
//!
//! Trusts its arguments: they are the policy's and the core's. The one module with `unsafe`. JUSTIFICATION:
//! code between fork and exec is `unsafe` by nature.
//!
//! The process has one thread (`tests/supervisor_single_thread.rs`), so a forked child holds no lock of another
//! thread; the code between fork and exec still allocates nothing and only makes system calls, because that costs
//! little and keeps a later second thread from turning into a deadlock.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, getppid, pipe2, setgroups, setresgid, setresuid, setsid};
use seccompiler::BpfProgram;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::profile::Profile;
use crate::uid::ChildUid;
use wire::message::{Exit, StartStep};
use wire::secret::UpstreamToken;

/// What a child is started with.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// Program, arguments, variables.
    pub(crate) profile: &'a Profile,
    /// Goes into the environment.
    pub(crate) token: &'a UpstreamToken,
    /// `None`: it keeps the supervisor's.
    pub(crate) uid: Option<ChildUid>,
    /// Soft and hard alike.
    pub(crate) rlimits: Vec<(Resource, u64)>,
    /// The open `cgroup.procs` that the child enters.
    pub(crate) procs: Option<File>,
    /// Landlock's rules of this child; `None`: not done.
    pub(crate) ruleset: Option<OwnedFd>,
    /// The seccomp filters, shared by all children; empty: not done.
    pub(crate) filters: Arc<[BpfProgram]>,
}

/// What failed, and the error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("starting a child failed at {step:?}, errno {errno}")]
pub(crate) struct StartError {
    /// At which step.
    pub(crate) step: StartStep,
    /// 0 where there is none.
    pub(crate) errno: i32,
}

impl StartError {
    /// From a failed operation.
    pub(crate) fn at(step: StartStep) -> impl Fn(io::Error) -> Self {
        move |e| Self { step, errno: e.raw_os_error().unwrap_or(0) }
    }
}

/// The broker's ends of a child's standard input, output and error, in this order.
pub(crate) type Pipes = [OwnedFd; 3];

/// Starts a child. Blocks until exec has succeeded or failed, some hundred microseconds.
pub(crate) fn start(launch: Launch<'_>) -> Result<(RunningChild, Pipes), StartError> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).map_err(StartError::at(StartStep::Pipes));
    let (stdin, broker_stdin) = pipe()?;
    let (broker_stdout, stdout) = pipe()?;
    let (broker_stderr, stderr) = pipe()?;
    let pipes = [broker_stdin, broker_stdout, broker_stderr];
    for end in &pipes {
        // The flag sits on this end's file description only; the child's stays blocking, as programs expect.
        fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(io::Error::from)
            .map_err(StartError::at(StartStep::Pipes))?;
    }

    let mut command = Command::new(&launch.profile.program);
    command.args(&launch.profile.arguments).current_dir("/").env_clear().envs(&launch.profile.environment);
    for name in &launch.profile.token_variables {
        // std keeps these strings until the command is dropped, at the end of this function, and does not clear them.
        command.env(name, launch.token.expose());
    }
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    let Launch { uid, rlimits, procs, ruleset, filters, .. } = launch;
    let parent = Pid::this();
    // SAFETY: the closure runs between fork and exec in a process with one thread. It and all it calls allocate
    // nothing, take no lock and only make system calls (signal-safety(7)); what it reads was made before the fork.
    unsafe {
        command.pre_exec(move || become_child(uid, &rlimits, procs.as_ref(), ruleset.as_ref(), &filters, parent));
    }
    let mut child = command.spawn().map_err(StartError::at(StartStep::Exec))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    match Pidfd::open(pid) {
        Ok(pidfd) => Ok((RunningChild { child, pid, pidfd }, pipes)),
        Err(e) => {
            // Without a pidfd its end would go unnoticed.
            let _ = child.kill().and_then(|()| child.wait());
            Err(StartError::at(StartStep::Exec)(e))
        }
    }
}

/// The numbered list of README, in its order.
fn become_child(
    uid: Option<ChildUid>,
    rlimits: &[(Resource, u64)],
    procs: Option<&File>,
    ruleset: Option<&OwnedFd>,
    filters: &[BpfProgram],
    parent: Pid,
) -> io::Result<()> {
    if let Some(procs) = procs {
        io::Write::write_all(&mut &*procs, b"0")?;
    }
    // SAFETY: close_range(2) with CLOEXEC only sets a flag; std's own pipe for exec errors has it anyway.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    setsid()?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    for &(resource, limit) in rlimits {
        setrlimit(resource, limit, limit)?;
    }
    if let Some(uid) = uid {
        setgroups(&[])?;
        let gid = Gid::from_raw(uid.get());
        setresgid(gid, gid, gid)?;
        let uid = Uid::from_raw(uid.get());
        setresuid(uid, uid, uid)?;
    }
    // After setresuid, which clears it (PR_SET_PDEATHSIG(2const)).
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The supervisor may have died before the line above; then nobody would send the signal.
    if getppid() != parent {
        return Err(Errno::ESRCH.into());
    }
    prctl::set_no_new_privs()?;
    if let Some(ruleset) = ruleset {
        // SAFETY: landlock_restrict_self(2) takes a descriptor and flags.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
    }
    for filter in filters {
        seccompiler::apply_filter(filter).map_err(|e| match e {
            seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e) => e,
            _ => Errno::EINVAL.into(),
        })?;
    }
    // Whatever went wrong above, nobody who can become root is handed to the program.
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(Errno::EPERM.into());
    }
    Ok(())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A child that runs or is a zombie: its pid cannot be another's until [`RunningChild::reap`].
#[derive(Debug)]
pub(crate) struct RunningChild {
    child: Child,
    pid: Pid,
    pidfd: Pidfd,
}

impl RunningChild {
    /// Its pid, for the log.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended; it is a zombie then. Safe to cancel.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        self.pidfd.exited().await
    }

    /// Signals the session that it leads, and so what it started, unless that left the group.
    pub(crate) fn signal(&self, signal: Signal) {
        // ESRCH and EPERM: nobody is left in the group that could be signalled.
        let _ = killpg(self.pid, signal);
    }

    /// Kills what is left of its group and reaps it; blocks unless it has [`RunningChild::ended`].
    pub(crate) fn reap(mut self) -> io::Result<Exit> {
        // Before reaping, as long as the zombie keeps the number from being anybody else's.
        self.signal(Signal::SIGKILL);
        let status = self.child.wait()?;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        })
    }
}

/// A process that is watched by descriptor (`pidfd_open(2)`), also one that is nobody's child here.
#[derive(Debug)]
pub(crate) struct Pidfd(AsyncFd<OwnedFd>);

impl Pidfd {
    /// Opens it; `ESRCH` if there is no such process. Needs a running tokio runtime.
    pub(crate) fn open(pid: Pid) -> io::Result<Self> {
        let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        // SAFETY: an OwnedFd stays open and the same until dropped; the AsyncFd owns it and it is never replaced.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self(fd))
    }

    /// Waits until the process has ended. Safe to cancel.
    pub(crate) async fn exited(&self) -> io::Result<()> {
        // Readable for good once the process is a zombie or gone; nothing ever clears it.
        self.0.readable().await.map(|mut guard| guard.retain_ready())
    }
}

/// Sends SIGKILL to everything that runs under `uid`, in one stroke that no fork bomb escapes (kill(2), pid -1).
///
/// A helper process does it with `uid` as its effective uid only; real and saved it is the sweeper, whom no child is,
/// so that its targets cannot stop it first. Blocks until the helper has ended, about a millisecond.
pub(crate) fn kill_all_of(uid: ChildUid, sweeper: ChildUid) -> io::Result<()> {
    // SAFETY: one thread, see the module; the child makes three system calls and ends without unwinding.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let sweeper = Uid::from_raw(sweeper.get());
            let done = setresuid(sweeper, Uid::from_raw(uid.get()), sweeper)
                // SAFETY: kill(2) takes two numbers. With neither root's uid nor a capability left it reaches the
                // processes of `uid` and of the sweeper alone.
                .and_then(|()| Errno::result(unsafe { libc::kill(-1, libc::SIGKILL) }));
            let code = match done {
                Ok(_) | Err(Errno::ESRCH) => 0,
                Err(_) => 1,
            };
            // SAFETY: _exit(2) ends the process at once and runs no handlers of its parent's.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            _ => Err(io::Error::other("the helper that kills by uid failed")),
        },
    }
}

/// The version of the kernel's Landlock interface (`landlock_create_ruleset(2)`); 0 where it is not there or not enabled.
pub(crate) fn landlock_abi() -> u32 {
    // linux/landlock.h
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes no attributes, makes nothing and answers a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Whether the kernel takes seccomp filters (`prctl` answers EINVAL where it was built without).
pub(crate) fn seccomp_works() -> bool {
    // SAFETY: PR_GET_SECCOMP takes no argument and changes nothing.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) >= 0 }
}

/// Whether systemd marked this cgroup as delegated (`Delegate=yes`, systemd.resource-control(5)).
pub(crate) fn is_delegated(cgroup: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(cgroup.as_os_str().as_bytes()) else { return false };
    let mut value = [0_u8; 1];
    // SAFETY: path and name are NUL-terminated, and the buffer is writable for the length given.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), c"user.delegate".as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    length == 1 && value == *b"1"
}

/// Closes every descriptor from this number on. For the very beginning of the program.
pub(crate) fn close_from(first: usize) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).unwrap_or(libc::c_uint::MAX);
    // SAFETY: close_range(2) takes three numbers. Nothing of this program has opened a descriptor yet, so that nobody owns
    // one of those that are closed.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) })
}

/// Keeps the supervisor's memory, which sees every token, out of core files and away from ptrace.
pub(crate) fn protect_self() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}
