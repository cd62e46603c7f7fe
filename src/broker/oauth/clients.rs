//! All clients, wherever the broker knows them from.
//!
//! Three sources, told apart by the id alone: the operator's configuration, a metadata document (the id is its https
//! address), and dynamic registration (everything else).

use std::sync::Arc;

use crate::auth::source::Source;
use crate::oauth::client::{Client, ClientKey, Origin, Proof, has_document};
use crate::oauth::client_name::ClientName;
use crate::oauth::config::OAuthConfig;
use crate::oauth::document::{Age, DocumentCache, DocumentError};
use crate::oauth::keys::KeySet;
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
        if has_document(id) {
            return Ok(Some(self.documents.get(id, &policy.schemes, Age::Fresh, asking).await?));
        }
        self.registered(id, policy).await.map_err(ClientError::Store)
    }

    /// The key of a client, with its public part; none where it has none. Both are asked for anew as `age` says.
    pub(crate) async fn key(
        &self,
        id: &str,
        policy: &OAuthConfig,
        age: Age,
        asking: Source,
    ) -> Result<Option<(ClientKey, Arc<KeySet>)>, DocumentError> {
        if !has_document(id) {
            return Ok(None);
        }
        match self.documents.get(id, &policy.schemes, age, asking).await?.proof {
            Proof::Key(key) => {
                let keys = self.documents.keys(&key.published, age, asking).await?;
                Ok(Some((key, keys)))
            }
            Proof::None | Proof::Secret(_) => Ok(None),
        }
    }

    /// A client that needs no document to be recognised. One with a document that does not show its key is known by what
    /// it shows instead: its code or token says whose it is, and whether that was to come with a key.
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
            proof: found.secret.map_or(Proof::None, Proof::Secret),
            origin: Origin::Registered,
        }))
    }
}
