//! One broker a database: two would each keep tokens and sessions in memory that the other ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::store::{StoreError, beside};

/// Held for as long as the store is open. The kernel lets go of it when the process ends, however that happens.
#[derive(Debug)]
pub(super) struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock of the database at `path`, on a file of its own beside it: SQLite locks parts of the database
    /// itself, and whoever closes that file gives up SQLite's locks on it. The file stays when the lock is let go of.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        let lock = beside(path, ".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        let file = file.map_err(|e| StoreError::Create(lock.clone(), e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(path.to_owned())),
            Err(TryLockError::Error(e)) => Err(StoreError::Lock(lock, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn a_second_broker_on_the_same_store_is_refused_until_the_first_one_closes_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("broker.db");
        let first = Store::open(&path).await.expect("a store");
        let second = Store::open(&path).await;
        let message = second.expect_err("refused").to_string();
        assert!(message.contains("broker.db is in use by another broker: stop that one first"), "{message}");
        first.probe().await.expect("the first one goes on");
        // Others may still hold it when it is closed.
        let other = first.clone();
        first.close().await;
        Store::open(&path).await.expect("free").close().await;
        drop(other);
    }

    #[tokio::test]
    async fn a_second_broker_makes_no_database() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("broker.db");
        let _held = StoreLock::take(&path).expect("the lock");
        assert!(matches!(Store::open(&path).await, Err(StoreError::InUse(_))));
        assert!(!path.exists());
    }
}
