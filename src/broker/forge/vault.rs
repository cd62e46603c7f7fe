//! Seals upstream tokens for the database.
//!
//! XChaCha20-Poly1305 with a random nonce of 24 bytes and associated data that names table, column, row and key, so
//! that a sealed value moved to another row does not open. The key is a file of its own: neither it nor the database
//! alone gives a token away. While the key is being replaced there are two: the new one seals, both open.

use std::io;
use std::path::PathBuf;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use parking_lot::RwLock;
use rand::TryCryptoRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub(crate) use crate::forge::key_file::KeyFile;
use crate::forge::key_file::{KEY_DIGITS, KeyBytes};
use crate::hex;
use wire::secret::UpstreamToken;

const NONCE_BYTES: usize = 24;

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
    /// Sealed under a key that is not here.
    #[error("a value was sealed with key {0}, which is not here")]
    OtherKey(String),
    /// There are sealed values and no key, or another one.
    #[error(
        "the database holds Forgejo's tokens sealed with key {}, and the key file {path} {}. Put the key file back that \
         belongs to this database. If it is lost, run `forgejo-mcp-broker --forget-sealed` once: what cannot be opened \
         is given up, and its users log in again",
        missing.join(" and "),
        ours.as_ref().map_or_else(|| "is not there".to_owned(), |ours| format!("holds key {ours}"))
    )]
    WrongKey {
        /// The key file.
        path: PathBuf,
        /// The ids of the keys that are needed.
        missing: Vec<String>,
        /// The id of the key that is there.
        ours: Option<String>,
    },
    /// There is no key where systemd is to provide one.
    #[error("the key file {0} is not there, and it is the service manager that provides it")]
    NotProvided(PathBuf),
    /// systemd's own file cannot be replaced from here.
    #[error(
        "the key {0} is provided by the service manager and cannot be replaced here: name a file of the broker's own in \
         [store] key_file, with the same key in it, and try again"
    )]
    Managed(PathBuf),
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

/// Seals and opens. Holds the keys.
pub(crate) struct Vault {
    file: KeyFile,
    keys: RwLock<Keys>,
}

struct Keys {
    /// Seals, and opens.
    current: SealingKey,
    /// Opens what was not sealed anew yet, while the key is being replaced.
    older: Option<SealingKey>,
}

#[derive(Clone)]
struct SealingKey {
    cipher: XChaCha20Poly1305,
    id: String,
}

impl SealingKey {
    fn new(key: &KeyBytes) -> Self {
        let digest: [u8; 32] = Sha256::digest(key.as_slice()).into();
        let id = hex::encode(digest.get(..4).unwrap_or_default());
        Self { cipher: XChaCha20Poly1305::new(&Key::from(**key)), id }
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("key_id", &self.key_id()).finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the vault for a database in which values are `sealed` under keys with these ids. A key is made only where
    /// nothing is sealed: beside sealed values it would hide that theirs is lost.
    pub(crate) fn open(file: KeyFile, sealed: &[String], rng: &mut impl TryCryptoRng) -> Result<Self, VaultError> {
        let (held, next) = (file.read()?, file.read_next()?);
        let keys = match (held.as_ref().map(SealingKey::new), next.as_ref().map(SealingKey::new)) {
            (older, Some(current)) => Some(Keys { current, older }),
            (Some(current), None) => Some(Keys { current, older: None }),
            (None, None) => None,
        };
        let ids: Vec<&str> = keys.iter().flat_map(Keys::ids).collect();
        let missing: Vec<String> = sealed.iter().filter(|id| !ids.contains(&id.as_str())).cloned().collect();
        if !missing.is_empty() {
            let ours = (!ids.is_empty()).then(|| ids.join(" and "));
            return Err(VaultError::WrongKey { path: file.path, missing, ours });
        }
        let keys = match keys {
            Some(keys) => keys,
            None if file.managed => return Err(VaultError::NotProvided(file.path)),
            None => Keys { current: SealingKey::new(&file.create(rng)?), older: None },
        };
        Ok(Self { file, keys: RwLock::new(keys) })
    }

    /// The id of the key that seals.
    pub(crate) fn key_id(&self) -> String {
        self.keys.read().current.id.clone()
    }

    /// The id of the key that is being replaced.
    pub(crate) fn older_key_id(&self) -> Option<String> {
        self.keys.read().older.as_ref().map(|older| older.id.clone())
    }

    /// Where the key is.
    pub(crate) fn file(&self) -> &KeyFile {
        &self.file
    }

    /// Begins to replace the key: from now on a new one seals, which is on the disk when this returns. Where that has
    /// begun already, it goes on with that one.
    pub(crate) fn begin_replacing(&self, rng: &mut impl TryCryptoRng) -> Result<(), VaultError> {
        let mut keys = self.keys.write();
        if keys.older.is_none() {
            let current = SealingKey::new(&self.file.create_next(rng)?);
            keys.older = Some(std::mem::replace(&mut keys.current, current));
        }
        Ok(())
    }

    /// Ends it: nothing must be sealed under the older key any more, which is gone when this returns.
    pub(crate) fn end_replacing(&self) -> Result<(), VaultError> {
        let mut keys = self.keys.write();
        if keys.older.is_some() {
            self.file.promote()?;
            keys.older = None;
        }
        Ok(())
    }

    /// Seals a token for one place, such as `upstream_credentials|access|ID`.
    pub(crate) fn seal(
        &self,
        token: &UpstreamToken,
        place: &str,
        rng: &mut impl TryCryptoRng,
    ) -> Result<Sealed, VaultError> {
        let key = self.keys.read().current.clone();
        let mut nonce = [0; NONCE_BYTES];
        rng.try_fill_bytes(&mut nonce).map_err(|_| VaultError::NoRandomness)?;
        let aad = format!("{place}|{}", key.id);
        let payload = Payload { msg: token.expose().as_bytes(), aad: aad.as_bytes() };
        let ciphertext = key.cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| VaultError::Damaged)?;
        let mut bytes = nonce.to_vec();
        bytes.extend(ciphertext);
        Ok(Sealed { key_id: key.id, bytes })
    }

