//! The supervisor's configuration: everything that a frame cannot express.
//!
//! The file is trusted because only root can write it, and that is checked. It names the program that is started,
//! for whom the socket is, which uids are free to use, and every limit.

mod profile;

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Uid, User};

pub use self::profile::Profile;
use super::core::Caps;
use super::rlimit::Limits;
use super::uid::Range;
use crate::config_file::{ConfigError, Section};
use crate::ipc::message::TenantId;

/// All of it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whether children get uids of their own.
    pub privileged: bool,
    /// The uid that may connect: the broker's.
    pub broker: u32,
    /// The program that is started.
    pub profile: Profile,
    /// The uids that belong to the supervisor.
    pub uids: Range,
    /// Caps on children.
    pub caps: Caps,
    /// Limits of a child.
    pub limits: Limits,
    /// Limits of the children of single users, by Forgejo's id.
    pub limits_of: HashMap<TenantId, Limits>,
    /// How long a child may take to end.
    pub graces: Graces,
    /// What else holds a child.
    pub sandbox: Sandbox,
    /// The cgroup below which each user gets one; looked for where it is `None`.
    pub cgroup_root: Option<PathBuf>,
}

/// The rungs of the stop ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Graces {
    /// Between the end of its input and SIGTERM.
    pub eof: Duration,
    /// Between SIGTERM and SIGKILL.
    pub term: Duration,
}

/// Landlock and seccomp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Whether to restrict the file system.
    pub landlock: bool,
    /// What a child may read besides the system's own files.
    pub read: Vec<PathBuf>,
    /// Whether to filter system calls.
    pub seccomp: bool,
}

impl Config {
    /// Reads it; all problems at once. `files` are checked for their owner where `privileged`.
    pub fn read(mut root: Section, files: &[PathBuf], privileged: bool) -> Result<Self, ConfigError> {
        if privileged {
            for file in files {
                if let Err(what) = only_root_writes(file) {
                    root.complain("", format!("{}: {what}", file.display()));
                }
            }
        }
        let broker = broker(&mut root, privileged);
        let mut forgejo = root.section("forgejo");
        let url = forgejo_url(&mut forgejo);
        forgejo.close();
        let profile = Profile::read(root.section("child"), url, privileged);
        let uids = uids(root.section("uids"), privileged);
        let caps = caps(root.section("caps"));
        let mut limits_section = root.section("limits");
        let mut users = limits_section.section("users");
        let limits = Limits::read(limits_section, &Limits::default());
        let mut limits_of = HashMap::new();
        for key in users.keys() {
            match key.parse().ok().and_then(|id| TenantId::new(id).ok()) {
                Some(tenant) => {
                    limits_of.insert(tenant, Limits::read(users.section(&key), &limits));
                }
                None => users.complain(&key, "must be a Forgejo user's number (`id` in the API)"),
            }
        }
        let graces = graces(root.section("stop"));
        let sandbox = sandbox(root.section("sandbox"));
        let mut cgroup = root.section("cgroup");
        let cgroup_root = cgroup.optional_path("root");
        cgroup.close();
        root.finish()?;
        // Without problems every required value is there; the fallbacks are never used.
        Ok(Self {
            privileged,
            broker: broker.unwrap_or(u32::MAX),
            profile: profile.unwrap_or_default(),
            uids: uids.unwrap_or_default(),
            caps,
            limits,
            limits_of,
            graces,
            sandbox,
            cgroup_root,
        })
    }

    /// The limits of a user's children.
    pub fn limits_for(&self, tenant: TenantId) -> &Limits {
        self.limits_of.get(&tenant).unwrap_or(&self.limits)
    }
}

fn broker(root: &mut Section, privileged: bool) -> Option<u32> {
    if !root.has("broker_user") && !privileged {
        return Some(Uid::effective().as_raw());
    }
    if !root.has("broker_user") {
        root.complain("broker_user", "is missing: name the user that forgejo-mcp-broker runs as");
    }
    root.value("broker_user", |value| {
        if let Some(uid) = value.as_integer() {
            return u32::try_from(uid).map_err(|_| "is no uid".to_owned());
        }
        let name = value.as_str().ok_or("must be a user's name or uid")?;
        match User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(format!("there is no user `{name}`")),
            Err(e) => Err(format!("the user `{name}` cannot be looked up: {e}")),
        }
    })
}

fn forgejo_url(forgejo: &mut Section) -> Option<String> {
    if !forgejo.has("url") {
        forgejo.complain("url", "is missing: the address of the Forgejo instance, such as \"https://git.example.org\"");
    }
    forgejo.value("url", |value| {
        let url = value.as_str().unwrap_or_default();
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
        let plain = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic());
        if plain {
            Ok(url.trim_end_matches('/').to_owned())
        } else {
            Err("must be an http or https address".to_owned())
        }
    })
}

fn uids(mut section: Section, privileged: bool) -> Option<Range> {
    // Above the ranges of users and of DynamicUser=, below those of /etc/subuid (systemd's UIDS-GIDS document).
    let first = section.integer("first", 73_728_u32, 1..=u32::MAX - 1);
    let count = section.integer("count", 16_384_u32, 1..=1_000_000);
    let range = Range::new(first, count);
    match &range {
        None => section.complain("count", "goes beyond the last uid"),
        Some(range) if privileged => {
            for what in range.foreign_names() {
                section.complain("first", what);
            }
        }
        Some(_) => {}
    }
    section.close();
    range
}

fn caps(mut section: Section) -> Caps {
    let caps = Caps {
        children: section.integer("children", 256, 1..=100_000),
        children_per_tenant: section.integer("children_per_tenant", 16, 1..=10_000),
        spawns_per_second: section.integer("spawns_per_second", 20, 1..=10_000),
        spawn_burst: section.integer("spawn_burst", 40, 1..=10_000),
    };
    section.close();
    caps
}

fn graces(mut section: Section) -> Graces {
    let range = Duration::ZERO..=Duration::from_mins(5);
    let graces = Graces {
        eof: section.duration("eof_grace", Duration::from_secs(2), range.clone()),
        term: section.duration("term_grace", Duration::from_secs(3), range),
    };
    section.close();
    graces
}

fn sandbox(mut section: Section) -> Sandbox {
    let landlock = section.flag("landlock", true);
    let seccomp = section.flag("seccomp", true);
    let read: Vec<PathBuf> = section.texts("read", &[]).into_iter().map(PathBuf::from).collect();
    if let Some(path) = read.iter().find(|path| !path.is_absolute()) {
        section.complain("read", format!("must hold absolute paths, not `{}`", path.display()));
    }
    section.close();
    Sandbox { landlock, read, seccomp }
}

/// Whether nobody but root can change what the file holds.
fn only_root_writes(file: &Path) -> Result<(), String> {
    // A file that cannot be read is a problem already.
    let Ok(meta) = std::fs::metadata(file) else { return Ok(()) };
    if meta.uid() != 0 {
        return Err(format!("belongs to uid {}, not to root; run `chown root {}`", meta.uid(), file.display()));
    }
    if meta.permissions().mode() & 0o022 != 0 {
        return Err(format!("can be written by others than root; run `chmod go-w {}`", file.display()));
    }
    Ok(())
}
