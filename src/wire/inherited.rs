//! The listening sockets that the service manager hands over (`sd_listen_fds(3)`): all of them, by their type.
//!
//! Trusts `LISTEN_FDS` as whoever started the program set it, but no descriptor to be of the expected kind. One that is
//! handed over and not served would be worse than none: the kernel accepts connections for it that nobody answers.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

/// What a program that speaks streams was given.
#[derive(Debug, Default)]
pub struct StreamListeners {
    /// `ListenStream=` with a port or an address.
    pub tcp: Vec<TcpListener>,
    /// `ListenStream=` with a path or an abstract name.
    pub unix: Vec<UnixListener>,
}

/// Takes all sockets that were handed over, which must be stream sockets; they do not block any more.
pub fn take_streams(inherited: &mut ListenFd) -> io::Result<StreamListeners> {
    let mut taken = StreamListeners::default();
    for index in 0..inherited.len() {
        if let Ok(Some(listener)) = inherited.take_tcp_listener(index) {
            listener.set_nonblocking(true)?;
            taken.tcp.push(listener);
        } else if let Ok(Some(listener)) = inherited.take_unix_listener(index) {
            listener.set_nonblocking(true)?;
            taken.unix.push(listener);
        } else {
            return Err(unfit(index, "a TCP or Unix stream socket (ListenStream=)"));
        }
    }
    Ok(taken)
}

/// Takes all sockets that were handed over, which must be Unix sockets of type `SOCK_SEQPACKET`.
pub fn take_seqpackets(inherited: &mut ListenFd) -> io::Result<Vec<OwnedFd>> {
    let mut taken = Vec::new();
    for index in 0..inherited.len() {
        match inherited.take_custom(index, libc::AF_UNIX, libc::SOCK_SEQPACKET, "seqpacket") {
            Ok(Some(socket)) => taken.push(socket),
            _ => return Err(unfit(index, "a Unix socket of type SOCK_SEQPACKET (ListenSequentialPacket=)")),
        }
    }
    Ok(taken)
}

fn unfit(index: usize, expected: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("socket {} from systemd is not {expected}", index + 1))
}
