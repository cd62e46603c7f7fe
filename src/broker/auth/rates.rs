//! How often strangers may do what costs something, by their address.
//!
//! Hosted clients reach the broker from few addresses for many users, so nothing that a well-behaved client does often
//! is counted: no token request that succeeds, no document that is cached, no registration that repeats another.
//! An address is the peer's, or what a trusted proxy says in `X-Forwarded-For`; of an IPv6 address the network (/64).
//! Each counts a second time with its neighbours (/48, or /24 for IPv4), because one customer may have many of them.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::extract::Request;
use axum::http::HeaderMap;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use ipnet::IpNet;
use parking_lot::RwLock;
use tracing::warn;
use wire::config_file::Section;

use crate::auth::principal::GrantId;
use crate::auth::source::Source;

/// Exchanges of one family: one a minute, thirty at once. A client needs one an hour; several of its processes may
/// come together, and each exchange leaves a row behind for as long as the token would have lived.
fn refreshes() -> Quota {
    Quota::per_minute(NonZeroU32::MIN).allow_burst(NonZeroU32::MIN.saturating_add(29))
}

/// Lines a minute about bad tokens from one address: more than whoever bans an address waits for.
const BAD_TOKENS_OF_ONE: u32 = 20;
/// And from all together.
const BAD_TOKENS_OF_ALL: u32 = 300;

/// Forgejo tokens a minute that were never good here and are shown from one address: each is a question to Forgejo. Whoever
/// has many scripts begins with each of them once.
const SHOWN_TOKENS: u32 = 20;

/// Lines a minute about registrations that found all places taken.
const FULL: u32 = 6;

/// Lines a minute about pages with a message that one address got: more than a person reads.
const PAGES_OF_ONE: u32 = 10;
/// And all together.
const PAGES_OF_ALL: u32 = 300;

/// How many times as much as one address all of its neighbourhood may do.
const NEIGHBOURHOOD_FACTOR: u32 = 4;

/// Where a proxy names whom it speaks for.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Addresses that one limiter remembers at most before it forgets those that are within their limits.
const MAX_ADDRESSES: usize = 100_000;

/// Requests a minute from one address; as many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rates {
    /// New clients.
    pub(crate) registrations: u32,
    /// Logins that go to Forgejo.
    pub(crate) logins: u32,
    /// Metadata documents that are not cached.
    pub(crate) documents: u32,
    /// Token and revocation requests that fail.
    pub(crate) failures: u32,
}

impl Rates {
    /// `[rates]`: requests a minute from one address.
    pub(crate) fn read(mut section: Section) -> Self {
        let mut rate = |key: &str, default: u32| section.integer(key, default, 1..=1_000_000);
        let rates = Self {
            registrations: rate("registrations", 20),
            logins: rate("logins", 30),
            documents: rate("documents", 30),
            failures: rate("failures", 60),
        };
        section.close();
        rates
    }
}

/// How requests came in whose address was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CameIn {
    /// From a trusted proxy, with the address of somebody behind it.
    pub(crate) forwarded: u64,
    /// From a trusted proxy's address, with nobody behind it.
    pub(crate) bare: u64,
    /// From somebody else, with an address that is not believed.
    pub(crate) forwarded_by_stranger: u64,
}

/// Seconds until the next try may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany {
    /// At least one.
    pub(crate) seconds: u64,
}

/// The peer of a connection, put into every request's extensions where it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// As the kernel names it; of a Unix socket this machine's own.
    pub(crate) address: IpAddr,
    /// It came by a Unix socket that only the proxy may open.
    pub(crate) is_proxy: bool,
}

fn peer_of(request: &Request) -> Peer {
    let nobody = Peer { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), is_proxy: false };
    request.extensions().get().copied().unwrap_or(nobody)
}

#[cfg(not(test))]
type Time = governor::clock::DefaultClock;
/// Stands still: on a slow machine a flood would take so long that one more of it is let through.
#[cfg(test)]
type Time = governor::clock::FakeRelativeClock;

/// One kind of request, counted by who asks.
#[derive(Debug)]
pub(crate) struct Limiter<K: Clone + Eq + Hash>(Limits<K>);

type Limits<K> = RateLimiter<K, DefaultKeyedStateStore<K>, Time, NoOpMiddleware<<Time as Clock>::Instant>>;

impl<K: Clone + Eq + Hash> Limiter<K> {
    /// So many a minute of each; as many may come at once.
    pub(crate) fn new(a_minute: u32) -> Self {
        Self::within(Quota::per_minute(NonZeroU32::new(a_minute).unwrap_or(NonZeroU32::MIN)))
    }

    fn within(quota: Quota) -> Self {
        Self(RateLimiter::new(quota, DefaultKeyedStateStore::default(), Time::default()))
    }

