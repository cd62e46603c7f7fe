//! Consistent copies of the database, made while it is in use.

use std::fs::{File, OpenOptions, remove_file, rename};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tracing::{info, warn};

use crate::chain::chain;
use crate::store::{StoreError, beside};

/// Snapshots that stay: of the schema before this one, and of the one before that.
const KEPT: usize = 2;

/// What comes between the database's name and the schema's version in a snapshot's.
const SNAPSHOT: &str = ".schema-";

/// Copies what `source` sees into a new file of mode 0600. Readers and the writer go on meanwhile.
pub(super) async fn copy(source: &mut SqliteConnection, to: &Path) -> Result<(), StoreError> {
    const WHAT: &str = "copying the database";
    // Made here and not by SQLite, so that it never exists with another mode; SQLite fills an empty file.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let file = file.map_err(|e| StoreError::Create(to.to_owned(), e))?;
    let name = to.to_str().ok_or(StoreError::Damaged(WHAT))?;
    let copied = sqlx::query("VACUUM INTO $1").bind(name).execute(source).await.map_err(StoreError::query(WHAT));
    // SQLite does not wait for the disk here.
    let copied = copied.and_then(|_| file.sync_all().map_err(|e| StoreError::Create(to.to_owned(), e)));
    if copied.is_err() {
        let _ = remove_file(to);
    }
    copied
}

/// Copies the database before its tables change, beside it and named by the version that they have now.
pub(super) async fn snapshot(source: &mut SqliteConnection, path: &Path, version: i64) -> Result<(), StoreError> {
    let to = beside(path, &format!("{SNAPSHOT}{version}"));
    let unfinished = beside(&to, ".new");
    // Of a start that was killed in the middle.
    let _ = remove_file(&unfinished);
    copy(source, &unfinished).await.map_err(|e| StoreError::Snapshot(to.clone(), Box::new(e)))?;
    rename(&unfinished, &to).map_err(|e| StoreError::Create(to.clone(), e))?;
    if let Some(Ok(dir)) = to.parent().map(File::open) {
        dir.sync_all().map_err(|e| StoreError::Create(to.clone(), e))?;
    }
    info!(snapshot = %to.display(), "the database was copied before its tables change");
    let mut all = snapshots(path);
    all.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    for (_, old) in all.into_iter().skip(KEPT) {
        match remove_file(&old) {
            Ok(()) => info!(snapshot = %old.display(), "an old snapshot was removed"),
            Err(e) => {
                warn!(error = %e, snapshot = %old.display(), "an old snapshot could not be removed: {}", chain(&e));
            }
        }
    }
    Ok(())
}

/// The snapshots of the database at `path`, with their versions.
fn snapshots(path: &Path) -> Vec<(i64, PathBuf)> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = path.file_name().map(|name| format!("{}{SNAPSHOT}", name.to_string_lossy())).unwrap_or_default();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let version = |name: &str| name.strip_prefix(&prefix).and_then(|version| version.parse().ok());
    entries.filter_map(|entry| Some((version(entry.file_name().to_str()?)?, entry.path()))).collect()
}

