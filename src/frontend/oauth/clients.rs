//! All clients, wherever the broker knows them from.
//!
//! Three sources, told apart by the id alone: the operator's configuration, a metadata document (the id is its https
//! address), and dynamic registration (everything else).

use super::client::{Client, Origin};
use super::document::{DocumentError, Library};
use super::policy::Policy;
use super::redirect::RedirectUri;
use crate::frontend::limiter::Source;
use crate::frontend::store::{Store, StoreError};

/// Why a client cannot be looked up.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Its metadata document is no good.
    #[error("the client's metadata document: {0}")]
    Document(#[from] DocumentError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

/// All clients.
#[derive(Debug)]
pub struct Clients {
    store: Store,
    library: Library,
}

impl Clients {
    /// Over a store and a library of documents.
    pub fn new(store: Store, library: Library) -> Self {
        Self { store, library }
    }

    /// A client by its id; its document is fetched if need be.
    pub async fn find(&self, id: &str, policy: &Policy, asking: Source) -> Result<Option<Client>, ClientError> {
        if let Some(client) = policy.clients.iter().find(|client| client.id == id) {
            return Ok(Some(client.clone()));
        }
        if id.starts_with("https://") {
            return Ok(Some(self.library.get(id, &policy.schemes, asking).await?));
        }
        self.registered(id, policy).await.map_err(ClientError::Store)
    }

    /// A client that needs no document to be recognised: at the token endpoint a client with a document is public, and
    /// its code or token alone says what it may have.
    pub async fn registered(&self, id: &str, policy: &Policy) -> Result<Option<Client>, StoreError> {
        if let Some(client) = policy.clients.iter().find(|client| client.id == id) {
            return Ok(Some(client.clone()));
        }
        let found = self.store.find_client(id).await?;
        Ok(found.map(|found| Client {
            // Addresses whose scheme the operator has taken off the list are left out.
            redirects: found.redirects.iter().filter_map(|r| RedirectUri::parse(r, &policy.schemes).ok()).collect(),
            id: found.client_id,
            name: found.name,
            secret: found.secret,
            origin: Origin::Registered,
        }))
    }
}
