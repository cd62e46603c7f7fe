//! Packets and descriptors over a Unix `SOCK_SEQPACKET` socket.
//!
//! The kernel keeps packets apart and tells the truth about three things that a peer cannot fake: how long a packet
//! was (`MSG_TRUNC`), which descriptors it carried (`SCM_RIGHTS`, unix(7)), and who connected (`SO_PEERCRED`). Every
//! descriptor that arrives is owned at once, also on packets that are refused, so none can leak.
//!
//! `unsafe` is opened for this module: the kernel hands descriptors over as numbers, and tokio must be promised that
//! a registered descriptor stays what it is.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket, socketpair, sockopt,
};
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;

use super::codec::{self, FrameError};
use crate::limits::MAX_FRAME;

/// What the kernel allows in one `SCM_RIGHTS` message (`SCM_MAX_FD`): room for all of them means that none is ever
/// cut off, and so none is left unowned.
const MAX_DESCRIPTORS: usize = 253;

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Packet<T> {
    /// The message.
    pub message: T,
    /// In the order in which they were sent.
    pub descriptors: Vec<OwnedFd>,
}

/// Why no packet could be had or sent.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The peer is gone.
    #[error("the peer has closed the connection")]
    Closed,
    /// The packet is longer than [`MAX_FRAME`].
    #[error("a packet longer than {MAX_FRAME} bytes")]
    TooLong,
    /// More control data than a packet may carry.
    #[error("a packet with too many descriptors")]
    TooManyDescriptors,
    /// The bytes are no message.
    #[error("a bad frame")]
    Frame(#[from] FrameError),
    /// The system call failed.
    #[error("{0} failed")]
    System(&'static str, #[source] io::Error),
}

impl SocketError {
    fn system(call: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |errno| Self::System(call, errno.into())
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    /// Takes over a connected, non-blocking socket. Must be called within a tokio runtime.
    fn adopt(fd: OwnedFd) -> Result<Self, SocketError> {
        register(fd).map(Self)
    }

    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, SocketError> {
        let fd = new_socket()?;
        let address = UnixAddr::new(path).map_err(SocketError::system("naming the socket"))?;
        connect(fd.as_raw_fd(), &address).map_err(SocketError::system("connect"))?;
        Self::adopt(fd)
    }

    /// Two connected ends, for tests.
    pub fn pair() -> Result<(Self, Self), SocketError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(SocketError::system("socketpair"))?;
        Ok((Self::adopt(one)?, Self::adopt(other)?))
    }

    /// Who is at the other end, as the kernel noted when it connected.
    pub fn peer(&self) -> Result<UnixCredentials, SocketError> {
        getsockopt(&self.0, sockopt::PeerCredentials).map_err(SocketError::system("SO_PEERCRED"))
    }

    /// Sends a message with descriptors; waits while the peer does not read.
    pub async fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        let frame = codec::encode(message)?;
        self.send_bytes(&frame, descriptors).await
    }

    /// Sends bytes as one packet, whatever they are: for tests that play a hostile peer.
    pub async fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let send = |fd: &OwnedFd| {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).map_err(io::Error::from)
        };
        loop {
            let mut ready = self.0.writable().await.map_err(|e| SocketError::System("waiting to send", e))?;
            match ready.try_io(|inner| send(inner.get_ref())) {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(Err(e)) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    return Err(SocketError::Closed);
                }
                Ok(Err(e)) => return Err(SocketError::System("sendmsg", e)),
                Err(_would_block) => {}
            }
        }
    }

    /// Receives one message. On every error the packet's descriptors are closed.
    pub async fn receive<T: DeserializeOwned>(&self) -> Result<Packet<T>, SocketError> {
        let mut buffer = zeroize::Zeroizing::new(vec![0; MAX_FRAME]);
        loop {
            let mut ready = self.0.readable().await.map_err(|e| SocketError::System("waiting to receive", e))?;
            let (length, descriptors) = match ready.try_io(|inner| receive(inner.get_ref(), &mut buffer)) {
                Ok(Ok(Received::Packet(length, descriptors))) => (length, descriptors),
                Ok(Ok(Received::TooLong)) => return Err(SocketError::TooLong),
                Ok(Ok(Received::TooManyDescriptors)) => return Err(SocketError::TooManyDescriptors),
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => continue,
                Ok(Err(e)) if e.kind() == ErrorKind::ConnectionReset => return Err(SocketError::Closed),
                Ok(Err(e)) => return Err(SocketError::System("recvmsg", e)),
                Err(_would_block) => continue,
            };
            // An empty packet reads like the end of the stream, and no message is empty.
            if length == 0 {
                return Err(SocketError::Closed);
            }
            let message = codec::decode(buffer.get(..length).unwrap_or_default())?;
            return Ok(Packet { message, descriptors });
        }
    }
}

