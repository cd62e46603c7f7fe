//! What the broker must not forget, in SQLite. All SQL lives in this room; nothing else knows that there is a database.
//!
//! The file is trusted as far as its mode (0600) goes, and holds no secret in the clear. One broker has it open, under
//! a lock that the kernel ends with the process. SQLite runs in WAL mode, so readers never wait for the one writer
//! (`src/broker/store/writer.rs`), with `synchronous=FULL`: no call on a live session writes, and a power failure must
//! undo neither a revocation nor a refresh token that Forgejo has just exchanged (SQLite, `PRAGMA synchronous`).

mod clients;
mod codes;
mod consents;
mod copy;
mod credentials;
mod forge;
mod grants;
mod keys;
mod list_names;
mod lock;
mod logins;
mod overview;
mod refresh_tokens;
mod room;
mod sessions;
mod shown;
mod standing;
mod tidy;
mod upkeep;
mod users;
mod writer;
mod writes;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use parking_lot::Mutex;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Row, SqlitePool};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

pub(crate) use crate::store::clients::RegisteredClient;
pub(crate) use crate::store::codes::{Code, Redeemed};
pub(crate) use crate::store::consents::Consent;
pub(crate) use crate::store::credentials::Credential;
pub(crate) use crate::store::forge::{Fingerprint, KnownForge, OwnerCheck, UncheckedCredential};
pub(crate) use crate::store::grants::{FoundToken, GrantRow, GrantUse, NewGrant};
pub(crate) use crate::store::logins::{FinishedLogin, Login, Visit, Visitor};
pub(crate) use crate::store::refresh_tokens::{Exchange, NewPair, NoPair, RefreshRow, Seen, Used, Verdict};
pub(crate) use crate::store::sessions::{LiveSession, SessionDigest, SessionRecord};
pub(crate) use crate::store::shown::ShownGrant;
pub(crate) use crate::store::upkeep::Sizes;
pub(crate) use crate::store::users::Account;
pub(crate) use crate::store::writes::{WRITES_KEPT, WriteCall};

use crate::auth::principal::GrantId;
use crate::chain::chain;
use crate::store::lock::StoreLock;
use crate::store::writer::{Statement, Writer, is_full};
use wire::message::TenantId;

/// Connections that read. None of them can write, or wait for the one that does.
const READERS: u32 = 4;
/// How long a reader may wait for one of them.
const READERS_PATIENCE: Duration = Duration::from_secs(5);
/// How long a statement waits for a lock that another program holds, such as an operator's `sqlite3`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long closing may take: longer than whoever is in the middle of something is waited for.
const CLOSED_WITHIN: Duration = Duration::from_secs(15);
/// What the WAL may keep of the disk when all of it was written back.
const WAL_KEEPS: &str = "16777216";