    /// Counts one; refused where it is one too many.
    pub(crate) fn count(&self, source: &K) -> Result<(), TooMany> {
        if self.0.len() > MAX_ADDRESSES {
            self.0.retain_recent();
        }
        self.0.check_key(source).map_err(|not_until| {
            let wait = not_until.wait_time_from(self.0.clock().now());
            TooMany { seconds: wait.as_secs().saturating_add(1) }
        })
    }
}

/// One kind of request, counted by address and by neighbourhood.
#[derive(Debug)]
pub(crate) struct ByAddress {
    counted: RwLock<Counted>,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Counted {
    a_minute: u32,
    own: Limiter<Source>,
    neighbourhood: Limiter<Source>,
}

impl Counted {
    fn new(a_minute: u32) -> Self {
        let neighbourhood = Limiter::new(a_minute.saturating_mul(NEIGHBOURHOOD_FACTOR));
        Self { a_minute, own: Limiter::new(a_minute), neighbourhood }
    }
}

impl ByAddress {
    fn new(a_minute: u32) -> Self {
        Self { counted: RwLock::new(Counted::new(a_minute)), refused: AtomicU64::new(0) }
    }

    /// Counts one; refused where it is one too many.
    pub(crate) fn count(&self, source: &Source) -> Result<(), TooMany> {
        let counted = self.counted.read();
        let outcome = counted.own.count(source).and_then(|()| counted.neighbourhood.count(&source.neighbourhood()));
        if outcome.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    /// Another limit begins with nothing counted; the same one goes on.
    fn replace(&self, a_minute: u32) {
        let mut counted = self.counted.write();
        if counted.a_minute != a_minute {
            *counted = Counted::new(a_minute);
        }
    }

    fn forget(&self) {
        let counted = self.counted.read();
        counted.own.0.retain_recent();
        counted.neighbourhood.0.retain_recent();
    }
}

/// All limits.
#[derive(Debug)]
pub(crate) struct RateLimits {
    proxies: Vec<IpNet>,
    /// Whether it was told that an `X-Forwarded-For` is not believed.
    told: AtomicBool,
    came_in: [AtomicU64; 3],
    /// New clients.
    pub(crate) registrations: ByAddress,
    /// Logins that go to Forgejo.
    pub(crate) logins: ByAddress,
    /// Metadata documents that are not cached.
    pub(crate) documents: ByAddress,
    /// Token and revocation requests that fail.
    pub(crate) failures: ByAddress,
    /// Forgejo tokens that were never good here, where such are taken.
    pub(crate) shown_tokens: ByAddress,
    /// Exchanges of refresh tokens, by family: each leaves two rows behind.
    pub(crate) refreshes: Limiter<GrantId>,
    /// Lines about bad tokens, by address and in all: a flood must not fill the journal.
    bad_tokens: (Limiter<Source>, Limiter<()>),
    /// Lines about registrations that found all places taken.
    full: Limiter<()>,
    /// Lines about pages with a message, likewise.
    pages: (Limiter<Source>, Limiter<()>),
}

impl RateLimits {
    /// With nothing counted yet. `X-Forwarded-For` is believed from `proxies`.
    pub(crate) fn new(rates: Rates, proxies: Vec<IpNet>) -> Self {
        Self {
            proxies,
            told: AtomicBool::new(false),
            came_in: Default::default(),
            registrations: ByAddress::new(rates.registrations),
            logins: ByAddress::new(rates.logins),
            documents: ByAddress::new(rates.documents),
            failures: ByAddress::new(rates.failures),
            shown_tokens: ByAddress::new(SHOWN_TOKENS),
            refreshes: Limiter::within(refreshes()),
            bad_tokens: (Limiter::new(BAD_TOKENS_OF_ONE), Limiter::new(BAD_TOKENS_OF_ALL)),
            full: Limiter::new(FULL),
            pages: (Limiter::new(PAGES_OF_ONE), Limiter::new(PAGES_OF_ALL)),
        }
    }

    /// Puts other rates in force.
    pub(crate) fn replace(&self, rates: Rates) {
        let Rates { registrations, logins, documents, failures } = rates;
        self.registrations.replace(registrations);
        self.logins.replace(logins);
        self.documents.replace(documents);
        self.failures.replace(failures);
    }

    /// Who sends this request.
    pub(crate) fn source(&self, request: &Request) -> Source {
        Source::of_address(self.address(request))
    }

    /// From where this request comes, as far as trusted proxies say.
    pub(crate) fn address(&self, request: &Request) -> IpAddr {
        let peer = peer_of(request);
        self.count_way_in(peer, request.headers());
        self.behind(peer, request.headers()).to_canonical()
    }

