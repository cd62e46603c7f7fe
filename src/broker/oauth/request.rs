//! A client's authorization request (RFC 6749 section 4.1.1, RFC 7636, RFC 8707), checked once and completely.
//!
//! What comes before the redirect address is known to be good ends on our own page; everything after it goes back to
//! the client, with `iss` (RFC 9207) and its `state`.

use crate::auth::principal::Scopes;
use crate::oauth::client::Client;
use crate::oauth::params::Params;
use crate::oauth::redirect::RedirectUri;

/// A request that can be put to the person.
#[derive(Debug, Clone)]
pub(crate) struct AuthorizationRequest {
    /// Who asks.
    pub(crate) client: Client,
    /// Where the answer goes.
    pub(crate) back: WayBack,
    /// What is asked for.
    pub(crate) scopes: Scopes,
    /// S256 of the client's verifier.
    pub(crate) challenge: String,
    /// Whether the person must be asked, whatever is remembered (`prompt=consent`).
    pub(crate) must_ask: bool,
}

/// Where an answer goes.
#[derive(Debug, Clone)]
pub(crate) struct WayBack {
    /// The client's address.
    pub(crate) redirect: RedirectUri,
    /// What the client wants back as it is.
    pub(crate) state: Option<String>,
    /// Whether an error may be sent there without the person's doing.
    pub(crate) is_vouched_for: bool,
}

/// An error for the client (RFC 6749 section 4.1.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The registered code.
    pub(crate) error: &'static str,
    /// For the client's developer.
    pub(crate) description: &'static str,
}

const fn refused(error: &'static str, description: &'static str) -> Refused {
    Refused { error, description }
}

impl WayBack {
    /// The address with an answer.
    pub(crate) fn with(&self, answer: &[(&str, &str)], issuer: &str) -> String {
        let mut answer = answer.to_vec();
        if let Some(state) = &self.state {
            answer.push(("state", state));
        }
        answer.push(("iss", issuer));
        self.redirect.with(&answer)
    }

    /// The address with an error.
    pub(crate) fn refusing(&self, refused: Refused, issuer: &str) -> String {
        self.with(&[("error", refused.error), ("error_description", refused.description)], issuer)
    }
}

/// The person said no.
pub(crate) const DENIED: Refused = refused("access_denied", "the user did not agree");
/// Forgejo did not do its part.
pub(crate) const UPSTREAM: Refused = refused("server_error", "the login at Forgejo failed");
/// Not now.
pub(crate) const NOT_NOW: Refused = refused("temporarily_unavailable", "Forgejo cannot be reached now");

/// Checks everything about a request but the client and its address.
pub(crate) fn check(
    client: Client,
    back: WayBack,
    params: &Params,
    resource: &str,
    offered: Scopes,
) -> Result<AuthorizationRequest, (WayBack, Refused)> {
    let reason = match () {
        () if params.get("response_type").is_none() => Some(refused("invalid_request", "response_type is missing")),
        () if params.get("response_type") != Some("code") => {
            Some(refused("unsupported_response_type", "only response_type=code is supported"))
        }
        () if params.get("request").is_some() => {
            Some(refused("request_not_supported", "request objects are not supported"))
        }
        () if params.get("request_uri").is_some() => {
            Some(refused("request_uri_not_supported", "request objects are not supported"))
        }
        () if params.get("response_mode").is_some_and(|mode| mode != "query") => {
            Some(refused("invalid_request", "only response_mode=query is supported"))
        }
        () if params.get("code_challenge").is_none() => {
            Some(refused("invalid_request", "code_challenge is missing: PKCE is required"))
        }
        // An absent method means `plain` (RFC 7636 section 4.3), which protects nothing.
        () if params.get("code_challenge_method") != Some("S256") => {
            Some(refused("invalid_request", "only code_challenge_method=S256 is supported"))
        }
        () if !params.get("code_challenge").is_some_and(is_s256) => {
            Some(refused("invalid_request", "code_challenge is no SHA-256 in base64url"))
        }
        () if !params.resource_is(resource) => Some(refused("invalid_target", "resource is not this service")),
        () => None,
    };
    if let Some(reason) = reason {
        return Err((back, reason));
    }
    Ok(AuthorizationRequest {
        client,
        back,
        scopes: Scopes { write: offered.write && scopes(params.get("scope")).write },
        challenge: params.get("code_challenge").unwrap_or_default().to_owned(),
        must_ask: params.get("prompt").is_some_and(|prompt| prompt.split(' ').any(|one| one == "consent")),
    })
}

/// The scopes that are asked for. Clients ask for `openid`, `offline_access` and the like whatever is offered, so what
/// is unknown is dropped; where nothing known is left the person decides between all that there is.
fn scopes(asked: Option<&str>) -> Scopes {
    let known: Vec<&str> =
        asked.unwrap_or_default().split(' ').filter(|s| [Scopes::READ, Scopes::WRITE].contains(s)).collect();
    Scopes { write: known.is_empty() || known.contains(&Scopes::WRITE) }
}

/// 32 bytes in base64url without padding: 43 characters, of which the last has two bits unused.
fn is_s256(challenge: &str) -> bool {
    challenge.len() == 43 && challenge.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_scopes_are_dropped_and_none_means_that_the_person_decides() {
        assert!(scopes(None).write);
        assert!(scopes(Some("openid email profile")).write);
        assert!(scopes(Some(" offline_access")).write);
        assert!(!scopes(Some("forgejo:read offline_access")).write);
        assert!(scopes(Some("forgejo:read forgejo:write")).write);
        assert!(scopes(Some("forgejo:write")).write);
    }
}
