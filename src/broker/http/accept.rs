//! Connections of clients: accepted within a bound, served as HTTP/1.1, finished at shutdown.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::auth::rates::Peer;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection that was accepted just before a shutdown may take to send its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long written bytes may stay unacknowledged before the connection counts as dead (tcp(7)): a keep-alive that
/// cannot be written closes its stream.
const TCP_USER_TIMEOUT: Duration = Duration::from_mins(1);
/// A pause after the system refused a connection, such as for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The open connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connections {
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Connections {
    /// At most `most` at once; further ones wait in the socket's queue.
    pub(crate) fn new(most: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(most)), tasks: TaskTracker::new(), closing: CancellationToken::new() }
    }

    /// Accepts until asked to stop.
    pub(crate) async fn accept(self, listener: TcpListener, router: Router, stop: CancellationToken) {
        loop {
            let accepted = async {
                // The semaphore is never closed.
                let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    prepare(&stream);
                    let (router, closing) = (router.clone(), self.closing.clone());
                    self.tasks.spawn(async move {
                        serve(stream, peer, router, closing).await;
                        drop(permit);
                    });
                }
                Err(e) => {
                    warn!(error = %e, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Lets answers that were begun leave, for at most `limit`.
    pub(crate) async fn finish(&self, limit: Duration) {
        self.closing.cancel();
        self.tasks.close();
        if timeout(limit, self.tasks.wait()).await.is_err() {
            warn!("connections are closed with answers on the way");
        }
    }
}

/// Serves one connection to its end, or until the broker closes.
async fn serve(stream: TcpStream, peer: SocketAddr, router: Router, closing: CancellationToken) {
    let begun = CancellationToken::new();
    let (router, first) = (TowerToHyperService::new(router), begun.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        first.cancel();
        request.extensions_mut().insert(Peer(peer));
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = async {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = closing.cancelled() => {}
        }
        // A connection without a request would be closed at once, with the request perhaps on its way: the client
        // was accepted, so it is answered.
        if !begun.is_cancelled()
            && let Some(ended) = first_request(connection.as_mut(), &begun).await
        {
            return ended;
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    if let Err(e) = ended.await {
        debug!(error = %e, "a connection ended early");
    }
}

/// Drives the connection until its first request begins, for a short while; its end, if it ends meanwhile.
async fn first_request<C: Future>(connection: C, begun: &CancellationToken) -> Option<C::Output> {
    tokio::select! {
        ended = connection => Some(ended),
        _ = timeout(FIRST_REQUEST_TIMEOUT, begun.cancelled()) => None,
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
