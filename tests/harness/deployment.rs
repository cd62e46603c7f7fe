//! The real programs deployed together: stub forge, supervisor and broker as processes of their own, for end-to-end tests
//! and the quickstart.
//!
//! Everything lives below one directory and is gone when the deployment is dropped. As root the supervisor is privileged
//! and the broker runs under a uid of its own, as on a real host; otherwise `--unprivileged` is passed and said.
//! Whoever includes this file may use a part of it only.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// The broker's uid: just below the children's range, so nobody's.
pub const BROKER_UID: u32 = 73_727;
/// How long a program may take to say that it is ready.
const READY: Duration = Duration::from_secs(30);

/// What went wrong with the deployment, for a person.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The child that the supervisor is to start.
#[derive(Debug, Clone)]
pub struct Program {
    /// `forgejo-mcp`, `forgejo-mcp-rs` or `custom`.
    pub profile: &'static str,
    pub path: PathBuf,
    pub arguments: Vec<String>,
}

impl Program {
    /// A real child by its path; its name says which preset fits.
    pub fn real(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let profile = if name.contains("mcp-rs") { "forgejo-mcp-rs" } else { "forgejo-mcp" };
        Self { profile, path: path.to_owned(), arguments: Vec::new() }
    }

    /// The stand-in, which takes its token as goern's program does.
    pub fn stand_in(path: &Path, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&a| a.to_owned()).collect();
        Self { profile: "forgejo-mcp", path: path.to_owned(), arguments }
    }

    fn toml(&self) -> String {
        let arguments: Vec<String> = self.arguments.iter().map(|a| format!("{a:?}")).collect();
        let (profile, path, arguments) = (self.profile, self.path.display(), arguments.join(", "));
        format!("[child]\nprofile = \"{profile}\"\nprogram = \"{path}\"\narguments = [{arguments}]\n")
    }
}

/// How the programs are to be deployed.
#[derive(Debug, Clone)]
pub struct DeploymentConfig {
    /// Where the programs are.
    pub binaries: PathBuf,
    /// A copy of the broker's program, where the original lies out of its uid's reach.
    pub broker_program: Option<PathBuf>,
    /// An empty or missing directory.
    pub dir: PathBuf,
    pub child: Program,
    /// An existing Forgejo; else the stub is started.
    pub forgejo: Option<String>,
    pub listen: String,
    /// A socket that the broker is to inherit instead of listening itself.
    pub inherited: Option<Arc<TcpListener>>,
    /// Whether the broker is registered at Forgejo, so that people can log in.
    pub oauth: bool,
    /// TOML laid over the supervisor's own configuration.
    pub supervisor: String,
    /// TOML laid over the broker's own configuration.
    pub broker: String,
    /// libfaketime, where the broker's wall clock is to be moved; see [`Deployment::move_clock`].
    pub faketime: Option<PathBuf>,
    /// Whether to run as on a real host, with uids.
    pub privileged: bool,
    /// The first of the sixteen uids of the children; stages that run at once need their own, because a supervisor
    /// kills whatever runs under its uids when it starts.
    pub first_uid: u32,
}

impl DeploymentConfig {
    pub fn new(binaries: &Path, dir: &Path, child: Program) -> Self {
        let (binaries, dir) = (binaries.to_owned(), dir.to_owned());
        let listen = "127.0.0.1:0".to_owned();
        let privileged = geteuid().is_root();
        Self {
            binaries,
            broker_program: None,
            dir,
            child,
            forgejo: None,
            listen,
            inherited: None,
            oauth: false,
            faketime: None,
            supervisor: String::new(),
            broker: String::new(),
            privileged,
            first_uid: 73_728,
        }
    }
}

/// One program, killed when dropped. Its output is in a file.
#[derive(Debug)]
pub struct Running {
    pub name: &'static str,
    pub log: PathBuf,
    child: Child,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Asks for an orderly end and waits for it.
    pub fn stop(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        self.child.wait()
    }

    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.stop();
        }
    }
}

/// The programs, in the order in which they end.
#[derive(Debug)]
pub struct Deployment {
    pub broker: Option<Running>,
    pub supervisor: Option<Running>,
    pub forge: Option<Running>,
    /// Of Forgejo.
    pub forgejo: String,
    /// Of the broker, such as `http://127.0.0.1:4321`.
    pub url: String,
    pub config: DeploymentConfig,
    /// Holds the sockets where the directory's own path is too long for one.
    sockets: PathBuf,
    short: Option<tempfile::TempDir>,
}

