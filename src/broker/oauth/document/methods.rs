//! How a client with a document says that it shows who it is.
//!
//! `token_endpoint_auth_method` is the one way of the client (RFC 7591 section 2). A document is published once for all
//! servers, so some list beside it all that the client can do, in `token_endpoint_auth_methods_supported` (`OpenID` Connect
//! RP Metadata Choices 1.0). `ChatGPT`'s says `private_key_jwt`, with `["none", "private_key_jwt"]` in that list (August 2026):
//! it signs where the server offers that, and comes without where not. So a client is held to its key unless its own document
//! says that it comes without as well; what has been given for the key once is good with it only, whatever the document says.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use url::Url;

use crate::oauth::client::{ClientKey, Proof, Published};
use crate::oauth::document::DocumentError;
use crate::oauth::keys::{Algorithm, KeySet};

const NONE: &str = "none";
const KEY: &str = "private_key_jwt";

/// The members of a document that are about this.
#[derive(Debug, Deserialize)]
pub(super) struct Methods {
    token_endpoint_auth_method: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    token_endpoint_auth_signing_alg: Option<String>,
    client_secret: Option<IgnoredAny>,
    jwks: Option<Value>,
    jwks_uri: Option<String>,
}

impl Methods {
    /// What it comes to; `admissible` checks the address of keys.
    pub(super) fn proof(self, admissible: impl Fn(&str) -> Result<Url, DocumentError>) -> Result<Proof, DocumentError> {
        let lists = |method: &str| self.token_endpoint_auth_methods_supported.iter().flatten().any(|one| one == method);
        let (lists_none, lists_key) = (lists(NONE), lists(KEY));
        let method = match self.token_endpoint_auth_method.as_deref() {
            Some(method) => method,
            None if lists_key && !lists_none => KEY,
            None => NONE,
        };
        if self.client_secret.is_some() || method.starts_with("client_secret") {
            return Err(DocumentError::Content("a public document cannot have a secret"));
        }
        match method {
            // Keys that cannot be used here are none: it comes without.
            NONE | KEY if method == NONE || lists_none => {
                let key = if method == KEY || lists_key { self.key(true, admissible).ok() } else { None };
                Ok(key.map_or(Proof::None, Proof::Key))
            }
            KEY => self.key(false, admissible).map(Proof::Key),
            _ => Err(DocumentError::Content(
                "its token_endpoint_auth_method must be none or private_key_jwt: this service has no other",
            )),
        }
    }

    fn key(
        self,
        is_optional: bool,
        admissible: impl Fn(&str) -> Result<Url, DocumentError>,
    ) -> Result<ClientKey, DocumentError> {
        let algorithm = match self.token_endpoint_auth_signing_alg.as_deref() {
            None => None,
            Some(name) => Some(Algorithm::named(name).ok_or(DocumentError::Content(
                "its token_endpoint_auth_signing_alg must be ES256, EdDSA, PS256 or RS256",
            ))?),
        };
        let published = match (self.jwks, self.jwks_uri) {
            (Some(keys), None) => Published::Inline(Arc::new(KeySet::of(keys)?)),
            (None, Some(address)) => Published::At(admissible(&address).map_err(|e| match e {
                DocumentError::Address => DocumentError::Content("its jwks_uri must be https, as its own address"),
                other => other,
            })?),
            // RFC 7591 section 2.
            _ => return Err(DocumentError::Content("with private_key_jwt it needs either jwks or jwks_uri")),
        };
        Ok(ClientKey { published, algorithm, is_optional })
    }
}
