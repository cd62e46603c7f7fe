//! A client's public keys: sets of them (JWK, RFC 7517), and what they sign (RFC 7518 section 3, RFC 8037 section 3.1).
//!
//! A stranger publishes these. What is not understood, or good for something else, is left out (RFC 7517 section 5); a
//! signature is checked with keys of the algorithm's own type only, so that no key can be taken for another kind's, and
//! there is no algorithm among these for which a public key would be a secret.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// How something is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519, by its earlier name (RFC 8037) or its own (RFC 9864).
    Ed25519,
    /// RSA with PSS and SHA-256, from 2048 bits on.
    Ps256,
    /// RSA as of PKCS #1 v1.5 with SHA-256, from 2048 bits on.
    Rs256,
}

impl Algorithm {
    /// All of their names (the IANA registry of JOSE algorithms).
    pub(crate) const NAMES: [&str; 5] = ["ES256", "EdDSA", "Ed25519", "PS256", "RS256"];

    /// By its name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "ES256" => Some(Self::Es256),
            "EdDSA" | "Ed25519" => Some(Self::Ed25519),
            "PS256" => Some(Self::Ps256),
            "RS256" => Some(Self::Rs256),
            _ => None,
        }
    }
}

/// Why there are no keys. Shown to a client's developer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeySetError {
    /// Not JSON with `keys`.
    #[error("its keys are no JWK set")]
    NotASet,
    /// None that could verify anything here.
    #[error("none of its keys can be used here: they must be P-256, Ed25519, or RSA")]
    NoneUsable,
}

/// Why a signature is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotVerified {
    /// No key of that name, and good for that algorithm.
    UnknownKey,
    /// It is not that key's.
    Signature,
}

/// Keys of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeySet(Vec<Key>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    /// The only one that it is for, where it says so.
    algorithm: Option<Algorithm>,
    public: Public,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Public {
    /// A point, uncompressed (SEC 1 section 2.3.3).
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

/// The members that matter (RFC 7517 section 4, RFC 7518 section 6).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<IgnoredAny>,
}

impl KeySet {
    /// Reads a set.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        Self::of(serde_json::from_slice(text).map_err(|_| KeySetError::NotASet)?)
    }

    /// Reads one that stands in another document.
    pub(crate) fn of(set: Value) -> Result<Self, KeySetError> {
        let set: Jwks = serde_json::from_value(set).map_err(|_| KeySetError::NotASet)?;
        let read = |key| serde_json::from_value::<Jwk>(key).ok().and_then(Key::read);
        let keys: Vec<Key> = set.keys.into_iter().filter_map(read).collect();
        if keys.is_empty() { Err(KeySetError::NoneUsable) } else { Ok(Self(keys)) }
    }

    /// Checks a signature with the key of this name, or, where none is named, with every key that it could be of.
    pub(crate) fn verify(
        &self,
        key: Option<&str>,
        algorithm: Algorithm,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), NotVerified> {
        let is_named = |one: &&Key| key.is_none_or(|key| one.id.as_deref() == Some(key));
        let mut fitting = self.0.iter().filter(is_named).filter(|one| one.fits(algorithm)).peekable();
        if fitting.peek().is_none() {
            return Err(NotVerified::UnknownKey);
        }
        let is_verified = fitting.any(|one| one.verifies(algorithm, signed, signature));
        if is_verified { Ok(()) } else { Err(NotVerified::Signature) }
    }
}

impl Key {
    fn read(key: Jwk) -> Option<Self> {
        let is_for_signatures = key.purpose.is_none_or(|purpose| purpose == "sig")
            && key.key_ops.is_none_or(|operations| operations.iter().any(|one| one == "verify"));
        // One that is published with its private part is everybody's.
        if !is_for_signatures || key.d.is_some() {
            return None;
        }
        let algorithm = match key.alg {
            Some(name) => Some(Algorithm::named(&name)?),
            None => None,
        };
        let bytes = |member: Option<String>| member.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let of_32_bytes = |member| bytes(member).filter(|bytes| bytes.len() == 32);
        let public = match (key.kty.as_str(), key.crv.as_deref()) {
            ("EC", Some("P-256")) => Public::P256([vec![4], of_32_bytes(key.x)?, of_32_bytes(key.y)?].concat()),
            ("OKP", Some("Ed25519")) => Public::Ed25519(of_32_bytes(key.x)?),
            ("RSA", _) => Public::Rsa { modulus: bytes(key.n)?, exponent: bytes(key.e)? },
            _ => return None,
        };
        Some(Self { id: key.kid, algorithm, public })
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        let is_of_its_type = match self.public {
            Public::P256(_) => algorithm == Algorithm::Es256,
            Public::Ed25519(_) => algorithm == Algorithm::Ed25519,
            Public::Rsa { .. } => matches!(algorithm, Algorithm::Ps256 | Algorithm::Rs256),
        };
        is_of_its_type && self.algorithm.is_none_or(|only| only == algorithm)
    }

    fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        let outcome = match (&self.public, algorithm) {
            (Public::P256(point), Algorithm::Es256) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature)
            }
            (Public::Ed25519(key), Algorithm::Ed25519) => {
                UnparsedPublicKey::new(&ED25519, key).verify(signed, signature)
            }
            (Public::Rsa { modulus: n, exponent: e }, Algorithm::Ps256) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PSS_2048_8192_SHA256, signed, signature)
            }
            (Public::Rsa { modulus: n, exponent: e }, Algorithm::Rs256) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature)
            }
            _ => return false,
        };
        outcome.is_ok()
    }
}
