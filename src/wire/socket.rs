//! Moves packets and descriptors over a Unix `SOCK_SEQPACKET` socket (unix(7)): one packet is one frame.
//!
//! Nothing that arrives is trusted. The kernel says whether a packet was cut (`MSG_TRUNC`) or its descriptors did not
//! all arrive (`MSG_CTRUNC`); every descriptor that did arrive is owned before anything else is looked at, so that
//! none can leak. Received descriptors are close-on-exec from the start.
//!
//! `recvmsg` is called through libc and not through nix: nix refuses to list control messages after `MSG_CTRUNC`,
//! which would leak the descriptors that the kernel had already installed.
//!
//! One of the two modules with `unsafe`. JUSTIFICATION: adopting descriptors and walking control messages has no
//! safe interface that keeps this promise.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, getsockopt, sockopt,
};
use nix::unistd::Uid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zeroize::Zeroizing;

use crate::codec::MAX_FRAME;

/// The most descriptors that the kernel lets ride on one packet (`SCM_MAX_FD`, unix(7)); room for all of them, so
/// that a hostile peer's surplus is received and closed instead of cut.
const SCM_MAX_FD: usize = 253;

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// What arrived in one packet. The bytes are cleared on drop, as they may hold a token.
#[derive(Debug)]
pub struct Packet {
    /// At most [`MAX_FRAME`] bytes.
    pub frame: Zeroizing<Vec<u8>>,
    /// The descriptors that rode on it, in order.
    pub fds: Vec<OwnedFd>,
}

/// Why no packet could be had.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Longer than [`MAX_FRAME`]; the rest is lost.
    #[error("a packet has more than {MAX_FRAME} bytes")]
    TooLong,
    /// Descriptors were sent that could not be received.
    #[error("not all descriptors of a packet arrived")]
    DescriptorsLost,
    /// The system call failed.
    #[error("receiving a packet: {0}")]
    Io(#[from] io::Error),
}

/// One end of a connection.
#[derive(Debug)]
pub struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// Wraps a connected `SOCK_SEQPACKET` socket and makes it non-blocking. Needs a running tokio runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(watched(fd)?))
    }

    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = socket::socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
        // Unix sockets connect at once or not at all (EAGAIN: the backlog is full), also non-blocking ones.
        socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::new(fd)
    }

    /// Two connected ends, for tests.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, FLAGS)?;
        Ok((Self::new(a)?, Self::new(b)?))
    }

    /// The uid of the process that connected, as the kernel noted it then (`SO_PEERCRED`, unix(7)).
    pub fn peer_uid(&self) -> io::Result<Uid> {
        Ok(Uid::from_raw(getsockopt(self.0.get_ref(), sockopt::PeerCredentials)?.uid()))
    }

    /// The next packet; `None` when the peer has closed. (An empty packet reads as a close, and is answered as one.)
    /// Safe to cancel: a packet is either returned or still in the socket.
    pub async fn receive(&self) -> Result<Option<Packet>, ReceiveError> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| receive_now(fd.get_ref().as_fd())) {
                Ok(received) => {
                    let (packet, flags) = received?;
                    if flags & libc::MSG_CTRUNC != 0 {
                        return Err(ReceiveError::DescriptorsLost);
                    }
                    if flags & libc::MSG_TRUNC != 0 {
                        return Err(ReceiveError::TooLong);
                    }
                    return Ok(if packet.frame.is_empty() && packet.fds.is_empty() { None } else { Some(packet) });
                }
                Err(_would_block) => {}
            }
        }
    }

    /// Sends one packet with its descriptors, waiting while the peer does not read. Safe to cancel: a packet is
    /// sent whole or not at all.
    pub async fn send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, |fd| send_now(fd.as_fd(), frame, fds)).await
    }

    /// Sends one packet if the peer's buffer has room, else fails with `WouldBlock`.
    pub fn try_send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send_now(self.0.get_ref().as_fd(), frame, fds)
    }
}

/// A listening socket; one with a name of its own removes it when dropped.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    name: Option<Name>,
}

/// A path and what was bound there, so that a successor's socket of the same name is left alone.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    inode: (u64, u64),
}

