//! An OAuth client. What it says about itself is shown, not believed.

use crate::auth::token::TokenHash;
use crate::oauth::client_name::ClientName;
use crate::oauth::redirect::{RedirectKind, RedirectUri, Schemes};

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    /// Its id.
    pub(crate) id: String,
    /// What it calls itself.
    pub(crate) name: ClientName,
    /// Where codes may be sent.
    pub(crate) redirects: Vec<RedirectUri>,
    /// SHA-256 of its secret, where it has one.
    pub(crate) secret: Option<TokenHash>,
    /// Where it is known from.
    pub(crate) origin: Origin,
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
            secret: None,
            origin,
        };
        // Anybody can put a document on a host of their own.
        let document = client(Origin::Document { host: "evil.example".to_owned() });
        assert!(!document.is_vouched_for(&web) && document.is_vouched_for(&local));
        assert!(!client(Origin::Registered).is_vouched_for(&web));
        assert!(client(Origin::Configured).is_vouched_for(&web));
    }
}