    /// Whether the header came counts, not whom it names: a client on the proxy's own machine has a proxy's address.
    fn count_way_in(&self, peer: Peer, headers: &HeaderMap) {
        let [forwarded, bare, forwarded_by_stranger] = &self.came_in;
        let counter = match (self.is_proxy(peer), headers.contains_key(FORWARDED_FOR)) {
            (true, true) => forwarded,
            (true, false) => bare,
            (false, true) => forwarded_by_stranger,
            (false, false) => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How requests have come in since the start.
    pub(crate) fn came_in(&self) -> CameIn {
        let [forwarded, bare, forwarded_by_stranger] =
            self.came_in.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        CameIn { forwarded, bare, forwarded_by_stranger }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(&address.to_canonical()))
    }

    fn is_proxy(&self, peer: Peer) -> bool {
        peer.is_proxy || self.trusts(peer.address)
    }

    /// Whether a line about a bad token from there may be written now.
    pub(crate) fn may_tell_bad_token(&self, from: IpAddr) -> bool {
        let (of_one, of_all) = &self.bad_tokens;
        of_one.count(&Source::of_address(from)).is_ok() && of_all.count(&()).is_ok()
    }

    /// Whether a line about a registration that found all places taken may be written now.
    pub(crate) fn may_tell_full(&self) -> bool {
        self.full.count(&()).is_ok()
    }

    /// Whether a line about a page that was shown there may be written now.
    pub(crate) fn may_tell_page(&self, from: Source) -> bool {
        let (of_one, of_all) = &self.pages;
        of_one.count(&from).is_ok() && of_all.count(&()).is_ok()
    }

    /// Who sends this request, for a line about it: nothing is counted.
    pub(crate) fn unseen_source(&self, request: &Request) -> Source {
        Source::of_address(self.unseen_address(request))
    }

    /// From where this request comes, as [`Self::address`] has it, without counting it.
    pub(crate) fn unseen_address(&self, request: &Request) -> IpAddr {
        self.behind(peer_of(request), request.headers()).to_canonical()
    }

    /// The first address, from the right, that is not one of the trusted proxies: each proxy appends the address that
    /// it was called from, and what stands further left anybody may have written.
    fn behind(&self, peer: Peer, headers: &HeaderMap) -> IpAddr {
        let mut address = peer.address;
        let mut is_proxy = self.is_proxy(peer);
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        for entry in lines.flat_map(|line| line.as_bytes().rsplit(|&b| b == b',')) {
            if !is_proxy {
                self.tell_untrusted(peer);
                break;
            }
            // Some proxies write a port too.
            let Ok(entry) = std::str::from_utf8(entry.trim_ascii()) else { break };
            let parsed = entry.parse().or_else(|_| entry.parse::<SocketAddr>().map(|socket| socket.ip()));
            let Ok(parsed) = parsed else { break };
            address = parsed;
            is_proxy = self.trusts(address);
        }
        address
    }

    /// How many requests of each kind were one too many.
    pub(crate) fn refused(&self) -> [(&'static str, u64); 5] {
        let refused = |limiter: &ByAddress| limiter.refused.load(Ordering::Relaxed);
        [
            ("registrations", refused(&self.registrations)),
            ("logins", refused(&self.logins)),
            ("documents", refused(&self.documents)),
            ("failures", refused(&self.failures)),
            ("forgejo_tokens", refused(&self.shown_tokens)),
        ]
    }

    /// Says once what an operator whose proxy is not trusted would look for: all its users count as one address.
    fn tell_untrusted(&self, peer: Peer) {
        if !self.is_proxy(peer) && !self.told.swap(true, Ordering::Relaxed) {
            let peer = peer.address;
            warn!(%peer, reason = "untrusted-proxy", "X-Forwarded-For is not believed: name your proxy in trusted_proxies");
        }
    }

    /// Forgets addresses that are within all their limits.
    pub(crate) fn forget(&self) {
        for limiter in [&self.registrations, &self.logins, &self.documents, &self.failures, &self.shown_tokens] {
            limiter.forget();
        }
        self.refreshes.0.retain_recent();
        self.bad_tokens.0.0.retain_recent();
    }
}

/// `[http] trusted_proxies`: addresses or networks whose `X-Forwarded-For` is believed. None by default: children come from
/// this machine's own addresses, and would be believed with them.
pub(crate) fn proxies(http: &mut Section) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for text in http.texts("trusted_proxies", &[]) {
        let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
        match address.or_else(|_| text.parse::<IpNet>()) {
            Ok(network) => networks.push(network),
            Err(_) => http.complain("trusted_proxies", format!("`{text}` is neither an address nor a network")),
        }
    }
    networks
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn limits() -> RateLimits {
        let proxies = vec!["127.0.0.0/8".parse().expect("a network"), "10.0.0.0/8".parse().expect("a network")];
        RateLimits::new(Rates { registrations: 2, logins: 2, documents: 2, failures: 2 }, proxies)
    }

    fn source(peer: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", HeaderValue::from_str(line).expect("a value"));
        }
        let peer = Peer { address: peer.parse().expect("an address"), is_proxy: false };
        Source::of_address(limits().behind(peer, &headers)).to_string()
    }

