//! Whether the child program can be run: a file, executable, and root's alone where it is run for others.
//!
//! Looked at before each start and not once, because packages are removed, replaced and installed while the supervisor
//! runs; so a missing program keeps nobody but its own children from starting, and is found again when it is back.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
    #[error("{0}")]
    NotRoots(#[from] NotRoots),
}

impl ProgramError {
    /// The nearest error number, for the wire.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Missing => libc::ENOENT,
            Self::Unreadable(error) => error.raw_os_error().unwrap_or(libc::EACCES),
            Self::NotExecutable => libc::EACCES,
            Self::NotRoots(_) => libc::EPERM,
        }
    }
}

/// Why a file that decides what root does is not root's alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotRoots {
    /// It belongs to somebody else.
    #[error("must be owned by root and is owned by uid {0}")]
    Owner(u32),
    /// Its group or everybody may write it.
    #[error("must be writable by root alone, but has mode {0:04o}")]
    Mode(u32),
}

/// Looks at the program; `roots` says whether it must be root's alone.
pub(crate) fn look_at(path: &Path, roots: bool) -> Result<(), ProgramError> {
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ProgramError::Missing,
        _ => ProgramError::Unreadable(e),
    })?;
    if !meta.is_file() || meta.mode() & 0o111 == 0 {
        return Err(ProgramError::NotExecutable);
    }
    if roots {
        root_owns(&meta)?;
    }
    Ok(())
}

/// Whether only root can change what is there.
pub(crate) fn root_owns(meta: &Metadata) -> Result<(), NotRoots> {
    if meta.uid() != 0 {
        return Err(NotRoots::Owner(meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(NotRoots::Mode(meta.mode() & 0o7777));
    }
    Ok(())
}
