//! The supervisor's policy: everything that the broker cannot say.
//!
//! The files belong to root: run as root, a file that somebody else owns or may write is refused. What stands in them is
//! trusted, but still parsed here into types, and every problem is told at once. What would make the start fail is a
//! problem here already, so that `--check` and the start say the same.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{Uid, User};
use toml::Value;

use crate::accounts;
use crate::ownership;
use crate::ownership::Access;
use crate::profile;
use crate::profile::Profile;
use crate::program;
use crate::rlimit::{ChildLimits, LimitsTable};
use crate::sandbox::policy::SandboxPolicy;
use crate::uid::UidRange;
use wire::config_file::{ConfigError, Section};
use wire::telemetry::{LogFilter, LogFormat};

/// Where the policy is when `--config` does not say.
pub(crate) const DEFAULT_FILE: &str = "/etc/forgejo-mcp-broker/supervisor.toml";

const SECOND: Duration = Duration::from_secs(1);
/// Children that are idle end within milliseconds. Those in the middle of a call hear neither, and a revocation is to end
/// them within a second all the same; nothing of theirs is lost that the broker would still hand on.
const EOF_GRACE: Duration = Duration::from_millis(250);
const TERM_GRACE: Duration = Duration::from_millis(500);
const _: () = assert!(EOF_GRACE.as_millis() + TERM_GRACE.as_millis() < 1000);
/// Most calls end within it, and whoever restarts the supervisor does not wait long for those that do not.
const DRAIN: Duration = Duration::from_secs(5);
/// All the graces of a stop together. Below the hard bound (`STOP_BOUND`), so that none of them is cut.
const GRACES: Duration = Duration::from_secs(75);

/// What a policy is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To tell what is wrong with it, and with the machine that it is for.
    Check,
    /// To start with it. A child program that is not there today is no problem of the start.
    Start,
    /// To go on with it. The range is the one that children run under already, so nobody else is looked for in it.
    Reload,
}

/// The whole policy.
#[derive(Debug)]
pub(crate) struct Config {
    /// Who may connect.
    pub(crate) broker: Uid,
    /// What a child is.
    pub(crate) profile: Profile,
    /// The uids of the children; `None` where they keep the supervisor's.
    pub(crate) uids: Option<UidRange>,
    /// `[caps]`.
    pub(crate) caps: Caps,
    /// `[limits]`.
    pub(crate) limits: LimitsTable,
    /// `[stop]`.
    pub(crate) stop: StopLadder,
    /// `[sandbox]`.
    pub(crate) sandbox: SandboxPolicy,
    /// What is logged, where `RUST_LOG` does not say.
    pub(crate) log: Option<LogFilter>,
    /// The form of lines on standard error.
    pub(crate) log_format: Option<LogFormat>,
    /// `[cgroup] root`: a cgroup2 directory that is the supervisor's to fill.
    pub(crate) cgroup_root: Option<PathBuf>,
}

/// How many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    /// Children at once, running or being stopped.
    pub(crate) children: u32,
    /// Children of one tenant at once.
    pub(crate) children_per_tenant: u32,
    /// Starts a second in the long run; at least 1.
    pub(crate) spawns_per_second: u32,
    /// Starts at once after a quiet time; at least 1.
    pub(crate) spawn_burst: u32,
}

/// The waits of a stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StopLadder {
    /// How long calls may go on when the supervisor stops, before its children are stopped.
    pub(crate) drain: Duration,
    /// Between the end of standard input and SIGTERM.
    pub(crate) eof_grace: Duration,
    /// Between SIGTERM and SIGKILL.
    pub(crate) term_grace: Duration,
}

impl Config {
    /// Reads the files in order, later ones laid over earlier ones.
    pub(crate) fn load(files: &[PathBuf], unprivileged: bool, purpose: Purpose) -> Result<Self, ConfigError> {
        let root = if unprivileged { Section::open(files) } else { Section::open_with(files, read_roots_file) };
        Self::read(root, unprivileged, purpose)
    }

    /// Reads an opened configuration; what the machine must have (users, directories) is looked up.
    fn read(mut root: Section, unprivileged: bool, purpose: Purpose) -> Result<Self, ConfigError> {
        let named = root.has("broker_user");
        let broker = root.value("broker_user", user);
        if !named && !unprivileged {
            root.complain("broker_user", "is missing: the user (name or uid) that may connect");
        }
        let log = root.parsed("log");
        let log_format = root.parsed("log_format");
        let profile = profile::read(&mut root);
        if purpose == Purpose::Check
            && !profile.program.as_os_str().is_empty()
            && let Err(what) = program::look_at(&profile.program, !unprivileged)
        {
            root.complain("child.program", format!("{} {what}", profile.program.display()));
        }
        let uids = uids(&mut root).filter(|_| !unprivileged);
        if let (Some(broker), Some(range)) = (broker, uids) {
            complain_of_broker(&root, broker, range);
        }
        if let Some(range) = uids.filter(|_| purpose != Purpose::Reload)
            && let Err(why) = accounts::free_of(range)
        {
            root.complain("uids", why.to_string());
        }
        let caps = caps(&mut root);
        let limits = LimitsTable::read(&mut root, &profile);
        let ladder = ladder(&mut root);
        let sandbox = SandboxPolicy::read(&mut root);
        let mut cgroup = root.section("cgroup");
        let cgroup_root = cgroup.optional_path("root");
        if let Some(dir) = &cgroup_root {
            match statfs(dir) {
                Ok(found) if found.filesystem_type() == CGROUP2_SUPER_MAGIC => {}
                Ok(_) => cgroup.complain("root", format!("{} is no cgroup2 directory", dir.display())),
                Err(e) => cgroup.complain("root", format!("{} cannot be looked at: {}", dir.display(), e.desc())),
            }
        }
        cgroup.close();
        root.finish()?;
        Ok(Self {
            broker: broker.unwrap_or_else(Uid::current),
            profile,
            uids,
            caps,
            limits,
            stop: ladder,
            sandbox,
            log,
            log_format,
            cgroup_root,
        })
    }

