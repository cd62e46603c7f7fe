//! Hears from the kernel that another program may have been put behind the child program's path (inotify(7)).
//!
//! A program is replaced by a rename in its directory, by a link on the way to it that leads elsewhere, or by a
//! directory on the way that takes another's name. So every directory on the way is watched, for the one name in it that
//! the path goes by. What inotify does not tell, such as another file system that is mounted over the program, is found
//! by the look before each start. Trusts nothing that it hears: it only says that looking is worth while.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use crate::spawn;

/// After the last change: an installation writes, renames and sets modes, and its result is what counts.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_millis(500);
/// From the first change on, however much changes after it.
const SETTLED_AT_LATEST: Duration = Duration::from_secs(10);
/// As many symbolic links as the kernel follows (`path_resolution(7)`).
const MOST_LINKS: usize = 40;

/// One watch of the kernel's, on directories that change with the path.
#[derive(Debug)]
pub(crate) struct ProgramWatch {
    inotify: Inotify,
    /// The same open file, for waiting.
    readable: AsyncFd<File>,
    watched: HashMap<WatchDescriptor, Vec<OsString>>,
}

impl ProgramWatch {
    /// Watches nothing yet. Must be used within a tokio runtime.
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let readable = spawn::watch(File::from(inotify.as_fd().try_clone_to_owned()?), Interest::READABLE)?;
        Ok(Self { inotify, readable, watched: HashMap::new() })
    }

    /// Watches the way to this program, and nothing else any more. An error names a directory that cannot be watched;
    /// the others are.
    pub(crate) fn follow(&mut self, program: &Path) -> Result<(), (PathBuf, io::Error)> {
        let mut now: HashMap<_, Vec<_>> = HashMap::new();
        let mut outcome = Ok(());
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        for (dir, name) in way_to(program) {
            match self.inotify.add_watch(&dir, changes) {
                Ok(watch) => now.entry(watch).or_default().push(name),
                Err(errno) => outcome = Err((dir, errno.into())),
            }
        }
        for old in self.watched.keys().filter(|old| !now.contains_key(old)) {
            // EINVAL: the directory is gone, and its watch with it.
            let _ = self.inotify.rm_watch(*old);
        }
        self.watched = now;
        outcome
    }

    /// Resolves when something has changed on the way. Safe to cancel.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        while !self.heard().await? {}
        Ok(())
    }

    /// Resolves when nothing changes on the way any more.
    pub(crate) async fn settled(&self) -> io::Result<()> {
        let latest = Instant::now() + SETTLED_AT_LATEST;
        let mut settled = Instant::now() + SETTLED_AFTER;
        while let Ok(heard) = timeout_at(settled.min(latest), self.heard()).await {
            if heard? {
                settled = Instant::now() + SETTLED_AFTER;
            }
        }
        Ok(())
    }

    /// Waits for news; whether any of it is about a name on the way.
    async fn heard(&self) -> io::Result<bool> {
        loop {
            let mut ready = self.readable.readable().await?;
            match self.inotify.read_events() {
                Ok(events) => return Ok(events.iter().any(|event| self.is_on_the_way(event))),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn is_on_the_way(&self, event: &InotifyEvent) -> bool {
        // What the queue had no room for may have been about it. A watch that is gone with its directory was replaced by
        // what its parent tells.
        event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
            || self
                .watched
                .get(&event.wd)
                .zip(event.name.as_ref())
                .is_some_and(|(names, changed)| names.contains(changed))
    }
}

/// Each directory that finding the program goes through, with the name that is looked up in it: as far as there is
/// something.
fn way_to(program: &Path) -> Vec<(PathBuf, OsString)> {
    let Ok(absolute) = std::path::absolute(program) else { return Vec::new() };
    let (mut way, mut links) = (Vec::new(), 0);
    let mut at = PathBuf::from("/");
    let mut rest = names(&absolute);
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        way.push((at.clone(), name));
        match std::fs::read_link(&next) {
            Ok(target) if links < MOST_LINKS => {
                links += 1;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for name in names(&target).into_iter().rev() {
                    rest.push_front(name);
                }
            }
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(_) => at = next,
        }
    }
    way
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Whether a change is heard; the clock of the tests moves on by itself when nothing else does.
    async fn hears(watch: &ProgramWatch) -> bool {
        let heard =
            tokio::time::timeout(Duration::from_secs(60), watch.changed()).await.is_ok_and(|heard| heard.is_ok());
        watch.settled().await.expect("inotify");
        heard
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_is_replaced_in_any_of_the_usual_ways_is_heard_of_and_its_neighbours_are_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str| std::fs::write(at(name), name).expect("written");
        for version in ["1", "2", "3"] {
            std::fs::create_dir(at(version)).expect("made");
            write(&format!("{version}/program"));
        }
        symlink("1", at("current")).expect("linked");
        symlink("current/program", at("program")).expect("linked");
        let mut watch = ProgramWatch::new().expect("inotify");
        let follow = |watch: &mut ProgramWatch| watch.follow(&at("program")).expect("watched");
        follow(&mut watch);

        write("1/neighbour");
        write("neighbour");
        write("2/program");
        assert!(!hears(&watch).await, "what is not on the way");

        write("new");
        std::fs::rename(at("new"), at("1/program")).expect("renamed");
        assert!(hears(&watch).await, "a rename over it");
        write("1/program");
        assert!(hears(&watch).await, "written anew");
        symlink("2", at("next")).expect("linked");
        std::fs::rename(at("next"), at("current")).expect("renamed");
        assert!(hears(&watch).await, "a link on the way leads elsewhere");

        write("2/program");
        assert!(!hears(&watch).await, "not followed yet");
        follow(&mut watch);
        write("2/program");
        assert!(hears(&watch).await, "where the link leads now");
        write("1/program");
        assert!(!hears(&watch).await, "where it led before");

        std::fs::rename(at("2"), at("old")).expect("renamed");
        std::fs::rename(at("3"), at("2")).expect("renamed");
        assert!(hears(&watch).await, "a directory on the way takes another's name");
        follow(&mut watch);
        std::fs::remove_dir_all(at("2")).expect("removed");
        assert!(hears(&watch).await, "taken away");
        follow(&mut watch);
        std::fs::create_dir(at("2")).expect("made");
        assert!(hears(&watch).await, "coming back");
        follow(&mut watch);
        write("2/program");
        assert!(hears(&watch).await, "and installed again");
    }
}
