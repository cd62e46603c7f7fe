//! The supervisor's policy: everything that the broker cannot say.
//!
//! The files belong to root: run as root, a file that somebody else owns or may write is refused, and so is such a
//! program. What stands in them is trusted, but still parsed here into types, and every problem is told at once.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Uid, User};
use toml::Value;

use crate::profile;
use crate::profile::Profile;
use crate::rlimit::{ChildLimits, LimitsTable};
use crate::uid::UidRange;
use wire::config_file::{ConfigError, Section};

/// Where the policy is when `--config` does not say.
pub(crate) const DEFAULT_FILE: &str = "/etc/forgejo-mcp-broker/supervisor.toml";

const SECOND: Duration = Duration::from_secs(1);
/// Children that are idle end within milliseconds. Those in the middle of a call hear neither, and a revocation is to end
/// them within a second all the same; nothing of theirs is lost that the broker would still hand on.
const EOF_GRACE: Duration = Duration::from_millis(250);
const TERM_GRACE: Duration = Duration::from_millis(500);
const _: () = assert!(EOF_GRACE.as_millis() + TERM_GRACE.as_millis() < 1000);

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
    /// `[cgroup] root`: a cgroup2 directory that is the supervisor's to fill.
    pub(crate) cgroup_root: Option<PathBuf>,
}

/// How many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    /// Children at once.
    pub(crate) children: u32,
    /// Children of one tenant at once.
    pub(crate) children_per_tenant: u32,
    /// Starts a second in the long run.
    pub(crate) spawns_per_second: u32,
    /// Starts at once after a quiet time.
    pub(crate) spawn_burst: u32,
}

/// The waits of the stop ladder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StopLadder {
    /// Between the end of standard input and SIGTERM.
    pub(crate) eof_grace: Duration,
    /// Between SIGTERM and SIGKILL.
    pub(crate) term_grace: Duration,
}

/// What the sandbox adds.
#[derive(Debug, Clone)]
pub(crate) struct SandboxPolicy {
    /// Whether to use Landlock where the kernel has it.
    pub(crate) landlock: bool,
    /// Whether to install the seccomp filters.
    pub(crate) seccomp: bool,
    /// What a child may read besides the system's directories and its own program.
    pub(crate) read: Vec<PathBuf>,
}

impl Config {
    /// Reads the files in order, later ones laid over earlier ones.
    pub(crate) fn load(files: &[PathBuf], unprivileged: bool) -> Result<Self, ConfigError> {
        let root = Section::open(files);
        if !unprivileged {
            for file in files {
                if let Err(what) = owned_by_root(file) {
                    root.complain("", format!("{}: {what}", file.display()));
                }
            }
        }
        Self::read(root, unprivileged)
    }

    /// Reads an opened configuration; what the machine must have (users, the program) is looked up.
    pub(crate) fn read(mut root: Section, unprivileged: bool) -> Result<Self, ConfigError> {
        let broker = root.value("broker_user", user);
        if broker.is_none() && !unprivileged {
            root.complain("broker_user", "is missing: the user (name or uid) that may connect");
        }
        let profile = profile::read(&mut root);
        if let Err(what) = executable(&profile.program, unprivileged) {
            root.complain("child.program", format!("{}: {what}", profile.program.display()));
        }
        let uids = uids(&mut root);
        let caps = caps(&mut root);
        let limits = LimitsTable::read(&mut root, profile.least_address_space);
        let mut stop = root.section("stop");
        let ladder = StopLadder {
            eof_grace: stop.duration("eof_grace", EOF_GRACE, Duration::ZERO..=60 * SECOND),
            term_grace: stop.duration("term_grace", TERM_GRACE, Duration::ZERO..=60 * SECOND),
        };
        stop.close();
        let mut sandbox = root.section("sandbox");
        let policy = SandboxPolicy {
            landlock: sandbox.flag("landlock", true),
            seccomp: sandbox.flag("seccomp", true),
            read: absolute_paths(&mut sandbox, "read"),
        };
        sandbox.close();
        let mut cgroup = root.section("cgroup");
        let cgroup_root = cgroup.optional_path("root");
        cgroup.close();
        root.finish()?;
        Ok(Self {
            broker: broker.unwrap_or_else(Uid::current),
            profile,
            uids: uids.filter(|_| !unprivileged),
            caps,
            limits,
            stop: ladder,
            sandbox: policy,
            cgroup_root,
        })
    }

