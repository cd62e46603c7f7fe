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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unix_socket::{bind_stream, bind_unix};
    use nix::sys::socket::SockType;
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};

    /// Runs one test of this program as systemd starts a service: descriptors 3 and 4, and their number in the
    /// environment.
    fn handed_over(test: &str, sockets: [OwnedFd; 2]) {
        let [first, second] = sockets;
        let script =
            "exec 3<&0 4<&2 </dev/null 2>/dev/null; export LISTEN_FDS=2 LISTEN_PID=$$ HANDED_OVER=1; exec \"$@\"";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(std::env::current_exe().expect("a path"));
        command.args(["--exact", &format!("inherited::tests::{test}"), "--nocapture"]);
        let output = command.stdin(Stdio::from(first)).stderr(Stdio::from(second)).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    fn is_handed_over() -> bool {
        std::env::var_os("HANDED_OVER").is_some()
    }

    #[test]
    fn every_stream_socket_is_taken_by_its_type() {
        if is_handed_over() {
            let taken = take_streams(&mut ListenFd::from_env()).expect("taken");
            assert_eq!((taken.tcp.len(), taken.unix.len()), (1, 1));
            // Non-blocking: nobody has connected.
            assert_eq!(taken.unix[0].accept().expect_err("nobody").kind(), io::ErrorKind::WouldBlock);
            assert_eq!(taken.tcp[0].accept().expect_err("nobody").kind(), io::ErrorKind::WouldBlock);
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (unix, _name) = bind_stream(&dir.path().join("s"), 0o600, None).expect("bound");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("bound");
        handed_over("every_stream_socket_is_taken_by_its_type", [unix.into(), tcp.into()]);
    }

    #[test]
    fn a_socket_of_another_type_is_refused_and_not_left_unserved() {
        if is_handed_over() {
            assert!(take_streams(&mut ListenFd::from_env()).expect_err("unfit").to_string().contains("socket 2"));
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (stream, _name) = bind_stream(&dir.path().join("s"), 0o600, None).expect("bound");
        let (packets, _other) = bind_unix(&dir.path().join("p"), SockType::SeqPacket, 0o600, None).expect("bound");
        let test = "a_socket_of_another_type_is_refused_and_not_left_unserved";
        handed_over(test, [stream.into(), packets]);
    }

    #[test]
    fn every_seqpacket_socket_is_taken() {
        if is_handed_over() {
            assert_eq!(take_seqpackets(&mut ListenFd::from_env()).expect("taken").len(), 2);
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let bound = ["a", "b"].map(|name| bind_unix(&dir.path().join(name), SockType::SeqPacket, 0o600, None));
        let [(a, _a), (b, _b)] = bound.map(|bound| bound.expect("bound"));
        handed_over("every_seqpacket_socket_is_taken", [a, b]);
    }
}