impl Listener {
    /// Binds `path` with the file mode `mode`. The name appears only when the mode is right: the socket is bound
    /// under a temporary name beside it and renamed. A socket that still answers is not displaced (`AddrInUse`).
    /// `group`, if given, becomes the group of the file.
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> io::Result<Self> {
        let probe = socket::socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
        if socket::connect(probe.as_raw_fd(), &UnixAddr::new(path)?).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let fd = socket::socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
        let temporary = path.with_file_name(format!(".{}", std::process::id()));
        match std::fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        socket::bind(fd.as_raw_fd(), &UnixAddr::new(&temporary)?)?;
        let named = std::os::unix::fs::chown(&temporary, None, group)
            .and_then(|()| std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode)))
            .and_then(|()| std::fs::symlink_metadata(&temporary))
            .and_then(|meta| {
                socket::listen(&fd, Backlog::MAXCONN)?;
                std::fs::rename(&temporary, path)?;
                Ok(Name { path: path.to_owned(), inode: (meta.dev(), meta.ino()) })
            });
        match named {
            Ok(name) => Ok(Self { fd: watched(fd)?, name: Some(name) }),
            Err(e) => {
                // The bind is being given up; a name that stays behind would only be litter.
                let _ = std::fs::remove_file(&temporary);
                Err(e)
            }
        }
    }

    /// Takes over a listening socket that systemd made. It must be of type `SOCK_SEQPACKET`.
    pub fn inherited(fd: OwnedFd) -> io::Result<Self> {
        if getsockopt(&fd, sockopt::SockType)? != SockType::SeqPacket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the inherited socket is not SOCK_SEQPACKET"));
        }
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        Ok(Self { fd: watched(fd)?, name: None })
    }

    /// The next connection. Safe to cancel.
    pub async fn accept(&self) -> io::Result<Socket> {
        let accept = |fd: &OwnedFd| {
            let raw = socket::accept4(fd.as_raw_fd(), FLAGS)?;
            // SAFETY: accept4 has just returned this descriptor, so it is open and nobody else owns it.
            Ok(unsafe { OwnedFd::from_raw_fd(raw) })
        };
        Socket::new(self.fd.async_io(Interest::READABLE, accept).await?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(Name { path, inode }) = &self.name
            && std::fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == *inode)
        {
            // Best effort: there is nobody to tell, and a stale name is replaced by the next bind.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Takes over the listening socket that systemd handed over (`sd_listen_fds(3)`), by its index.
pub fn take_inherited(inherited: &mut listenfd::ListenFd, index: usize) -> io::Result<Option<OwnedFd>> {
    inherited.take_custom(index, libc::AF_UNIX, libc::SOCK_SEQPACKET, "seqpacket")
}

fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK))?;
    // SAFETY: an OwnedFd is open, always names the same descriptor, and stays open until it is dropped; the AsyncFd
    // owns it and this module neither replaces it (`get_mut`) nor closes it behind the AsyncFd's back.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

fn send_now(fd: BorrowedFd<'_>, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    // MSG_NOSIGNAL: a peer that left is an error to handle here and not a signal to die of.
    socket::sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(frame)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Room for control messages, aligned as `cmsghdr` must be.
#[repr(C)]
union Control {
    bytes: [u8; CONTROL_LENGTH],
    align: libc::cmsghdr,
}

// SAFETY: CMSG_SPACE only calculates.
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "const context; about one KiB")]
const CONTROL_LENGTH: usize =
    unsafe { libc::CMSG_SPACE((SCM_MAX_FD * std::mem::size_of::<RawFd>()) as libc::c_uint) as usize };

fn receive_now(fd: BorrowedFd<'_>) -> io::Result<(Packet, libc::c_int)> {
    let mut frame = Zeroizing::new(vec![0_u8; MAX_FRAME]);
    let mut control = Control { bytes: [0; CONTROL_LENGTH] };
    let mut iov = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    #[expect(clippy::useless_conversion, reason = "the field is a socklen_t in some C libraries")]
    {
        header.msg_controllen = CONTROL_LENGTH.try_into().unwrap_or(0);
    }
    // SAFETY: the header points at one iovec and at a control buffer, both alive and writable for their lengths.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut fds = Vec::new();
    // SAFETY: recvmsg has filled in the header and the control buffer; CMSG_FIRSTHDR and CMSG_NXTHDR stay within
    // msg_controllen, and each SCM_RIGHTS message holds as many descriptors as its length says, put there for us
    // by the kernel and owned by nobody else.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(cmsg) = message.as_ref() {
            if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
                #[expect(clippy::cast_ptr_alignment, reason = "read unaligned below")]
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                let header_length = usize::try_from(libc::CMSG_LEN(0)).unwrap_or(0);
                #[expect(clippy::useless_conversion, reason = "the field is a socklen_t in some C libraries")]
                let bytes = usize::try_from(cmsg.cmsg_len).unwrap_or(0).saturating_sub(header_length);
                for n in 0..bytes / std::mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(n).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    frame.truncate(length);
    Ok((Packet { frame, fds }, header.msg_flags))
}
