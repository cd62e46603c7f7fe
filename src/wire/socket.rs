//! Moves packets and descriptors over a Unix `SOCK_SEQPACKET` socket (unix(7)): one packet is one frame.
//!
//! Nothing that arrives is trusted. The kernel says whether a packet was cut (`MSG_TRUNC`) or its descriptors did not
//! all arrive (`MSG_CTRUNC`); every descriptor that did arrive is owned, and closed with the packet, so that none can
//! leak. Received descriptors are close-on-exec from the start. The system calls are those of `tokio-seqpacket`, whose
//! source was read for these promises; what is refused is decided here.

use std::io;
use std::mem::size_of;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::unistd::Uid;
use tokio_seqpacket::ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage};
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};
use zeroize::Zeroizing;

use crate::codec::MAX_FRAME;
use crate::unix_socket::{SocketName, bind_unix};

/// The most descriptors that the kernel lets ride on one packet (`SCM_MAX_FD`, unix(7)); room for all of them, so
/// that a hostile peer's surplus is received and closed instead of cut.
const SCM_MAX_FD: usize = 253;

/// Bytes for control messages: a header, padding for its alignment, and the descriptors.
const CONTROL_LENGTH: usize = 64 + SCM_MAX_FD * size_of::<RawFd>();

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
pub struct Socket(UnixSeqpacket);

impl Socket {
    /// Connects to the socket at `path`. A Unix socket connects at once or not at all (`EAGAIN`: the backlog is full).
    pub async fn connect(path: &Path) -> io::Result<Self> {
        UnixSeqpacket::connect(path).await.map(Self)
    }

    /// Two connected ends, for tests.
    pub fn pair() -> io::Result<(Self, Self)> {
        UnixSeqpacket::pair().map(|(a, b)| (Self(a), Self(b)))
    }

    /// The uid of the process that connected, or that listens, as the kernel noted it then (`SO_PEERCRED`, unix(7)).
    pub fn peer_uid(&self) -> io::Result<Uid> {
        Ok(Uid::from_raw(getsockopt(&self.0, sockopt::PeerCredentials)?.uid()))
    }

    /// The next packet; `None` when the peer has closed. (An empty packet reads as a close, and is answered as one.)
    /// Safe to cancel: a packet is either returned or still in the socket.
    pub async fn receive(&self) -> Result<Option<Packet>, ReceiveError> {
        match self.next_packet().await {
            // The peer closed with a packet of ours unread. The kernel tells it once, ahead of what the peer sent before,
            // such as its goodbye.
            Err(ReceiveError::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset => self.next_packet().await,
            received => received,
        }
    }

    async fn next_packet(&self) -> Result<Option<Packet>, ReceiveError> {
        let mut frame = Zeroizing::new(vec![0_u8; MAX_FRAME]);
        let mut control = [0_u8; CONTROL_LENGTH];
        let (info, ancillary) = self.0.recv_with_ancillary(&mut frame, &mut control).await?;
        // Owned before anything is refused: what is dropped is closed.
        let fds: Vec<OwnedFd> = ancillary
            .into_messages()
            .filter_map(|message| match message {
                OwnedAncillaryMessage::FileDescriptors(fds) => Some(fds),
                OwnedAncillaryMessage::Other(_) => None,
            })
            .flatten()
            .collect();
        if info.ancillary_truncated() {
            return Err(ReceiveError::DescriptorsLost);
        }
        if info.truncated() {
            return Err(ReceiveError::TooLong);
        }
        frame.truncate(info.bytes_read());
        Ok(if frame.is_empty() && fds.is_empty() { None } else { Some(Packet { frame, fds }) })
    }

    /// Sends one packet with its descriptors, waiting while the peer does not read. Safe to cancel: a packet is
    /// sent whole or not at all.
    pub async fn send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut control = [0_u8; CONTROL_LENGTH];
        let mut ancillary = AncillaryMessageWriter::new(&mut control);
        if !fds.is_empty() {
            ancillary.add_fds(fds)?;
        }
        self.0.send_with_ancillary(frame, &mut ancillary).await.map(drop)
    }

    /// Nothing more will be sent: once the peer has read what was, it reads the end. What it says can still be received.
    pub fn close_writing(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A listening socket; one with a name of its own removes it when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixSeqpacketListener,
    /// Removed when dropped.
    _name: Option<SocketName>,
}

impl Listener {
    /// Listens at `path`; see [`bind_unix`].
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> io::Result<Self> {
        let (socket, name) = bind_unix(path, SockType::SeqPacket, mode, group)?;
        Ok(Self { socket: socket.try_into()?, _name: Some(name) })
    }

    /// Takes over a listening socket that systemd made. It must be of type `SOCK_SEQPACKET`.
    pub fn inherited(fd: OwnedFd) -> io::Result<Self> {
        if getsockopt(&fd, sockopt::SockType)? != SockType::SeqPacket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the inherited socket is not SOCK_SEQPACKET"));
        }
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        Ok(Self { socket: fd.try_into()?, _name: None })
    }

    /// The next connection. Safe to cancel.
    pub async fn accept(&mut self) -> io::Result<Socket> {
        self.socket.accept().await.map(Socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_sent_before_a_close_is_read_also_when_the_peer_left_something_unread() {
        let (near, far) = Socket::pair().expect("a pair");
        near.send(b"asked", &[]).await.expect("sent");
        far.send(b"goodbye", &[]).await.expect("sent");
        drop(far);
        let packet = near.receive().await.expect("no error").expect("a packet");
        assert_eq!(packet.frame.as_slice(), b"goodbye");
        assert!(near.receive().await.expect("no error").is_none());
    }
}
