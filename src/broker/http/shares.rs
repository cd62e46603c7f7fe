//! How many connections each address may have, and which of them makes room for the next.
//!
//! An address is believed as the kernel names it, and nothing else of its connections: whoever is there may open thousands
//! and say nothing on them, strangers and the processes of users alike, which come from this machine's own addresses. No
//! address can have all connections, not even that of a trusted proxy, because others may be behind it, too. Where an
//! address has its share, the connection that serves nothing makes room for the next: otherwise who holds them silently
//! would shut out everybody else at that address.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::auth::rates::Peer;

/// Of all connections, this part is for others than the one that has the most (one sixteenth).
const RESERVE: usize = 16;

/// What bounds connections.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionCaps {
    /// At once.
    pub(crate) total: usize,
    /// Of one address (of IPv6: one /64; of this machine: all) at once.
    pub(crate) per_address: usize,
    /// Proxies, which bring everybody's: they have what is there, less a reserve.
    pub(crate) proxies: Vec<IpNet>,
}

/// Who shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sharer {
    /// All trusted proxies together.
    Proxies,
    /// An address, or its network.
    Address(IpAddr),
}

impl ConnectionCaps {
    fn sharer(&self, peer: Peer) -> Sharer {
        let address = peer.address.to_canonical();
        if peer.is_proxy || self.proxies.iter().any(|network| network.contains(&address)) {
            return Sharer::Proxies;
        }
        Sharer::Address(match address {
            // A process of this machine may come from any of them.
            _ if address.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            // A user has a whole /64; a host in it is nobody.
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            IpAddr::V4(_) => address,
        })
    }

    fn share(&self, sharer: Sharer) -> usize {
        let most = self.total.saturating_sub((self.total / RESERVE).max(1)).max(1);
        match sharer {
            Sharer::Proxies => most,
            Sharer::Address(_) => self.per_address.min(most),
        }
    }
}

/// The open connections of everybody.
#[derive(Debug)]
pub(crate) struct Shares {
    caps: ConnectionCaps,
    open: Mutex<OpenConnections>,
    /// Whether it was told that this machine's own share is used up.
    told: AtomicBool,
}

#[derive(Debug, Default)]
struct OpenConnections {
    /// By sharer, the oldest first; no sharer without connections.
    of: HashMap<Sharer, BTreeMap<u64, Arc<Activity>>>,
    next: u64,
}

/// What one connection does.
#[derive(Debug, Default)]
struct Activity {
    /// Requests that are being answered.
    running: AtomicUsize,
    /// Whether there ever was one.
    asked: AtomicBool,
    evicted: CancellationToken,
}

impl Activity {
    fn is_idle(&self) -> bool {
        self.running.load(Ordering::Relaxed) == 0
    }
}

/// The place of one connection, until dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Shares>,
    sharer: Sharer,
    number: u64,
    activity: Arc<Activity>,
}

impl Shares {
    /// Nobody is connected.
    pub(crate) fn new(caps: ConnectionCaps) -> Self {
        Self { caps, open: Mutex::default(), told: AtomicBool::new(false) }
    }

    /// A place for a connection of this peer. Where its address has its share already, the oldest of its connections that
    /// serves nothing loses its own, first of all one that never asked anything; `None` where all serve something.
    pub(crate) fn take(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        let sharer = self.caps.sharer(peer);
        let mut open = self.open.lock();
        let number = open.next;
        open.next = number.wrapping_add(1);
        let connections = open.of.entry(sharer).or_default();
        if connections.len() >= self.caps.share(sharer) {
            self.tell(sharer);
            let idle = connections.iter().filter(|(_, activity)| activity.is_idle());
            let oldest = idle.min_by_key(|(number, activity)| (activity.asked.load(Ordering::Relaxed), **number));
            let oldest = oldest.map(|(number, _)| *number)?;
            if let Some(evicted) = connections.remove(&oldest) {
                evicted.evicted.cancel();
            }
        }
        let activity = Arc::<Activity>::default();
        connections.insert(number, Arc::clone(&activity));
        Some(Place { of: Arc::clone(self), sharer, number, activity })
    }

    /// Says once what an operator whose proxy is not trusted would look for.
    fn tell(&self, sharer: Sharer) {
        if sharer == Sharer::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)) && !self.told.swap(true, Ordering::Relaxed) {
            warn!(
                reason = "connections-of-address",
                "this machine's own addresses have used up connections_per_address: if a proxy is there, name it in \
                 trusted_proxies"
            );
        }
    }
}

