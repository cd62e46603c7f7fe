//! One GET of what a stranger names, with all that keeps it from being a way into the operator's network.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use reqwest::redirect::Policy as Redirects;
use reqwest::{Certificate, Response, StatusCode};
use tokio::sync::Semaphore;
use tracing::debug;
use url::{Host, Url};

use crate::auth::rates::RateLimits;
use crate::auth::source::Source;
use crate::oauth::config::{DocumentConfig, Fetch};
use crate::oauth::document::resolver::PublicResolver;
use crate::oauth::document::{DocumentCacheError, DocumentError, address, resolver};

/// For the whole exchange: a person waits for a page.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a document. The draft recommends 5 KB; those of today's clients have one or two.
pub(super) const MAX_DOCUMENT: usize = 10 * 1024;
/// Fetches at once. A server that answers slowly on purpose keeps a permit for [`FETCH_TIMEOUT`]; what one address may ask
/// for in a minute keeps two or three of them.
const MAX_FETCHES: usize = 64;
/// Bytes of an address.
const MAX_ADDRESS: usize = 512;

/// A good answer.
pub(super) enum Answer {
    /// JSON, of any shape.
    New(HeaderMap, Vec<u8>),
    /// What the conditions named is still so (304); only where there were some.
    NotModified(HeaderMap),
}

/// Fetches.
#[derive(Debug)]
pub(super) struct Fetcher {
    documents: DocumentConfig,
    client: reqwest::Client,
    limits: Arc<RateLimits>,
    places: Semaphore,
}

impl Fetcher {
    /// As the operator says; strangers are held to `limits`.
    pub(super) fn new(documents: DocumentConfig, limits: Arc<RateLimits>) -> Result<Self, DocumentCacheError> {
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
        Ok(Self { documents, client: builder.build()?, limits, places: Semaphore::new(MAX_FETCHES) })
    }

    /// Checks an address before anything is resolved or connected to.
    pub(super) fn admissible(&self, address: &str) -> Result<Url, DocumentError> {
        let url = Url::parse(address).map_err(|_| DocumentError::Address)?;
        // The parser would mend these silently; an id must be the address as it stands.
        let plain = url.as_str() == address && address.len() <= MAX_ADDRESS;
        let user = !url.username().is_empty() || url.password().is_some();
        if !plain || url.scheme() != "https" || url.path() == "/" || user || url.fragment().is_some() {
            return Err(DocumentError::Address);
        }
        let listed = |list: &[String]| list.iter().any(|one| one.eq_ignore_ascii_case(host(&url)));
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
        Ok(url)
    }

    /// Asks for what is at an admissible address; with conditions (RFC 9110 section 13.1) only whether it has changed.
    pub(super) async fn get(&self, url: &Url, conditions: HeaderMap, asking: Source) -> Result<Answer, DocumentError> {
        self.limits.documents.count(&asking).map_err(DocumentError::TooMany)?;
        let _place = self.places.try_acquire().map_err(|_| DocumentError::Unreachable)?;
        let has_conditions = !conditions.is_empty();
        let request = self.client.get(url.clone()).header(ACCEPT, "application/json").headers(conditions);
        let response = request.send().await.map_err(|error| {
            debug!(error = ?error, address = %url, "a metadata document cannot be fetched");
            if resolver::refused(&error) { DocumentError::SpecialUse } else { DocumentError::Unreachable }
        })?;
        match response.status() {
            StatusCode::OK => {
                let headers = response.headers().clone();
                Ok(Answer::New(headers, read(response).await?))
            }
            StatusCode::NOT_MODIFIED if has_conditions => Ok(Answer::NotModified(response.headers().clone())),
            other => Err(DocumentError::Status(other.as_u16())),
        }
    }
}

/// The host of an admissible address, which has one.
pub(super) fn host(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rates::Rates;

    #[test]
    fn a_host_that_is_a_special_use_address_is_refused_however_it_is_written() {
        let rates = Rates { registrations: 1, logins: 1, documents: 1, failures: 1 };
        let limits = Arc::new(RateLimits::new(rates, Vec::new()));
        let fetcher = Fetcher::new(DocumentConfig::default(), limits).expect("a client");
        let refused = |host: &str| fetcher.admissible(&format!("https://{host}/client.json")).err();
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
