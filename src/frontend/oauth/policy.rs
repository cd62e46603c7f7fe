//! What the operator decides about logging in.

use std::path::PathBuf;
use std::time::Duration;

use super::client::Client;
use super::redirect::Schemes;

/// The operator's word.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How long an access token lives.
    pub access_ttl: Duration,
    /// How long a refresh token lives; each exchange gives one that lives as long again.
    pub refresh_ttl: Duration,
    /// How long somebody stays logged in at the broker's own pages.
    pub visit_ttl: Duration,
    /// How long a client that registered and never completed a login is kept.
    pub keep_unused: Duration,
    /// Private-use schemes that a redirect address may have.
    pub schemes: Schemes,
    /// Clients that the operator vouches for.
    pub clients: Vec<Client>,
    /// Client ID metadata documents.
    pub documents: Documents,
}

/// Whose metadata documents are fetched.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// Whether at all.
    pub fetch: Fetch,
    /// The hosts, where there is an allowlist.
    pub hosts: Vec<String>,
    /// Hosts that may have addresses of a private network.
    pub private_hosts: Vec<String>,
    /// A further certificate authority, as PEM.
    pub ca_file: Option<PathBuf>,
}

/// Whether documents are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fetch {
    /// From any public host.
    #[default]
    On,
    /// From listed hosts.
    Allowlist,
    /// Not at all.
    Off,
}
