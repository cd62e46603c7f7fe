//! Session ids: 192 random bits in hex, known to the client alone.
//!
//! The broker keeps their SHA-256 only, so neither its memory nor its database gives a session away. An id
//! authenticates nobody: every request is checked against the user and the client that opened the session.

use rand::TryCryptoRng;
use sha2::{Digest, Sha256};

use crate::hex;
use crate::store::SessionDigest;

/// Random bytes in an id.
const BYTES: usize = 24;

/// What stands in `Mcp-Session-Id`: 48 lower-case hex digits (visible ASCII, as revision 2025-11-25 demands).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SessionId(String);

/// The random source failed.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes for a session id")]
pub(crate) struct NoRandomness;

impl SessionId {
    /// A new id.
    pub(crate) fn mint(rng: &mut impl TryCryptoRng) -> Result<Self, NoRandomness> {
        let mut bytes = [0; BYTES];
        rng.try_fill_bytes(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(hex::encode(&bytes)))
    }

    /// The value of a header; `None` where no id minted here looks like that.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 2 * BYTES && text.bytes().all(hex_digit)).then(|| Self(text.to_owned()))
    }

    /// For the answer's header only.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// What the broker knows it by.
    pub(crate) fn digest(&self) -> SessionDigest {
        SessionDigest(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionId")
    }
}

/// How a session is named to the broker by a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SessionName {
    /// By its id.
    Digest(SessionDigest),
    /// By the first hex digits of its digest, at least as many as the log shows.
    Prefix(String),
}

impl SessionName {
    /// Reads an id, or what the log and the operator's list show; `None` where it is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(id) = SessionId::parse(text) {
            return Some(Self::Digest(id.digest()));
        }
        let hex_digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (hex_digits && (TAG_DIGITS..=64).contains(&text.len())).then(|| Self::Prefix(text.to_owned()))
    }

    /// Whether this is its digest.
    pub(crate) fn names(&self, digest: &SessionDigest) -> bool {
        match self {
            Self::Digest(known) => known == digest,
            Self::Prefix(prefix) => hex::encode(&digest.0).starts_with(prefix),
        }
    }
}

/// Digits of a [`tag`].
const TAG_DIGITS: usize = 8;

/// The first eight hex digits of a digest, which name a session in the log.
pub(crate) fn tag(digest: &SessionDigest) -> String {
    hex::encode(digest.0.get(..4).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_192_bits_in_hex_and_parses_back() {
        let id = SessionId::mint(&mut rand::rngs::SysRng).expect("an id");
        assert_eq!(id.as_str().len(), 48);
        assert_eq!(SessionId::parse(id.as_str()), Some(id.clone()));
        assert_ne!(SessionId::mint(&mut rand::rngs::SysRng).expect("another"), id);
    }

    #[test]
    fn what_was_never_minted_is_no_id() {
        for text in ["", "abc", &"g".repeat(48), &"A".repeat(48), &"a".repeat(49)] {
            assert_eq!(SessionId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn debug_does_not_show_it() {
        let id = SessionId::parse(&"a".repeat(48)).expect("an id");
        assert_eq!(format!("{id:?}"), "SessionId");
    }
}
