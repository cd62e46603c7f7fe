//! A real supervisor with a policy of the test's, and a plain client of its socket.

use std::fmt::Write as _;
use std::io::{PipeReader, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::program;
use futures_util::future::poll_immediate;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use wire::codec;
use wire::ending::Ending;
use wire::inspection::Inspection;
use wire::message::{ChildId, Exit, Isolation, Label, PROTOCOL, Refusal, Reply, Request, Status, TenantId, Ticket};
use wire::secret::UpstreamToken;
use wire::socket::Socket;

pub const TOKEN: &str = "s3cret-upstream-token";
const NOBODY: u32 = 65_534;
/// Who may connect to a supervisor that is root.
const BROKER: u32 = 73_727;
/// Long enough for a loaded machine; reaching it is a failure.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The first of 64 uids that no other test uses: a supervisor kills what runs in its range when it starts.
pub fn own_range() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    1_000_000 + std::process::id() % 10_000 * 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) * 64
}

/// Whether the test may go on as root; says so if not.
pub fn root_or_skip(test: &str) -> bool {
    if Uid::effective().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} needs root and was skipped with CI=true");
    println!("SKIPPED: {test}: needs root");
    false
}

pub struct Supervised {
    process: Child,
    pub dir: tempfile::TempDir,
    /// Holds the policy; root's, all the way, where the supervisor is root's.
    policy: tempfile::TempDir,
    pub log: PathBuf,
    /// The service manager's end, where the test is one.
    manager: Option<UnixDatagram>,
    /// The uid that may connect.
    broker: u32,
    /// The other end of [`Surroundings::deaf_log`].
    pub deaf: Option<PipeReader>,
}

/// The part of a policy by which a child that ends with its input is waited for, so that its own exit code is seen
/// however late it comes to run. Without one, tests do not wait long for those that stay.
pub const WAITS_FOR_THE_END: &str = "[stop]\ndrain = \"0s\"\neof_grace = \"30s\"\nterm_grace = \"100ms\"\n";

/// What a test asks for beyond a script and a policy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings {
    /// Soft and hard limit on descriptors, as a shell's `ulimit` takes them.
    pub descriptors: Option<(u32, u32)>,
    /// A hard limit on cores of 0, as `LimitCORE=0` sets it.
    pub no_cores: bool,
    /// The test plays the service manager, with this `WatchdogSec=`; see [`Supervised::told`].
    pub watchdog: Option<Duration>,
    /// Standard error is a pipe that is full and that nobody reads, until the test takes [`Supervised::deaf`].
    pub deaf_log: bool,
    /// As root; see [`Supervised::start`].
    pub root: bool,
}

impl Supervised {
    /// With root: children get uids of their own.
    pub fn start(script: &str, policy: &str) -> Self {
        Self::launch(script, policy, false, Surroundings::default())
    }

    /// Without root; a test that is root becomes nobody for it.
    pub fn start_unprivileged(script: &str, policy: &str) -> Self {
        Self::launch(script, policy, true, Surroundings::default())
    }

    /// In surroundings of the test's.
    pub fn start_in(surroundings: Surroundings, script: &str, policy: &str) -> Self {
        Self::launch(script, policy, !surroundings.root, surroundings)
    }

    /// Connects as the uid that may, and says nothing.
    pub async fn connect(&self) -> Socket {
        connect_as(self.broker, &self.socket()).await
    }

    /// Without root, with a program of the test's instead of `/bin/sh`.
    pub fn start_program(program: &Path, script: &str, policy: &str) -> Self {
        Self::launch_program(program, &["-c", script], policy, true, Surroundings::default())
    }

    /// With root, with a program of the test's and its arguments.
    pub fn start_program_as_root(program: &Path, arguments: &[&str], policy: &str) -> Self {
        Self::launch_program(program, arguments, policy, false, Surroundings::default())
    }

    /// With root, with a program of the test's and in surroundings of the test's.
    pub fn start_as_root(program: &Path, surroundings: Surroundings, policy: &str) -> Self {
        Self::launch_program(program, &[], policy, false, surroundings)
    }

    fn launch(script: &str, policy: &str, unprivileged: bool, surroundings: Surroundings) -> Self {
        Self::launch_program(Path::new("/bin/sh"), &["-c", script], policy, unprivileged, surroundings)
    }