    #[test]
    fn who_comes_by_the_proxys_own_socket_is_believed_and_nobody_else_without_being_named() {
        let limits = RateLimits::new(Rates { registrations: 2, logins: 2, documents: 2, failures: 2 }, Vec::new());
        let headers = HeaderMap::from_iter([(
            "x-forwarded-for".parse().expect("a name"),
            HeaderValue::from_static("203.0.113.9, 198.51.100.7"),
        )]);
        let behind = |is_proxy| {
            let peer = Peer { address: "127.0.0.1".parse().expect("an address"), is_proxy };
            limits.behind(peer, &headers).to_string()
        };
        assert_eq!((behind(true).as_str(), limits.told.load(Ordering::Relaxed)), ("198.51.100.7", false));
        assert_eq!((behind(false).as_str(), limits.told.load(Ordering::Relaxed)), ("127.0.0.1", true));
    }

    #[test]
    fn forwarded_addresses_are_believed_from_trusted_proxies_only() {
        assert_eq!(source("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(source("127.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(source("::ffff:127.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(source("127.0.0.1", &["203.0.113.9, 198.51.100.7"]), "198.51.100.7", "the left one may be a lie");
        assert_eq!(source("127.0.0.1", &["203.0.113.9, 198.51.100.7, 10.1.2.3"]), "198.51.100.7");
        assert_eq!(source("127.0.0.1", &["203.0.113.9", "198.51.100.7"]), "198.51.100.7");
        assert_eq!(source("127.0.0.1", &["nonsense"]), "127.0.0.1");
        assert_eq!(source("127.0.0.1", &["\u{e4}, 198.51.100.7"]), "198.51.100.7", "whatever stands left of it");
        assert_eq!(source("127.0.0.1", &["198.51.100.7:4711"]), "198.51.100.7");
        assert_eq!(source("127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn a_client_on_the_proxys_own_machine_is_forwarded_like_any_other() {
        let limits = limits();
        let ways = |peer: &str, forwarded: Option<&'static str>| {
            let value = forwarded.map(|text| (FORWARDED_FOR.parse().expect("a name"), HeaderValue::from_static(text)));
            let peer = Peer { address: peer.parse().expect("an address"), is_proxy: false };
            limits.count_way_in(peer, &HeaderMap::from_iter(value));
            let CameIn { forwarded, bare, forwarded_by_stranger } = limits.came_in();
            [forwarded, bare, forwarded_by_stranger]
        };
        assert_eq!(ways("127.0.0.1", Some("127.0.0.1")), [1, 0, 0]);
        assert_eq!(ways("127.0.0.1", None), [1, 1, 0]);
        assert_eq!(ways("192.0.2.1", None), [1, 1, 0]);
        assert_eq!(ways("192.0.2.1", Some("127.0.0.1")), [1, 1, 1]);
    }

    #[test]
    fn an_ipv6_host_counts_as_its_network() {
        assert_eq!(source("2001:db8:1:2:3:4:5:6", &[]), "2001:db8:1:2::");
    }

    #[test]
    fn one_address_too_often_is_refused_and_another_is_not() {
        let limits = limits();
        let (a, b) =
            (Source::of_address("192.0.2.1".parse().expect("a")), Source::of_address("192.0.2.2".parse().expect("b")));
        assert!(limits.logins.count(&a).is_ok() && limits.logins.count(&a).is_ok());
        assert!(limits.logins.count(&a).expect_err("the third").seconds >= 1);
        assert!(limits.logins.count(&b).is_ok());
        assert!(limits.registrations.count(&a).is_ok(), "each kind counts by itself");
    }

    #[test]
    fn a_neighbourhood_has_four_times_as_much_as_an_address_and_no_more() {
        for network in ["192.0.2.", "2001:db8:1:"] {
            let limits = limits();
            let host = |n: u8| if network.contains(':') { format!("{network}{n}::1") } else { format!("{network}{n}") };
            let source = |n: u8| Source::of_address(host(n).parse().expect("an address"));
            let let_in = (0..30).filter(|&n| limits.logins.count(&source(n)).is_ok()).count();
            assert_eq!(let_in, 8, "{network}");
        }
        let limits = limits();
        let elsewhere = |text: &str| Source::of_address(text.parse().expect("an address"));
        for n in 0..30 {
            let _ = limits.logins.count(&elsewhere(&format!("192.0.2.{n}")));
        }
        assert!(limits.logins.count(&elsewhere("192.0.3.1")).is_ok());
    }
}