/// Copies the database that `source` opens into `to`, over a connection of its own: a large one takes its time.
pub(super) async fn backup(source: &SqliteConnectOptions, to: &Path) -> Result<(), StoreError> {
    const WHAT: &str = "opening the database for a copy";
    let mut connection = source.connect().await.map_err(StoreError::query(WHAT))?;
    copy(&mut connection, to).await?;
    connection.close().await.map_err(StoreError::query(WHAT))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::os::unix::fs::PermissionsExt;

    use sqlx::migrate::{Migration, MigrationType, Migrator};
    use sqlx::{AssertSqlSafe, SqlSafeStr};

    use super::*;
    use crate::store::upkeep::bring_up_to_date;
    use crate::store::{MIGRATIONS, Store};

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("a directory").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.contains(SNAPSHOT));
        names.sort();
        names
    }

    /// The migrations of today, and so many that are to come.
    fn migrations(more: i64) -> Migrator {
        let last = MIGRATIONS.iter().map(|migration| migration.version).max().expect("some");
        let made = (1..=more).map(|n| {
            let sql = AssertSqlSafe(format!("CREATE TABLE added_{n} (id BIGINT)")).into_sql_str();
            Migration::new(last + n, Cow::Borrowed("made"), MigrationType::Simple, sql, false)
        });
        Migrator::with_migrations(MIGRATIONS.iter().cloned().chain(made).collect())
    }

    async fn open(path: &Path) -> SqliteConnection {
        SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.expect("a connection")
    }

    #[tokio::test]
    async fn a_snapshot_is_made_before_tables_change_and_only_then() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("db");
        for _ in 0..2 {
            Store::open(&path).await.expect("a store").close().await;
            assert!(names(dir.path()).is_empty(), "neither of nothing nor without a change");
        }
        let last = MIGRATIONS.iter().map(|migration| migration.version).max().expect("some");
        for more in 1..=3 {
            let mut connection = open(&path).await;
            bring_up_to_date(&mut connection, &path, &migrations(more)).await.expect("up to date");
            connection.close().await.expect("closed");
        }
        assert_eq!(names(dir.path()), [format!("db.schema-{}", last + 1), format!("db.schema-{}", last + 2)]);
        let snapshot = dir.path().join(format!("db.schema-{}", last + 2));
        assert_eq!(snapshot.metadata().expect("there").permissions().mode() & 0o777, 0o600);
        let mut connection = open(&snapshot).await;
        sqlx::query("SELECT * FROM added_2").execute(&mut connection).await.expect("as it was before");
        assert!(
            sqlx::query("SELECT * FROM added_3").execute(&mut connection).await.is_err(),
            "the change is not in it"
        );
    }

    #[tokio::test]
    async fn a_backup_holds_what_was_written_is_its_owners_alone_and_overwrites_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("db")).await.expect("a store");
        store.probe().await.expect("written");
        let mut write = store.writer().begin("testing").await.expect("its turn");
        write.execute(sqlx::query("UPDATE probe SET writes = 77")).await.expect("written");
        let copy = dir.path().join("copy");
        store.backup_to(&copy).await.expect("a copy while somebody writes");
        drop(write);
        assert_eq!(copy.metadata().expect("there").permissions().mode() & 0o777, 0o600);
        let restored = Store::open(&copy).await.expect("it opens");
        let writes: i64 =
            sqlx::query_scalar("SELECT writes FROM probe").fetch_one(restored.readers()).await.expect("read");
        assert_eq!(writes, 1, "what was committed, and no more");
        assert!(matches!(store.backup_to(&copy).await, Err(StoreError::Create(..))));
        assert!(matches!(store.backup_to(&dir.path().join("no/where")).await, Err(StoreError::Create(..))));
    }

    #[tokio::test]
    async fn a_store_of_before_families_opens_with_all_that_was_in_it_but_what_ended_sessions_held() {
        const BEFORE: i64 = 20_261_126_000_000;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("db");
        let mut connection = open(&path).await;
        let of_then = MIGRATIONS.iter().filter(|migration| migration.version <= BEFORE).cloned().collect();
        Migrator::with_migrations(of_then).run(&mut connection).await.expect("tables");
        for statement in [
            "INSERT INTO users VALUES (1, 'alice', 1)",
            "INSERT INTO clients VALUES ('client', 'Client', 1)",
            "INSERT INTO upstream_credentials (id, tenant, kind, key_id, access_sealed, updated_at) \
             VALUES ('c', 1, 'oauth', 'k', x'01', 1)",
            "INSERT INTO grants (id, client_id, tenant, credential_id, scopes, created_at) \
             VALUES ('g', 'client', 1, 'c', 's', 1)",
            "INSERT INTO refresh_tokens VALUES (x'02', 'g', 1, 9, 5), (x'03', 'g', 5, 9, NULL)",
            "INSERT INTO sessions (session_hash, grant_id, tenant, protocol_version, initialize, answer, created_at, \
             last_used_at, ended_at) VALUES (x'04', 'g', 1, 'v', 'long', 'long', 1, 1, 2), \
             (x'05', 'g', 1, 'v', 'live', 'live', 1, 1, NULL)",
        ] {
            sqlx::query(statement).execute(&mut connection).await.expect(statement);
        }
        connection.close().await.expect("closed");
        let store = Store::open(&path).await.expect("a store");
        assert_eq!(names(dir.path()), [format!("db.schema-{BEFORE}")]);
        assert_eq!(store.refresh_tokens_kept().await, 2);
        let kept: Vec<String> = sqlx::query_scalar("SELECT initialize FROM sessions ORDER BY session_hash")
            .fetch_all(store.readers())
            .await
            .expect("read");
        assert_eq!(kept, ["", "live"]);
    }
}
