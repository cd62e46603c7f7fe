//! The service manager's socket: what a program says of itself (`sd_notify(3)`).
//!
//! `NOTIFY_SOCKET` is trusted as whoever started the program set it; without it nothing is told. The descriptor is kept
//! from the start: the watchdog must be told above all when no further one can be had. The address is named with each
//! message, because a service manager that was replaced listens at the same address with another socket.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;
use std::time::Duration;

use sd_notify::NotifyState;

/// A service manager that does not read must not hold up the program: the supervisor has one thread.
const SEND_TIMEOUT: Duration = Duration::from_millis(50);

/// Where to tell, with the descriptor to do it.
#[derive(Debug)]
struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
}

/// There is one service manager for the whole process, named in its environment.
static NOTIFIER: OnceLock<Option<Notifier>> = OnceLock::new();

/// Opens the socket, if it is not open yet and there is one to tell.
pub(crate) fn open() {
    notifier();
}

/// Tells the service manager.
pub(crate) fn tell(states: &[NotifyState<'_>]) {
    if let Some(Err(error)) = notifier().map(|notifier| notifier.send(states)) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

fn notifier() -> Option<&'static Notifier> {
    let open = || {
        let named = std::env::var_os("NOTIFY_SOCKET")?;
        let opened = Notifier::to(&named);
        opened.map_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET cannot be used; nobody is told")).ok()
    };
    NOTIFIER.get_or_init(open).as_ref()
}

impl Notifier {
    /// A path, or `@` and the name of an abstract socket (unix(7)).
    fn to(named: &OsStr) -> io::Result<Self> {
        let address = match named.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(named)?,
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract address")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { socket, address })
    }

    fn send(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let lines: Vec<_> = states.iter().map(ToString::to_string).collect();
        self.socket.send_to_addr(lines.join("\n").as_bytes(), &self.address).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut said = [0; 256];
        let length = socket.recv(&mut said).expect("a message");
        String::from_utf8_lossy(&said[..length]).into_owned()
    }

    #[test]
    fn a_manager_behind_a_path_is_told_and_so_is_its_successor() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let notifier = Notifier::to(path.as_os_str()).expect("a notifier");
        notifier.send(&[NotifyState::Ready, NotifyState::Status("serving")]).expect("told");
        assert_eq!(heard(&manager), "READY=1\nSTATUS=serving");
        drop(manager);
        std::fs::remove_file(&path).expect("removed");
        let successor = UnixDatagram::bind(&path).expect("a socket");
        notifier.send(&[NotifyState::Watchdog]).expect("told");
        assert_eq!(heard(&successor), "WATCHDOG=1");
    }

    #[test]
    fn a_manager_behind_an_abstract_address_is_told() {
        let name = format!("fmb-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).expect("an address");
        let manager = UnixDatagram::bind_addr(&address).expect("a socket");
        let notifier = Notifier::to(format!("@{name}").as_ref()).expect("a notifier");
        notifier.send(&[NotifyState::Stopping]).expect("told");
        assert_eq!(heard(&manager), "STOPPING=1");
    }

    #[test]
    fn an_address_of_another_kind_is_refused() {
        for named in ["", "vsock:2:1", "relative/path"] {
            assert!(Notifier::to(named.as_ref()).is_err(), "{named}");
        }
    }
}