    fn launch_program(
        child: &Path,
        arguments: &[&str],
        policy: &str,
        unprivileged: bool,
        surroundings: Surroundings,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).expect("chmod");
        let own = crate::roots_directory().expect("a directory");
        std::fs::set_permissions(own.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        let config = own.path().join("supervisor.toml");
        // Root is nobody's broker.
        let broker = if unprivileged { Uid::effective().as_raw() } else { BROKER };
        let mut text = format!("broker_user = {broker}\n");
        text.push_str("[forgejo]\nurl = \"http://127.0.0.1:1/\"\n");
        writeln!(text, "[child]\nprofile = \"custom\"\nprogram = \"{}\"", child.display()).expect("text");
        let arguments: Vec<_> = arguments.iter().map(|argument| format!("'''{argument}'''")).collect();
        writeln!(text, "arguments = [{}]", arguments.join(", ")).expect("text");
        if !policy.contains("[stop]") {
            text.push_str("[stop]\ndrain = \"0s\"\neof_grace = \"100ms\"\nterm_grace = \"100ms\"\n");
        }
        text.push_str(policy);
        if !policy.contains("[uids]") {
            writeln!(text, "\n[uids]\nfirst = {}\ncount = 64", own_range()).expect("text");
        }
        std::fs::write(&config, text).expect("write");

        let notify = dir.path().join("notify");
        let ready = UnixDatagram::bind(&notify).expect("bind");
        std::fs::set_permissions(&notify, PermissionsExt::from_mode(0o777)).expect("chmod");
        ready.set_read_timeout(Some(TIMEOUT)).expect("timeout");
        let log = dir.path().join("log");
        let descriptors =
            surroundings.descriptors.map(|(soft, hard)| format!("ulimit -Sn {soft}; ulimit -Hn {hard}; "));
        let cores = if surroundings.no_cores { "ulimit -c 0; " } else { "" };
        // Groups that children must not inherit; a shell of root's often has none to lose. Not by this process: its
        // threads are not all root while one of them connects, and glibc aborts where they cannot all change.
        let groups = if unprivileged { "" } else { "setpriv --groups 4,24 -- " };
        let script = format!("{}{cores}exec {groups}\"$@\"", descriptors.unwrap_or_default());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script, "sh"]).arg(program("forgejo-mcp-supervisor"));
        if let Some(watchdog) = surroundings.watchdog {
            command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        command.arg("--config").arg(&config).arg("--listen").arg(dir.path().join("s"));
        command.env("NOTIFY_SOCKET", &notify).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(&log).expect("a log"));
        let deaf = surroundings.deaf_log.then(full_pipe).map(|(reader, writer)| {
            command.stderr(writer);
            reader
        });
        if unprivileged {
            command.arg("--unprivileged");
            if Uid::effective().is_root() {
                command.uid(NOBODY).gid(NOBODY);
            }
        } else {
            command.args(["--listen-mode", "0666"]);
        }
        let mut process = command.spawn().expect("a supervisor");
        // With it goes this side's end of the pipe.
        drop(command);
        // The watchdog may be told first.
        let mut notice = message(&ready);
        while notice.starts_with("WATCHDOG=1") {
            notice = message(&ready);
        }
        if !notice.starts_with("READY=1") {
            let _ = process.kill();
            panic!("not ready: {}", std::fs::read_to_string(&log).unwrap_or_default());
        }
        let manager = surroundings.watchdog.map(|_| ready);
        Self { process, dir, policy: own, log, manager, broker, deaf }
    }

    /// What the service manager is told next that begins so; everything else is passed over.
    pub fn told(&self, begins: &str) -> String {
        let manager = self.manager.as_ref().expect("the test plays the service manager");
        loop {
            let said = message(manager);
            assert!(!said.is_empty(), "nothing that begins with {begins} was told in time: {}", self.logged());
            if said.starts_with(begins) {
                return said;
            }
        }
    }

    /// The file that the policy is in.
    pub fn policy(&self) -> PathBuf {
        self.policy.path().join("supervisor.toml")
    }

    /// Whom it runs as.
    pub fn uid(&self) -> Uid {
        let proc = std::fs::metadata(format!("/proc/{}", self.process.id())).expect("it runs");
        Uid::from_raw(std::os::unix::fs::MetadataExt::uid(&proc))
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }

    /// Changes the soft limit on descriptors of the running, unprivileged supervisor; only its own user may.
    pub fn limit_descriptors(&self, most: u32) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={}", self.pid())).arg(format!("--nofile={most}:"));
        if Uid::effective().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        assert!(command.status().expect("prlimit of util-linux").success(), "the limit cannot be changed");
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).expect("kill");
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait().expect("wait")
    }

    pub fn kill(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            self.kill(Signal::SIGTERM);
        }
    }
}