/// The tables, version by version.
static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// The store failed. Names what was being done, never a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The file cannot be made or opened.
    #[error("the database {0} cannot be opened")]
    Open(PathBuf, #[source] sqlx::Error),
    /// The file cannot be made.
    #[error("the database {0} cannot be created")]
    Create(PathBuf, #[source] std::io::Error),
    /// Another broker has it open.
    #[error(
        "the database {0} is in use by another broker: stop that one first, or give this one a database of its own"
    )]
    InUse(PathBuf),
    /// Whether another broker has it open cannot be told.
    #[error("{0} cannot be locked")]
    Lock(PathBuf, #[source] std::io::Error),
    /// How much room there is cannot be told.
    #[error("how much room there is for the database {0} cannot be told")]
    Room(PathBuf, #[source] std::io::Error),
    /// There is no room left for it.
    #[error("there is no room left for the database {0}: make some on its file system")]
    Full(PathBuf),
    /// The tables are not changed without a copy of what they hold.
    #[error("the database cannot be copied to {0} before its tables change: make room there")]
    Snapshot(PathBuf, #[source] Box<StoreError>),
    /// The tables cannot be brought up to date.
    #[error("the database cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error("{0}: the database failed")]
    Query(&'static str, #[source] sqlx::Error),
    /// It was not done within the time that a write may take.
    #[error("{0}: the database was busy for too long")]
    Busy(&'static str),
    /// The store was closed.
    #[error("{0}: the database is closed")]
    Closed(&'static str),
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
    /// Whether there was no room for what had to be written.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Query(_, error) => is_full(error),
            _ => false,
        }
    }

    fn query(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |e| Self::Query(what, e)
    }
}

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    readers: SqlitePool,
    writer: Writer,
    /// Let go of when the store is closed.
    lock: Mutex<Option<StoreLock>>,
    /// Where a test's store lies.
    #[cfg(test)]
    dir: Option<tempfile::TempDir>,
}

impl Store {
    /// Opens the database at `path`, makes it where it is missing, and brings it up to date. Before anything is
    /// touched, another broker's database is refused.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(Inner::open(path, SqliteSynchronous::Full).await?)))
    }

    /// A database in memory: in a file, so that it is what it is in production, below where files are in memory, and
    /// gone with the store.
    #[cfg(test)]
    pub(crate) async fn in_memory() -> Result<Self, StoreError> {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.map_err(|e| StoreError::Create(memory.to_owned(), e))?;
        let mut inner = Inner::open(&dir.path().join("broker.db"), SqliteSynchronous::Off).await?;
        inner.dir = Some(dir);
        Ok(Self(Arc::new(inner)))
    }

    /// Where its files lie.
    #[cfg(test)]
    pub(crate) fn directory(&self) -> &Path {
        self.0.path.parent().expect("a directory")
    }

    /// How a statement would be carried out, step by step, as SQLite says it.
    #[cfg(test)]
    pub(crate) async fn plan(&self, statement: &str) -> Vec<String> {
        let plan = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")));
        let rows = plan.fetch_all(self.readers()).await.expect("a plan");
        rows.iter().map(|row| row.get("detail")).collect()
    }

    /// Lets nothing be noted of accounts and tokens from now on, as on a full disk.
    #[cfg(test)]
    pub(crate) async fn refuse_notes(&self) {
        let refusals = [
            "CREATE TRIGGER no_account BEFORE UPDATE ON users BEGIN SELECT RAISE(ABORT, 'full'); END",
            "CREATE TRIGGER no_check BEFORE UPDATE ON upstream_credentials BEGIN SELECT RAISE(ABORT, 'full'); END",
        ];
        self.writer().execute_all("refusing notes", refusals.map(sqlx::query)).await.expect("refused from now on");
    }

    /// Lets no check of an owner be taken back, as where the disk fills up just then.
    #[cfg(test)]
    pub(crate) async fn refuse_aging(&self) {
        let refusal = "CREATE TRIGGER no_aging BEFORE UPDATE ON upstream_credentials WHEN NEW.checked_at = 0 \
             BEGIN SELECT RAISE(ABORT, 'full'); END";
        self.writer().execute("refusing to age", sqlx::query(refusal)).await.expect("refused from now on");
    }

    /// Lets nobody be logged in, or again, as on a full disk.
    #[cfg(test)]
    pub(crate) async fn refuse_visits(&self, refuses: bool) {
        let refusal = "CREATE TRIGGER no_visit BEFORE INSERT ON visits BEGIN SELECT RAISE(ABORT, 'full'); END";
        let statement = if refuses { refusal } else { "DROP TRIGGER no_visit" };
        self.writer().execute("refusing visits", sqlx::query(statement)).await.expect("from now on");
    }

    /// Keeps none of Forgejo's tokens, as on a full disk.
    #[cfg(test)]
    pub(crate) async fn refuse_credentials(&self, refuses: bool) {
        let refusal =
            "CREATE TRIGGER no_credential BEFORE INSERT ON upstream_credentials BEGIN SELECT RAISE(ABORT, 'full'); END";
        let statement = if refuses { refusal } else { "DROP TRIGGER no_credential" };
        self.writer().execute("refusing credentials", sqlx::query(statement)).await.expect("from now on");
    }

    /// All connections that read. While they are held, nothing else is read.
    #[cfg(test)]
    pub(crate) async fn all_readers(&self) -> Vec<sqlx::pool::PoolConnection<sqlx::Sqlite>> {
        let mut readers = Vec::new();
        for _ in 0..READERS {
            readers.push(self.readers().acquire().await.expect("a connection"));
        }
        readers
    }

    /// Another program's connection, which holds the write lock until it is dropped.
    #[cfg(test)]
    pub(crate) async fn locked_by_another(&self) -> sqlx::SqliteConnection {
        use sqlx::{ConnectOptions, Executor};
        let other = SqliteConnectOptions::new().filename(&self.0.path).connect().await;
        let mut other = other.expect("another connection");
        other.execute("BEGIN EXCLUSIVE").await.expect("the lock");
        other
    }

    /// Writes a consistent copy into a new file of mode 0600, while everything goes on.
    pub(crate) async fn backup_to(&self, to: &Path) -> Result<(), StoreError> {
        copy::backup(&reading(&self.0.path), to).await
    }

    /// Writes what is in the WAL back, closes the file and lets go of it.
    pub(crate) async fn close(&self) {
        let closed = async {
            // The writer last: only a connection that writes, and that is alone, writes the WAL back.
            self.0.readers.close().await;
            self.0.writer.close().await
        };
        match timeout(CLOSED_WITHIN, closed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(error = %error, "the database was not closed in order; what was answered is in its WAL: {}", chain(&error));
            }
            Err(_) => warn!("the database could not be closed in time; what was answered is in its WAL"),
        }
        drop(self.0.lock.lock().take());
    }

    /// Whether the last write that told anything of the disk went well.
    pub(crate) fn writes(&self) -> watch::Receiver<bool> {
        self.0.writer.good()
    }

    fn readers(&self) -> &SqlitePool {
        &self.0.readers
    }

    fn writer(&self) -> &Writer {
        &self.0.writer
    }

    /// What a query finds, read row by row: all rows at once take several times what is kept of them.
    async fn read_each<T>(
        &self,
        what: &'static str,
        query: Statement<'_>,
        read: impl Fn(&SqliteRow) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut rows = query.fetch(self.readers());
        let mut found = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(StoreError::query(what))? {
            found.push(read(&row)?);
        }
        Ok(found)
    }
}

