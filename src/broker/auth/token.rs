//! The broker's own secrets: opaque, recognisable, and stored only as their hash.
//!
//! A prefix + 43 base62 digits of 32 random bytes + `_` + 6 base62 digits of the CRC-32 of all before. The prefix
//! and the checksum let a secret scanner find one with certainty (`fjb_(at|rt|cs)_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}`),
//! and let junk be refused without a look into the store; neither makes one easier to guess (256 bits).
//!
//! The bytes of a refresh token are not all its own: 9 name its family, 3 say when it ends, and 20 are random (160
//! bits, RFC 6749 section 10.10). So a used one is known as one of its family without being kept: whoever shows the
//! right family with the wrong rest has seen a token of it, and is taken for who shows a used one.

use std::marker::PhantomData;

use rand::TryCryptoRng;
use sha2::{Digest, Sha256};
use wire::clock::UnixTime;
use zeroize::Zeroizing;

/// Base62, digits first.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_BYTES: usize = 32;
/// Of a refresh token, for its family. Who guesses one can end it, and no more.
const FAMILY_BYTES: usize = 9;
/// 62^43 > 2^256.
const BODY: usize = 43;
/// 62^6 > 2^32.
const CHECKSUM: usize = 6;

/// SHA-256 of a whole token: the only form that is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TokenHash(pub(crate) [u8; 32]);

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash")
    }
}

/// What a token is for; a token of one kind never parses as another.
pub(crate) trait Kind {
    /// What it starts with. Published for secret scanners: never change one.
    const PREFIX: &'static str;
    /// The type's name, which is all that `Debug` shows.
    const NAME: &'static str;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $alias:ident $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(crate) enum $kind {}
        impl Kind for $kind {
            const PREFIX: &'static str = $prefix;
            const NAME: &'static str = stringify!($alias);
        }
        $(#[$doc])*
        pub(crate) type $alias = Token<$kind>;
    )*};
}

kinds! {
    /// Presented with every request.
    Access AccessToken "fjb_at_";
    /// Exchanged for the next access token.
    Refresh RefreshToken "fjb_rt_";
    /// Exchanged, once, for the first tokens of a grant.
    Code AuthorizationCode "fjb_ac_";
    /// The secret of a confidential client.
    Client ClientSecret "fjb_cs_";
    /// `state` towards Forgejo: names one login under way.
    State LoginState "fjb_st_";
    /// The cookie that tells one browser from another while somebody logs in.
    Browser BrowserKey "fjb_br_";
    /// The cookie of somebody who has logged in.
    Visit VisitKey "fjb_vk_";
}

/// A token in the clear: as it is minted, and as it is presented.
pub(crate) struct Token<K>(Zeroizing<String>, PhantomData<K>);

/// The random source failed.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes for a token")]
pub(crate) struct NoRandomness;

impl<K: Kind> Token<K> {
    /// A new token.
    pub(crate) fn mint(rng: &mut impl TryCryptoRng) -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
        rng.try_fill_bytes(bytes.as_mut()).map_err(|_| NoRandomness)?;
        Ok(Self::of(&bytes))
    }

    fn of(bytes: &[u8; RANDOM_BYTES]) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(K::PREFIX.len() + BODY + 1 + CHECKSUM));
        text.push_str(K::PREFIX);
        push_base62(&mut text, bytes.as_slice(), BODY);
        let checksum = crc32fast::hash(text.as_bytes());
        text.push('_');
        push_base62(&mut text, &checksum.to_be_bytes(), CHECKSUM);
        Self(text, PhantomData)
    }

    /// A presented text; `None` where no token of this kind minted here looks like that.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (head, checksum) = text.rsplit_once('_')?;
        let body = head.strip_prefix(K::PREFIX)?;
        let base62 = |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_alphanumeric());
        if !base62(body, BODY) || !base62(checksum, CHECKSUM) {
            return None;
        }
        let mut expected = String::with_capacity(CHECKSUM);
        push_base62(&mut expected, &crc32fast::hash(head.as_bytes()).to_be_bytes(), CHECKSUM);
        (checksum == expected).then(|| Self(Zeroizing::new(text.to_owned()), PhantomData))
    }

    /// The form that is kept.
    pub(crate) fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// The token itself, for the one answer that hands it out.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// What all refresh tokens of a grant share. As secret as they are: who knows it can end the grant.
#[derive(Clone, Copy)]
pub(crate) struct Family([u8; FAMILY_BYTES]);

