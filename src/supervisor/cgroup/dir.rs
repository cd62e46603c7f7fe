//! One cgroup2 directory and its files (cgroup-v2.rst): limits set and read back, and what the kernel counts.
//!
//! Trusts the kernel's files. A file that is not there is a controller, or a part of one, that the kernel does not have
//! here, and reads as that; every other error is told.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wire::inspection::{Bound, Group};

/// The controllers that the supervisor uses.
pub(crate) const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "io"];

/// The kernel rounds sizes down to pages, of at most 64 KiB.
const LARGEST_PAGE: u64 = 64 * 1024;

/// Why a cgroup is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// Making a directory.
    #[error("the cgroup {} cannot be made: {source}", .dir.display())]
    Make {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading or writing one of its files.
    #[error("{} of a cgroup cannot be used: {source}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was written is not what the kernel has.
    #[error("{} holds `{found}` and not `{wanted}`", .file.display())]
    NotInForce {
        /// Which.
        file: PathBuf,
        /// What was written.
        wanted: String,
        /// What it holds.
        found: String,
    },
    /// Its processes were killed and do not go.
    #[error("what is in the cgroup {} does not end: processes {pids:?}", .dir.display())]
    Populated {
        /// Which.
        dir: PathBuf,
        /// What the kernel lists.
        pids: Vec<i32>,
    },
    /// Removing a directory.
    #[error("the cgroup {} cannot be removed: {source}", .dir.display())]
    Remove {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CgroupError {
    /// The error number; 0 where there is none.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Make { source, .. } | Self::File { source, .. } | Self::Remove { source, .. } => {
                source.raw_os_error().unwrap_or(0)
            }
            Self::NotInForce { .. } | Self::Populated { .. } => 0,
        }
    }
}

/// The directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dir(PathBuf);

