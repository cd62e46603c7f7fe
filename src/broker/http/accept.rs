//! Connections of clients: accepted within a bound, served as HTTP/1.1, finished at shutdown.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
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
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::auth::rates::Peer;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a connection's read buffer, and so of a request's head: hyper would hold up to 400 KiB for a stranger. The
/// largest heads of real clients have four (a JWT, a trace).
const MAX_HEAD: usize = 32 * 1024;
/// Descriptors that connections leave alone: the store's, the supervisor's socket, the operator's, requests to Forgejo.
const RESERVED_DESCRIPTORS: u64 = 256;
/// Descriptors that the three pipes of a child take.
const DESCRIPTORS_A_CHILD: u64 = 3;
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
    by_address: Arc<ByAddress>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What bounds connections.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionCaps {
    /// At once.
    pub(crate) total: usize,
    /// Of one address (of IPv6: one /64) at once.
    pub(crate) per_address: usize,
    /// Proxies, which bring everybody's: they have no cap of their own.
    pub(crate) proxies: Vec<IpNet>,
}

impl ConnectionCaps {
    /// No more than there are descriptors for, with so many children.
    pub(crate) fn within_descriptors(mut self, children: usize) -> Self {
        // Without an answer the smallest limit that any system has is believed.
        let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let children = u64::try_from(children).unwrap_or(u64::MAX).saturating_mul(DESCRIPTORS_A_CHILD);
        // Children leave connections at least half: a low limit must not lock everybody out.
        let taken = children.min(soft / 4).saturating_add(RESERVED_DESCRIPTORS.min(soft / 4));
        let free = usize::try_from(soft.saturating_sub(taken)).unwrap_or(usize::MAX).max(1);
        if free < self.total {
            warn!(
                limit = soft,
                connections = free,
                reason = "descriptor-limit",
                "fewer connections than configured: raise LimitNOFILE="
            );
            self.total = free;
        }
        self
    }
}

/// Connections by the address that they come from.
#[derive(Debug)]
struct ByAddress {
    caps: ConnectionCaps,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of an address, until dropped.
#[derive(Debug)]
struct OfAddress {
    of: Arc<ByAddress>,
    /// `None` for proxies.
    address: Option<IpAddr>,
}

impl ByAddress {
    /// Counts one more; `None` where it is one too many.
    fn take(self: &Arc<Self>, peer: IpAddr) -> Option<OfAddress> {
        let peer = peer.to_canonical();
        if self.caps.proxies.iter().any(|network| network.contains(&peer)) {
            return Some(OfAddress { of: Arc::clone(self), address: None });
        }
        let address = match peer {
            // A user has a whole /64; a host in it is nobody.
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut open = self.open.lock();
        let count = open.entry(address).or_default();
        if *count >= self.caps.per_address {
            return None;
        }
        *count = count.saturating_add(1);
        Some(OfAddress { of: Arc::clone(self), address: Some(address) })
    }
}

impl Drop for OfAddress {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut open = self.of.open.lock();
        if let Some(count) = open.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&address);
            }
        }
    }
}

impl Connections {
    /// Beyond the total further ones wait in the socket's queue; beyond the cap of their address they are closed.
    pub(crate) fn new(caps: ConnectionCaps) -> Self {
        let permits = Arc::new(Semaphore::new(caps.total));
        let by_address = Arc::new(ByAddress { caps, open: Mutex::default() });
        Self { permits, by_address, tasks: TaskTracker::new(), closing: CancellationToken::new() }
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
                    let Some(of_address) = self.by_address.take(peer.ip()) else {
                        debug!(%peer, reason = "connections-of-address", "a connection was closed: its address has too many");
                        continue;
                    };
                    prepare(&stream);
                    let (router, closing) = (router.clone(), self.closing.clone());
                    self.tasks.spawn(async move {
                        serve(stream, peer, router, closing).await;
                        drop((of_address, permit));
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
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share_and_a_proxy_brings_everybodys() {
        let caps =
            ConnectionCaps { total: 100, per_address: 2, proxies: vec!["127.0.0.0/8".parse().expect("a network")] };
        let by_address = Arc::new(ByAddress { caps, open: Mutex::default() });
        let take = |text: &str| by_address.take(text.parse().expect("an address"));
        let held = [take("192.0.2.1").expect("the first"), take("::ffff:192.0.2.1").expect("the second")];
        assert!(take("192.0.2.1").is_none());
        assert!(take("192.0.2.2").is_some(), "another address is not held up");
        let v6 = [take("2001:db8::1").expect("the first"), take("2001:db8::2").expect("of the same network")];
        assert!(take("2001:db8::3").is_none() && take("2001:db8:0:1::3").is_some());
        let proxied: Vec<_> = (0..10).map(|_| take("127.0.0.1").expect("a proxy")).collect();
        drop((held, v6, proxied));
        assert!(take("192.0.2.1").is_some());
        assert!(by_address.open.lock().is_empty(), "addresses without connections take no memory");
    }
}
