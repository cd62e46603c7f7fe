//! OAuth clients, wherever the broker knows them from.
//!
//! Three sources, told apart by the id alone: the operator's configuration, a metadata document (the id is its https
//! address), and dynamic registration (everything else). What a client says about itself is shown, not believed.

use super::document::{DocumentError, Library};
use super::policy::Policy;
use super::redirect::{Place, RedirectUri};
use crate::frontend::limiter::Source;
use crate::frontend::store::{Store, StoreError};
use crate::frontend::token::TokenHash;

/// Characters of a client's name that are shown.
const NAME: usize = 80;

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its id.
    pub id: String,
    /// What it calls itself.
    pub name: String,
    /// Where codes may be sent.
    pub redirects: Vec<RedirectUri>,
    /// SHA-256 of its secret, where it has one.
    pub secret: Option<TokenHash>,
    /// Where it is known from.
    pub origin: Origin,
}

/// Where a client is known from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The operator vouches for it.
    Configured,
    /// The owner of this host vouches for it.
    Document {
        /// The host of the metadata document.
        host: String,
    },
    /// Nobody does.
    Registered,
}

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

impl Client {
    /// The registered address that a request may be answered at. Without one in the request the only one there is.
    pub fn redirect(&self, asked: Option<&str>, policy: &Policy) -> Option<RedirectUri> {
        match (asked, self.redirects.as_slice()) {
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
            (Some(asked), registered) => {
                let asked = RedirectUri::parse(asked, &policy.schemes).ok()?;
                registered.iter().any(|one| one.accepts(&asked)).then_some(asked)
            }
        }
    }

    /// Whether somebody answers for the client's addresses, so that an error may be sent there without asking the
    /// person first. Otherwise anybody could register an address and use the broker to redirect to it.
    pub fn is_vouched_for(&self, redirect: &RedirectUri) -> bool {
        match (&self.origin, redirect.place()) {
            (Origin::Configured, _) | (_, Place::Loopback | Place::Program) => true,
            (Origin::Document { host }, Place::Web) => host == redirect.host(),
            (Origin::Registered, Place::Web) => false,
        }
    }
}

/// A client's name as it may stand on a page: one line, bounded, without characters that turn text around.
pub fn shown_name(name: &str) -> String {
    let visible = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let words: Vec<&str> = name.split_whitespace().collect();
    let name: String = words.join(" ").chars().filter(|&c| visible(c)).take(NAME).collect();
    if name.is_empty() { "a client without a name".to_owned() } else { name }
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

#[cfg(test)]
mod tests {
    use super::shown_name;

    #[test]
    fn a_name_is_one_bounded_line_that_cannot_be_turned_around() {
        assert_eq!(shown_name("  My\n\tclient \u{202e}gpj "), "My client gpj");
        assert_eq!(shown_name("\u{200b}"), "a client without a name");
        assert_eq!(shown_name(&"x".repeat(500)).len(), 80);
    }
}
