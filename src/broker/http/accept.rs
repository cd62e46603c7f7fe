//! Connections of clients: accepted within a bound, served as HTTP/1.1, finished at shutdown.

use std::future::Future;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::auth::rates::Peer;
use crate::chain::chain;
use crate::http::listener::Listener;
use crate::http::shares::{ConnectionCaps, Place, RunningBody, Shares};
use wire::lifecycle;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that has asked before is kept without a request: longer than proxies keep theirs (nginx 60 s, Go
/// 90 s, Caddy 2 min), because what a proxy sends while its connection is being closed is lost.
const KEEP_ALIVE: Duration = Duration::from_secs(150);
/// Bytes of a connection's read buffer, and so of a request's head: hyper would hold up to 400 KiB for a stranger. The
/// largest heads of real clients have four (a JWT, a trace).
const MAX_HEAD: usize = 32 * 1024;
/// Descriptors that the three pipes of a child take.
const DESCRIPTORS_A_CHILD: usize = 3;
/// How long a connection that was accepted just before a shutdown may take to send its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// A pause after the system refused a connection, such as for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The open connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connections {
    permits: Arc<Semaphore>,
    shares: Arc<Shares>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl ConnectionCaps {
    /// No more than there are descriptors for, with so many children.
    pub(crate) fn within_descriptors(mut self, children: usize) -> Self {
        let limit = lifecycle::descriptor_limit();
        // Children leave connections most of it: a low limit must not lock everybody out.
        let taken = children.saturating_mul(DESCRIPTORS_A_CHILD).min(limit / 4);
        let free = limit.saturating_sub(taken).max(1);
        if free < self.total {
            warn!(
                limit,
                connections = free,
                reason = "descriptor-limit",
                "fewer connections than configured: raise LimitNOFILE="
            );
            self.total = free;
        }
        self
    }
}

impl Connections {
    /// Beyond the total further ones wait in the socket's queue; beyond the share of their address one makes room.
    pub(crate) fn new(caps: ConnectionCaps) -> Self {
        let permits = Arc::new(Semaphore::new(caps.total));
        let shares = Arc::new(Shares::new(caps));
        Self { permits, shares, tasks: TaskTracker::new(), closing: CancellationToken::new() }
    }

    /// Accepts until asked to stop.
    pub(crate) async fn accept(self, listener: Listener, router: Router, stop: CancellationToken) {
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
                    let Some(place) = self.shares.take(peer) else {
                        let peer = peer.address;
                        debug!(%peer, reason = "connections-of-address", "a connection was closed: its address has too many");
                        continue;
                    };
                    let (router, closing) = (router.clone(), self.closing.clone());
                    self.tasks.spawn(async move {
                        serve(stream, peer, Arc::new(place), router, closing).await;
                        drop(permit);
                    });
                }
                Err(e) => {
                    warn!(error = %e, "a connection could not be accepted: {}", chain(&e));
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

/// Serves one connection to its end, or until the broker closes, or another takes its place.
async fn serve<S>(stream: S, peer: Peer, place: Arc<Place>, router: Router, closing: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (router, asked) = (TowerToHyperService::new(router), Notify::new());
    let service = service_fn(|mut request: Request<Incoming>| {
        let running = place.begin();
        asked.notify_one();
        request.extensions_mut().insert(peer);
        let answer = router.call(request);
        async move { answer.await.map(|answer| answer.map(|body| RunningBody::new(body, running))) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE).max_buf_size(MAX_HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = async {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = closing.cancelled() => {
                // A connection without a request would be closed at once, with the request perhaps on its way: the client
                // was accepted, so it is answered.
                if !place.has_asked()
                    && let Some(ended) = first_request(connection.as_mut(), &asked).await
                {
                    return ended;
                }
            }
            () = place.evicted() => {
                if place.is_idle() {
                    return Ok(());
                }
            }
            () = silent(&asked) => return Ok(()),
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    if let Err(e) = ended.await {
        debug!(error = %e, "a connection ended early");
    }
}

/// Resolves when no request has begun in time.
async fn silent(asked: &Notify) {
    if timeout(HEAD_TIMEOUT, asked.notified()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// Drives the connection until its first request begins, for a short while; its end, if it ends meanwhile.
async fn first_request<C: Future>(connection: C, asked: &Notify) -> Option<C::Output> {
    tokio::select! {
        ended = connection => Some(ended),
        _ = timeout(FIRST_REQUEST_TIMEOUT, asked.notified()) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use axum::Extension;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    /// What a server answers to one request, to the end of the connection.
    async fn asks(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_asks_is_gone_in_ten_seconds_and_who_has_asked_is_kept_for_longer_than_proxies_keep_them() {
        let connections = Connections::new(ConnectionCaps { total: 2, per_address: 2, proxies: Vec::new() });
        let peer = Peer { address: IpAddr::V4(Ipv4Addr::LOCALHOST), is_proxy: false };
        let router = Router::new().route("/", get(async || "here"));
        let connected = || {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let place = Arc::new(connections.shares.take(peer).expect("a place"));
            tokio::spawn(serve(theirs, peer, place, router.clone(), CancellationToken::new()));
            ours
        };
        let (mut silent, mut asked) = (connected(), connected());
        for pause in [0, 130] {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            asked.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
            let mut answer = [0; 12];
            asked.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(&answer, b"HTTP/1.1 200", "after {pause} s");
            while !answer.ends_with(b"here") {
                let next = asked.read_u8().await.expect("the rest");
                answer.rotate_left(1);
                answer[11] = next;
            }
            if pause == 0 {
                let mut said = Vec::new();
                let gone = timeout(Duration::from_secs(11), silent.read_to_end(&mut said)).await;
                gone.expect("in time").expect("closed");
            }
        }
    }

    #[tokio::test]
    async fn clients_are_served_on_every_socket_and_those_of_a_unix_socket_count_as_of_this_machine() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let unix = tokio::net::UnixListener::bind(&path).expect("bound");
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = tcp.local_addr().expect("an address");
        let connections = Connections::new(ConnectionCaps { total: 2, per_address: 2, proxies: Vec::new() });
        let peer = |Extension(peer): Extension<Peer>| async move { format!("from {} {}", peer.address, peer.is_proxy) };
        let router = Router::new().route("/", get(peer));
        let stop = CancellationToken::new();
        let accepting = [Listener::Tcp(tcp), Listener::Unix { socket: unix, is_proxys: true }]
            .map(|listener| tokio::spawn(connections.clone().accept(listener, router.clone(), stop.clone())));
        assert!(asks(TcpStream::connect(address).await.expect("connected")).await.ends_with("from 127.0.0.1 false"));
        assert!(asks(UnixStream::connect(&path).await.expect("connected")).await.ends_with("from 127.0.0.1 true"));
        stop.cancel();
        for accepting in accepting {
            accepting.await.expect("it ends");
        }
    }
}
