//! What the broker must not forget, in SQLite. All SQL lives in this room; nothing else knows that there is a database.
//!
//! The file is trusted as far as its mode (0600) goes, and holds no secret in the clear. SQLite runs in WAL mode, so
//! readers never wait for the writer, with `synchronous=FULL`: no call on a live session writes, and a power failure
//! must undo neither a revocation nor a refresh token that Forgejo has just exchanged (SQLite, `PRAGMA synchronous`).

mod clients;
mod codes;
mod consents;
mod credentials;
mod grants;
mod logins;
mod sessions;
mod tidy;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row, SqlitePool};

pub(crate) use crate::store::clients::RegisteredClient;
pub(crate) use crate::store::codes::{Code, NewPair};
pub(crate) use crate::store::consents::Consent;
pub(crate) use crate::store::credentials::Credential;
pub(crate) use crate::store::grants::{GrantRow, NewGrant};
pub(crate) use crate::store::logins::{Login, Visitor};
pub(crate) use crate::store::sessions::{LiveSession, SessionDigest, SessionRecord};

use crate::auth::principal::GrantId;
use wire::message::TenantId;

/// Connections; SQLite has one writer anyway.
const CONNECTIONS: u32 = 4;

/// The store failed. Names what was being done, never a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The file cannot be made or opened.
    #[error("the database {0} cannot be opened")]
    Open(PathBuf, #[source] sqlx::Error),
    /// The file cannot be made.
    #[error("the database {0} cannot be created")]
    Create(PathBuf, #[source] std::io::Error),
    /// The tables cannot be brought up to date.
    #[error("the database cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error("{0}: the database failed")]
    Query(&'static str, #[source] sqlx::Error),
    /// The grant was revoked in the meantime.
    #[error("the grant was revoked in the meantime")]
    GrantRevoked,
    /// What was being done was given up in the middle.
    #[error("{0}: given up in the middle")]
    Interrupted(&'static str),
    /// A row holds what was never written.
    #[error("{0}: the database holds a value that it should not")]
    Damaged(&'static str),
}

impl StoreError {
    fn query(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |e| Self::Query(what, e)
    }
}

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store(SqlitePool);

impl Store {
    /// Opens the database at `path`, makes it where it is missing, and brings it up to date.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        // Made here and not by SQLite, so that it never exists with another mode; its WAL takes the mode over.
        let created = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        created.map_err(|e| StoreError::Create(path.to_owned(), e))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(true);
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_with(options).await;
        let store = Self(pool.map_err(|e| StoreError::Open(path.to_owned(), e))?);
        store.migrate().await?;
        Ok(store)
    }

    /// A database in memory.
    #[cfg(test)]
    pub(crate) async fn in_memory() -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new().in_memory(true).foreign_keys(true);
        // One connection that never ends: each would have a database of its own.
        let pool = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let pool = pool.connect_with(options).await.map_err(|e| StoreError::Open(PathBuf::from(":memory:"), e))?;
        let store = Self(pool);
        store.migrate().await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        Ok(sqlx::migrate!("../../migrations").run(&self.0).await?)
    }

    /// Whether the database answers.
    pub(crate) async fn is_alive(&self) -> bool {
        sqlx::query("SELECT 1").execute(&self.0).await.is_ok()
    }

    /// Writes what is in the WAL back and closes the file.
    pub(crate) async fn close(&self) {
        self.0.close().await;
    }
}

/// A tenant as a column holds it.
fn tenant_value(tenant: TenantId) -> Result<i64, StoreError> {
    i64::try_from(tenant.get()).map_err(|_| StoreError::Damaged("storing a user's number"))
}

/// The column `tenant` of a row.
fn tenant_of(row: &SqliteRow, what: &'static str) -> Result<TenantId, StoreError> {
    let tenant: i64 = row.try_get("tenant").map_err(StoreError::query(what))?;
    let tenant = u64::try_from(tenant).ok().and_then(|id| TenantId::new(id).ok());
    tenant.ok_or(StoreError::Damaged(what))
}

/// The column `id` of rows that are grants.
fn grant_ids(rows: &[SqliteRow], what: &'static str) -> Result<Vec<GrantId>, StoreError> {
    let id = |row: &SqliteRow| row.try_get::<String, _>("id").map(GrantId::new);
    rows.iter().map(|row| id(row).map_err(StoreError::query(what))).collect()
}
