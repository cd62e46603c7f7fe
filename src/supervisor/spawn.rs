//! Between fork and exec, and everything else that needs a system call without a safe wrapper.
//!
//! Trusts its arguments: they are the policy's and the core's. The one module with `unsafe`. JUSTIFICATION:
//! code between fork and exec is `unsafe` by nature.
//!
//! The process has one thread (`tests/supervisor_single_thread.rs`), so a forked child holds no lock of another
//! thread; the code between fork and exec still allocates nothing and only makes system calls, because that costs
//! little and keeps a later second thread from turning into a deadlock. Nothing here waits for the child: how it gets on
//! comes out of a pipe, and who waits has a deadline ([`children`](super::children)).

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ffi::c_char;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    ForkResult, Gid, Pid, Uid, chdir, close, dup2_stderr, dup2_stdin, dup2_stdout, fork, getppid, pipe2, setgroups,
    setresgid, setresuid, setsid, write,
};
use rustix::process::setpriority_process;
use seccompiler::BpfProgram;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;
use zeroize::Zeroizing;

use crate::ipc::Kind;
use crate::profile::Profile;
use crate::uid::ChildUid;
use wire::message::StartStep;
use wire::secret::UpstreamToken;

/// `oom_score_adj` of a child, of -1000 to 1000 (proc(5)): where memory runs out, children go before the broker and the
/// supervisor, whose end would be everybody's.
const OOM_SCORE: &[u8] = b"500";

/// What a child is started with.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// Program, arguments, variables.
    pub(crate) profile: &'a Profile,
    /// Variables of this user, over the profile's.
    pub(crate) extras: &'a BTreeMap<String, String>,
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
#[error("{what} failed: {}", io::Error::from_raw_os_error(*.errno))]
pub(crate) struct StartError {
    /// For the wire.
    pub(crate) step: StartStep,
    /// For the log: what was being done.
    pub(crate) what: &'static str,
    /// 0 where there is none.
    pub(crate) errno: i32,
}

impl StartError {
    /// From a failed operation.
    pub(crate) fn at(step: StartStep, what: &'static str) -> impl Fn(io::Error) -> Self {
        move |e| Self { step, what, errno: e.raw_os_error().unwrap_or(0) }
    }
}

/// The broker's ends of a child's standard input, output and error, in this order.
pub(crate) type Pipes = [OwnedFd; 3];

/// A child that was forked and may not have become its program yet.
#[derive(Debug)]
pub(crate) struct HalfMade {
    /// Its number, which stays its own until it is reaped.
    pub(crate) pid: Pid,
    /// To be handed over when it runs its program.
    pub(crate) pipes: Pipes,
    /// How it gets on.
    pub(crate) news: ExecNews,
}

/// The pipe that closes at exec, and before that says what failed.
#[derive(Debug)]
pub(crate) struct ExecNews(pipe::Receiver);

impl ExecNews {
    /// Waits until the program runs or a step before it has failed; for ever with a child that is held. A child that was
    /// killed on its way looks as if its program ran: its end follows.
    pub(crate) async fn outcome(&mut self) -> Result<(), StartError> {
        // A byte for the step and four for the error number, in one write below PIPE_BUF and so in one piece (pipe(7)).
        let mut said = [0; 5];
        match self.0.read(&mut said).await {
            Ok(0) => Ok(()),
            Ok(_) => {
                let [step, errno @ ..] = said;
                let (_, step, what) = Step::ALL.get(usize::from(step)).unwrap_or(&Step::UNKNOWN);
                Err(StartError { step: *step, what, errno: i32::from_ne_bytes(errno) })
            }
            Err(e) => Err(StartError::at(StartStep::Exec, "hearing of the exec")(e)),
        }
    }
}

/// The steps after the fork, which the child names by their place in [`Step::ALL`] when one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Streams,
    Session,
    Priority,
    Limits,
    Ids,
    Parent,
    Privileges,
    Landlock,
    Seccomp,
    Root,
    Cgroup,
    Exec,
}

