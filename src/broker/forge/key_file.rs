//! The file with the key that seals upstream tokens, and its successor while the key is being replaced.
//!
//! One line of hex digits, for its owner alone. Nothing here is ever written over: a new key is written beside the old
//! one under another name (`KEY.next`), and takes its name by a rename when nothing is sealed under the old one any
//! more. Both are on the disk, names included, before anybody relies on them, so that a crash at any moment leaves every
//! key that a row needs.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rand::TryCryptoRng;
use zeroize::Zeroizing;

use crate::forge::vault::VaultError;
use crate::hex;

pub(super) const KEY_BYTES: usize = 32;
pub(super) const KEY_DIGITS: usize = 2 * KEY_BYTES;

/// The key in the clear.
pub(super) type KeyBytes = Zeroizing<[u8; KEY_BYTES]>;

/// Where the key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyFile {
    /// The file.
    pub(crate) path: PathBuf,
    /// Whether systemd provides it: then it is neither made nor checked for its mode, nor replaced.
    pub(crate) managed: bool,
}

impl KeyFile {
    /// The key in the file; `None` where there is no file.
    pub(super) fn read(&self) -> Result<Option<KeyBytes>, VaultError> {
        read(&self.path, self.managed)
    }

    /// The key that is to replace it, while that goes on.
    pub(super) fn read_next(&self) -> Result<Option<KeyBytes>, VaultError> {
        if self.managed { Ok(None) } else { read(&self.next(), false) }
    }

    /// Makes the first key.
    pub(super) fn create(&self, rng: &mut impl TryCryptoRng) -> Result<KeyBytes, VaultError> {
        self.write_new(&self.path, rng)
    }

    /// Makes the key that is to replace it.
    pub(super) fn create_next(&self, rng: &mut impl TryCryptoRng) -> Result<KeyBytes, VaultError> {
        if self.managed {
            return Err(VaultError::Managed(self.path.clone()));
        }
        self.write_new(&self.next(), rng)
    }

    /// Gives the next key the file's name; the one before it is gone.
    pub(super) fn promote(&self) -> Result<(), VaultError> {
        std::fs::rename(self.next(), &self.path)
            .and_then(|()| self.sync_names())
            .map_err(|e| VaultError::KeyFile(self.path.clone(), e))
    }

    fn next(&self) -> PathBuf {
        with_ending(&self.path, ".next")
    }

    /// Complete or not there: a key of which a half was written would stop every later start.
    fn write_new(&self, file: &Path, rng: &mut impl TryCryptoRng) -> Result<KeyBytes, VaultError> {
        let failed = |e| VaultError::KeyFile(file.to_owned(), e);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        rng.try_fill_bytes(key.as_mut()).map_err(|_| VaultError::NoRandomness)?;
        let mut text = Zeroizing::new(hex::encode(key.as_slice()));
        text.push('\n');
        let half = with_ending(file, ".new");
        // What a broker left that died in the middle of this; nothing was sealed with it.
        match std::fs::remove_file(&half) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half).map_err(failed)?;
        open.write_all(text.as_bytes()).and_then(|()| open.sync_all()).map_err(failed)?;
        // Never over a file that is there: a second key would make every sealed value unreadable.
        std::fs::hard_link(&half, file).map_err(failed)?;
        std::fs::remove_file(&half).and_then(|()| self.sync_names()).map_err(failed)?;
        Ok(key)
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    PathBuf::from(name)
}

fn read(file: &Path, managed: bool) -> Result<Option<KeyBytes>, VaultError> {
    let failed = |e| VaultError::KeyFile(file.to_owned(), e);
    let mut open = match OpenOptions::new().read(true).open(file) {
        Ok(open) => open,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if !managed && open.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(VaultError::KeyFileMode(file.to_owned()));
    }
    let mut text = Zeroizing::new(String::with_capacity(2 * KEY_DIGITS));
    open.read_to_string(&mut text).map_err(failed)?;
    parse(text.trim_end()).map(Some).ok_or_else(|| VaultError::NoKey(file.to_owned()))
}

fn parse(text: &str) -> Option<KeyBytes> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if text.len() != KEY_DIGITS || !text.is_ascii() {
        return None;
    }
    for (n, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(key)
}
