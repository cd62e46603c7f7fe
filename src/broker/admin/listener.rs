//! The operator's socket: made for its owner alone, and for root.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("the operator's socket {0} cannot be made")]
pub(crate) struct AdminError(PathBuf, #[source] io::Error);

/// Removes the socket's name when dropped.
struct Named(PathBuf);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds `path` and serves in the background until asked to stop.
///
/// The socket is bound under another name and renamed, so that it is never there with a wider mode, and replaces what
/// a dead predecessor left.
pub(crate) fn serve(path: &Path, router: Router, stop: CancellationToken) -> Result<(), AdminError> {
    let failed = |e| AdminError(path.to_owned(), e);
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    let named = Named(path.to_owned());
    tokio::spawn(async move {
        let _named = named;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => greet(stream, router.clone()),
                    Err(e) => warn!(error = %e, "the operator's socket failed to accept"),
                },
            }
        }
    });
    Ok(())
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