impl Dir {
    /// One that is there.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// One below it, made unless it is there already; and whether it was made.
    pub(crate) fn make(&self, name: &str) -> Result<(Self, bool), CgroupError> {
        let dir = self.0.join(name);
        match fs::create_dir(&dir) {
            Ok(()) => Ok((Self(dir), true)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok((Self(dir), false)),
            Err(source) => Err(CgroupError::Make { dir, source }),
        }
    }

    /// The one above it.
    pub(crate) fn parent(&self) -> Option<Self> {
        self.0.parent().map(|dir| Self(dir.to_owned()))
    }

    /// Those below it; none where it is not there. What cannot be looked at is an error, and never "nothing there".
    pub(crate) fn children(&self) -> Result<Vec<Self>, CgroupError> {
        let failed = |source| CgroupError::File { file: self.0.clone(), source };
        let entries = match fs::read_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut dirs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                dirs.push(Self(entry.path()));
            }
        }
        Ok(dirs)
    }

    /// Removes it; one that is not there is no error. Refused while it holds anything.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        match fs::remove_dir(&self.0) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CgroupError::Remove { dir: self.0.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// A file's content; `None` where there is no such file.
    pub(crate) fn read(&self, file: &str) -> Result<Option<String>, CgroupError> {
        match fs::read_to_string(self.0.join(file)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CgroupError::File { file: self.0.join(file), source }),
        }
    }

    /// Writes a file; `false` where there is no such file.
    pub(crate) fn write(&self, file: &str, value: &str) -> Result<bool, CgroupError> {
        let path = self.0.join(file);
        match fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut open| io::Write::write_all(&mut open, value.as_bytes()))
        {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(CgroupError::File { file: path, source }),
        }
    }

    /// Sets a limit and reads it back; `false` where the kernel has none of the kind.
    pub(crate) fn set(&self, file: &str, wanted: &str) -> Result<bool, CgroupError> {
        if !self.write(file, wanted)? {
            return Ok(false);
        }
        let found = self.read(file)?.unwrap_or_default();
        if same(wanted, found.trim()) {
            return Ok(true);
        }
        let (file, wanted, found) = (self.0.join(file), wanted.to_owned(), found.trim().to_owned());
        Err(CgroupError::NotInForce { file, wanted, found })
    }

    /// Switches on for what is below it those of `wanted` that it has itself, and says which are on.
    pub(crate) fn enable(&self, wanted: &[&'static str]) -> Result<Vec<&'static str>, CgroupError> {
        let known = self.read("cgroup.controllers")?.unwrap_or_default();
        let has = |list: &str, name: &str| list.split_whitespace().any(|have| have == name);
        for name in wanted.iter().filter(|name| has(&known, name)) {
            // One by one, because one that is refused takes the others along. What is on is read back.
            let _ = self.write("cgroup.subtree_control", &format!("+{name}"));
        }
        let on = self.read("cgroup.subtree_control")?.unwrap_or_default();
        Ok(wanted.iter().copied().filter(|name| has(&on, name)).collect())
    }

    /// A file that holds one number; `None` where there is none.
    pub(crate) fn number(&self, file: &str) -> Option<u64> {
        self.read(file).ok()??.trim().parse().ok()
    }

    /// A number in a file of names and numbers.
    pub(crate) fn event(&self, file: &str, name: &str) -> Option<u64> {
        let text = self.read(file).ok()??;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// A file that holds a limit.
    pub(crate) fn bound(&self, file: &str) -> Bound {
        match self.read(file) {
            Ok(Some(text)) => bound(text.trim()),
            _ => Bound::Missing,
        }
    }

    /// All that the kernel says of it.
    pub(crate) fn look(&self) -> Group {
        Group {
            memory_max: self.bound("memory.max"),
            memory_high: self.bound("memory.high"),
            swap_max: self.bound("memory.swap.max"),
            pids_max: self.bound("pids.max"),
            cpu_max: match self.read("cpu.max") {
                Ok(Some(text)) => percent(text.trim()),
                _ => Bound::Missing,
            },
            cpu_weight: self.bound("cpu.weight"),
            io_weight: match self.event("io.weight", "default") {
                Some(weight) => Bound::At(weight),
                None => Bound::Missing,
            },
            oom_group: self.bound("memory.oom.group"),
            memory: self.number("memory.current"),
            memory_peak: self.number("memory.peak"),
            pids: self.number("pids.current"),
            cpu_usec: self.event("cpu.stat", "usage_usec"),
            throttled_usec: self.event("cpu.stat", "throttled_usec"),
            oom_kills: self.event("memory.events", "oom_kill"),
        }
    }
}

fn bound(text: &str) -> Bound {
    match text.parse() {
        Ok(number) => Bound::At(number),
        Err(_) if text == "max" => Bound::Unlimited,
        Err(_) => Bound::Missing,
    }
}

/// "$MAX $PERIOD" of `cpu.max`, as per cent of one CPU.
fn percent(text: &str) -> Bound {
    match text.split_once(' ') {
        Some(("max", _)) => Bound::Unlimited,
        Some((quota, period)) => match (quota.parse::<u64>(), period.trim().parse::<u64>()) {
            (Ok(quota), Ok(period)) => quota.saturating_mul(100).checked_div(period).map_or(Bound::Missing, Bound::At),
            _ => Bound::Missing,
        },
        None => Bound::Missing,
    }
}

/// Whether the kernel holds what was written, as it writes it.
fn same(wanted: &str, found: &str) -> bool {
    let default = |text: &str| text.strip_prefix("default ").unwrap_or(text).to_owned();
    let (wanted, found) = (default(wanted), default(found.lines().next().unwrap_or_default()));
    match (wanted.parse::<u64>(), found.parse::<u64>()) {
        (Ok(wanted), Ok(found)) => {
            found == wanted || (found < wanted && wanted - found < LARGEST_PAGE && wanted >= LARGEST_PAGE)
        }
        _ => wanted == found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_rounds_to_pages_counts_as_set_and_nothing_else_does() {
        for (wanted, found, is_same) in [
            ("536870912", "536870912", true),
            ("536870913", "536870912", true),
            ("536870912", "max", false),
            ("536870912", "268435456", false),
            ("128", "127", false),
            ("max", "max", true),
            ("100000 100000", "100000 100000", true),
            ("max 100000", "100000 100000", false),
            ("default 50", "default 50", true),
        ] {
            assert_eq!(same(wanted, found), is_same, "{wanted} {found}");
        }
    }

    #[test]
    fn a_limit_is_read_as_the_kernel_writes_it() {
        for (text, expected) in [("max", Bound::Unlimited), ("7", Bound::At(7)), ("", Bound::Missing)] {
            assert_eq!(bound(text), expected);
        }
        for (text, expected) in
            [("150000 100000", Bound::At(150)), ("max 100000", Bound::Unlimited), ("1 0", Bound::Missing)]
        {
            assert_eq!(percent(text), expected, "{text}");
        }
    }
}