impl Deployment {
    pub fn set(config: DeploymentConfig) -> Result<Self> {
        fs::create_dir_all(&config.dir)?;
        // A socket's path has at most 107 bytes (unix(7)).
        let (sockets, short) = if config.dir.as_os_str().len() <= 70 {
            (config.dir.clone(), None)
        } else {
            let short = tempfile::Builder::new().prefix("fmb").tempdir()?;
            fs::set_permissions(short.path(), fs::Permissions::from_mode(0o755))?;
            (short.path().to_owned(), Some(short))
        };
        let broker_dirs = [config.dir.join("broker"), sockets.join("admin")];
        for dir in &broker_dirs {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
            if config.privileged {
                chown(dir, Some(BROKER_UID), Some(BROKER_UID))?;
            }
        }
        let url = String::new();
        let forgejo = config.forgejo.clone().unwrap_or_default();
        let mut deployment = Self { broker: None, supervisor: None, forge: None, forgejo, url, config, sockets, short };
        if deployment.config.forgejo.is_none() {
            deployment.start_forge()?;
        }
        if deployment.config.oauth {
            deployment.register()?;
        }
        deployment.start_supervisor()?;
        deployment.start_broker()?;
        Ok(deployment)
    }

    fn start_forge(&mut self) -> Result<()> {
        let log = self.config.dir.join("forge.log");
        let program = self.config.binaries.join("stub-forgejo");
        let mut command = Command::new(program);
        command.stdout(Stdio::piped()).stderr(File::create(&log)?).stdin(Stdio::null());
        let mut child = in_a_group_of_its_own(&mut command).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        self.forge = Some(Running { name: "the demo forge", log, child });
        let url = line.trim().strip_prefix("LISTENING ").ok_or("the demo forge did not start")?;
        url.clone_into(&mut self.forgejo);
        Ok(())
    }

