//! Whether the child program can be run: a file, executable, and root's alone where it is run for others.
//!
//! Looked at before each start and not once, because packages are removed, replaced and installed while the supervisor
//! runs; so a missing program keeps nobody but its own children from starting, and is found again when it is back.

pub(crate) mod watch;

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::ownership;
use crate::ownership::{Access, OwnershipError};

/// Why it cannot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// Nothing is there.
    #[error("is not installed")]
    Missing,
    /// What is there cannot be looked at.
    #[error("cannot be looked at: {0}")]
    Unreadable(#[source] io::Error),
    /// A directory, or a file without the mode to be run.
    #[error("is not an executable file")]
    NotExecutable,
    /// Somebody else could put another program there.
    #[error("is not root's alone: {0}")]
    NotRoots(#[source] OwnershipError),
}

impl ProgramError {
    /// The nearest error number, for the wire.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Missing => libc::ENOENT,
            Self::Unreadable(error) => error.raw_os_error().unwrap_or(libc::EACCES),
            Self::NotExecutable => libc::EACCES,
            Self::NotRoots(error) => error.errno(),
        }
    }
}

/// Which file the program is: another one under the same path, or one written anew, is another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    mode: u32,
}

impl Identity {
    fn of(meta: &Metadata) -> Self {
        let modified = (meta.mtime(), meta.mtime_nsec());
        Self { device: meta.dev(), inode: meta.ino(), modified, mode: meta.mode() }
    }

    /// Whether everybody may read it. A process of a program that it may run but not read is not dumpable
    /// (`PR_SET_DUMPABLE(2const)`): its `/proc` belongs to root, and no other process of its uid looks into it.
    pub(crate) fn is_readable(self) -> bool {
        self.mode & 0o044 != 0
    }
}

/// Looks at the program; `roots` says whether it must be root's alone.
pub(crate) fn look_at(path: &Path, roots: bool) -> Result<Identity, ProgramError> {
    let meta = if roots {
        ownership::open(path, Access::Look)
            .map_err(|e| if e.is_missing() { ProgramError::Missing } else { ProgramError::NotRoots(e) })?
            .metadata()
    } else {
        std::fs::metadata(path)
    };
    let meta = meta.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ProgramError::Missing,
        _ => ProgramError::Unreadable(e),
    })?;
    if !meta.is_file() || meta.mode() & 0o111 == 0 {
        return Err(ProgramError::NotExecutable);
    }
    Ok(Identity::of(&meta))
}

/// Whether it is a script, which its interpreter must be able to read.
pub(crate) fn is_script(path: &Path) -> bool {
    let mut start = [0; 2];
    let read = std::fs::File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut start));
    read.is_ok() && start == *b"#!"
}