/// A pipe that takes nothing more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let non_blocking = |on: bool| {
        let flags = if on { OFlag::O_NONBLOCK } else { OFlag::empty() };
        fcntl(&writer, FcntlArg::F_SETFL(flags)).expect("set");
    };
    non_blocking(true);
    while (&writer).write(&[b'.'; 4096]).is_ok() {}
    non_blocking(false);
    (reader, writer)
}

/// One message to a service manager; empty when none came in time.
fn message(manager: &UnixDatagram) -> String {
    let mut said = [0; 256];
    loop {
        match manager.recv(&mut said) {
            // By a signal, such as the one that a child has ended.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            received => {
                let length = received.unwrap_or_default();
                return String::from_utf8_lossy(&said[..length]).into_owned();
            }
        }
    }
}

/// Connects as the uid that may; the kernel notes who a thread is when it connects.
async fn connect_as(broker: u32, path: &Path) -> Socket {
    let to = |uid: u32| {
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(None, uid, None).expect("root");
    };
    let own = Uid::effective().as_raw();
    if broker != own {
        to(broker);
    }
    let mut connecting = pin!(Socket::connect(path));
    // The first poll is the system call, and never waits.
    let first = poll_immediate(connecting.as_mut()).await;
    if broker != own {
        to(own);
    }
    let connected = match first {
        Some(connected) => connected,
        None => connecting.await,
    };
    connected.expect("connect")
}

pub struct Client {
    pub socket: Socket,
    pub isolation: Isolation,
    ticket: u64,
}

#[derive(Debug)]
pub struct Kid {
    pub child: ChildId,
    pub pid: u32,
    pub uid: u32,
    pub stdin: Option<pipe::Sender>,
    pub stdout: BufReader<pipe::Receiver>,
}

pub async fn say(socket: &Socket, request: &Request) {
    socket.send(&codec::encode(request).expect("fits"), &[]).await.expect("sent");
}

/// The next reply; `None` when the supervisor has closed.
pub async fn hear(socket: &Socket) -> Option<(Reply, Vec<OwnedFd>)> {
    let packet = tokio::time::timeout(TIMEOUT, socket.receive()).await.expect("an answer").ok()??;
    Some((codec::decode(&packet.frame).expect("a reply"), packet.fds))
}

impl Client {
    pub async fn connect(supervised: &Supervised) -> Self {
        let socket = supervised.connect().await;
        say(&socket, &Request::Hello { protocol: PROTOCOL }).await;
        match hear(&socket).await {
            Some((Reply::Welcome { isolation, .. }, _)) => Self { socket, isolation, ticket: 0 },
            other => panic!("{other:?}"),
        }
    }

    /// The next reply that fits; others are passed over.
    pub async fn await_reply<T>(&self, mut fits: impl FnMut(&Reply) -> Option<T>) -> (T, Vec<OwnedFd>) {
        loop {
            let (reply, fds) = hear(&self.socket).await.expect("still connected");
            if let Some(found) = fits(&reply) {
                return (found, fds);
            }
        }
    }

    /// The supervisor's numbers.
    pub async fn status(&mut self) -> Status {
        self.ticket += 1;
        let ticket = Ticket(self.ticket);
        say(&self.socket, &Request::Status { ticket }).await;
        let answer = self.await_reply(|reply| match reply {
            Reply::Status { ticket: t, status } if *t == ticket => Some(**status),
            _ => None,
        });
        answer.await.0
    }