impl Step {
    const ALL: [(Self, StartStep, &'static str); 12] = [
        (Self::Streams, StartStep::Exec, "setting up standard input, output and error"),
        (Self::Session, StartStep::Exec, "becoming the leader of a session"),
        (Self::Priority, StartStep::Exec, "setting oom_score_adj"),
        (Self::Limits, StartStep::Exec, "setting a resource limit"),
        (Self::Ids, StartStep::Exec, "becoming the child's uid and gid"),
        (Self::Parent, StartStep::Exec, "asking for SIGKILL at the supervisor's end"),
        (Self::Privileges, StartStep::Exec, "setting no_new_privs"),
        (Self::Landlock, StartStep::Sandbox, "restricting itself by Landlock"),
        (Self::Seccomp, StartStep::Sandbox, "installing a seccomp filter"),
        (Self::Root, StartStep::Exec, "proving that uid 0 cannot be regained"),
        (Self::Cgroup, StartStep::Cgroup, "entering its cgroup"),
        (Self::Exec, StartStep::Exec, "running the program"),
    ];
    const UNKNOWN: (Self, StartStep, &'static str) = (Self::Exec, StartStep::Exec, "an unknown step of the start");

    fn byte(self) -> u8 {
        Self::ALL.iter().position(|&(step, ..)| step == self).and_then(|at| at.try_into().ok()).unwrap_or(u8::MAX)
    }
}

/// Program, arguments and environment as execve(2) takes them; cleared when dropped, because the token is among them.
struct Image {
    _strings: Vec<Zeroizing<Vec<u8>>>,
    program: *const c_char,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
}

impl Image {
    fn new(profile: &Profile, extras: &BTreeMap<String, String>, token: &UpstreamToken) -> io::Result<Self> {
        let mut strings = Vec::new();
        // Pointers stay good when `strings` grows: the texts are on the heap.
        let mut add = |parts: &[&[u8]]| -> io::Result<*const c_char> {
            if parts.iter().any(|part| part.contains(&0)) {
                return Err(Errno::EINVAL.into());
            }
            // At once in its full length, so that no copy is left behind by growing.
            let mut text = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + 1));
            for part in parts {
                text.extend_from_slice(part);
            }
            text.push(0);
            let pointer = text.as_ptr().cast();
            strings.push(text);
            Ok(pointer)
        };
        let program = add(&[profile.program.as_os_str().as_bytes()])?;
        let mut argv = vec![program];
        for argument in &profile.arguments {
            argv.push(add(&[argument.as_bytes()])?);
        }
        let token_variables: BTreeSet<_> = profile.token_variables.iter().collect();
        let mut envp = Vec::new();
        let usual = profile.environment.iter().filter(|(name, _)| !extras.contains_key(*name));
        for (name, value) in usual.chain(extras).filter(|(name, _)| !token_variables.contains(name)) {
            envp.push(add(&[name.as_bytes(), b"=", value.as_bytes()])?);
        }
        for name in token_variables {
            envp.push(add(&[name.as_bytes(), b"=", token.expose().as_bytes()])?);
        }
        argv.push(std::ptr::null());
        envp.push(std::ptr::null());
        Ok(Self { _strings: strings, program, argv, envp })
    }
}