    /// Registers the broker at Forgejo: at the stub through its strings, at a real one through its API. The address
    /// must be known before the broker starts, so its socket is made here.
    fn register(&mut self) -> Result<()> {
        if self.config.inherited.is_none() {
            let listener = TcpListener::bind(&self.config.listen)?;
            self.config.listen = listener.local_addr()?.to_string();
            self.config.inherited = Some(Arc::new(listener));
        }
        let callback = format!("http://{}/oauth/callback", self.config.listen);
        let answer = match &self.forge {
            Some(_) => self.stub("/stub/apps", &format!(r#"{{"name":"broker","redirect_uris":["{callback}"]}}"#))?,
            None => admin(
                "POST",
                &self.forgejo,
                "/api/v1/user/applications/oauth2",
                &format!(r#"{{"name":"broker","confidential_client":true,"redirect_uris":["{callback}"]}}"#),
            )?,
        };
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let part = |name: &str| answer.get(name).and_then(|part| part.as_str()).ok_or("no application was made");
        let file = self.config.dir.join("client-secret");
        fs::write(&file, part("client_secret")?)?;
        let text =
            format!("[forgejo]\nclient_id = \"{}\"\nclient_secret_file = \"{}\"\n", part("client_id")?, file.display());
        fs::write(self.config.dir.join("broker-login.toml"), text)?;
        Ok(())
    }

    /// A user who can log in with the password `secret-of-LOGIN`.
    pub fn user(&self, login: &str) -> Result<()> {
        let password = format!("secret-of-{login}");
        match &self.forge {
            Some(_) => self.stub("/stub/users", &format!(r#"{{"login":"{login}","password":"{password}"}}"#))?,
            None => admin(
                "POST",
                &self.forgejo,
                "/api/v1/admin/users",
                &format!(
                    r#"{{"username":"{login}","password":"{password}","email":"{login}@example.org","must_change_password":false}}"#
                ),
            )
            // From an earlier run.
            .or_else(|e| if e.to_string().contains("422") { Ok(String::new()) } else { Err(e) })?,
        };
        Ok(())
    }

    /// Forgejo's administrator lets a user in or locks them out.
    pub fn activate(&self, login: &str, active: bool) -> Result<()> {
        match &self.forge {
            Some(_) => self.stub(&format!("/stub/users/{login}"), &format!(r#"{{"active":{active}}}"#))?,
            None => admin(
                "PATCH",
                &self.forgejo,
                &format!("/api/v1/admin/users/{login}"),
                &format!(r#"{{"login_name":"{login}","source_id":0,"active":{active}}}"#),
            )?,
        };
        Ok(())
    }

    /// Forgejo's administrator gives a user another login.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        match &self.forge {
            Some(_) => self.stub(&format!("/stub/users/{from}"), &format!(r#"{{"login":"{to}"}}"#))?,
            None => admin(
                "POST",
                &self.forgejo,
                &format!("/api/v1/admin/users/{from}/rename"),
                &format!(r#"{{"new_username":"{to}"}}"#),
            )?,
        };
        Ok(())
    }

    /// Forgejo's administrator deletes a user with all that is theirs.
    pub fn purge(&self, login: &str) -> Result<()> {
        match &self.forge {
            Some(_) => self.stub_delete(&format!("/stub/users/{login}"))?,
            None => admin("DELETE", &self.forgejo, &format!("/api/v1/admin/users/{login}?purge=true"), "")?,
        };
        Ok(())
    }

    /// Makes a user a member of a team, and so of its organisation; both are made where they are missing.
    pub fn join(&self, login: &str, org: &str, team: &str) -> Result<()> {
        if self.forge.is_some() {
            self.stub(&format!("/stub/users/{login}"), &format!(r#"{{"teams":["{org}/{team}"]}}"#))?;
            return Ok(());
        }
        let ask = |method: &str, path: &str, body: &str| admin(method, &self.forgejo, &format!("/api/v1{path}"), body);
        // Both fail where an earlier run has made them; what is really missing shows below.
        drop(ask("POST", "/orgs", &format!(r#"{{"username":"{org}"}}"#)));
        let new = format!(r#"{{"name":"{team}","permission":"read","units":["repo.code"]}}"#);
        drop(ask("POST", &format!("/orgs/{org}/teams"), &new));
        let teams: serde_json::Value = serde_json::from_str(&ask("GET", &format!("/orgs/{org}/teams"), "")?)?;
        let found = teams.as_array().into_iter().flatten().find(|one| one.get("name") == Some(&team.into()));
        let id = found.and_then(|one| one.get("id")).ok_or("the team was not made")?;
        ask("PUT", &format!("/teams/{id}/members/{login}"), "").map(drop)
    }

    pub fn start_supervisor(&mut self) -> Result<()> {
        let broker = if self.config.privileged { BROKER_UID } else { geteuid().as_raw() };
        let uids = self.config.first_uid;
        let own = format!(
            "broker_user = {broker}\n[uids]\nfirst = {uids}\ncount = 16\n[forgejo]\nurl = \"{}\"\n{}",
            self.forgejo,
            self.config.child.toml()
        );
        let files = self.configure("supervisor", &own, &self.config.supervisor)?;
        let mut command = Command::new(self.config.binaries.join("forgejo-mcp-supervisor"));
        command.args(files).arg("--listen").arg(self.socket());
        if self.config.privileged {
            command.arg("--listen-group").arg(BROKER_UID.to_string());
        } else {
            command.arg("--unprivileged");
        }
        self.supervisor = Some(self.start("supervisor", &mut command)?);
        Ok(())
    }

    pub fn start_broker(&mut self) -> Result<()> {
        let (socket, admin) = (self.socket(), self.admin());
        let database = self.config.dir.join("broker/broker.db");
        let own = format!(
            "public_url = \"http://{}\"\nlisten = \"{}\"\n[forgejo]\nurl = \"{}\"\n[supervisor]\nsocket = \"{}\"\n\
             [store]\npath = \"{}\"\n[admin]\nsocket = \"{}\"\n",
            self.config.listen,
            self.config.listen,
            self.forgejo,
            socket.display(),
            database.display(),
            admin.display()
        );
        let mut files = self.configure("broker", &own, &self.config.broker)?;
        if self.config.oauth {
            files.extend(["--config".to_owned(), self.config.dir.join("broker-login.toml").display().to_string()]);
        }
        let program = self.config.broker_program.clone();
        let program = program.unwrap_or_else(|| self.config.binaries.join("forgejo-mcp-broker"));
        let mut command = if self.config.inherited.is_some() {
            // As a service manager does it: descriptor 3, and its number and the pid in the environment.
            let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script, "sh"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.args(files);
        self.in_moved_time(&mut command);
        self.move_clock(Duration::ZERO)?;
        if self.config.privileged {
            command.uid(BROKER_UID).gid(BROKER_UID);
        }
        let broker = self.start("broker", &mut command)?;
        let output = broker.output();
        let listen = output.split("listen=").nth(1).and_then(|rest| rest.split_whitespace().next());
        let listen = listen.ok_or("the broker did not say where it listens")?;
        self.url = format!("http://{listen}");
        // The next start takes the same address: clients do not look for a new one.
        listen.clone_into(&mut self.config.listen);
        self.broker = Some(broker);
        Ok(())
    }

    pub fn socket(&self) -> PathBuf {
        self.sockets.join("supervisor.sock")
    }

    pub fn admin(&self) -> PathBuf {
        self.sockets.join("admin/admin.sock")
    }

    /// Writes the configuration files; the arguments that name them.
    fn configure(&self, name: &str, own: &str, over: &str) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        for (file, text) in [(format!("{name}.toml"), own), (format!("{name}-extra.toml"), over)] {
            let path = self.config.dir.join(file);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
            arguments.extend(["--config".to_owned(), path.display().to_string()]);
        }
        Ok(arguments)
    }

    /// Takes the service manager's place towards a program that runs, for what it tells from now on.
    pub fn manage(&self, name: &str) -> Result<UnixDatagram> {
        let path = self.sockets.join(format!("{name}.notify"));
        let manager = UnixDatagram::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        manager.set_read_timeout(Some(READY))?;
        Ok(manager)
    }

    fn clock_file(&self) -> PathBuf {
        self.config.dir.join("clock")
    }

    /// Lets a program live in the broker's time, where that can be moved.
    pub fn in_moved_time(&self, command: &mut Command) {
        let Some(library) = &self.config.faketime else { return };
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.clock_file());
        // Timers go on as they are; the file is read at each look at the clock.
        let switches = ["FAKETIME_DONT_FAKE_MONOTONIC", "FAKETIME_NO_CACHE", "FAKETIME_DISABLE_SHM", "NO_FAKE_STAT"];
        command.envs(switches.map(|switch| (switch, "1")));
    }

    /// Sets the broker's wall clock this far ahead of the machine's.
    pub fn move_clock(&self, ahead: Duration) -> Result<()> {
        let file = self.clock_file();
        let new = file.with_extension("new");
        fs::write(&new, format!("+{}", ahead.as_secs()))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
        Ok(fs::rename(new, file)?)
    }

    /// Starts a program and waits until it says that it is ready, or dies.
    fn start(&self, name: &'static str, command: &mut Command) -> Result<Running> {
        let log = self.config.dir.join(format!("{name}.log"));
        let notify = self.sockets.join(format!("{name}.notify"));
        let _ = fs::remove_file(&notify);
        let ready = UnixDatagram::bind(&notify)?;
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o666))?;
        let output = File::options().create(true).append(true).open(&log)?;
        command.env("NOTIFY_SOCKET", &notify).env_remove("JOURNAL_STREAM").env("NO_COLOR", "1");
        let inherited = self.config.inherited.as_ref().filter(|_| name == "broker");
        let stdin = inherited.map(|socket| socket.try_clone().map(|socket| Stdio::from(OwnedFd::from(socket))));
        command.stdout(output.try_clone()?).stderr(output).stdin(stdin.transpose()?.unwrap_or_else(Stdio::null));
        let child = in_a_group_of_its_own(command).spawn()?;
        let mut running = Running { name, log, child };
        let deadline = std::time::Instant::now() + READY;
        // Short waits, so that a program that dies is noticed; datagrams tell of readiness, not of death.
        ready.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut said = [0; 256];
        loop {
            match ready.recv(&mut said) {
                Ok(length) if said.get(..length).is_some_and(|said| said.starts_with(b"READY=1")) => break,
                _ if running.child.try_wait()?.is_some() => {
                    return Err(format!("the {name} did not start:\n{}", running.output()).into());
                }
                _ if std::time::Instant::now() > deadline => {
                    return Err(format!("the {name} is not ready after {READY:?}:\n{}", running.output()).into());
                }
                _ => {}
            }
        }
        fs::remove_file(&notify)?;
        Ok(running)
    }

    /// A Forgejo token of the stub's for a user, who is made if missing.
    pub fn forge_token(&self, login: &str) -> Result<String> {
        self.stub("/stub/users", &format!(r#"{{"login":"{login}"}}"#))?;
        let scopes = "write:user write:repository write:issue write:organization write:notification";
        let answer = self.stub("/stub/tokens", &format!(r#"{{"login":"{login}","scopes":"{scopes}"}}"#))?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        Ok(answer.get("token").and_then(|token| token.as_str()).ok_or("the stub gave no token")?.to_owned())
    }

    /// Pulls one of the stub's strings: POST with a JSON body.
    pub fn stub(&self, path: &str, body: &str) -> Result<String> {
        self.pull("POST", path, body)
    }

    /// What the stub says.
    pub fn stub_says(&self, path: &str) -> Result<String> {
        self.pull("GET", path, "")
    }

    /// Takes something of the stub's away.
    pub fn stub_delete(&self, path: &str) -> Result<String> {
        self.pull("DELETE", path, "")
    }

    fn pull(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let address = self.forgejo.trim_start_matches("http://");
        let mut stream = std::net::TcpStream::connect(address)?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("the stub's answer broke off")?;
        if head.starts_with("HTTP/1.1 2") { Ok(body.to_owned()) } else { Err(format!("{path}: {head}").into()) }
    }

    /// The operator's tool.
    pub fn ctl(&self) -> Command {
        let mut command = Command::new(self.config.binaries.join("forgejo-mcp-brokerctl"));
        command.arg("--socket").arg(self.admin());
        command
    }

    /// The broker's token for a user, made from their Forgejo token.
    pub fn broker_token(&self, login: &str, forgejo_token: &str, more: &[&str]) -> Result<String> {
        let mut command = self.ctl();
        command.args(["token", "create", "--user", login]).args(more);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            writeln!(stdin, "{forgejo_token}")?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?.trim().to_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
    }

    /// The processes that the supervisor has started and that are still there.
    pub fn children(&self) -> Vec<Process> {
        let parent = self.supervisor.as_ref().map_or(0, Running::pid);
        processes().into_iter().filter(|process| process.field("PPid") == parent.to_string()).collect()
    }

    /// All that the programs have written.
    pub fn output(&self) -> String {
        let running = [&self.broker, &self.supervisor, &self.forge];
        running.into_iter().flatten().map(Running::output).collect()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        // In this order: the broker stops its children, the supervisor has nothing left to stop.
        drop(self.broker.take());
        drop(self.supervisor.take());
        drop(self.forge.take());
        drop(self.short.take());
    }
}

/// Asks a real Forgejo's API as its administrator: `FORGEJO_ADMIN` is `LOGIN:PASSWORD`.
fn admin(method: &str, forgejo: &str, path: &str, body: &str) -> Result<String> {
    let admin = std::env::var("FORGEJO_ADMIN").map_err(|_| "FORGEJO_ADMIN=LOGIN:PASSWORD is missing")?;
    let output = Command::new("curl")
        .args([
            "-sS",
            "--fail-with-body",
            "-X",
            method,
            "-u",
            &admin,
            "-H",
            "content-type: application/json",
            "-d",
            body,
        ])
        .arg(format!("{forgejo}{path}"))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{path}: {text} {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// A process as /proc shows it.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    pub status: String,
}

impl Process {
    /// A line of /proc/PID/status, trimmed.
    pub fn field(&self, name: &str) -> String {
        let line = self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub fn uid(&self) -> u32 {
        self.field("Uid").split(' ').next().and_then(|uid| uid.parse().ok()).unwrap_or_default()
    }

    pub fn file(&self, name: &str) -> Vec<u8> {
        fs::read(format!("/proc/{}/{name}", self.pid)).unwrap_or_default()
    }

    /// Soft and hard limit of a line of /proc/PID/limits.
    pub fn limit(&self, name: &str) -> (String, String) {
        let limits = String::from_utf8_lossy(&self.file("limits")).into_owned();
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }
}

/// Every process that can be seen, zombies aside.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let read = |pid: u32| Some(Process { pid, status: fs::read_to_string(format!("/proc/{pid}/status")).ok()? });
    pids.filter_map(read).filter(|process| !process.field("State").starts_with('Z')).collect()
}

/// Whether somebody else may reach what is in `dir`: every directory above must let them through.
pub fn others_may_enter(dir: &Path) -> bool {
    dir.ancestors().all(|dir| fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

/// Whether only root may write `path` and every directory above it.
pub fn is_roots(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    path.ancestors().all(|part| fs::metadata(part).is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o022 == 0))
}

/// Debian's libfaketime, if it is installed.
pub fn faketime() -> Option<PathBuf> {
    let dirs = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    dirs.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}

/// Ctrl-C is for us, who then stop everything in order.
fn in_a_group_of_its_own(command: &mut Command) -> &mut Command {
    command.process_group(0)
}
