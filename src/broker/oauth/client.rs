//! An OAuth client. What it says about itself is shown, not believed.

use std::sync::Arc;

use url::Url;

use crate::auth::token::TokenHash;
use crate::oauth::client_name::ClientName;
use crate::oauth::keys::{Algorithm, KeySet};
use crate::oauth::redirect::{RedirectKind, RedirectUri, Schemes};

/// Whether a client has a metadata document: its id is the address then (draft-ietf-oauth-client-id-metadata-document,
/// section 3). The operator configures none with such an id, and none is given out at a registration.
pub(crate) fn has_document(id: &str) -> bool {
    id.starts_with("https://")
}

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    /// Its id.
    pub(crate) id: String,
    /// What it calls itself.
    pub(crate) name: ClientName,
    /// Where codes may be sent.
    pub(crate) redirects: Vec<RedirectUri>,
    /// How it shows who it is.
    pub(crate) proof: Proof,
    /// Where it is known from.
    pub(crate) origin: Origin,
}

/// How a client shows who it is, at the token endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Not at all: a public client.
    None,
    /// By its secret, of which this is the SHA-256.
    Secret(TokenHash),
    /// By its key.
    Key(ClientKey),
}

/// The key of a client with a metadata document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientKey {
    /// Where its public part is.
    pub(crate) published: Published,
    /// The only algorithm that it signs with, where it says so.
    pub(crate) algorithm: Option<Algorithm>,
    /// Whether it also comes without.
    pub(crate) is_optional: bool,
}

/// Where public keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Published {
    /// In the document itself.
    Inline(Arc<KeySet>),
    /// At this address.
    At(Url),
}

/// Where a client is known from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
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

impl Client {
    /// Whether its codes and tokens are good for whoever shows its key, and for nobody else.
    pub(crate) fn needs_key(&self) -> bool {
        matches!(&self.proof, Proof::Key(key) if !key.is_optional)
    }

    /// The registered address that a request may be answered at. Without one in the request the only one there is.
    pub(crate) fn redirect(&self, asked: Option<&str>, schemes: &Schemes) -> Option<RedirectUri> {
        match (asked, self.redirects.as_slice()) {
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
            (Some(asked), registered) => {
                let asked = RedirectUri::parse(asked, schemes).ok()?;
                registered.iter().any(|one| one.accepts(&asked)).then_some(asked)
            }
        }
    }

    /// Whether somebody answers for the client's addresses, so that an error may be sent there without asking the
    /// person first. Otherwise anybody could name an address and use the broker to redirect to it.
    pub(crate) fn is_vouched_for(&self, redirect: &RedirectUri) -> bool {
        match (&self.origin, redirect.kind()) {
            (Origin::Configured, _) | (_, RedirectKind::Loopback | RedirectKind::Program) => true,
            // Anybody can put a document on a host of their own.
            (Origin::Document { .. } | Origin::Registered, RedirectKind::Web) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_vouches_for_a_web_address_but_the_operator() {
        let redirect = |text: &str| RedirectUri::parse(text, &Schemes::new(Vec::new())).expect("good");
        let (web, local) = (redirect("https://evil.example/phish"), redirect("http://localhost/cb"));
        let client = |origin: Origin| Client {
            id: "x".to_owned(),
            name: ClientName::of("x"),
            redirects: vec![web.clone(), local.clone()],
            proof: Proof::None,
            origin,
        };
        // Anybody can put a document on a host of their own.
        let document = client(Origin::Document { host: "evil.example".to_owned() });
        assert!(!document.is_vouched_for(&web) && document.is_vouched_for(&local));
        assert!(!client(Origin::Registered).is_vouched_for(&web));
        assert!(client(Origin::Configured).is_vouched_for(&web));
    }
}