impl Family {
    /// A new one.
    pub(crate) fn mint(rng: &mut impl TryCryptoRng) -> Result<Self, NoRandomness> {
        let mut bytes = [0; FAMILY_BYTES];
        rng.try_fill_bytes(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// The form that is kept.
    pub(crate) fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }
}

/// All that a refresh token says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefreshName {
    /// Its own.
    pub(crate) hash: TokenHash,
    /// Its family's.
    pub(crate) family: TokenHash,
    /// When it ends, to the hour. Not to be trusted while the token itself is kept.
    pub(crate) ends: UnixTime,
}

impl RefreshToken {
    /// A new token of this family that ends then.
    pub(crate) fn mint_in(family: &Family, ends: UnixTime, rng: &mut impl TryCryptoRng) -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
        rng.try_fill_bytes(bytes.as_mut()).map_err(|_| NoRandomness)?;
        // The hour after which it has ended; three bytes last until the year 3883.
        let hour = u32::try_from(ends.secs() / 3600 + 1).unwrap_or_default();
        let [_, hour @ ..] = hour.to_be_bytes();
        for (byte, own) in bytes.iter_mut().zip(family.0.iter().chain(&hour)) {
            *byte = *own;
        }
        Ok(Self::of(&bytes))
    }

    /// Its family. One that was minted before there were families gives the family of its successors.
    pub(crate) fn family(&self) -> Family {
        let mut family = [0; FAMILY_BYTES];
        family.iter_mut().zip(self.bytes().iter()).for_each(|(to, from)| *to = *from);
        Family(family)
    }

    /// What it is looked for by.
    pub(crate) fn name(&self) -> RefreshName {
        let hour = self.bytes().iter().skip(FAMILY_BYTES).take(3).fold(0, |hour, byte| hour << 8 | i64::from(*byte));
        RefreshName { hash: self.hash(), family: self.family().hash(), ends: UnixTime::from_secs(hour * 3600) }
    }

    /// None of those that are minted here where the digits are more than 32 bytes can hold.
    fn bytes(&self) -> Zeroizing<[u8; RANDOM_BYTES]> {
        let body = self.0.strip_prefix(Refresh::PREFIX).and_then(|rest| rest.get(..BODY));
        body.and_then(read_base62).unwrap_or_default()
    }
}

impl<K: Kind> std::fmt::Debug for Token<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(K::NAME)
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

/// Reads a number in base62; `None` where it is too large.
fn read_base62(text: &str) -> Option<Zeroizing<[u8; RANDOM_BYTES]>> {
    let mut number = Zeroizing::new([0_u8; RANDOM_BYTES]);
    for digit in text.bytes() {
        let digit = ALPHABET.iter().position(|known| *known == digit)?;
        let mut carry = u16::try_from(digit).ok()?;
        for byte in number.iter_mut().rev() {
            let [high, low] = (u16::from(*byte) * 62 + carry).to_be_bytes();
            (*byte, carry) = (low, u16::from(high));
        }
        if carry > 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SysRng;

    #[test]
    fn a_refresh_token_names_its_family_and_its_end() {
        let ends = UnixTime::from_secs(1_800_000_000);
        let family = Family::mint(&mut SysRng).expect("a family");
        let token = RefreshToken::mint_in(&family, ends, &mut SysRng).expect("a token");
        let next = RefreshToken::mint_in(&token.family(), ends, &mut SysRng).expect("a token");
        let parsed = RefreshToken::parse(next.expose()).expect("a token").name();
        assert_eq!(parsed.family, family.hash());
        assert!(parsed.ends >= ends && parsed.ends.secs() <= ends.secs() + 3600, "{parsed:?}");
        assert_ne!(token.hash(), next.hash());
        let other = RefreshToken::mint(&mut SysRng).expect("a token");
        assert_ne!(other.name().family, family.hash());
    }

    #[test]
    fn base62_is_read_as_it_is_written_and_not_beyond_its_bytes() {
        for bytes in [[0; 32], [255; 32], std::array::from_fn(|n| u8::try_from(n).expect("small"))] {
            let mut text = String::new();
            push_base62(&mut text, &bytes, BODY);
            assert_eq!(read_base62(&text).as_deref(), Some(&bytes));
        }
        assert!(read_base62(&"z".repeat(BODY)).is_none());
    }

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
    fn a_token_of_one_kind_is_none_of_another() {
        let token = RefreshToken::mint(&mut SysRng).expect("a token");
        assert!(RefreshToken::parse(token.expose()).is_some());
        assert!(AccessToken::parse(token.expose()).is_none());
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