    /// Asks for a child and does not wait for the answer.
    pub async fn ask_spawn(&mut self, tenant: u64) -> Ticket {
        self.ticket += 1;
        let ticket = Ticket(self.ticket);
        let tenant = TenantId::new(tenant).expect("a tenant");
        let label = Label::parse("alice").expect("a label");
        let token = UpstreamToken::parse(TOKEN).expect("a token");
        say(&self.socket, &Request::Spawn { ticket, tenant, label, token }).await;
        ticket
    }

    pub async fn try_spawn(&mut self, tenant: u64) -> Result<Kid, Refusal> {
        let ticket = self.ask_spawn(tenant).await;
        let answer = self.await_reply(|reply| match *reply {
            Reply::Spawned { ticket: t, child, pid, uid } if t == ticket => Some(Ok((child, pid, uid))),
            Reply::Refused { ticket: t, refusal } if t == ticket => Some(Err(refusal)),
            _ => None,
        });
        let (answer, fds) = answer.await;
        let (child, pid, uid) = answer?;
        let [stdin, stdout, _stderr] = <[OwnedFd; 3]>::try_from(fds).expect("three pipes");
        let stdin = Some(pipe::Sender::from_owned_fd(stdin).expect("a pipe"));
        let stdout = BufReader::new(pipe::Receiver::from_owned_fd(stdout).expect("a pipe"));
        Ok(Kid { child, pid, uid, stdin, stdout })
    }

    /// A child that has said `ready`.
    pub async fn spawn(&mut self, tenant: u64) -> Kid {
        let mut kid = self.try_spawn(tenant).await.expect("a child");
        assert_eq!(kid.line().await, "ready");
        kid
    }

    pub async fn stop(&mut self, kid: &mut Kid) -> Exit {
        self.stop_and_hear(kid).await.exit
    }

    pub async fn stop_and_hear(&mut self, kid: &mut Kid) -> Ending {
        kid.stdin = None;
        self.ticket += 1;
        say(&self.socket, &Request::Stop { ticket: Ticket(self.ticket), child: kid.child }).await;
        self.ending_of(kid).await
    }

    pub async fn exit_of(&self, kid: &Kid) -> Exit {
        self.ending_of(kid).await.exit
    }

    /// How it ended, and why.
    pub async fn ending_of(&self, kid: &Kid) -> Ending {
        let ending = self.await_reply(|reply| match *reply {
            Reply::Exited { child, ending } if child == kid.child => Some(ending),
            _ => None,
        });
        ending.await.0
    }

    /// What the kernel says of a child; `None` where it is refused.
    pub async fn inspect(&mut self, kid: &Kid) -> Option<Inspection> {
        self.ticket += 1;
        let ticket = Ticket(self.ticket);
        say(&self.socket, &Request::Inspect { ticket, child: kid.child }).await;
        let answer = self.await_reply(|reply| match reply {
            Reply::Inspected { ticket: t, inspection } if *t == ticket => Some(Some(**inspection)),
            Reply::Refused { ticket: t, refusal: Refusal::NoSuchChild } if *t == ticket => Some(None),
            _ => None,
        });
        answer.await.0
    }
}

impl Kid {
    pub async fn line(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(TIMEOUT, self.stdout.read_line(&mut line)).await.expect("a line").expect("read");
        line.trim_end().to_owned()
    }

    pub async fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("open");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("written");
    }

    /// Its pidfd; none where it is gone already.
    pub fn watch(&self) -> Option<OwnedFd> {
        watch(self.pid)
    }

    pub fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid)).expect("readable")
    }

    pub fn status(&self, field: &str) -> String {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.expect("the field").split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The pidfd of a process; none where it is gone already.
pub fn watch(pid: u32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed())?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Waits until a watched process has ended.
pub async fn gone(watched: Option<OwnedFd>) {
    if let Some(pidfd) = watched {
        let wait = move || {
            let timeout = Timespec::try_from(TIMEOUT).expect("a time");
            // Interrupted by a signal, such as the one that a child has ended.
            retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))).expect("watched")
        };
        #[expect(clippy::disallowed_methods, reason = "a test may block a thread")]
        let ready = tokio::task::spawn_blocking(wait).await.expect("watched");
        assert_eq!(ready, 1, "gone in time");
    }
}

/// Whether a process runs; a zombie does not.
pub fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| !status.lines().any(|line| line.starts_with("State:") && line.contains('Z')))
}
