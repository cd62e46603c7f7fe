//! The operator's socket: the service manager's, or one that is made for its owner alone, and for root.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::chain::chain;
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use wire::unix_socket::{SocketName, bind_stream};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("the operator's socket {0} cannot be made")]
pub(crate) struct AdminError(PathBuf, #[source] io::Error);

/// A pause after the system refused a connection, such as for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves the sockets that were inherited, and where there are none one at `path`, in the background until asked to stop.
///
/// A socket that another program serves is not replaced, and only a name that was made here is removed
/// ([`wire::unix_socket`]).
pub(crate) fn serve(
    inherited: Vec<StdListener>,
    path: &Path,
    router: &Router,
    stop: &CancellationToken,
) -> Result<(), AdminError> {
    let failed = |e| AdminError(path.to_owned(), e);
    let mut sockets: Vec<_> = inherited.into_iter().map(|listener| (listener, None)).collect();
    if sockets.is_empty() {
        let (listener, name) = bind_stream(path, 0o600, None).map_err(failed)?;
        sockets.push((listener, Some(name)));
    }
    for (listener, name) in sockets {
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        tokio::spawn(accept(listener, name, router.clone(), stop.clone()));
    }
    Ok(())
}

/// Holds on to the name, if it was made here, for as long.
async fn accept(listener: UnixListener, _name: Option<SocketName>, router: Router, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => greet(stream, router.clone()),
                Err(e) => {
                    warn!(error = %e, "the operator's socket failed to accept: {}", chain(&e));
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
}

fn greet(stream: UnixStream, router: Router) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == geteuid().as_raw() => {}
        peer => {
            warn!(
                uid = peer.map_or(u32::MAX, |peer| peer.uid()),
                reason = "peer-not-allowed",
                "operator's door refused"
            );
            return;
        }
    }
    tokio::spawn(async move {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new());
        let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
        if let Err(e) = served {
            debug!(error = %e, "an operator's connection ended early");
        }
    });
}
