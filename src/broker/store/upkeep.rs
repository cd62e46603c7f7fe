//! The file itself: brought up to date at the start, looked after while it is used.

use std::collections::BTreeSet;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use sqlx::SqliteConnection;
use sqlx::migrate::{Migrate, Migrator};
use tracing::{info, warn};

use crate::chain::chain;
use crate::store::copy::snapshot;
use crate::store::writer::is_full;
use crate::store::{Store, StoreError, beside};

/// Below so much room the database counts as full: small writes may go on for a while in what the WAL has of the disk
/// already, and the next larger one fails.
const SPARE: u64 = 1024 * 1024;
/// Larger files are not written anew at a start, which would take minutes and be cut off by whoever waits for it.
const QUICKLY_WRITTEN: u64 = 1024 * 1024 * 1024;
/// Where sqlx writes down which migrations were applied.
const APPLIED: &str = "_sqlx_migrations";
/// Pages that one transaction gives back to the file system.
const PAGES: i64 = 100;

/// Bytes on the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// The file.
    pub(crate) file: u64,
    /// Its write-ahead log.
    pub(crate) wal: u64,
    /// Room that is left.
    pub(crate) free: u64,
}

/// Brings the tables up to date; where there is something to lose, after a copy of it.
pub(super) async fn bring_up_to_date(
    connection: &mut SqliteConnection,
    path: &Path,
    migrations: &Migrator,
) -> Result<(), StoreError> {
    connection.ensure_migrations_table(APPLIED).await?;
    let applied = connection.list_applied_migrations(APPLIED).await?;
    let applied: BTreeSet<i64> = applied.iter().map(|migration| migration.version).collect();
    let pending = migrations.iter().any(|migration| !applied.contains(&migration.version));
    if let (true, Some(&version)) = (pending, applied.last()) {
        snapshot(connection, path, version).await?;
    }
    migrations.run(&mut *connection).await?;
    shrinkable(connection, path).await;
    Ok(())
}

/// Files that were made before they could shrink must be written anew once. One that cannot be, for want of room or
/// because it is large, works as well and stays as large as it once was.
async fn shrinkable(connection: &mut SqliteConnection, path: &Path) {
    let set = async {
        let mode: i64 = sqlx::query_scalar("PRAGMA auto_vacuum").fetch_one(&mut *connection).await?;
        if mode != 0 {
            return Ok(());
        }
        if std::fs::metadata(path)?.len() > QUICKLY_WRITTEN {
            info!("the database's file will not shrink: run VACUUM on it with sqlite3(1) while the broker is stopped");
            return Ok(());
        }
        sqlx::query("VACUUM").execute(&mut *connection).await?;
        info!("the database was written anew, so that its file can shrink from now on");
        Ok::<_, sqlx::Error>(())
    };
    if let Err(error) = set.await {
        warn!(error = %error, "the database's file will not shrink: it could not be written anew: {}", chain(&error));
    }
}

impl Store {
    /// How large its files are, and how much room is left.
    pub(crate) fn sizes(&self) -> Result<Sizes, StoreError> {
        let failed = |e| StoreError::Room(self.0.path.clone(), e);
        // Without one, nothing is in it.
        let wal = std::fs::metadata(beside(&self.0.path, "-wal")).map_or(0, |file| file.len());
        let file = std::fs::metadata(&self.0.path).map_err(failed)?.len();
        Ok(Sizes { file, wal, free: self.room()? })
    }

    /// Bytes that may still be written to its file system.
    fn room(&self) -> Result<u64, StoreError> {
        let room = statvfs(&self.0.path).map_err(|e| StoreError::Room(self.0.path.clone(), e.into()))?;
        Ok(room.blocks_available().saturating_mul(room.fragment_size()))
    }

    /// Whether the database can be read and written, and why not.
    pub(crate) async fn probe(&self) -> Result<(), StoreError> {
        const WHAT: &str = "looking whether the database can be written";
        let full = || StoreError::Full(self.0.path.clone());
        sqlx::query("SELECT 1").execute(self.readers()).await.map_err(StoreError::query(WHAT))?;
        match self.writer().execute(WHAT, sqlx::query("UPDATE probe SET writes = writes + 1")).await {
            Err(StoreError::Query(_, error)) if is_full(&error) => return Err(full()),
            written => written?,
        };
        if self.room()? < SPARE { Err(full()) } else { Ok(()) }
    }

    /// Gives pages that nothing is in any more back to the file system, a few at a time.
    pub(super) async fn shrink(&self) -> Result<(), StoreError> {
        const WHAT: &str = "giving room back";
        let mut free = self.free_pages().await?;
        // Some are left for what comes next.
        while free > PAGES {
            let before = free;
            let mut write = self.writer().begin(WHAT).await?;
            // A page for each row that is fetched.
            write.fetch_all(sqlx::query("PRAGMA incremental_vacuum(100)")).await?;
            write.commit_and_rest().await?;
            free = self.free_pages().await?;
            if free >= before {
                // A file that could not be written anew.
                break;
            }
        }
        Ok(())
    }

    async fn free_pages(&self) -> Result<i64, StoreError> {
        let free = sqlx::query_scalar("PRAGMA freelist_count").fetch_one(self.readers()).await;
        free.map_err(StoreError::query("counting free pages"))
    }
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{ConnectOptions, Connection};

    use super::*;
    use crate::store::MIGRATIONS;
    use crate::tests::identity::fixture::START;

    const MIB: u64 = 1024 * 1024;

    fn size(path: &Path) -> u64 {
        path.metadata().expect("a file").len()
    }

    async fn fill_and_empty(connection: &mut SqliteConnection) {
        for statement in ["CREATE TABLE filling (b BLOB)", "INSERT INTO filling VALUES (zeroblob(20000000))"] {
            sqlx::query(statement).execute(&mut *connection).await.expect("written");
        }
        sqlx::query("DROP TABLE filling").execute(connection).await.expect("removed");
    }

    #[tokio::test]
    async fn the_file_shrinks_when_what_was_in_it_is_gone_also_one_that_was_made_before_it_could() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, before) in [("new", false), ("old", true)] {
            let path = dir.path().join(name);
            if before {
                let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
                let mut connection = options.connect().await.expect("made as it was before");
                MIGRATIONS.run(&mut connection).await.expect("tables");
                connection.close().await.expect("closed");
            }
            let store = Store::open(&path).await.expect("a store");
            let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.expect("a connection");
            fill_and_empty(&mut connection).await;
            connection.close().await.expect("closed");
            store.tidy(START).await.expect("tidied");
            store.close().await;
            assert!(size(&path) < 3 * MIB, "{name}: {} bytes", size(&path));
        }
    }
}
