//! Who asks at the token endpoint (RFC 6749 section 2.3): by a secret, by a key, or by nothing but a name.

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::debug;

use crate::auth::source::Source;
use crate::auth::token::TokenHash;
use crate::oauth::Context;
use crate::oauth::assertion::{self, Assertion, AssertionError};
use crate::oauth::client::{Proof, has_document};
use crate::oauth::document::{Age, DocumentError};
use crate::oauth::error::OAuthError;
use crate::oauth::keys::{KeySet, NotVerified};
use crate::oauth::params::Params;
use crate::oauth::used_assertions::NotTaken;

/// A client that has shown who it is: by its secret or its key, or, where it has none, by its id alone.
pub(super) struct Caller {
    /// Who.
    pub(super) id: String,
    /// Whether it has shown its key.
    pub(super) has_key: bool,
}

impl Caller {
    /// Refuses a caller without the key where one is needed.
    pub(super) fn show_key_if(&self, is_needed: bool) -> Result<(), OAuthError> {
        if is_needed && !self.has_key { Err(AssertionError::Missing.into()) } else { Ok(()) }
    }
}

/// Basic, the form, or a key's assertion, never two of them.
pub(super) async fn authenticate(
    context: &Context,
    headers: &HeaderMap,
    params: &Params,
    asking: Source,
) -> Result<Caller, OAuthError> {
    const TWO_WAYS: OAuthError = OAuthError::invalid_request("the client authenticates in two ways");
    let basic = match headers.get(AUTHORIZATION) {
        None => None,
        Some(value) => {
            Some(basic_credentials(value.to_str().unwrap_or_default()).ok_or(OAuthError::Client { basic: true })?)
        }
    };
    let form_secret = params.get("client_secret");
    if params.get("client_assertion").is_some() || params.get("client_assertion_type").is_some() {
        return if basic.is_some() || form_secret.is_some() {
            Err(TWO_WAYS)
        } else {
            by_key(context, params, asking).await
        };
    }
    let (id, secret, is_basic) = match (&basic, params.get("client_id"), form_secret) {
        (Some(_), _, Some(_)) => return Err(TWO_WAYS),
        (Some((id, _)), Some(other), None) if id != other => {
            return Err(OAuthError::invalid_request("client_id differs from the Authorization header"));
        }
        (Some((id, secret)), _, None) => (id.as_str(), Some(secret.as_str()), true),
        (None, Some(id), secret) => (id, secret, false),
        (None, None, _) => return Err(OAuthError::invalid_request("client_id is missing")),
    };
    let refused = OAuthError::Client { basic: is_basic };
    let known = if has_document(id) {
        // Its code or token is bound to the id, and says whether it was to come with a key: no document is fetched for a
        // client that has none.
        Proof::None
    } else {
        context.clients.registered(id, &context.policy).await?.ok_or(refused)?.proof
    };
    let given = secret.filter(|secret| !secret.is_empty()).map(|secret| Sha256::digest(secret.as_bytes()));
    let good = match (known, given) {
        (Proof::None, None) => true,
        (Proof::Secret(TokenHash(expected)), Some(given)) => bool::from(expected.as_slice().ct_eq(given.as_slice())),
        (Proof::None, Some(_)) | (Proof::Secret(_), None) | (Proof::Key(_), _) => false,
    };
    if good { Ok(Caller { id: id.to_owned(), has_key: false }) } else { Err(refused) }
}

/// The id and the secret of a Basic header. Both are form-encoded inside (RFC 6749 section 2.3.1); ours hold only
/// characters that no encoding changes, so a client that forgets to encode is understood too.
fn basic_credentials(header: &str) -> Option<(String, String)> {
    let (scheme, text) = header.split_once(' ')?;
    let text = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(text.trim()).ok())??;
    let text = String::from_utf8(text).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decoded = |text: &str| {
        let pair = format!("x={text}");
        url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned())
    };
    Some((decoded(id)?, decoded(secret)?))
}

/// An assertion (RFC 7521 section 4.2). Nothing is fetched before all that it says is right, and it is used up only when
/// its signature is.
async fn by_key(context: &Context, params: &Params, asking: Source) -> Result<Caller, OAuthError> {
    if params.get("client_assertion_type") != Some(assertion::TYPE) {
        return Err(AssertionError::Type.into());
    }
    let assertion = Assertion::parse(params.get("client_assertion").ok_or(AssertionError::Missing)?)?;
    let id = params.get("client_id").unwrap_or(assertion.subject());
    let now = context.clock.now();
    // The issuer as older clients spell it, too: with a slash behind.
    let ours = ["", "/", "/oauth/token", "/oauth/revoke"].map(|path| format!("{}{path}", context.public_url));
    assertion.check(id, &ours, now)?;
    let keys = published(context, &assertion, id, Age::Fresh, asking).await?;
    let verified = match assertion.verify(&keys) {
        // Keys change: what is kept may be older than this one.
        Err(NotVerified::UnknownKey) => {
            let keys = published(context, &assertion, id, Age::Anew, asking).await?;
            assertion.verify(&keys)
        }
        other => other,
    };
    verified.map_err(|e| match e {
        NotVerified::UnknownKey => AssertionError::UnknownKey,
        NotVerified::Signature => AssertionError::Signature,
    })?;
    context.used_assertions.take(id, assertion.name(), assertion.ends(), now).map_err(|e| match e {
        NotTaken::Used => AssertionError::Used.into(),
        NotTaken::Full => OAuthError::NotNow,
    })?;
    Ok(Caller { id: id.to_owned(), has_key: true })
}

/// The client's public keys, if its document lets it sign as this assertion is signed.
async fn published(
    context: &Context,
    assertion: &Assertion<'_>,
    id: &str,
    age: Age,
    asking: Source,
) -> Result<Arc<KeySet>, OAuthError> {
    let found = context.clients.key(id, &context.policy, age, asking).await.map_err(|e| {
        debug!(client = id, error = ?e, "the key of a client cannot be had");
        match e {
            DocumentError::TooMany(too_many) => OAuthError::TooMany(too_many),
            // In the same words, whatever stands in the way there.
            DocumentError::SpecialUse | DocumentError::Unreachable | DocumentError::Status(_) => OAuthError::NotNow,
            _ => AssertionError::NoKey.into(),
        }
    })?;
    let (key, keys) = found.ok_or(AssertionError::NoKey)?;
    if key.algorithm.is_some_and(|only| only != assertion.algorithm()) {
        return Err(AssertionError::Algorithm.into());
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_decoded() {
        let header = format!("Basic {}", STANDARD.encode("mcp-1:fjb%5Fcs+x"));
        assert_eq!(basic_credentials(&header), Some(("mcp-1".to_owned(), "fjb_cs x".to_owned())));
        assert_eq!(basic_credentials("Bearer x"), None);
    }
}
