//! Bytes as lower-case hex digits, and names made of random ones.

use std::fmt::Write;

use rand::TryCryptoRng;

use crate::auth::token::NoRandomness;

/// Two digits a byte.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// 96 random bits: a name, not a secret.
pub(crate) fn random_id(rng: &mut impl TryCryptoRng) -> Result<String, NoRandomness> {
    let mut bytes = [0; 12];
    rng.try_fill_bytes(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(encode(&bytes))
}
