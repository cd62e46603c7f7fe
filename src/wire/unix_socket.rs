//! Listening Unix sockets that a program makes by itself, with a name in the file system: one way for all of them.
//!
//! The directory is trusted to be the program's own. What is found in it is not: a socket that still answers, a file of
//! another kind, and the socket of a successor are left alone.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

/// The name of a socket that was made here. Removed when dropped, unless somebody else's stands there by then.
#[derive(Debug)]
pub struct SocketName {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketName {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode) {
            // Best effort: there is nobody to tell, and a stale name is replaced by the next bind.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path` with a stream socket; see [`bind_unix`]. Non-blocking, as the runtime wants it.
pub fn bind_stream(path: &Path, mode: u32, group: Option<u32>) -> io::Result<(UnixListener, SocketName)> {
    let (socket, name) = bind_unix(path, SockType::Stream, mode, group)?;
    Ok((socket.into(), name))
}

/// Listens at `path` with the file mode `mode` and, if given, the group `group`. The name appears only when the mode is
/// right: the socket is bound under a temporary name beside it and renamed. What a dead predecessor left is replaced; a
/// socket that may still be alive is not (`AddrInUse`), nor is anything that is no socket (`AlreadyExists`).
pub fn bind_unix(path: &Path, kind: SockType, mode: u32, group: Option<u32>) -> io::Result<(OwnedFd, SocketName)> {
    may_be_replaced(path, kind)?;
    // Short, because a socket's path has at most 107 bytes; of this process, because others may do the same here.
    let temporary = path.with_file_name(format!(".{}", std::process::id()));
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = new_socket(kind)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &UnixAddr::new(&temporary)?)?;
    let named = chown(&temporary, None, group)
        .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(mode)))
        .and_then(|()| Ok(listen(&listener, Backlog::MAXCONN)?))
        .and_then(|()| fs::symlink_metadata(&temporary))
        .and_then(|meta| {
            fs::rename(&temporary, path)?;
            Ok(SocketName { path: path.to_owned(), inode: (meta.dev(), meta.ino()) })
        });
    match named {
        Ok(name) => Ok((listener, name)),
        Err(e) => {
            // The bind is being given up; a name that stays behind would only be litter.
            let _ = fs::remove_file(&temporary);
            Err(e)
        }
    }
}

fn new_socket(kind: SockType) -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

/// Only what certainly listens no more may go: the kernel refuses the connection, because nobody holds the socket.
fn may_be_replaced(path: &Path, kind: SockType) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket has this name"));
        }
        Ok(_) => {}
    }
    let probe = new_socket(kind)?;
    match connect(std::os::fd::AsRawFd::as_raw_fd(&probe), &UnixAddr::new(path)?) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
        // EAGAIN: its backlog is full. EPROTOTYPE: of another kind. EACCES: it cannot be asked.
        Err(e) => Err(io::Error::new(io::ErrorKind::AddrInUse, format!("somebody else's socket: {}", e.desc()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn it_appears_with_its_mode_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let (listener, name) = bind_stream(&path, 0o600, None).expect("bound");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        UnixStream::connect(&path).expect("connected");
        listener.accept().expect("accepted");
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1, "no temporary name stays");
        drop(name);
        assert!(!path.exists());
    }

    #[test]
    fn a_living_socket_is_not_displaced_whatever_its_kind() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let _living = bind_unix(&path, SockType::SeqPacket, 0o600, None).expect("bound");
        for kind in [SockType::Stream, SockType::SeqPacket] {
            let refused = bind_unix(&path, kind, 0o600, None).expect_err("in use");
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{kind:?}");
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_its_late_owner_does_not_take_the_new_one_along() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let (dead, dead_name) = bind_stream(&path, 0o600, None).expect("bound");
        drop(dead);
        let _successor = bind_stream(&path, 0o600, None).expect("bound");
        drop(dead_name);
        UnixStream::connect(&path).expect("the successor's socket is still there");
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        fs::write(&path, "precious").expect("written");
        let refused = bind_stream(&path, 0o600, None).expect_err("there is a file");
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).expect("text"), "precious");
    }
}
