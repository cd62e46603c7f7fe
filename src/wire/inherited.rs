//! The listening sockets that the service manager hands over (`sd_listen_fds(3)`): all of them, by name and type.
//!
//! Trusts `LISTEN_FDS` and `LISTEN_FDNAMES` as whoever started the program set them, but no descriptor to be of the
//! expected kind. One that is handed over and not served would be worse than none: the kernel accepts connections for it
//! that nobody answers.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// All that was handed over and nobody has taken yet.
pub struct Inherited {
    sockets: ListenFd,
    /// `FileDescriptorName=` of each that is left, by its place.
    left: Vec<(usize, String)>,
}

/// What a program that speaks streams was given.
#[derive(Debug, Default)]
pub struct StreamListeners {
    /// `ListenStream=` with a port or an address.
    pub tcp: Vec<TcpListener>,
    /// `ListenStream=` with a path or an abstract name.
    pub unix: Vec<UnixListener>,
}

impl std::fmt::Debug for Inherited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inherited").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Inherited {
    /// What the environment names, if it means this process. Takes the variables out of it, so it comes before anything
    /// that could read them at the same time.
    pub fn from_env() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let sockets = ListenFd::from_env();
        // With fewer names than sockets those behind have none.
        let names = names.split(':').map(str::to_owned).chain(std::iter::repeat_with(String::new));
        let left = (0..sockets.len()).zip(names).collect();
        Self { sockets, left }
    }

    /// How many there are; they are the descriptors from 3 on.
    pub fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Takes those with this `FileDescriptorName=`, which must be Unix stream sockets; they do not block any more.
    pub fn take_named(&mut self, name: &str) -> io::Result<Vec<UnixListener>> {
        let (named, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.left).into_iter().partition(|(_, has)| has == name);
        self.left = left;
        let mut taken = Vec::new();
        for (index, _) in named {
            let Ok(Some(listener)) = self.sockets.take_unix_listener(index) else {
                return Err(unfit(index, "a Unix stream socket (ListenStream= with a path)"));
            };
            listener.set_nonblocking(true)?;
            taken.push(listener);
        }
        Ok(taken)
    }

    /// Takes all that are left, which must be stream sockets; they do not block any more.
    pub fn take_streams(&mut self) -> io::Result<StreamListeners> {
        let mut taken = StreamListeners::default();
        for (index, _) in std::mem::take(&mut self.left) {
            if let Ok(Some(listener)) = self.sockets.take_tcp_listener(index) {
                listener.set_nonblocking(true)?;
                taken.tcp.push(listener);
            } else if let Ok(Some(listener)) = self.sockets.take_unix_listener(index) {
                listener.set_nonblocking(true)?;
                taken.unix.push(listener);
            } else {
                return Err(unfit(index, "a TCP or Unix stream socket (ListenStream=)"));
            }
        }
        Ok(taken)
    }

    /// Takes all that are left, which must be Unix sockets of type `SOCK_SEQPACKET`; they do not block any more.
    pub fn take_seqpackets(&mut self) -> io::Result<Vec<OwnedFd>> {
        let mut taken = Vec::new();
        for (index, _) in std::mem::take(&mut self.left) {
            match self.sockets.take_custom(index, libc::AF_UNIX, libc::SOCK_SEQPACKET, "seqpacket") {
                Ok(Some(socket)) => taken.push(nonblocking(socket)?),
                _ => return Err(unfit(index, "a Unix socket of type SOCK_SEQPACKET (ListenSequentialPacket=)")),
            }
        }
        Ok(taken)
    }
}

/// systemd hands sockets over that block (`NonBlocking=`, systemd.service(5)): accepting would stop the whole program.
fn nonblocking(socket: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
    fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(socket)
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
        let script = "exec 3<&0 4<&2 </dev/null 2>/dev/null; export LISTEN_FDS=2 LISTEN_FDNAMES=admin:http LISTEN_PID=$$; \
                      export HANDED_OVER=1; exec \"$@\"";
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
            let taken = Inherited::from_env().take_streams().expect("taken");
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
    fn a_named_socket_is_told_from_the_others_and_never_a_port() {
        if is_handed_over() {
            let mut inherited = Inherited::from_env();
            assert_eq!(inherited.take_named("admin").expect("taken").len(), 1);
            assert!(inherited.take_named("admin").expect("none is left").is_empty());
            // The operator's socket knows its peers by their uid, which a port does not tell.
            assert!(inherited.take_named("http").expect_err("a port").to_string().contains("socket 2"));
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (unix, _name) = bind_stream(&dir.path().join("s"), 0o600, None).expect("bound");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("bound");
        handed_over("a_named_socket_is_told_from_the_others_and_never_a_port", [unix.into(), tcp.into()]);
    }

    #[test]
    fn a_socket_of_another_type_is_refused_and_not_left_unserved() {
        if is_handed_over() {
            assert!(Inherited::from_env().take_streams().expect_err("unfit").to_string().contains("socket 2"));
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
            let taken = Inherited::from_env().take_seqpackets().expect("taken");
            assert_eq!(taken.len(), 2);
            for socket in &taken {
                let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL).expect("flags"));
                assert!(flags.contains(OFlag::O_NONBLOCK), "accepting blocks the whole program");
            }
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let bound = ["a", "b"].map(|name| bind_unix(&dir.path().join(name), SockType::SeqPacket, 0o600, None));
        let [(a, _a), (b, _b)] = bound.map(|bound| bound.expect("bound"));
        for socket in [&a, &b] {
            // As systemd hands them over.
            fcntl(socket, FcntlArg::F_SETFL(OFlag::empty())).expect("set");
        }
        handed_over("every_seqpacket_socket_is_taken", [a, b]);
    }
}
