//! The machine's accounts and groups, which must have none of the ids that children get: a child would own their files.
//!
//! Nothing here is believed to be absent because it could not be read.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};

use crate::uid::UidRange;

/// Why a range is not free, or is not known to be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotFree {
    /// An account has a uid of it.
    #[error("the range is not free: {name} has uid {uid}")]
    Uid { name: String, uid: u32 },
    /// An account has a group of it at its login.
    #[error("the range is not free: {name} has gid {gid}")]
    Gid { name: String, gid: u32 },
    /// A group has a gid of it.
    #[error("the range is not free: the group {name} has gid {gid}")]
    Group { name: String, gid: u32 },
    /// An account may use ids of it in user namespaces.
    #[error("the range is not free: {file} gives {first} and {count} more to {name}", file = file.display())]
    SubIds { file: PathBuf, name: String, first: u32, count: u32 },
    /// A list of accounts cannot be read.
    #[error("whether the range is free cannot be told: {file} cannot be read: {error}", file = file.display())]
    File { file: PathBuf, error: ErrorKind },
    /// One of the sources in `/etc/nsswitch.conf` does not answer.
    #[error(
        "whether the range is free cannot be told: the machine's sources of accounts do not say who has {id}: {errno}"
    )]
    Asked { id: u32, errno: Errno },
}

/// Whether nobody has a uid of the range, and no group its gid.
///
/// All of `/etc/passwd`, `/etc/group`, `/etc/subuid` and `/etc/subgid` is compared. Of the other sources of NSS only the
/// ends and the middle of the range are asked for: asking for each uid would be 16384 round trips to a directory server.
pub(crate) fn free_of(range: UidRange) -> Result<(), NotFree> {
    in_passwd(&read(Path::new("/etc/passwd"))?, range)?;
    in_group(&read(Path::new("/etc/group"))?, range)?;
    for file in ["/etc/subuid", "/etc/subgid"].map(Path::new) {
        in_subids(file, &read(file)?, range)?;
    }
    let last = range.sweeper().get();
    let middle = range.first() + (last - range.first()) / 2;
    for id in [range.first(), middle, last] {
        if let Some(user) = asked(id, User::from_uid(Uid::from_raw(id)))? {
            return Err(NotFree::Uid { name: user.name, uid: id });
        }
        if let Some(group) = asked(id, Group::from_gid(Gid::from_raw(id)))? {
            return Err(NotFree::Group { name: group.name, gid: id });
        }
    }
    Ok(())
}

/// A list; an empty one where there is no such file. Names and comments may be in any encoding.
fn read(file: &Path) -> Result<String, NotFree> {
    match std::fs::read(file) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(NotFree::File { file: file.to_owned(), error: error.kind() }),
    }
}

/// What the sources say of an id: `getpwuid_r(3)` has four ways to say that nobody has it, besides none.
fn asked<T>(id: u32, answer: Result<Option<T>, Errno>) -> Result<Option<T>, NotFree> {
    match answer {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        answer => answer.map_err(|errno| NotFree::Asked { id, errno }),
    }
}

/// passwd(5): uid, and the gid that a login has.
fn in_passwd(passwd: &str, range: UidRange) -> Result<(), NotFree> {
    for line in passwd.lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let mut id = |skipped| fields.nth(skipped)?.parse().ok().filter(|id| range.get(*id).is_some());
        if let Some(uid) = id(1) {
            return Err(NotFree::Uid { name: name.to_owned(), uid });
        }
        if let Some(gid) = id(0) {
            return Err(NotFree::Gid { name: name.to_owned(), gid });
        }
    }
    Ok(())
}

/// group(5).
fn in_group(group: &str, range: UidRange) -> Result<(), NotFree> {
    for line in group.lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let gid = fields.nth(1).and_then(|gid| gid.parse().ok());
        if let Some(gid) = gid.filter(|gid| range.get(*gid).is_some()) {
            return Err(NotFree::Group { name: name.to_owned(), gid });
        }
    }
    Ok(())
}

/// subuid(5), subgid(5).
fn in_subids(file: &Path, subids: &str, range: UidRange) -> Result<(), NotFree> {
    for line in subids.lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let mut number = || fields.next()?.parse::<u32>().ok();
        let (Some(first), Some(count)) = (number(), number()) else { continue };
        if first <= range.sweeper().get() && first.saturating_add(count) > range.first() {
            return Err(NotFree::SubIds { file: file.to_owned(), name: name.to_owned(), first, count });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> UidRange {
        UidRange::new(73_728, 100).expect("a range")
    }

    #[test]
    fn whoever_has_a_uid_or_gid_of_the_range_is_found() {
        let passwd = |uid: u32| format!("root:x:0:0::/root:/bin/sh\nada:x:{uid}:5::/:/bin/sh\n");
        for (uid, found) in [(73_727, false), (73_728, true), (73_827, true), (73_828, false)] {
            assert_eq!(in_passwd(&passwd(uid), range()).is_err(), found, "{uid}");
            assert_eq!(in_passwd(&format!("ada:x:5:{uid}::/:/bin/sh"), range()).is_err(), found, "gid {uid}");
            assert_eq!(in_group(&format!("root:x:0:\nadas:x:{uid}:ada,bob\n"), range()).is_err(), found, "group {uid}");
        }
        for (first, count, found) in
            [(73_000, 728, false), (73_000, 729, true), (73_827, 1, true), (73_828, 9, false), (1, u32::MAX, true)]
        {
            let subids = format!("broken\nada:{first}:{count}\n");
            assert_eq!(in_subids(Path::new("/etc/subuid"), &subids, range()).is_err(), found, "{first} {count}");
        }
        assert_eq!(in_passwd("no line of passwd\n\n+::::::\n", range()), Ok(()));
    }

    #[test]
    fn a_list_in_another_encoding_hides_nobody_and_one_that_cannot_be_read_is_not_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let list = dir.path().join("passwd");
        std::fs::write(&list, b"jos\xe9:x:73728:5:Jos\xe9:/:/bin/sh\n").expect("written");
        let found = in_passwd(&read(&list).expect("readable"), range());
        assert!(matches!(found, Err(NotFree::Uid { uid: 73_728, .. })), "{found:?}");
        assert!(matches!(read(dir.path()), Err(NotFree::File { .. })), "a directory is no list");
        assert_eq!(read(&dir.path().join("none")), Ok(String::new()));
    }

    #[test]
    fn a_source_that_does_not_answer_has_not_said_that_nobody_has_the_id() {
        let refused = asked::<()>(7, Err(Errno::ECONNREFUSED));
        assert_eq!(refused, Err(NotFree::Asked { id: 7, errno: Errno::ECONNREFUSED }));
        assert_eq!(asked::<()>(7, Err(Errno::ENOENT)), Ok(None));
        assert_eq!(asked(7, Ok(Some(()))), Ok(Some(())));
    }
}
