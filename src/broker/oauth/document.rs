//! Client ID metadata documents: a client's id is the https address of a document that describes it
//! (draft-ietf-oauth-client-id-metadata-document; MCP revision 2025-11-25, basic/authorization).
//!
//! Fetching what a stranger names is a way into the operator's network, so: https only, no redirects, no proxy,
//! special-use addresses refused (in the resolver, so that the address that was checked is the one that is connected
//! to, and for hosts that are addresses), bounded in size, time and number. Errors are never cached.

mod address;
mod freshness;
mod resolver;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use parking_lot::Mutex;
use reqwest::redirect::Policy as Redirects;
use reqwest::{Certificate, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tracing::{debug, info};
use url::{Host, Url};

use crate::auth::rates::{RateLimits, TooMany};
use crate::auth::source::Source;
use crate::oauth::client::{Client, Origin};
use crate::oauth::client_name::ClientName;
use crate::oauth::config::{DocumentConfig, Fetch};
use crate::oauth::document::freshness::freshness;
use crate::oauth::document::resolver::PublicResolver;
use crate::oauth::redirect::{RedirectUri, Schemes};
use wire::clock::{Clock, UnixTime};

/// For the whole exchange: a person waits for a page.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a document. The draft recommends 5 KB; those of today's clients have one or two.
const MAX_DOCUMENT: usize = 10 * 1024;
/// Fetches at once. A server that answers slowly on purpose keeps a permit for [`FETCH_TIMEOUT`]; what one address may ask
/// for in a minute keeps two or three of them.
const MAX_FETCHES: usize = 64;
/// Documents that are kept.
const MAX_CACHED: usize = 1000;

/// Why a document cannot be used. Shown to the person who is logging in; names no address of the operator's network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DocumentError {
    /// The operator does not fetch documents, or not from there.
    #[error("this service does not accept clients from there")]
    NotAllowed,
    /// The id is no address of a document.
    #[error("its address must be https, with a path, and without dot segments, user, and fragment")]
    Address,
    /// The host has an address that is nobody's on the internet. Said in the same words as the next, because the
    /// difference would tell a stranger which names exist in the operator's network.
    #[error("it cannot be fetched, or its host is not on the public internet")]
    SpecialUse,
    /// Not there, or not in time.
    #[error("it cannot be fetched, or its host is not on the public internet")]
    Unreachable,
    /// Another status than 200.
    #[error("its server answered with status {0}")]
    Status(u16),
    /// Too long.
    #[error("it is longer than {MAX_DOCUMENT} bytes")]
    TooLong,
    /// Not JSON, not of the media type, or without what must be in it.
    #[error("{0}")]
    Content(&'static str),
    /// One address asks for too many.
    #[error("too many were asked for; try again in {} seconds", .0.seconds)]
    TooMany(TooMany),
}

/// The HTTP client could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentCacheError {
    /// The CA file cannot be read.
    #[error("the certificate file {0} cannot be read")]
    CaFile(PathBuf, #[source] std::io::Error),
    /// The CA file holds no certificate, or the client cannot be made.
    #[error("the client for metadata documents cannot be made")]
    Client(#[from] reqwest::Error),
}

/// Fetches documents and keeps them for as long as they say.
#[derive(Debug)]
pub(crate) struct DocumentCache {
    documents: DocumentConfig,
    client: reqwest::Client,
    clock: Clock,
    limits: Arc<RateLimits>,
    places: Semaphore,
    kept: Mutex<HashMap<String, (Client, UnixTime)>>,
}

impl DocumentCache {
    /// An empty one.
    pub(crate) fn new(
        documents: DocumentConfig,
        limits: Arc<RateLimits>,
        clock: Clock,
    ) -> Result<Self, DocumentCacheError> {
        // The first provider in a process stays; a second call finds the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("forgejo-mcp-broker/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            .redirect(Redirects::none())
            .no_proxy()
            .timeout(FETCH_TIMEOUT)
            .dns_resolver(Arc::new(PublicResolver::new(documents.private_hosts.clone())));
        if let Some(file) = &documents.ca_file {
            let pem = std::fs::read(file).map_err(|e| DocumentCacheError::CaFile(file.clone(), e))?;
            for certificate in Certificate::from_pem_bundle(&pem)? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let (places, kept) = (Semaphore::new(MAX_FETCHES), Mutex::default());
        Ok(Self { documents, client: builder.build()?, clock, limits, places, kept })
    }

    /// The client that this id describes.
    pub(crate) async fn get(&self, id: &str, schemes: &Schemes, asking: Source) -> Result<Client, DocumentError> {
        let (url, host) = self.admissible(id)?;
        let now = self.clock.now();
        if let Some((client, ends)) = self.kept.lock().get(id)
            && *ends > now
        {
            return Ok(client.clone());
        }
        self.limits.documents.count(&asking).map_err(DocumentError::TooMany)?;
        let _place = self.places.try_acquire().map_err(|_| DocumentError::Unreachable)?;
        let response = self.client.get(url).header("accept", "application/json").send().await.map_err(|error| {
            debug!(error = ?error, client = id, "a metadata document cannot be fetched");
            if resolver::refused(&error) { DocumentError::SpecialUse } else { DocumentError::Unreachable }
        })?;
        if response.status() != StatusCode::OK {
            return Err(DocumentError::Status(response.status().as_u16()));
        }
        let fresh = freshness(response.headers(), now);
        let text = read(response).await?;
        let client = parse(id, host, &text, schemes)?;
        info!(client = id, "metadata document fetched");
        let mut kept = self.kept.lock();
        if kept.len() >= MAX_CACHED {
            kept.retain(|_, (_, ends)| *ends > now);
        }
        if kept.len() >= MAX_CACHED
            && let Some(any) = kept.keys().next().cloned()
        {
            kept.remove(&any);
        }
        if !fresh.is_zero() {
            kept.insert(id.to_owned(), (client.clone(), now.plus(fresh)));
        }
        Ok(client)
    }

    /// Checks the id before anything is resolved or connected to.
    fn admissible(&self, id: &str) -> Result<(Url, String), DocumentError> {
        let url = Url::parse(id).map_err(|_| DocumentError::Address)?;
        // The parser would mend these silently; the id must be the address as it stands.
        let plain = url.as_str() == id && id.len() <= 512;
        let user = !url.username().is_empty() || url.password().is_some();
        if !plain || url.scheme() != "https" || url.path() == "/" || user || url.fragment().is_some() {
            return Err(DocumentError::Address);
        }
        let host = url.host_str().unwrap_or_default().to_owned();
        let listed = |list: &[String]| list.iter().any(|one| one.eq_ignore_ascii_case(&host));
        let allowed = match self.documents.fetch {
            Fetch::On => true,
            Fetch::Allowlist => listed(&self.documents.hosts),
            Fetch::Off => false,
        };
        if !allowed {
            return Err(DocumentError::NotAllowed);
        }
        // The resolver is not asked about these.
        let literal = match url.host() {
            Some(Host::Ipv4(ip)) => Some(ip.into()),
            Some(Host::Ipv6(ip)) => Some(ip.into()),
            Some(Host::Domain(_)) | None => None,
        };
        if literal.is_some_and(|ip| !address::is_public(ip)) && !listed(&self.documents.private_hosts) {
            return Err(DocumentError::SpecialUse);
        }
        Ok((url, host))
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, DocumentError> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind != "application/json" && !(kind.starts_with("application/") && kind.ends_with("+json")) {
        return Err(DocumentError::Content("its media type is not JSON"));
    }
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| DocumentError::Unreachable)? {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_DOCUMENT {
            return Err(DocumentError::TooLong);
        }
    }
    Ok(text)
}

/// Reads a document that was found at `id`.
fn parse(id: &str, host: String, text: &[u8], schemes: &Schemes) -> Result<Client, DocumentError> {
    #[derive(Deserialize)]
    struct Document {
        client_id: String,
        client_name: String,
        redirect_uris: Vec<String>,
        token_endpoint_auth_method: Option<String>,
        client_secret: Option<serde::de::IgnoredAny>,
    }
    let document: Document = serde_json::from_slice(text)
        .map_err(|_| DocumentError::Content("it needs client_id, client_name and redirect_uris"))?;
    if document.client_id != id {
        return Err(DocumentError::Content("its client_id is not its own address"));
    }
    let method = document.token_endpoint_auth_method.unwrap_or_default();
    if document.client_secret.is_some() || method.starts_with("client_secret") {
        return Err(DocumentError::Content("a public document cannot have a secret"));
    }
    // A document may list addresses for other services; those that are no good here are left out.
    let redirects: Vec<_> =
        document.redirect_uris.iter().filter_map(|text| RedirectUri::parse(text, schemes).ok()).collect();
    if redirects.is_empty() {
        return Err(DocumentError::Content("none of its redirect_uris can be used here"));
    }
    let name = ClientName::of(&document.client_name);
    Ok(Client { id: id.to_owned(), name, redirects, secret: None, origin: Origin::Document { host } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rates::Rates;

    #[test]
    fn a_host_that_is_a_special_use_address_is_refused_however_it_is_written() {
        let rates = Rates { registrations: 1, logins: 1, documents: 1, failures: 1 };
        let limits = Arc::new(RateLimits::new(rates, Vec::new()));
        let documents = DocumentCache::new(DocumentConfig::default(), limits, Clock::system()).expect("a client");
        let refused = |host: &str| documents.admissible(&format!("https://{host}/client.json")).err();
        for host in
            ["127.0.0.1", "10.0.0.1", "169.254.169.254", "224.0.0.1", "[::1]", "[::ffff:a00:1]", "[fd00:ec2::254]"]
        {
            assert_eq!(refused(host), Some(DocumentError::SpecialUse), "{host}");
        }
        // The parser would make plain addresses of these.
        for host in ["2130706433", "0x7f.1", "127.1", "017700000001", "[::ffff:10.0.0.1]", "127.0.0.1.", "LOCALHOST"] {
            assert_eq!(refused(host), Some(DocumentError::Address), "{host}");
        }
        assert_eq!(refused("8.8.8.8"), None);
        assert_eq!(refused("client.example"), None, "names are the resolver's");
    }
}
