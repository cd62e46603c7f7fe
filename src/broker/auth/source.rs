//! Who asks, as far as limits and shares go: an address, and its neighbourhood.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One who asks: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source(IpAddr);

impl Source {
    /// Who asks from there.
    pub(crate) fn of_address(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            // A user has a whole /64; a host in it is nobody.
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 @ IpAddr::V4(_) => v4,
        })
    }

    /// Its neighbourhood: /24 for IPv4, /48 for IPv6.
    pub(super) fn neighbourhood(&self) -> Self {
        Self(match self.0 {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() >> 8 << 8)),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 80 << 80)),
        })
    }

    /// Its neighbourhood as people write one: enough to know it again, and no address of anybody's.
    pub(crate) fn network(&self) -> String {
        let Self(network) = self.neighbourhood();
        format!("{network}/{}", if network.is_ipv4() { 24 } else { 48 })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