    /// The limits that hold for children of this Forgejo user.
    pub(crate) fn limits_of(&self, tenant: wire::message::TenantId) -> &ChildLimits {
        self.limits.of(tenant)
    }
}

fn caps(root: &mut Section) -> Caps {
    let mut caps = root.section("caps");
    let read = Caps {
        children: caps.integer("children", 256, 1..=16_384),
        children_per_tenant: caps.integer("children_per_tenant", 8, 1..=1024),
        spawns_per_second: caps.integer("spawns_per_second", 20, 1..=1000),
        spawn_burst: caps.integer("spawn_burst", 40, 1..=10_000),
    };
    caps.close();
    read
}

fn uids(root: &mut Section) -> Option<UidRange> {
    let mut section = root.section("uids");
    let first = section.integer("first", 73_728, 1..=u32::MAX);
    let count = section.integer("count", 16_384, 1..=u32::MAX);
    let range = UidRange::new(first, count).map_err(|e| section.complain("first", format!("the range {e}"))).ok();
    section.close();
    range
}

/// Whether somebody else has a uid of the range: the first of them that is found.
///
/// All of `/etc/passwd` and `/etc/subuid` is compared. Of the other sources of NSS only the ends and the middle of
/// the range are asked for: asking for each uid would be 16384 round trips to a directory server.
pub(crate) fn uid_in_use(range: UidRange) -> Option<String> {
    let lines = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    for line in lines("/etc/passwd").lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        if let Some(uid) = fields.nth(1).and_then(|uid| uid.parse().ok()).and_then(|uid| range.get(uid)) {
            return Some(format!("{name} has uid {}", uid.get()));
        }
    }
    for line in lines("/etc/subuid").lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let mut number = || fields.next().and_then(|n| n.parse::<u32>().ok());
        if let (Some(first), Some(count)) = (number(), number())
            && first <= range.sweeper().get()
            && first.saturating_add(count) > range.first()
        {
            return Some(format!("/etc/subuid gives {first} and {count} more to {name}"));
        }
    }
    let last = range.sweeper().get();
    let middle = range.first() + (last - range.first()) / 2;
    [range.first(), middle, last].into_iter().find_map(|uid| {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten()?;
        Some(format!("{} has uid {uid}", user.name))
    })
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

fn absolute_paths(section: &mut Section, key: &str) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = section.texts(key, &[]).into_iter().map(PathBuf::from).collect();
    for path in paths.iter().filter(|path| path.is_relative()) {
        section.complain(key, format!("must hold absolute paths, not `{}`", path.display()));
    }
    paths
}

/// A file that decides what root does must be root's alone.
fn owned_by_root(path: &Path) -> Result<(), String> {
    // A file that cannot be read was complained about when it was opened.
    let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
    if meta.uid() != 0 {
        return Err(format!("must be owned by root and is owned by uid {}", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!("must be writable by root alone, but has mode {:04o}", meta.mode() & 0o7777));
    }
    Ok(())
}

fn executable(path: &Path, unprivileged: bool) -> Result<(), String> {
    if path.as_os_str().is_empty() {
        return Ok(()); // already complained about
    }
    let meta = std::fs::metadata(path).map_err(|e| format!("cannot be looked at: {e}"))?;
    if !meta.is_file() || meta.mode() & 0o111 == 0 {
        return Err("is not an executable file".to_owned());
    }
    if unprivileged { Ok(()) } else { owned_by_root(path) }
}
