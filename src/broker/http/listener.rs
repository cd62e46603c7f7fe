//! Where clients come in: the address of the configuration, or every socket that the service manager hands over.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use listenfd::ListenFd;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;
use tracing::debug;
use wire::inherited::take_streams;

/// How long written bytes may stay unacknowledged before the connection counts as dead (tcp(7)): a keep-alive that
/// cannot be written closes its stream.
const TCP_USER_TIMEOUT: Duration = Duration::from_mins(1);

/// A socket that connections are accepted from.
#[derive(Debug)]
pub(crate) enum Listener {
    /// `ListenStream=` with an address, or `listen` of the configuration.
    Tcp(TcpListener),
    /// `ListenStream=` with a path: for a proxy on this machine.
    Unix(UnixListener),
}

impl Listener {
    /// All that were inherited; where there are none, one at `address`.
    pub(crate) fn all(inherited: &mut ListenFd, address: SocketAddr) -> io::Result<Vec<Self>> {
        let given = take_streams(inherited)?;
        let tcp = given.tcp.into_iter().map(|socket| TcpListener::from_std(socket).map(Self::Tcp));
        let unix = given.unix.into_iter().map(|socket| UnixListener::from_std(socket).map(Self::Unix));
        let mut all = tcp.chain(unix).collect::<io::Result<Vec<_>>>()?;
        if all.is_empty() {
            let own = StdListener::bind(address)?;
            own.set_nonblocking(true)?;
            all.push(Self::Tcp(TcpListener::from_std(own)?));
        }
        Ok(all)
    }

    /// The next connection, and whose it is. Safe to cancel.
    pub(crate) async fn accept(&self) -> io::Result<(Either<TcpStream, UnixStream>, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                prepare(&stream);
                Ok((Either::Left(stream), peer))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                // Whoever may open the socket is on this machine.
                Ok((Either::Right(stream), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))
            }
        }
    }

    /// As people name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string()),
            Self::Unix(listener) => {
                let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(ToOwned::to_owned));
                path.map_or_else(|| "?".to_owned(), |path| path.display().to_string())
            }
        }
    }
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