impl Inner {
    async fn open(path: &Path, synchronous: SqliteSynchronous) -> Result<Self, StoreError> {
        let failed =
            |e| if is_full(&e) { StoreError::Full(path.to_owned()) } else { StoreError::Open(path.to_owned(), e) };
        let lock = StoreLock::take(path)?;
        // Made here and not by SQLite, so that it never exists with another mode; its WAL takes the mode over.
        let created = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        created.map_err(|e| StoreError::Create(path.to_owned(), e))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .pragma("journal_size_limit", WAL_KEEPS);
        let mut writer = Writer::open(options).await.map_err(failed)?;
        if let Some(connection) = writer.connection() {
            upkeep::bring_up_to_date(connection, path, &MIGRATIONS).await?;
        }
        let readers = SqlitePoolOptions::new().max_connections(READERS).acquire_timeout(READERS_PATIENCE);
        Ok(Self {
            path: path.to_owned(),
            readers: readers.connect_with(reading(path)).await.map_err(failed)?,
            writer,
            lock: Mutex::new(Some(lock)),
            #[cfg(test)]
            dir: None,
        })
    }
}

/// How a connection is opened that cannot write.
fn reading(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT)
}

/// The file beside `path` that has its name and an ending.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_that_are_used_at_once_share_no_lock_for_memory() {
        let store = Store::in_memory().await.expect("a store");
        let options: Vec<String> =
            sqlx::query_scalar("PRAGMA compile_options").fetch_all(store.readers()).await.expect("read");
        let is = |option: &str| options.iter().any(|one| one == option);
        assert!(
            is("DEFAULT_MEMSTATUS=0") && !is("ENABLE_MEMORY_MANAGEMENT"),
            "SQLite is not compiled as .cargo/config.toml says: {options:?}"
        );
    }
}
