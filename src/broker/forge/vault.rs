//! Seals upstream tokens for the database.
//!
//! XChaCha20-Poly1305 with a random nonce of 24 bytes and associated data that names table, column, row and key, so
//! that a sealed value moved to another row does not open. The key is a file of its own: neither it nor the database
//! alone gives a token away.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use rand::TryCryptoRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::hex;
use wire::secret::UpstreamToken;

const KEY_BYTES: usize = 32;
const KEY_DIGITS: usize = 2 * KEY_BYTES;
const NONCE_BYTES: usize = 24;

/// Where the key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyFile {
    /// The file.
    pub(crate) path: PathBuf,
    /// Whether systemd provides it: then it is neither made nor checked for its mode.
    pub(crate) managed: bool,
}

/// Why the vault does not open, or a value in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    /// The key file cannot be read or made.
    #[error("the key file {0} cannot be used")]
    KeyFile(PathBuf, #[source] io::Error),
    /// Others may read the key file.
    #[error("the key file {0} can be read by others; run `chmod 600 {0}`")]
    KeyFileMode(PathBuf),
    /// The key file does not hold a key.
    #[error("the key file {0} must hold one line of {KEY_DIGITS} hex digits")]
    NoKey(PathBuf),
    /// Sealed under another key.
    #[error(
        "a value was sealed with key {sealed}, and the key file holds {ours}: restore the key file that belongs to this database"
    )]
    OtherKey {
        /// The key that sealed it.
        sealed: String,
        /// The key that is there.
        ours: String,
    },
    /// Changed, or moved from another row.
    #[error("a sealed value is damaged")]
    Damaged,
    /// The random source failed.
    #[error("no random bytes")]
    NoRandomness,
}

/// A sealed value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// The key that sealed it.
    pub(crate) key_id: String,
    /// Nonce, then ciphertext with its tag.
    pub(crate) bytes: Vec<u8>,
}

/// Seals and opens. Holds the key.
pub(crate) struct Vault {
    cipher: XChaCha20Poly1305,
    key_id: String,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the vault with the key in `file`, making one on the first start. `managed` files, which systemd puts into
    /// `$CREDENTIALS_DIRECTORY`, have a mode of systemd's own.
    pub(crate) fn open(file: &Path, managed: bool, rng: &mut impl TryCryptoRng) -> Result<Self, VaultError> {
        let failed = |e| VaultError::KeyFile(file.to_owned(), e);
        match OpenOptions::new().read(true).open(file) {
            Ok(mut open) => {
                if !managed && open.metadata().map_err(failed)?.mode() & 0o077 != 0 {
                    return Err(VaultError::KeyFileMode(file.to_owned()));
                }
                let mut text = Zeroizing::new(String::new());
                open.read_to_string(&mut text).map_err(failed)?;
                let key = parse(text.trim_end()).ok_or_else(|| VaultError::NoKey(file.to_owned()))?;
                Ok(Self::with_key(&key))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && !managed => Self::create(file, rng),
            Err(e) => Err(failed(e)),
        }
    }

    fn create(file: &Path, rng: &mut impl TryCryptoRng) -> Result<Self, VaultError> {
        let failed = |e| VaultError::KeyFile(file.to_owned(), e);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        rng.try_fill_bytes(key.as_mut()).map_err(|_| VaultError::NoRandomness)?;
        let mut text = Zeroizing::new(hex::encode(key.as_slice()));
        text.push('\n');
        // Never over a file that is there: a second key would make every sealed value unreadable.
        let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
        open.write_all(text.as_bytes()).and_then(|()| open.sync_all()).map_err(failed)?;
        Ok(Self::with_key(&key))
    }

    fn with_key(key: &[u8; KEY_BYTES]) -> Self {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let key_id = hex::encode(digest.get(..4).unwrap_or_default());
        Self { cipher: XChaCha20Poly1305::new(&Key::from(*key)), key_id }
    }

    /// Seals a token for one place, such as `upstream_credentials|access|ID`.
    pub(crate) fn seal(
        &self,
        token: &UpstreamToken,
        place: &str,
        rng: &mut impl TryCryptoRng,
    ) -> Result<Sealed, VaultError> {
        let mut nonce = [0; NONCE_BYTES];
        rng.try_fill_bytes(&mut nonce).map_err(|_| VaultError::NoRandomness)?;
        let aad = format!("{place}|{}", self.key_id);
        let payload = Payload { msg: token.expose().as_bytes(), aad: aad.as_bytes() };
        let ciphertext = self.cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| VaultError::Damaged)?;
        let mut bytes = nonce.to_vec();
        bytes.extend(ciphertext);
        Ok(Sealed { key_id: self.key_id.clone(), bytes })
    }

