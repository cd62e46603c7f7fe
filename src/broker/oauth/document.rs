//! Client ID metadata documents: a client's id is the https address of a document that describes it
//! (draft-ietf-oauth-client-id-metadata-document; MCP revision 2025-11-25, basic/authorization).
//!
//! Fetching what a stranger names is a way into the operator's network, so: https only, no redirects, no proxy,
//! special-use addresses refused (in the resolver, so that the address that was checked is the one that is connected
//! to, and for hosts that are addresses), bounded in size, time and number. Errors are never cached.

mod address;
mod fetch;
mod freshness;
mod kept;
mod methods;
mod resolver;
mod validators;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use tracing::info;

use crate::auth::rates::{RateLimits, TooMany};
use crate::auth::source::Source;
use crate::oauth::client::{Client, Origin, Published};
use crate::oauth::client_name::ClientName;
use crate::oauth::config::DocumentConfig;
use crate::oauth::document::fetch::{Fetcher, MAX_DOCUMENT};
pub(crate) use crate::oauth::document::kept::Age;
use crate::oauth::document::kept::Kept;
use crate::oauth::document::methods::Methods;
use crate::oauth::keys::{KeySet, KeySetError};
use crate::oauth::redirect::{RedirectUri, Schemes};
use wire::clock::Clock;

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
    /// Its keys are none, or not there.
    #[error(transparent)]
    Keys(#[from] KeySetError),
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
    fetcher: Fetcher,
    clock: Clock,
    documents: Kept<Client>,
    keys: Kept<Arc<KeySet>>,
}

impl DocumentCache {
    /// An empty one.
    pub(crate) fn new(
        documents: DocumentConfig,
        limits: Arc<RateLimits>,
        clock: Clock,
    ) -> Result<Self, DocumentCacheError> {
        let fetcher = Fetcher::new(documents, limits)?;
        Ok(Self { fetcher, clock, documents: Kept::default(), keys: Kept::default() })
    }

    /// The client that this id describes.
    pub(crate) async fn get(
        &self,
        id: &str,
        schemes: &Schemes,
        age: Age,
        asking: Source,
    ) -> Result<Client, DocumentError> {
        let url = self.fetcher.admissible(id)?;
        let read = |text: &[u8]| {
            let client = self.parse(id, fetch::host(&url).to_owned(), text, schemes)?;
            info!(client = id, "metadata document fetched");
            Ok(client)
        };
        self.documents.get(&self.fetcher, &url, age, asking, self.clock.now(), read).await
    }

    /// The public keys of a client.
    pub(crate) async fn keys(
        &self,
        published: &Published,
        age: Age,
        asking: Source,
    ) -> Result<Arc<KeySet>, DocumentError> {
        match published {
            Published::Inline(keys) => Ok(Arc::clone(keys)),
            Published::At(url) => {
                let read = |text: &[u8]| Ok(Arc::new(KeySet::parse(text)?));
                self.keys.get(&self.fetcher, url, age, asking, self.clock.now(), read).await
            }
        }
    }

    /// Reads a document that was found at `id`.
    fn parse(&self, id: &str, host: String, text: &[u8], schemes: &Schemes) -> Result<Client, DocumentError> {
        #[derive(Deserialize)]
        struct Document {
            client_id: String,
            client_name: String,
            redirect_uris: Vec<String>,
            #[serde(flatten)]
            methods: Methods,
        }
        let document: Document = serde_json::from_slice(text)
            .map_err(|_| DocumentError::Content("it needs client_id, client_name and redirect_uris"))?;
        if document.client_id != id {
            return Err(DocumentError::Content("its client_id is not its own address"));
        }
        let proof = document.methods.proof(|address| self.fetcher.admissible(address))?;
        // A document may list addresses for other services; those that are no good here are left out.
        let redirects: Vec<_> =
            document.redirect_uris.iter().filter_map(|text| RedirectUri::parse(text, schemes).ok()).collect();
        if redirects.is_empty() {
            return Err(DocumentError::Content("none of its redirect_uris can be used here"));
        }
        let name = ClientName::of(&document.client_name);
        Ok(Client { id: id.to_owned(), name, redirects, proof, origin: Origin::Document { host } })
    }
}
