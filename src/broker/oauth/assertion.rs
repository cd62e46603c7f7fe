//! A client shows that it has its key: `private_key_jwt` (RFC 7521 section 4.2, RFC 7523 sections 2.2 and 3), a signed JWT
//! in the place of a secret.
//!
//! All of it comes from whoever asks. Nothing is fetched for one that could not be good, and nothing that it says is
//! believed before its signature is checked.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::oauth::keys::{Algorithm, KeySet, NotVerified};
use wire::clock::UnixTime;

/// The one type of assertions that is understood (RFC 7523 section 2.2).
pub(crate) const TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// How far ahead the end of one may lie: they are made for one request each, and are remembered until they end.
const MAX_AHEAD: Duration = Duration::from_mins(10);
/// How far a client's clock may be from ours.
const LEEWAY: Duration = Duration::from_mins(1);

/// Why an assertion shows nothing. For the client's developer: it names nothing that the client has not said itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AssertionError {
    /// The client must send one.
    #[error("this client shows that it has its key: client_assertion is missing (RFC 7523)")]
    Missing,
    /// `client_assertion_type` is another.
    #[error("client_assertion_type must be urn:ietf:params:oauth:client-assertion-type:jwt-bearer")]
    Type,
    /// Not three parts of base64url, two of them JSON with what must be there.
    #[error("client_assertion must be a signed JWT with iss, sub, aud, exp and jti")]
    Shape,
    /// `none`, a shared secret's, or an unknown one; or not the one that the document names.
    #[error("client_assertion must be signed with ES256, EdDSA, PS256 or RS256, as the client's document says")]
    Algorithm,
    /// An extension that must be understood (RFC 7515 section 4.1.11).
    #[error("client_assertion has a critical extension")]
    Critical,
    /// Somebody else's, or about somebody else.
    #[error("iss and sub of client_assertion must be the client_id")]
    Client,
    /// For another server, or for others too, who could use it here.
    #[error("aud of client_assertion must be this issuer or its token endpoint, and nothing else")]
    Audience,
    /// Its time is over.
    #[error("client_assertion has expired")]
    Expired,
    /// It would be good for too long.
    #[error("exp of client_assertion may be ten minutes ahead at most")]
    TooLong,
    /// Its time has not come.
    #[error("client_assertion is not good yet: compare the clocks")]
    NotYet,
    /// The client has no key that could have signed it.
    #[error("the client has no key with this kid and algorithm")]
    UnknownKey,
    /// Somebody else signed it.
    #[error("client_assertion is not signed with the client's key")]
    Signature,
    /// It was used before.
    #[error("client_assertion was used before: each is good once")]
    Used,
    /// A client without a key sends one.
    #[error("this client has no key that is known here")]
    NoKey,
}

/// One as it was sent.
#[derive(Debug)]
pub(crate) struct Assertion<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    key: Option<String>,
    algorithm: Algorithm,
    claims: Claims,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: NumericDate,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
    jti: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Seconds since 1970, also with a fraction (RFC 7519 section 2).
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
struct NumericDate(UnixTime);

impl TryFrom<f64> for NumericDate {
    type Error = std::time::TryFromFloatSecsError;

    fn try_from(seconds: f64) -> Result<Self, Self::Error> {
        Duration::try_from_secs_f64(seconds).map(|since| Self(UnixTime::from_secs(0).plus(since)))
    }
}

impl<'a> Assertion<'a> {
    /// Reads one in the compact form (RFC 7515 section 7.1).
    pub(crate) fn parse(text: &'a str) -> Result<Self, AssertionError> {
        fn read<T: DeserializeOwned>(part: &str) -> Result<T, AssertionError> {
            let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| AssertionError::Shape)?;
            serde_json::from_slice(&bytes).map_err(|_| AssertionError::Shape)
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(AssertionError::Shape)?;
        let (header, claims) = signed.split_once('.').ok_or(AssertionError::Shape)?;
        let header: Header = read(header)?;
        let algorithm = Algorithm::named(&header.alg).ok_or(AssertionError::Algorithm)?;
        if header.crit.is_some() {
            return Err(AssertionError::Critical);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| AssertionError::Shape)?;
        Ok(Self { signed, signature, key: header.kid, algorithm, claims: read(claims)? })
    }

    /// Whose it says that it is.
    pub(crate) fn subject(&self) -> &str {
        &self.claims.sub
    }

    /// Its own name.
    pub(crate) fn name(&self) -> &str {
        &self.claims.jti
    }

    /// How it says that it is signed.
    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// From then on it is good for nothing.
    pub(crate) fn ends(&self) -> UnixTime {
        self.claims.exp.0.plus(LEEWAY)
    }

    /// Checks all that it says, for this client and for a server of these names (RFC 7523 section 3).
    pub(crate) fn check(&self, client: &str, ours: &[String], now: UnixTime) -> Result<(), AssertionError> {
        let claims = &self.claims;
        if claims.iss != client || claims.sub != client {
            return Err(AssertionError::Client);
        }
        let audience = match &claims.aud {
            Audience::One(one) => std::slice::from_ref(one),
            Audience::Several(several) => several,
        };
        if audience.is_empty() || !audience.iter().all(|one| ours.contains(one)) {
            return Err(AssertionError::Audience);
        }
        if self.ends() <= now {
            return Err(AssertionError::Expired);
        }
        if self.ends() > now.plus(MAX_AHEAD).plus(LEEWAY) {
            return Err(AssertionError::TooLong);
        }
        let is_ahead = |date: Option<NumericDate>| date.is_some_and(|date| date.0 > now.plus(LEEWAY));
        if is_ahead(claims.nbf) || is_ahead(claims.iat) {
            return Err(AssertionError::NotYet);
        }
        Ok(())
    }

    /// Checks its signature.
    pub(crate) fn verify(&self, keys: &KeySet) -> Result<(), NotVerified> {
        keys.verify(self.key.as_deref(), self.algorithm, self.signed.as_bytes(), &self.signature)
    }
}