impl Place {
    /// Notes a request, until what is returned is dropped: its answer carries it to its end.
    pub(crate) fn begin(&self) -> Running {
        self.activity.asked.store(true, Ordering::Relaxed);
        self.activity.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(&self.activity))
    }

    /// Whether there ever was a request.
    pub(crate) fn has_asked(&self) -> bool {
        self.activity.asked.load(Ordering::Relaxed)
    }

    /// Whether no request is being answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.activity.is_idle()
    }

    /// Resolves when another connection has taken the place. Safe to cancel.
    pub(crate) async fn evicted(&self) {
        self.activity.evicted.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.open.lock();
        if let Some(connections) = open.of.get_mut(&self.sharer) {
            connections.remove(&self.number);
            if connections.is_empty() {
                open.of.remove(&self.sharer);
            }
        }
    }
}

/// A request that is being answered, until dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer, which runs until its last byte is handed over.
#[derive(Debug)]
pub(crate) struct RunningBody {
    body: Body,
    _running: Running,
}

impl RunningBody {
    /// Of the request that `running` notes.
    pub(crate) fn new(body: Body, running: Running) -> Self {
        Self { body, _running: running }
    }
}

impl HttpBody for RunningBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(total: usize, per_address: usize, proxies: &[&str]) -> Arc<Shares> {
        let proxies = proxies.iter().map(|text| text.parse().expect("a network")).collect();
        Arc::new(Shares::new(ConnectionCaps { total, per_address, proxies }))
    }

    fn from(text: &str) -> Peer {
        Peer { address: text.parse().expect("an address"), is_proxy: false }
    }

    #[test]
    fn one_address_has_its_share_and_another_is_not_held_up() {
        let shares = shares(100, 2, &[]);
        for (first, second, third, other) in [
            ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::3"),
            ("127.0.0.1", "127.9.9.9", "::1", "192.0.2.3"),
        ] {
            let held = [first, second].map(|text| shares.take(from(text)).expect("its share"));
            let busy = held.each_ref().map(Place::begin);
            assert!(shares.take(from(third)).is_none(), "{third}");
            assert!(shares.take(from(other)).is_some(), "{other}");
            drop(busy);
            assert!(shares.take(from(third)).is_some(), "{third}: one that serves nothing makes room");
            drop(held);
        }
        assert!(shares.open.lock().of.is_empty(), "addresses without connections take no memory");
    }

    #[test]
    fn not_even_a_trusted_proxy_has_all_connections() {
        let shares = shares(32, 4, &["127.0.0.0/8"]);
        let by_socket = Peer { is_proxy: true, ..from("127.0.0.1") };
        let busy = |peer| shares.take(peer).map(|place| (place.begin(), place));
        let held: Vec<_> =
            (0..40).map_while(|n| busy(if n % 2 == 0 { by_socket } else { from("127.0.0.1") })).collect();
        assert_eq!(held.len(), 30, "all but a sixteenth");
        assert!(busy(from("192.0.2.1")).is_some() && busy(from("::1")).is_some(), "what is left is for the others");
    }

    #[test]
    fn the_oldest_that_never_asked_makes_room_then_the_oldest_that_serves_nothing() {
        let shares = shares(100, 3, &[]);
        let take = || shares.take(from("127.0.0.1"));
        let asked = take().expect("a place");
        drop(asked.begin());
        let (silent, busy) = (take().expect("a place"), take().expect("a place"));
        let running = busy.begin();
        let evicted = |place: &Place| place.activity.evicted.is_cancelled();
        let fourth = take().expect("a place");
        assert_eq!([&asked, &silent, &busy].map(evicted), [false, true, false]);
        let of_fourth = fourth.begin();
        let fifth = take().expect("a place");
        assert_eq!([&asked, &busy, &fourth].map(evicted), [true, false, false]);
        let of_fifth = fifth.begin();
        assert!(take().is_none(), "all serve something");
        drop((asked, silent));
        assert!(take().is_none(), "who had lost its place gives none back");
        drop((running, of_fourth, of_fifth));
    }

    #[test]
    fn an_answer_runs_to_the_end_of_its_body() {
        let shares = shares(100, 3, &[]);
        let place = shares.take(from("192.0.2.1")).expect("a place");
        let body = RunningBody::new(Body::from("four"), place.begin());
        assert_eq!((body.size_hint().exact(), body.is_end_stream(), place.is_idle()), (Some(4), false, false));
        drop(body);
        assert!(place.is_idle() && place.has_asked());
    }
}