    /// Opens what was sealed for the same place.
    pub(crate) fn open_sealed(&self, sealed: &Sealed, place: &str) -> Result<UpstreamToken, VaultError> {
        let key = self.keys.read().with_id(&sealed.key_id).cloned();
        let key = key.ok_or_else(|| VaultError::OtherKey(sealed.key_id.clone()))?;
        let (nonce, ciphertext) = sealed.bytes.split_first_chunk::<NONCE_BYTES>().ok_or(VaultError::Damaged)?;
        let aad = format!("{place}|{}", key.id);
        let payload = Payload { msg: ciphertext, aad: aad.as_bytes() };
        // Cleared also where it turns out to be no token.
        let plain = key.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| VaultError::Damaged)?;
        let mut plain = Zeroizing::new(plain);
        std::str::from_utf8(&plain).map_err(|_| VaultError::Damaged)?;
        let text = String::from_utf8(std::mem::take(&mut *plain)).map_err(|_| VaultError::Damaged)?;
        UpstreamToken::parse(text).map_err(|_| VaultError::Damaged)
    }
}

impl Keys {
    fn ids(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.current).chain(&self.older).map(|key| key.id.as_str())
    }

    fn with_id(&self, id: &str) -> Option<&SealingKey> {
        std::iter::once(&self.current).chain(&self.older).find(|key| key.id == id)
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

/// A vault with a key of its own in a directory, for tests.
#[cfg(test)]
pub(crate) fn vault_in(dir: &std::path::Path) -> Vault {
    let file = KeyFile { path: dir.join("key"), managed: false };
    Vault::open(file, &[], &mut rand::rngs::SysRng).expect("a vault")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SysRng;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn file_in(dir: &tempfile::TempDir, name: &str) -> KeyFile {
        KeyFile { path: dir.path().join(name), managed: false }
    }

    fn opened(file: &KeyFile, sealed: &[&str]) -> Result<Vault, VaultError> {
        let sealed: Vec<String> = sealed.iter().map(|&id| id.to_owned()).collect();
        Vault::open(file.clone(), &sealed, &mut SysRng)
    }

    fn names(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = std::fs::read_dir(dir.path()).expect("a directory").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_token_opens_in_its_own_place_and_under_its_own_key_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let vault = opened(&file_in(&dir, "key"), &[]).expect("a vault");
        let token = UpstreamToken::parse("s3cr3t-t0ken").expect("a token");
        let sealed = vault.seal(&token, "here", &mut SysRng).expect("sealed");
        assert!(!sealed.bytes.windows(6).any(|w| w == b"s3cr3t"));
        assert_eq!(vault.open_sealed(&sealed, "here").expect("opens"), token);
        assert!(matches!(vault.open_sealed(&sealed, "there"), Err(VaultError::Damaged)));
        let again = opened(&file_in(&dir, "key"), &[&sealed.key_id]).expect("the same key");
        assert_eq!(again.open_sealed(&sealed, "here").expect("opens"), token);
        let other = opened(&file_in(&dir, "other"), &[]).expect("another key");
        assert!(matches!(other.open_sealed(&sealed, "here"), Err(VaultError::OtherKey(_))));
    }

    #[test]
    fn the_key_file_is_made_for_its_owner_alone_and_one_that_others_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = file_in(&dir, "key");
        opened(&file, &[]).expect("a vault");
        assert_eq!(std::fs::metadata(&file.path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(names(&dir), ["key"], "and nothing is left beside it");
        std::fs::set_permissions(&file.path, Permissions::from_mode(0o640)).expect("chmod");
        let error = opened(&file, &[]).expect_err("refused");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert!(
            opened(&KeyFile { managed: true, ..file }, &[]).is_ok(),
            "systemd's own files have a mode of their own"
        );
    }

    #[test]
    fn a_file_without_a_key_is_refused_and_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = file_in(&dir, "key");
        std::fs::write(&file.path, b"").expect("a file");
        std::fs::set_permissions(&file.path, Permissions::from_mode(0o600)).expect("chmod");
        assert!(matches!(opened(&file, &[]), Err(VaultError::NoKey(_))));
        assert_eq!(std::fs::read(&file.path).expect("there"), b"");
    }

    #[test]
    fn beside_sealed_values_no_key_is_made_and_no_other_is_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = file_in(&dir, "key");
        let said = opened(&file, &["0123abcd"]).expect_err("it is lost").to_string();
        assert!(
            said.contains("0123abcd") && said.contains("is not there") && said.contains("--forget-sealed"),
            "{said}"
        );
        assert!(names(&dir).is_empty());
        let ours = opened(&file, &[]).expect("a vault").key_id();
        let said = opened(&file, &["0123abcd", &ours]).expect_err("it is another").to_string();
        assert!(said.contains("0123abcd") && said.contains(&format!("holds key {ours}")), "{said}");
        let provided = KeyFile { path: dir.path().join("provided"), managed: true };
        assert!(matches!(opened(&provided, &[]), Err(VaultError::NotProvided(_))));
    }

    #[test]
    fn a_crash_at_any_step_of_replacing_the_key_leaves_every_key_that_is_needed() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = file_in(&dir, "key");
        let token = UpstreamToken::parse("s3cr3t-t0ken").expect("a token");
        let vault = opened(&file, &[]).expect("a vault");
        let before = vault.seal(&token, "here", &mut SysRng).expect("sealed");
        // A broker that died while it wrote the new key.
        std::fs::write(dir.path().join("key.next.new"), b"0123").expect("a half");
        assert!(opened(&file, &[&before.key_id]).is_ok());
        vault.begin_replacing(&mut SysRng).expect("begun");
        vault.begin_replacing(&mut SysRng).expect("it goes on with the same");
        assert_eq!(names(&dir), ["key", "key.next"]);
        let after = vault.seal(&token, "here", &mut SysRng).expect("sealed");
        assert_ne!(before.key_id, after.key_id);
        // Here and until the end both are needed.
        let reborn = opened(&file, &[&before.key_id, &after.key_id]).expect("both");
        assert_eq!((reborn.key_id(), reborn.older_key_id()), (after.key_id.clone(), Some(before.key_id.clone())));
        for sealed in [&before, &after] {
            assert_eq!(reborn.open_sealed(sealed, "here").expect("opens"), token);
        }
        reborn.end_replacing().expect("ended");
        assert_eq!(names(&dir), ["key"]);
        let reborn = opened(&file, &[&after.key_id]).expect("the new one");
        assert_eq!((reborn.key_id(), reborn.older_key_id()), (after.key_id, None));
        assert!(opened(&file, &[&before.key_id]).is_err(), "the old one is gone");
    }

    #[test]
    fn a_key_of_the_service_manager_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = file_in(&dir, "key");
        opened(&file, &[]).expect("a vault");
        let vault = opened(&KeyFile { managed: true, ..file }, &[]).expect("provided");
        assert!(matches!(vault.begin_replacing(&mut SysRng), Err(VaultError::Managed(_))));
        assert_eq!(names(&dir), ["key"]);
    }
}
