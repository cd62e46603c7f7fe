//! Whether a file that decides what root does is root's alone, the way sshd asks it of its own files (`StrictModes`).
//!
//! The file that was opened counts, not its name; and so does every directory on the way to it, from `/` on, and that of
//! every symbolic link that is followed: who may write one of them puts another file there. A directory that everybody
//! may write is refused with the sticky bit as well, because names in it are anybody's to take first.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// As many symbolic links as the kernel follows (`path_resolution(7)`).
const MOST_LINKS: usize = 40;

/// Why a file is not root's alone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnershipError {
    /// It, or something on the way to it, cannot be looked at.
    #[error("{} cannot be looked at: {source}", .component.display())]
    Unreadable {
        /// What.
        component: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It, or something on the way to it, belongs to somebody else.
    #[error("{} must be owned by root and is owned by uid {owner}", .component.display())]
    Owner {
        /// What.
        component: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Its group or everybody may write it, or something on the way to it.
    #[error("{} must be writable by root alone, but has mode {mode:04o}", .component.display())]
    Mode {
        /// What.
        component: PathBuf,
        /// Permissions and sticky bit.
        mode: u32,
    },
    /// It was replaced while it was looked at, which only root can do.
    #[error("{} was replaced while it was looked at", .0.display())]
    Replaced(PathBuf),
    /// Symbolic links in a circle.
    #[error("{} leads through more than {MOST_LINKS} symbolic links", .0.display())]
    Links(PathBuf),
}

impl OwnershipError {
    /// The nearest error number, for the wire.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Unreadable { source, .. } => source.raw_os_error().unwrap_or(libc::EACCES),
            Self::Links(_) => libc::ELOOP,
            Self::Owner { .. } | Self::Mode { .. } | Self::Replaced(_) => libc::EPERM,
        }
    }

    /// Whether there is no such file.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
    }
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// To read it.
    Read,
    /// To look at its attributes, whether or not it can be read.
    Look,
}

impl Access {
    /// Opens without following a link, and without waiting for the other end of a pipe.
    fn open(self, path: &Path) -> io::Result<File> {
        let flags =
            libc::O_NOFOLLOW | libc::O_CLOEXEC | if self == Self::Look { libc::O_PATH } else { libc::O_NONBLOCK };
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    }
}

/// Opens a file that only root can change or replace.
pub(crate) fn open(path: &Path, access: Access) -> Result<File, OwnershipError> {
    let unreadable = |component: &Path| {
        let component = component.to_owned();
        move |source| OwnershipError::Unreadable { component, source }
    };
    let (resolved, meta) = walk(path)?;
    let file = access.open(&resolved).map_err(unreadable(&resolved))?;
    let opened = file.metadata().map_err(unreadable(&resolved))?;
    if (opened.dev(), opened.ino()) != (meta.dev(), meta.ino()) {
        return Err(OwnershipError::Replaced(resolved));
    }
    roots_alone(&resolved, &opened)?;
    Ok(file)
}

/// Follows the path by hand, and looks at each directory and link; the path without links, and what is there.
fn walk(path: &Path) -> Result<(PathBuf, Metadata), OwnershipError> {
    let unreadable = |component: &Path, source| OwnershipError::Unreadable { component: component.to_owned(), source };
    // A relative path is one of the command line's.
    let absolute = std::path::absolute(path).map_err(|e| unreadable(path, e))?;
    let mut links = 0;
    let mut at = PathBuf::from("/");
    let mut meta = look(&at)?;
    let mut rest = names(&absolute);
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            meta = look(&at)?;
            continue;
        }
        let next = at.join(name);
        let found = look(&next)?;
        if !found.is_symlink() {
            (at, meta) = (next, found);
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(OwnershipError::Links(absolute));
        }
        let target = std::fs::read_link(&next).map_err(|e| unreadable(&next, e))?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for name in names(&target).into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok((at, meta))
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name).collect()
}

fn look(path: &Path) -> Result<Metadata, OwnershipError> {
    let meta = std::fs::symlink_metadata(path)
        .map_err(|source| OwnershipError::Unreadable { component: path.to_owned(), source })?;
    roots_alone(path, &meta)?;
    Ok(meta)
}

fn roots_alone(path: &Path, meta: &Metadata) -> Result<(), OwnershipError> {
    let component = path.to_owned();
    if meta.uid() != 0 {
        return Err(OwnershipError::Owner { component, owner: meta.uid() });
    }
    // A link's own mode is always 0777 and means nothing (symlink(7)).
    if !meta.is_symlink() && meta.mode() & 0o022 != 0 {
        return Err(OwnershipError::Mode { component, mode: meta.mode() & 0o7777 });
    }
    Ok(())
}
