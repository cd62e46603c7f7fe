//! Where clients come in: the address of the configuration, or every socket that the service manager hands over.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;
use tracing::{debug, warn};
use wire::inherited::Inherited;

use crate::auth::rates::Peer;

/// How long written bytes may stay unacknowledged before the connection counts as dead (tcp(7)): a keep-alive that
/// cannot be written closes its stream.
const TCP_USER_TIMEOUT: Duration = Duration::from_mins(1);

/// Connections that wait to be accepted, at most; the kernel has a limit of its own (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// A socket that connections are accepted from.
#[derive(Debug)]
pub(crate) enum Listener {
    /// `ListenStream=` with an address, or `listen` of the configuration.
    Tcp(TcpListener),
    /// `ListenStream=` with a path: for a proxy on this machine.
    Unix {
        /// The socket.
        socket: UnixListener,
        /// Whether none but its owner and group may open it, so that whoever does is the proxy.
        is_proxys: bool,
    },
}

impl Listener {
    /// All that were inherited; where there are none, one at `address`.
    pub(crate) fn all(inherited: &mut Inherited, address: SocketAddr) -> io::Result<Vec<Self>> {
        let given = inherited.take_streams()?;
        let tcp = given.tcp.into_iter().map(|socket| TcpListener::from_std(socket).map(Self::Tcp));
        let unix = given.unix.into_iter().map(|socket| {
            let is_proxys = is_closed_to_others(&socket);
            Ok(Self::Unix { socket: UnixListener::from_std(socket)?, is_proxys })
        });
        let mut all = tcp.chain(unix).collect::<io::Result<Vec<_>>>()?;
        if all.is_empty() {
            all.push(Self::bind(address)?);
        }
        Ok(all)
    }

    /// One of the broker's own.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let own = StdListener::bind(address)?;
        // Again, because it changes the length of the queue only (listen(2)): std's 128 are soon full, and who finds it
        // so tries again after a second.
        SockRef::from(&own).listen(BACKLOG)?;
        own.set_nonblocking(true)?;
        Ok(Self::Tcp(TcpListener::from_std(own)?))
    }

    /// The next connection, and whose it is. Safe to cancel.
    pub(crate) async fn accept(&self) -> io::Result<(Either<TcpStream, UnixStream>, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                prepare(&stream);
                Ok((Either::Left(stream), Peer { address: peer.ip(), is_proxy: false }))
            }
            Self::Unix { socket, is_proxys } => {
                let (stream, _) = socket.accept().await?;
                // Whoever may open the socket is on this machine.
                Ok((Either::Right(stream), Peer { address: Ipv4Addr::LOCALHOST.into(), is_proxy: *is_proxys }))
            }
        }
    }

    /// As people name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string()),
            Self::Unix { socket, .. } => {
                let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(ToOwned::to_owned));
                path.map_or_else(|| "?".to_owned(), |path| path.display().to_string())
            }
        }
    }
}

/// Whether the file mode lets no other user connect (unix(7)), such as a child of the supervisor's: a uid and gid of its
/// own, no groups. What has no file, or none that can be looked at, is open to all.
fn is_closed_to_others(socket: &StdUnixListener) -> bool {
    let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(ToOwned::to_owned));
    let mode = path.as_deref().and_then(|path| std::fs::metadata(path).ok()).map_or(0o777, |meta| meta.mode());
    let closed = mode & 0o002 == 0;
    if !closed {
        warn!(
            path = %path.unwrap_or_default().display(),
            reason = "untrusted-proxy",
            "every user may connect to this socket: its X-Forwarded-For is not believed (SocketMode=0660 closes it)"
        );
    }
    closed
}

fn prepare(stream: &TcpStream) {
    // Without it an answer in two writes waits 40 ms for the peer's delayed acknowledgement.
    if let Err(e) = stream.set_nodelay(true) {
        debug!(error = %e, "TCP_NODELAY");
    }
    if let Err(e) = SockRef::from(stream).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT)) {
        debug!(error = %e, "TCP_USER_TIMEOUT");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_is_a_proxys_only_where_no_other_user_may_open_it() {
        let dir = tempfile::tempdir().expect("a directory");
        for (mode, closed) in [(0o600, true), (0o660, true), (0o666, false), (0o662, false)] {
            let path = dir.path().join(format!("{mode:o}"));
            let socket = StdUnixListener::bind(&path).expect("bound");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("chmod");
            assert_eq!(is_closed_to_others(&socket), closed, "{mode:o}");
            std::fs::remove_file(&path).expect("removed");
            assert!(!is_closed_to_others(&socket), "what cannot be looked at");
        }
    }
}
