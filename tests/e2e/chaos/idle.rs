//! Connections that say nothing, many times as many as their address may have: those who have something to say come by a
//! trusted proxy and are served beside them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpSocket, TcpStream};

use super::ledger::Ledger;

/// Connections that the broker allows in all, and to one address (the defaults). All addresses of this machine but the
/// proxy's are one to it, so these take each other's places.
const TOTAL: u64 = 4096;
const OF_ONE_ADDRESS: u64 = 256;
/// What is left to those who have something to say.
const LEFT: u64 = 640;
/// What the broker keeps for children and for itself, at most.
const KEPT: u64 = 1628;
/// The broker closes a connection without a head after ten seconds, so they are made anew before.
const ANEW: Duration = Duration::from_secs(8);

/// From how many addresses they may come, after this program's own limit is raised.
pub(crate) fn addresses() -> u8 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    let possible = TOTAL.min(hard.saturating_sub(KEPT)).saturating_sub(LEFT);
    u8::try_from(possible / OF_ONE_ADDRESS).expect("a few")
}

/// Holds them until it is over.
pub(crate) async fn hold(url: String, addresses: u8, ledger: Arc<Ledger>, over: Arc<AtomicBool>) {
    let address: SocketAddr = url.trim_start_matches("http://").parse().expect("an address");
    while !over.load(Ordering::SeqCst) {
        let connecting = (0..addresses).flat_map(|n| (0..OF_ONE_ADDRESS + 20).map(move |_| connect(address, n)));
        let connected: Vec<TcpStream> = join_all(connecting).await.into_iter().flatten().collect();
        ledger.count("strike: idle connections");
        for _ in 0..connected.len() {
            ledger.count("idle connections made");
        }
        tokio::time::sleep(ANEW).await;
    }
}

async fn connect(to: SocketAddr, number: u8) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::from((IpAddr::V4(Ipv4Addr::new(127, 0, 200, number)), 0))).ok()?;
    tokio::time::timeout(ANEW, socket.connect(to)).await.ok()?.ok()
}
