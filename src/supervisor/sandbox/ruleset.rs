//! Landlock: what a child may open, and which TCP ports it may connect to (landlock(7)).
//!
//! Trusts the policy's paths. Rights that the kernel does not know are left out (best effort): ports need the fourth
//! version of its interface (Linux 6.7), the scopes of signals and abstract sockets the sixth (6.12), Unix sockets with a
//! path the ninth (7.1). UDP, the tenth, is not restricted: resolvers are reached at any port.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};

use super::policy::SandboxPolicy;
use crate::profile::Profile;

/// The newest access rights that are asked for.
const LANDLOCK: ABI = ABI::V9;
/// Its number.
pub(crate) const NEWEST: u32 = 9;

/// Read and execute: programs, libraries and what the C library and TLS want to read. A missing one is skipped.
const EXECUTABLE: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];
/// Read: configuration (file modes still protect what is secret there), what is behind `/etc/resolv.conf`, CA bundles,
/// and what runtimes look up about themselves and the machine. Not all of `/sys`: the cgroups there name other users.
const READABLE: [&str; 9] = [
    "/etc",
    "/proc",
    "/sys/devices/system",
    "/sys/kernel/mm",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/var/lib/ca-certificates",
    "/dev/urandom",
];
const WRITABLE: [&str; 2] = ["/dev/null", "/dev/zero"];

/// The resolver's file. Often a link to where a daemon keeps it.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// DNS over TCP, for answers that fit in no datagram (RFC 7766).
const DNS: u16 = 53;

/// What a ruleset is made of, as paths: they are looked up anew for each child.
#[derive(Debug)]
pub(crate) struct Rules {
    program: PathBuf,
    read: Vec<PathBuf>,
    ports: BTreeSet<u16>,
    unix_sockets: bool,
}

impl Rules {
    /// Out of the policy.
    pub(crate) fn new(policy: &SandboxPolicy, profile: &Profile) -> Self {
        let ports = profile.ports.union(&policy.connect_ports).copied().chain([DNS]).collect();
        let (program, read) = (profile.program.clone(), policy.read.clone());
        Self { program, read, ports, unix_sockets: policy.unix_sockets }
    }

    /// A new ruleset; `None` where the kernel has no Landlock.
    pub(crate) fn ruleset(&self) -> Result<Option<OwnedFd>, RulesetError> {
        let execute = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
        let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
        let mut handled = AccessFs::from_all(LANDLOCK);
        if self.unix_sockets {
            handled.remove(AccessFs::ResolveUnix);
        }
        let created = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(handled)?
            // No port is bound: there is no rule for it.
            .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
            // No signals to, and no abstract sockets of, anybody outside; siblings under the same uid are outside.
            .scope(Scope::from_all(LANDLOCK))?
            .create()?
            .add_rules(path_beneath_rules(EXECUTABLE, execute))?
            .add_rules(path_beneath_rules([&self.program], execute))?
            .add_rules(path_beneath_rules(self.readable(), read))?
            .add_rules(path_beneath_rules(WRITABLE, AccessFs::ReadFile | AccessFs::WriteFile))?
            .add_rules(
                self.ports
                    .iter()
                    .map(|&port| Ok(NetPort::new(port, AccessNet::ConnectTcp)))
                    .collect::<Vec<Result<_, RulesetError>>>(),
            )?;
        Ok(created.into())
    }

    fn readable(&self) -> impl Iterator<Item = PathBuf> {
        let resolver = behind(Path::new(RESOLV_CONF));
        READABLE.into_iter().map(PathBuf::from).chain(self.read.iter().cloned()).chain(resolver)
    }

    /// Whether a path without symbolic links lies beneath one of the rules, as they would be made now.
    fn cover(&self, path: &Path) -> bool {
        let rules = EXECUTABLE.into_iter().chain(WRITABLE).map(PathBuf::from);
        let rules = rules.chain([self.program.clone()]).chain(self.readable());
        rules.filter_map(|rule| rule.canonicalize().ok()).any(|rule| path.starts_with(rule))
    }
}

/// What must be readable for a file that links to elsewhere: the directory there, because the file is made anew by
/// renaming, unless that directory holds other things than the resolver's.
fn behind(link: &Path) -> Option<PathBuf> {
    let target = link.canonicalize().ok()?;
    let dir = target.parent()?;
    let of_its_own =
        dir.components().count() > 2 && !["/var/run", "/var/lib", "/var/tmp"].map(Path::new).contains(&dir);
    Some(if of_its_own { dir.to_owned() } else { target.clone() })
}

/// Why a child, which is neither owner nor group of anything, cannot read what is there; `None`: it can.
pub(crate) fn why_unreadable(path: &Path, rules: Option<&Rules>) -> Option<&'static str> {
    const READ: u32 = 0o4;
    const SEARCH: u32 = 0o1;
    let Ok(resolved) = path.canonicalize() else { return Some("is not there") };
    let may = |path: &Path, bits: u32| std::fs::metadata(path).is_ok_and(|meta| meta.mode() & bits == bits);
    if !resolved.ancestors().skip(1).all(|dir| may(dir, SEARCH)) {
        return Some("lies where only its owner may go");
    }
    if !may(&resolved, READ) {
        return Some("has a mode that keeps others out");
    }
    match rules {
        Some(rules) if !rules.cover(&resolved) => Some("is not in [sandbox] read"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_directory_behind_the_resolvers_link_is_readable_but_never_all_of_a_shared_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let (link, own) = (dir.path().join("resolv.conf"), dir.path().join("resolver"));
        std::fs::create_dir(&own).expect("made");
        let file = own.join("resolv.conf");
        std::fs::write(&file, "nameserver 192.0.2.1\n").expect("written");
        symlink(&file, &link).expect("linked");
        let own = own.canonicalize().expect("there");
        assert_eq!(behind(&link), Some(own.clone()));
        // As a daemon that starts again does it; the same inodes are not asked for.
        std::fs::remove_dir_all(&own).expect("removed");
        assert_eq!(behind(&link), None);
        std::fs::create_dir(&own).expect("made");
        std::fs::write(own.join("resolv.conf"), "").expect("written");
        assert_eq!(behind(&link), Some(own));
        assert_eq!(
            behind(Path::new("/etc/passwd")),
            Some("/etc/passwd".into()),
            "not all of /etc, if it were not there"
        );
    }
}
