//! All clients, wherever the broker knows them from.
//!
//! Three sources, told apart by the id alone: the operator's configuration, a metadata document (the id is its https
//! address), and dynamic registration (everything else).

use crate::auth::source::Source;
use crate::oauth::client::{Client, Origin};
use crate::oauth::client_name::ClientName;
use crate::oauth::config::OAuthConfig;
use crate::oauth::document::{DocumentCache, DocumentError};
use crate::oauth::redirect::RedirectUri;
use crate::store::{Store, StoreError};

/// Why a client cannot be looked up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Its metadata document is no good.
    #[error("the client's metadata document: {0}")]
    Document(#[from] DocumentError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

/// All clients.
#[derive(Debug)]
pub(crate) struct Clients {
    store: Store,
    documents: DocumentCache,
}

impl Clients {
    /// Over a store and a cache of documents.
    pub(crate) fn new(store: Store, documents: DocumentCache) -> Self {
        Self { store, documents }
    }

    /// A client by its id; its document is fetched if need be.
    pub(crate) async fn find(
        &self,
        id: &str,
        policy: &OAuthConfig,
        asking: Source,
    ) -> Result<Option<Client>, ClientError> {
        if let Some(client) = policy.clients.iter().find(|client| client.id == id) {
            return Ok(Some(client.clone()));
        }
        if id.starts_with("https://") {
            return Ok(Some(self.documents.get(id, &policy.schemes, asking).await?));
        }
        self.registered(id, policy).await.map_err(ClientError::Store)
    }

    /// A client that needs no document to be recognised: at the token endpoint a client with a document is public, and
    /// its code or token alone says what it may have.
    pub(crate) async fn registered(&self, id: &str, policy: &OAuthConfig) -> Result<Option<Client>, StoreError> {
        if let Some(client) = policy.clients.iter().find(|client| client.id == id) {
            return Ok(Some(client.clone()));
        }
        let found = self.store.find_client(id).await?;
        Ok(found.map(|found| Client {
            // Addresses whose scheme the operator has taken off the list are left out.
            redirects: found.redirects.iter().filter_map(|r| RedirectUri::parse(r, &policy.schemes).ok()).collect(),
            id: found.client_id,
            name: ClientName::of(&found.name),
            secret: found.secret,
            origin: Origin::Registered,
        }))
    }
}