/// Forks a child, which then becomes its program by itself. Waits for nothing.
pub(crate) fn start(launch: &Launch<'_>) -> Result<HalfMade, StartError> {
    let at_pipes = StartError::at(StartStep::Pipes, "making the pipes");
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).map_err(&at_pipes);
    let (stdin, broker_stdin) = pipe()?;
    let (broker_stdout, stdout) = pipe()?;
    let (broker_stderr, stderr) = pipe()?;
    let (news, failure) = pipe()?;
    let pipes = [broker_stdin, broker_stdout, broker_stderr];
    for end in &pipes {
        // The flag sits on this end's file description only; the child's stays blocking, as programs expect.
        fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from).map_err(&at_pipes)?;
    }
    let news = ExecNews(pipe::Receiver::from_owned_fd(news).map_err(&at_pipes)?);
    let at_fork = StartError::at(StartStep::Exec, "forking");
    let image = Image::new(launch.profile, launch.extras, launch.token).map_err(&at_fork)?;
    let streams = [stdin, stdout, stderr];
    let parent = Pid::this();

    // A signal to the child must not run a handler that this process installed: it would be taken for one to this
    // process, whose descriptors the child shares. It waits until the child has no handlers any more.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(io::Error::from).map_err(&at_fork)?;
    // SAFETY: this process has one thread. What the child calls until exec or _exit allocates nothing, takes no lock and
    // only makes system calls (signal-safety(7)); what it reads was made before the fork.
    let forked = unsafe { fork() };
    if let Ok(ForkResult::Child) = forked {
        let Err((step, errno)) = become_child(launch, &streams, &image, parent);
        let [a, b, c, d] = io::Error::from(errno).raw_os_error().unwrap_or(0).to_ne_bytes();
        // Nobody is left to tell where this fails.
        let _ = write(&failure, &[step.byte(), a, b, c, d]);
        // SAFETY: _exit(2) ends the process at once and runs no handlers of its parent's.
        unsafe { libc::_exit(127) }
    }
    // It was in force before, so it cannot be refused now.
    let _ = mask.thread_set_mask();
    match forked.map_err(io::Error::from).map_err(&at_fork)? {
        ForkResult::Parent { child: pid } => Ok(HalfMade { pid, pipes, news }),
        ForkResult::Child => Err(at_fork(Errno::EINVAL.into())),
    }
}

/// The numbered list of README, in its order. Returns only when a step has failed.
fn become_child(
    launch: &Launch<'_>,
    [stdin, stdout, stderr]: &[OwnedFd; 3],
    image: &Image,
    parent: Pid,
) -> Result<Infallible, (Step, Errno)> {
    let at = |step| move |errno| (step, errno);
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .map_err(at(Step::Streams))?;
    for end in [stdin, stdout, stderr] {
        // Makes room for the one descriptor that is opened below, also where the supervisor has used up its own.
        let _ = close(end.as_raw_fd());
    }
    // SAFETY: close_range(2) with CLOEXEC only sets a flag; the pipe for failures has it anyway.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map_err(at(Step::Streams))?;
    setsid().map_err(at(Step::Session))?;
    chdir(c"/").map_err(at(Step::Session))?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    reset_signals().map_err(at(Step::Session))?;
    reset_priority(launch.uid.is_some()).map_err(at(Step::Priority))?;
    for &(resource, limit) in &launch.rlimits {
        setrlimit(resource, limit, limit).map_err(at(Step::Limits))?;
    }
    if let Some(uid) = launch.uid {
        let (uid, gid) = (Uid::from_raw(uid.get()), Gid::from_raw(uid.get()));
        setgroups(&[])
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid))
            .map_err(at(Step::Ids))?;
    }
    // After setresuid, which clears it (PR_SET_PDEATHSIG(2const)).
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Step::Parent))?;
    // The supervisor may have died before the line above; then nobody would send the signal.
    if getppid() != parent {
        return Err((Step::Parent, Errno::ESRCH));
    }
    prctl::set_no_new_privs().map_err(at(Step::Privileges))?;
    if let Some(ruleset) = &launch.ruleset {
        // SAFETY: landlock_restrict_self(2) takes a descriptor and flags.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })
            .map_err(at(Step::Landlock))?;
    }
    for filter in launch.filters.iter() {
        seccompiler::apply_filter(filter).map_err(|e| match e {
            seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e) => {
                (Step::Seccomp, Errno::from_raw(e.raw_os_error().unwrap_or(0)))
            }
            _ => (Step::Seccomp, Errno::EINVAL),
        })?;
    }
    // Whatever went wrong above, nobody who can become root is handed to the program.
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err((Step::Root, Errno::EPERM));
    }
    // Last, so that nothing above is done at the tenant's share of CPU. Root opened the file, and the kernel goes by who
    // opened it (cgroups(7), CVE-2021-4197).
    if let Some(procs) = &launch.procs {
        write(procs, b"0").map_err(at(Step::Cgroup))?;
    }
    // SAFETY: execve(2) takes NUL-terminated texts and NULL-terminated lists of them, which `image` owns.
    unsafe { libc::execve(image.program, image.argv.as_ptr(), image.envp.as_ptr()) };
    Err((Step::Exec, Errno::last()))
}