    /// Opens what was sealed for the same place.
    pub(crate) fn open_sealed(&self, sealed: &Sealed, place: &str) -> Result<UpstreamToken, VaultError> {
        if sealed.key_id != self.key_id {
            return Err(VaultError::OtherKey { sealed: sealed.key_id.clone(), ours: self.key_id.clone() });
        }
        let (nonce, ciphertext) = sealed.bytes.split_first_chunk::<NONCE_BYTES>().ok_or(VaultError::Damaged)?;
        let aad = format!("{place}|{}", self.key_id);
        let payload = Payload { msg: ciphertext, aad: aad.as_bytes() };
        let plain = self.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| VaultError::Damaged)?;
        let text = String::from_utf8(plain).map_err(|_| VaultError::Damaged)?;
        UpstreamToken::parse(text).map_err(|_| VaultError::Damaged)
    }
}

/// The place of a credential's refresh token.
pub(crate) fn refresh_place(credential_id: &str) -> String {
    format!("upstream_credentials|refresh|{credential_id}")
}

/// The place of a credential's access token.
pub(crate) fn access_place(credential_id: &str) -> String {
    format!("upstream_credentials|access|{credential_id}")
}

fn parse(text: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if text.len() != KEY_DIGITS || !text.is_ascii() {
        return None;
    }
    for (n, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SysRng;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_opens_in_its_own_place_and_under_its_own_key_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let vault = Vault::open(&dir.path().join("key"), false, &mut SysRng).expect("a vault");
        let token = UpstreamToken::parse("s3cr3t-t0ken").expect("a token");
        let sealed = vault.seal(&token, "here", &mut SysRng).expect("sealed");
        assert!(!sealed.bytes.windows(6).any(|w| w == b"s3cr3t"));
        assert_eq!(vault.open_sealed(&sealed, "here").expect("opens"), token);
        assert!(matches!(vault.open_sealed(&sealed, "there"), Err(VaultError::Damaged)));
        let again = Vault::open(&dir.path().join("key"), false, &mut SysRng).expect("the same key");
        assert_eq!(again.open_sealed(&sealed, "here").expect("opens"), token);
        let other = Vault::open(&dir.path().join("other"), false, &mut SysRng).expect("another key");
        assert!(matches!(other.open_sealed(&sealed, "here"), Err(VaultError::OtherKey { .. })));
    }

    #[test]
    fn the_key_file_is_made_for_its_owner_alone_and_one_that_others_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("key");
        Vault::open(&file, false, &mut SysRng).expect("a vault");
        assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = Vault::open(&file, false, &mut SysRng).expect_err("refused");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert!(Vault::open(&file, true, &mut SysRng).is_ok(), "systemd's own files have a mode of their own");
    }

    #[test]
    fn a_file_without_a_key_is_refused_and_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("key");
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file).expect("a file");
        assert!(matches!(Vault::open(&file, false, &mut SysRng), Err(VaultError::NoKey(_))));
        assert_eq!(std::fs::read(&file).expect("there"), b"");
    }
}
