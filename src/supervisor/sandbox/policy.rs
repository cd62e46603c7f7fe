//! `[sandbox]` of the policy.

use std::collections::BTreeSet;
use std::path::PathBuf;

use toml::Value;
use wire::config_file::Section;

/// How system calls are filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seccomp {
    /// Not at all.
    Off,
    /// What is dangerous and not needed is denied.
    DenyList,
    /// What is not known to be needed is denied as well.
    AllowList,
}

/// What the sandbox adds.
#[derive(Debug, Clone)]
pub(crate) struct SandboxPolicy {
    /// Whether to use Landlock where the kernel has it.
    pub(crate) landlock: bool,
    /// Which seccomp filters to install where the kernel has them.
    pub(crate) seccomp: Seccomp,
    /// What a child may read besides the system's directories and its own program.
    pub(crate) read: Vec<PathBuf>,
    /// Ports that it may connect to besides those that it needs for Forgejo.
    pub(crate) connect_ports: BTreeSet<u16>,
    /// Whether it may make Unix sockets, and so talk to every service of the machine that lets everybody.
    pub(crate) unix_sockets: bool,
    /// Whether it may make objects of System V IPC, which the supervisor removes before the next lease of its uid.
    pub(crate) sysv_ipc: bool,
}

impl SandboxPolicy {
    /// Reads `[sandbox]`; what is wrong is noted in the section.
    pub(crate) fn read(root: &mut Section) -> Self {
        let mut sandbox = root.section("sandbox");
        let policy = Self {
            landlock: sandbox.flag("landlock", true),
            seccomp: sandbox.value("seccomp", seccomp).unwrap_or(Seccomp::DenyList),
            read: existing_paths(&mut sandbox, "read"),
            connect_ports: sandbox.value("connect_ports", ports).unwrap_or_default(),
            unix_sockets: sandbox.flag("unix_sockets", false),
            sysv_ipc: sandbox.flag("sysv_ipc", false),
        };
        sandbox.close();
        policy
    }
}

fn seccomp(value: Value) -> Result<Seccomp, String> {
    match value {
        Value::Boolean(true) => Ok(Seccomp::DenyList),
        Value::Boolean(false) => Ok(Seccomp::Off),
        Value::String(text) if text == "deny-list" => Ok(Seccomp::DenyList),
        Value::String(text) if text == "allow-list" => Ok(Seccomp::AllowList),
        Value::String(text) if text == "off" => Ok(Seccomp::Off),
        _ => Err("must be \"deny-list\", \"allow-list\" or \"off\"".to_owned()),
    }
}

fn ports(value: Value) -> Result<BTreeSet<u16>, String> {
    let wrong = || "must be a list of ports from 1 to 65535".to_owned();
    let Value::Array(items) = value else { return Err(wrong()) };
    let port = |item: Value| item.as_integer().and_then(|n| u16::try_from(n).ok()).filter(|&port| port > 0);
    items.into_iter().map(|item| port(item).ok_or_else(wrong)).collect()
}

fn existing_paths(section: &mut Section, key: &str) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = section.texts(key, &[]).into_iter().map(PathBuf::from).collect();
    for path in &paths {
        if path.is_relative() {
            section.complain(key, format!("must hold absolute paths, not `{}`", path.display()));
        } else if let Err(e) = std::fs::metadata(path) {
            section.complain(key, format!("{}: {e}", path.display()));
        }
    }
    paths
}
