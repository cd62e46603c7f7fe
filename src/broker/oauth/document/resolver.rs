//! Names to addresses, public ones only. What is returned here is what is connected to, so a name cannot change its
//! mind between the check and the connection (DNS rebinding).

use std::error::Error;
use std::net::SocketAddr;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::oauth::document::address;

/// Resolves through the system, and refuses a name with any special-use address.
#[derive(Debug)]
pub(crate) struct PublicResolver {
    private_hosts: Vec<String>,
}

/// A name has an address that is not public. Does not say which.
#[derive(Debug, thiserror::Error)]
#[error("the host has a special-use address")]
struct SpecialUse;

impl PublicResolver {
    /// `private_hosts` may have any address.
    pub(crate) fn new(private_hosts: Vec<String>) -> Self {
        Self { private_hosts }
    }
}

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let private = self.private_hosts.iter().any(|host| host.eq_ignore_ascii_case(name.as_str()));
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if !private && !found.iter().all(|address| address::is_public(address.ip())) {
                return Err(SpecialUse.into());
            }
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}

/// Whether a request failed because of this resolver's refusal.
pub(crate) fn refused(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<SpecialUse>() {
            return true;
        }
        cause = error.source();
    }
    false
}