    /// Whether the child program can be run now.
    pub(crate) fn look_at_program(&self) -> Result<program::Identity, program::ProgramError> {
        program::look_at(&self.profile.program, self.uids.is_some())
    }

    /// The files that a child reads, as far as the policy can know.
    pub(crate) fn needed_files(&self) -> impl Iterator<Item = &Path> {
        let program = &self.profile.program;
        // A script is read by its interpreter; another program is only run.
        let script = program::is_script(program).then_some(program.as_path());
        self.profile.files().chain(script).chain(self.sandbox.read.iter().map(PathBuf::as_path))
    }

    /// What is worth knowing about a policy without problems.
    pub(crate) fn hints(&self) -> Vec<String> {
        let program = &self.profile.program;
        match self.look_at_program() {
            Ok(found) if found.is_readable() && !program::is_script(program) => vec![format!(
                "child.program: {} can be read by everybody; with mode 0711 the kernel keeps the memory and the \
                 environment of its processes from all others of the same uid as well",
                program.display()
            )],
            _ => Vec::new(),
        }
    }

    /// The limits that hold for children of this Forgejo user.
    pub(crate) fn limits_of(&self, tenant: wire::message::TenantId) -> &ChildLimits {
        self.limits.of(tenant)
    }
}

/// Reads a file that only root can change. What is refused is never parsed.
fn read_roots_file(file: &Path) -> Result<String, String> {
    let mut opened = ownership::open(file, Access::Read).map_err(|e| format!("is not used: {e}"))?;
    let mut text = String::new();
    opened.read_to_string(&mut text).map_err(|e| format!("cannot be read: {e}"))?;
    Ok(text)
}

fn caps(root: &mut Section) -> Caps {
    let mut caps = root.section("caps");
    let children = caps.integer("children", 512, 1..=16_384);
    let children_per_tenant = caps.integer("children_per_tenant", children.min(8), 1..=1024);
    if children_per_tenant > children {
        let what = format!("one user cannot have {children_per_tenant} of {children} children (`children`)");
        caps.complain("children_per_tenant", what);
    }
    let read = Caps {
        children,
        children_per_tenant,
        spawns_per_second: caps.integer("spawns_per_second", 50, 1..=1000),
        spawn_burst: caps.integer("spawn_burst", 100, 1..=10_000),
    };
    caps.close();
    read
}

fn ladder(root: &mut Section) -> StopLadder {
    let mut stop = root.section("stop");
    let ladder = StopLadder {
        drain: stop.duration("drain", DRAIN, Duration::ZERO..=60 * SECOND),
        eof_grace: stop.duration("eof_grace", EOF_GRACE, Duration::ZERO..=60 * SECOND),
        term_grace: stop.duration("term_grace", TERM_GRACE, Duration::ZERO..=60 * SECOND),
    };
    if ladder.drain + ladder.eof_grace + ladder.term_grace > GRACES {
        let most = GRACES.as_secs();
        stop.complain("drain", format!("and eof_grace and term_grace must not be above {most} seconds together"));
    }
    stop.close();
    ladder
}

/// Who may connect must be nobody whose processes the supervisor kills, and nobody who needs no supervisor.
fn complain_of_broker(root: &Section, broker: Uid, range: UidRange) {
    if broker.is_root() {
        root.complain("broker_user", "must not be root: the broker runs as a user of its own, without privileges");
    } else if range.get(broker.as_raw()).is_some() {
        let (first, last) = (range.first(), range.sweeper().get());
        let what = format!(
            "has uid {broker}, which lies in the range of [uids] ({first} to {last}): a child would run as the broker, \
             and be able to read its database"
        );
        root.complain("broker_user", what);
    }
}

fn uids(root: &mut Section) -> Option<UidRange> {
    let mut section = root.section("uids");
    let first = section.integer("first", 73_728, 1..=u32::MAX);
    let count = section.integer("count", 16_384, 1..=u32::MAX);
    let range = UidRange::new(first, count).map_err(|e| section.complain("first", format!("the range {e}"))).ok();
    section.close();
    range
}

fn user(value: Value) -> Result<Uid, String> {
    match value {
        Value::Integer(uid) => {
            u32::try_from(uid).map(Uid::from_raw).map_err(|_| "must be the name of a user or a uid".to_owned())
        }
        Value::String(name) => match User::from_name(&name) {
            Ok(Some(user)) => Ok(user.uid),
            Ok(None) => Err(format!("there is no user `{name}`")),
            Err(e) => Err(format!("the user `{name}` cannot be looked up: {e}")),
        },
        _ => Err("must be the name of a user or a uid".to_owned()),
    }
}
