//! Connections of clients: accepted within a bound, served as HTTP/1.1, finished at shutdown.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(30);
/// How long written bytes may stay unacknowledged before the connection counts as dead (tcp(7)): a
/// keep-alive that cannot be written closes its stream.
const UNACKNOWLEDGED: Duration = Duration::from_mins(1);
/// A pause after the system refused a connection, such as for want of descriptors.
const BREATHE: Duration = Duration::from_millis(100);

/// The open connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    places: Arc<Semaphore>,
    graceful: Arc<Mutex<Option<GracefulShutdown>>>,
}

impl Connections {
    /// At most `most` at once; further ones wait in the socket's queue.
    pub(super) fn new(most: usize) -> Self {
        let graceful = Arc::new(Mutex::new(Some(GracefulShutdown::new())));
        Self { places: Arc::new(Semaphore::new(most)), graceful }
    }

    /// Accepts until asked to stop.
    pub(super) async fn accept(self, listener: TcpListener, router: Router, stop: CancellationToken) {
        loop {
            let accepted = async {
                // The semaphore is never closed.
                let place = Arc::clone(&self.places).acquire_owned().await.ok();
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    prepare(&stream);
                    let mut builder = hyper::server::conn::http1::Builder::new();
                    builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
                    let service = TowerToHyperService::new(router.clone());
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    let Some(watched) = self.graceful.lock().as_ref().map(|graceful| graceful.watch(connection)) else {
                        return;
                    };
                    tokio::spawn(async move {
                        if let Err(e) = watched.await {
                            debug!(error = %e, "a connection ended early");
                        }
                        drop(place);
                    });
                }
                Err(e) => {
                    warn!(error = %e, "a connection could not be accepted");
                    tokio::time::sleep(BREATHE).await;
                }
            }
        }
    }

    /// Lets answers that were begun leave, for at most `limit`.
    pub(super) async fn finish(&self, limit: Duration) {
        let graceful = self.graceful.lock().take();
        if let Some(graceful) = graceful
            && timeout(limit, graceful.shutdown()).await.is_err()
        {
            warn!("connections are closed with answers on the way");
        }
    }
}

fn prepare(stream: &TcpStream) {
    // Without it an answer in two writes waits 40 ms for the peer's delayed acknowledgement.
    if let Err(e) = stream.set_nodelay(true) {
        debug!(error = %e, "TCP_NODELAY");
    }
    if let Err(e) = SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED)) {
        debug!(error = %e, "TCP_USER_TIMEOUT");
    }
}
