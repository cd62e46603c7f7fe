//! The broker's own tokens: opaque, recognisable, and stored only as their hash.
//!
//! `fjb_at_` + 43 base62 digits of 32 random bytes + `_` + 6 base62 digits of the CRC-32 of all before. The prefix
//! and the checksum let a secret scanner find one with certainty, and let junk be refused without a look into the
//! store; neither makes a token easier to guess (256 bits).

use rand::TryCryptoRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Base62, digits first.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// What an access token starts with. Published for secret scanners: never change it.
const PREFIX: &str = "fjb_at_";
const RANDOM_BYTES: usize = 32;
/// 62^43 > 2^256.
const BODY: usize = 43;
/// 62^6 > 2^32.
const CHECKSUM: usize = 6;

/// SHA-256 of a whole token: the only form that is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash")
    }
}

/// An access token in the clear: as it is minted, and as it is presented.
pub struct AccessToken(Zeroizing<String>);

/// The random source failed.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes for a token")]
pub struct NoRandomness;

impl AccessToken {
    /// A new token.
    pub fn mint(rng: &mut impl TryCryptoRng) -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
        rng.try_fill_bytes(bytes.as_mut()).map_err(|_| NoRandomness)?;
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + BODY + 1 + CHECKSUM));
        text.push_str(PREFIX);
        push_base62(&mut text, bytes.as_slice(), BODY);
        let checksum = crc32fast::hash(text.as_bytes());
        text.push('_');
        push_base62(&mut text, &checksum.to_be_bytes(), CHECKSUM);
        Ok(Self(text))
    }

    /// A presented text; `None` where no token minted here looks like that.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, checksum) = text.rsplit_once('_')?;
        let body = head.strip_prefix(PREFIX)?;
        let base62 = |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_alphanumeric());
        if !base62(body, BODY) || !base62(checksum, CHECKSUM) {
            return None;
        }
        let mut expected = String::with_capacity(CHECKSUM);
        push_base62(&mut expected, &crc32fast::hash(head.as_bytes()).to_be_bytes(), CHECKSUM);
        (checksum == expected).then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The form that is kept.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// The token itself, for the one answer that hands it out.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessToken")
    }
}

/// Appends a big-endian number in exactly `digits` base62 digits.
fn push_base62(text: &mut String, number: &[u8], digits: usize) {
    let mut number = Zeroizing::new(number.to_vec());
    let mut reversed = Zeroizing::new(Vec::with_capacity(digits));
    for _ in 0..digits {
        let mut rest = 0_u16;
        for byte in number.iter_mut() {
            let value = (rest << 8) | u16::from(*byte);
            // Below 256, because the rest is below 62.
            *byte = u8::try_from(value / 62).unwrap_or_default();
            rest = value % 62;
        }
        reversed.push(ALPHABET.get(usize::from(rest)).copied().unwrap_or(b'0'));
    }
    text.extend(reversed.iter().rev().map(|&digit| char::from(digit)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SysRng;

    #[test]
    fn a_minted_token_parses_back_and_has_the_published_form() {
        let token = AccessToken::mint(&mut SysRng).expect("a token");
        let text = token.expose();
        assert_eq!(text.len(), 7 + 43 + 1 + 6);
        assert_eq!(AccessToken::parse(text).expect("its own").hash(), token.hash());
        assert_ne!(AccessToken::mint(&mut SysRng).expect("another").hash(), token.hash());
    }

    #[test]
    fn one_changed_character_is_noticed_without_a_look_into_the_store() {
        let token = AccessToken::mint(&mut SysRng).expect("a token");
        for at in 0..token.expose().len() {
            let mut text = token.expose().to_owned();
            let other = if text.as_bytes()[at] == b'x' { "y" } else { "x" };
            text.replace_range(at..=at, other);
            assert!(AccessToken::parse(&text).is_none(), "changed at {at}");
        }
        assert!(AccessToken::parse("").is_none());
        assert!(AccessToken::parse("fjb_at__").is_none());
    }

    #[test]
    fn base62_is_a_number_in_base_62() {
        let mut text = String::new();
        push_base62(&mut text, &[0, 0, 0, 61], 2);
        push_base62(&mut text, &[0, 0, 0, 62], 2);
        push_base62(&mut text, &u32::MAX.to_be_bytes(), 6);
        assert_eq!(text, "0z104gfFC3");
    }

    #[test]
    fn debug_shows_no_token() {
        let token = AccessToken::mint(&mut SysRng).expect("a token");
        assert_eq!(format!("{token:?} {:?}", token.hash()), "AccessToken TokenHash");
    }
}
