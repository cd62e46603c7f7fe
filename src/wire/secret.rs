//! Values that must never reach a log, an argument vector, an error body, a span or a core file.
//!
//! A leaf. A secret has no `Display`, its `Debug` prints the name of its type, and its memory is cleared when it
//! is dropped. Whoever needs the bytes says so by calling [`UpstreamToken::expose`], which is easy to search for.

use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

/// Bytes in a Forgejo access token. Forgejo's own JWTs have about 517 with the default key; an RSA-8192 key gives
/// under 2 KiB. Eight KiB fits a frame twice over.
pub const MAX_UPSTREAM_TOKEN: usize = 8 * 1024;

/// A Forgejo access token: what a child gets in its environment and what the broker presents at `/api/v1`.
///
/// Holds 1 to [`MAX_UPSTREAM_TOKEN`] visible ASCII bytes (0x21 to 0x7e), so it can stand in a header and in an
/// environment variable as it is.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UpstreamToken(Zeroizing<String>);

/// Why a text is no upstream token. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing was given.
    #[error("the token is empty")]
    Empty,
    /// More than [`MAX_UPSTREAM_TOKEN`] bytes.
    #[error("the token is longer than {MAX_UPSTREAM_TOKEN} bytes")]
    TooLong,
    /// Something other than visible ASCII.
    #[error("the token holds a character that is not visible ASCII")]
    NotVisibleAscii,
}

impl UpstreamToken {
    /// Parses a token; surrounding white space is an error, not trimmed.
    pub fn parse(text: impl Into<String>) -> Result<Self, TokenError> {
        let text = Zeroizing::new(text.into());
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > MAX_UPSTREAM_TOKEN {
            return Err(TokenError::TooLong);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TokenError::NotVisibleAscii);
        }
        Ok(Self(text))
    }

    /// The token itself. Only for an environment variable, an `Authorization` header, encryption and redaction.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for UpstreamToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UpstreamToken")
    }
}

impl TryFrom<String> for UpstreamToken {
    type Error = TokenError;
    fn try_from(text: String) -> Result<Self, TokenError> {
        Self::parse(text)
    }
}

/// Straight into what it is written to: a text in between would be a copy that nobody clears.
impl Serialize for UpstreamToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_the_type_and_not_the_token() {
        let token = UpstreamToken::parse("hunter2").expect("valid");
        assert_eq!(format!("{token:?}"), "UpstreamToken");
    }

    #[test]
    fn what_cannot_stand_in_a_header_is_refused() {
        assert_eq!(UpstreamToken::parse(""), Err(TokenError::Empty));
        assert_eq!(UpstreamToken::parse("a b"), Err(TokenError::NotVisibleAscii));
        assert_eq!(UpstreamToken::parse("a\n"), Err(TokenError::NotVisibleAscii));
        assert_eq!(UpstreamToken::parse("a\0"), Err(TokenError::NotVisibleAscii));
        assert_eq!(UpstreamToken::parse("é"), Err(TokenError::NotVisibleAscii));
        assert_eq!(UpstreamToken::parse("a".repeat(MAX_UPSTREAM_TOKEN + 1)), Err(TokenError::TooLong));
    }
}