enum Received {
    Packet(usize, Vec<OwnedFd>),
    TooLong,
    TooManyDescriptors,
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let packet = recvmsg::<()>(fd.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    if packet.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Ok(Received::TooManyDescriptors);
    }
    let mut descriptors = Vec::new();
    for message in packet.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the kernel has just installed these descriptors in this process for this packet; nobody else
            // knows their numbers, so owning them here makes exactly one owner.
            // JUSTIFICATION: nix hands received descriptors over as plain numbers.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    if packet.flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(Received::TooLong);
    }
    Ok(Received::Packet(packet.bytes, descriptors))
}

/// A listening socket. One that was bound here is removed from the file system when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    path: Option<PathBuf>,
}

impl Listener {
    /// Takes over a listening socket from the service manager.
    pub fn adopt(fd: OwnedFd) -> Result<Self, SocketError> {
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags)).map_err(SocketError::system("O_NONBLOCK"))?;
        let cloexec = nix::fcntl::FdFlag::FD_CLOEXEC;
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(cloexec)).map_err(SocketError::system("FD_CLOEXEC"))?;
        Ok(Self { socket: register(fd)?, path: None })
    }

    /// Binds `path` for one user, who alone may connect (mode 0600), replacing what a dead predecessor left there. The
    /// socket appears under its name only when it is ready: it is bound under another and renamed.
    pub fn bind(path: &Path, owner: u32) -> Result<Self, SocketError> {
        use std::os::unix::fs::PermissionsExt;
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let _ = std::fs::remove_file(&fresh);
        let fd = new_socket()?;
        let address = UnixAddr::new(&fresh).map_err(SocketError::system("naming the socket"))?;
        bind(fd.as_raw_fd(), &address).map_err(SocketError::system("bind"))?;
        listen(&fd, Backlog::MAXCONN).map_err(SocketError::system("listen"))?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
            .map_err(|e| SocketError::System("chmod", e))?;
        // Only root can give a file away; anybody else is the broker's user themselves.
        if geteuid().is_root() {
            std::os::unix::fs::chown(&fresh, Some(owner), None).map_err(|e| SocketError::System("chown", e))?;
        }
        std::fs::rename(&fresh, path).map_err(|e| SocketError::System("rename", e))?;
        Ok(Self { socket: register(fd)?, path: Some(path.to_owned()) })
    }

    /// The next connection.
    pub async fn accept(&self) -> Result<Connection, SocketError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        loop {
            let mut ready = self.socket.readable().await.map_err(|e| SocketError::System("waiting to accept", e))?;
            let accepted = ready.try_io(|inner| {
                let number = accept4(inner.get_ref().as_raw_fd(), flags)?;
                // SAFETY: accept4 has just made this descriptor; nobody else knows its number.
                // JUSTIFICATION: nix hands accepted descriptors over as plain numbers.
                Ok(unsafe { OwnedFd::from_raw_fd(number) })
            });
            match accepted {
                Ok(Ok(fd)) => return Connection::adopt(fd),
                Ok(Err(e)) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Ok(Err(e)) => return Err(SocketError::System("accept", e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn new_socket() -> Result<OwnedFd, SocketError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(SocketError::system("socket"))
}

fn register(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, SocketError> {
    // SAFETY: an OwnedFd is open for as long as it lives and always names the same descriptor, and the AsyncFd owns
    // it until it deregisters it.
    // JUSTIFICATION: tokio's safe constructor is deprecated because it demands no such promise.
    unsafe { AsyncFd::register(fd) }.map_err(|e| SocketError::System("registering the socket", e.into_parts().1))
}