/// No signal is ignored, caught or blocked: exec keeps what is ignored and blocked, and Rust programs ignore SIGPIPE.
fn reset_signals() -> Result<(), Errno> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: rt_sigaction(2) reads a structure that on every architecture is shorter than this, and of which zeros
        // are SIG_DFL and nothing else. By number, because the C library keeps two signals to itself, which may have been
        // ignored before this program was started. SIGKILL and SIGSTOP are refused and need nothing.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT_ACTION.as_ptr(), 0, size_of::<u64>()) };
    }
    SigSet::empty().thread_set_mask()
}

/// Nothing of the supervisor's own importance: not its niceness, its scheduling class or its place in line for the
/// out-of-memory killer. `own_uid`: whether it runs as root still, who can set all of them.
fn reset_priority(own_uid: bool) -> Result<(), Errno> {
    // Refused only where the child would get more than the supervisor has (setpriority(2), sched(7)).
    let _ = setpriority_process(None, 0);
    // SAFETY: sched_setscheduler(2) reads one structure.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const ORDINARY) };
    let set = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|file| write(&file, OOM_SCORE));
    // Without root the file is root's, because the supervisor is not dumpable (proc(5)).
    if own_uid { set.map(drop) } else { Ok(()) }
}

static DEFAULT_ACTION: [u64; 8] = [0; 8];
static ORDINARY: libc::sched_param = libc::sched_param { sched_priority: 0 };

fn check(result: libc::c_long) -> Result<(), Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// The next process that has ended and is this one's to reap, and the uid it ran under; `None`: there is none now. It
/// stays a zombie, and its number its own, until it is reaped.
pub(crate) fn next_ended() -> Result<Option<(Pid, u32)>, Errno> {
    // SAFETY: waitid(2) fills in a structure that may start as zeros, which it leaves where nobody has ended. The fields
    // read are those that it sets for an ended child.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        // __WALL: whatever signal its end sends, if any.
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        match Errno::result(libc::waitid(libc::P_ALL, 0, &raw mut info, flags)) {
            Ok(_) if info.si_pid() == 0 => Ok(None),
            Ok(_) => Ok(Some((Pid::from_raw(info.si_pid()), info.si_uid()))),
            Err(Errno::ECHILD) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// A file of which the kernel tells when it can be read, or by POLLPRI (poll(2)) that it has changed.
pub(crate) fn watch(file: File, interest: Interest) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File stays open and the same until dropped; the AsyncFd owns it, and it is never replaced.
    unsafe { AsyncFd::register_with_interest(file, interest) }.map_err(io::Error::from)
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

/// Removes an object of System V IPC. Refused where it is not the effective uid's.
pub(crate) fn remove_ipc(kind: Kind, id: i32) -> Result<(), Errno> {
    // SAFETY: with IPC_RMID the three calls (shmctl(2), semctl(2), msgctl(2)) take numbers and read nothing else.
    let removed = unsafe {
        match kind {
            Kind::Shm => libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            Kind::Sem => libc::semctl(id, 0, libc::IPC_RMID),
            Kind::Msg => libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()),
        }
    };
    Errno::result(removed).map(drop)
}

/// Closes every descriptor from this number on. For the very beginning of the program.
pub(crate) fn close_from(first: usize) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).unwrap_or(libc::c_uint::MAX);
    // SAFETY: close_range(2) takes three numbers. Nothing of this program has opened a descriptor yet, so that nobody owns
    // one of those that are closed.
    Ok(check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) })?)
}

/// Keeps the supervisor's memory, which sees every token, out of core files and away from ptrace.
pub(crate) fn protect_self() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}
