//! The one connection that writes, and the queue before it.
//!
//! SQLite has one writer at a time anyway. Here writers wait for each other in the order in which they came and within
//! a deadline, instead of all trying for the file's lock; readers have connections of their own that cannot write.
//!
//! Nothing is answered before it is durable, so a connection on which anything went wrong is never used again. When a
//! COMMIT fails, such as on a full disk, SQLite may end the transaction or not, and whoever counts transactions beside
//! it is wrong from then on: what comes after is «committed» inside a transaction that nothing ends, answered, and gone
//! with the next restart. Only a transaction that was begun here and whose COMMIT or ROLLBACK succeeded gives the
//! connection back; one that failed, was given up or was cancelled takes it along.

use std::time::Duration;

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnectOptions, SqliteQueryResult, SqliteRow};
use sqlx::{ConnectOptions, Connection, Executor, SqliteConnection};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::store::StoreError;

/// How long a write may take from its request on, the queue included; people and clients wait for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// After a piece of a job that nobody waits for, the writer is left to others for so many times as long as that took.
const REST: u32 = 3;

/// One statement with its values.
pub(super) type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// Whoever writes asks here.
#[derive(Debug)]
pub(super) struct Writer {
    options: SqliteConnectOptions,
    /// Tokio's lock is fair: first come, first served.
    slot: Mutex<Slot>,
    /// Whether writing works: the last transaction was committed, or only broke a rule of a table.
    good: watch::Sender<bool>,
}

#[derive(Debug)]
enum Slot {
    /// Outside of any transaction.
    Idle(SqliteConnection),
    /// Gone with a transaction that did not end well; the next writer opens another.
    Absent,
    /// The store is closed.
    Closed,
}

/// An open transaction. Dropped before [`Write::commit`], it changes nothing and takes its connection along.
#[derive(Debug)]
pub(super) struct Write<'a> {
    what: &'static str,
    until: Instant,
    began: Instant,
    connection: SqliteConnection,
    good: &'a watch::Sender<bool>,
    // Last: the next writer's turn begins when the connection is let go of.
    slot: MutexGuard<'a, Slot>,
}

impl Writer {
    /// Opens the connection.
    pub(super) async fn open(options: SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let connection = options.connect().await?;
        Ok(Self { options, slot: Mutex::new(Slot::Idle(connection)), good: watch::Sender::new(true) })
    }

    /// The connection while nobody else has the writer, for what happens before the store is handed out.
    pub(super) fn connection(&mut self) -> Option<&mut SqliteConnection> {
        match self.slot.get_mut() {
            Slot::Idle(connection) => Some(connection),
            Slot::Absent | Slot::Closed => None,
        }
    }

    /// Whether writing works.
    pub(super) fn good(&self) -> watch::Receiver<bool> {
        self.good.subscribe()
    }

    /// Waits for this writer's turn and begins a transaction that holds the database's write lock from the start.
    pub(super) async fn begin(&self, what: &'static str) -> Result<Write<'_>, StoreError> {
        noted(&self.good, self.begun(what).await)
    }

    async fn begun(&self, what: &'static str) -> Result<Write<'_>, StoreError> {
        let until = Instant::now() + PATIENCE;
        let mut slot = timeout_at(until, self.slot.lock()).await.map_err(|_| StoreError::Busy(what))?;
        let connection = match std::mem::replace(&mut *slot, Slot::Absent) {
            Slot::Idle(connection) => connection,
            Slot::Absent => within(until, what, self.options.connect()).await?,
            Slot::Closed => {
                *slot = Slot::Closed;
                return Err(StoreError::Closed(what));
            }
        };
        let mut write = Write { what, until, began: Instant::now(), connection, good: &self.good, slot };
        within(until, what, write.connection.execute("BEGIN IMMEDIATE")).await?;
        Ok(write)
    }

    /// One statement as a transaction of its own.
    pub(super) async fn execute(
        &self,
        what: &'static str,
        statement: Statement<'_>,
    ) -> Result<SqliteQueryResult, StoreError> {
        let mut write = self.begin(what).await?;
        let done = write.execute(statement).await?;
        write.commit().await?;
        Ok(done)
    }

    /// Several statements, all or none.
    pub(super) async fn execute_all<'q>(
        &self,
        what: &'static str,
        statements: impl IntoIterator<Item = Statement<'q>>,
    ) -> Result<(), StoreError> {
        let mut write = self.begin(what).await?;
        for statement in statements {
            write.execute(statement).await?;
        }
        write.commit().await
    }

    /// One statement as a transaction of its own, with the rows that it gives back.
    pub(super) async fn fetch_all(
        &self,
        what: &'static str,
        statement: Statement<'_>,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        let mut write = self.begin(what).await?;
        let rows = write.fetch_all(statement).await?;
        write.commit().await?;
        Ok(rows)
    }

    /// Lets the writer in turn end, writes what is in the WAL back where nobody reads, and closes the file.
    pub(super) async fn close(&self) -> Result<(), sqlx::Error> {
        match std::mem::replace(&mut *self.slot.lock().await, Slot::Closed) {
            Slot::Idle(connection) => connection.close().await,
            // One that opens and closes the file in order, because the lost one did not.
            Slot::Absent => self.options.connect().await?.close().await,
            Slot::Closed => Ok(()),
        }
    }
}

impl Write<'_> {
    /// Runs one statement.
    pub(super) async fn execute(&mut self, statement: Statement<'_>) -> Result<SqliteQueryResult, StoreError> {
        noted(self.good, within(self.until, self.what, statement.execute(&mut self.connection)).await)
    }

    /// Runs one statement that gives rows back.
    pub(super) async fn fetch_all(&mut self, statement: Statement<'_>) -> Result<Vec<SqliteRow>, StoreError> {
        noted(self.good, within(self.until, self.what, statement.fetch_all(&mut self.connection)).await)
    }

    /// What was written is durable when this returns.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        let good = self.good;
        self.end("COMMIT").await?;
        note(good, true);
        Ok(())
    }

    /// The same for a piece of a job that nobody waits for, before the next: whoever writes meanwhile finds the writer free
    /// more often than not, however slow the disk is.
    pub(super) async fn commit_and_rest(self) -> Result<(), StoreError> {
        let began = self.began;
        self.commit().await?;
        sleep(began.elapsed().saturating_mul(REST)).await;
        Ok(())
    }

    /// Undoes what was written.
    pub(super) async fn abandon(self) -> Result<(), StoreError> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &'static str) -> Result<(), StoreError> {
        noted(self.good, within(self.until, self.what, self.connection.execute(how)).await)?;
        *self.slot = Slot::Idle(self.connection);
        Ok(())
    }
}

fn note(good: &watch::Sender<bool>, now: bool) {
    good.send_if_modified(|good| std::mem::replace(good, now) != now);
}

/// Notes what an outcome tells of the disk.
fn noted<T>(good: &watch::Sender<bool>, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
    match &outcome {
        Err(StoreError::Query(_, error)) if !is_constraint(error) => note(good, false),
        Err(StoreError::Busy(_)) => note(good, false),
        _ => {}
    }
    outcome
}

/// Whether a statement only broke a rule of a table: `SQLITE_CONSTRAINT`.
fn is_constraint(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(19)
}

/// Whether there was no room for what had to be written: `SQLITE_FULL`.
pub(super) fn is_full(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(13)
}

/// SQLite's result code without what an extended one adds: its low byte (sqlite.org/rescode.html).
fn primary_code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?.parse::<u32>().ok()?;
    Some(code % 256)
}

async fn within<T>(
    until: Instant,
    what: &'static str,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    timeout_at(until, work).await.map_err(|_| StoreError::Busy(what))?.map_err(StoreError::query(what))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::store::Store;

    const WHAT: &str = "testing";

    fn set(writes: i64) -> Statement<'static> {
        sqlx::query("UPDATE probe SET writes = $1").bind(writes)
    }

    async fn writes(store: &Store) -> i64 {
        sqlx::query_scalar("SELECT writes FROM probe").fetch_one(store.readers()).await.expect("read")
    }

    #[tokio::test]
    async fn writers_take_turns_in_the_order_in_which_they_came() {
        let store = Store::in_memory().await.expect("a store");
        let held = store.writer().begin(WHAT).await.expect("its turn");
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for n in 0..20 {
            let (store, order) = (store.clone(), Arc::clone(&order));
            waiting.push(tokio::spawn(async move {
                let write = store.writer().begin(WHAT).await.expect("its turn");
                order.lock().push(n);
                write.commit().await.expect("done");
            }));
            // Until it stands in the queue: there is one thread, and nothing else that it could wait for.
            tokio::task::yield_now().await;
        }
        held.commit().await.expect("done");
        for waiting in waiting {
            waiting.await.expect("no panic");
        }
        assert_eq!(*order.lock(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_writer_that_waits_for_too_long_is_told_so_and_readers_wait_for_no_writer() {
        let store = Store::in_memory().await.expect("a store");
        let mut held = store.writer().begin(WHAT).await.expect("its turn");
        held.execute(set(7)).await.expect("written");
        for _ in 0..20 {
            assert_eq!(writes(&store).await, 0, "what was there before");
        }
        tokio::time::pause();
        let late = store.writer().begin(WHAT).await;
        tokio::time::resume();
        assert!(matches!(late, Err(StoreError::Busy(WHAT))), "{late:?}");
    }

    #[tokio::test]
    async fn a_transaction_that_is_given_up_leaves_nothing_and_what_comes_after_it_is_durable() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("db")).await.expect("a store");
        let mut write = store.writer().begin(WHAT).await.expect("its turn");
        write.execute(set(7)).await.expect("written");
        drop(write);
        assert_eq!(writes(&store).await, 0);
        let mut write = store.writer().begin(WHAT).await.expect("its turn");
        write.execute(set(8)).await.expect("written");
        write.abandon().await.expect("undone");
        let failed = store.writer().execute(WHAT, sqlx::query("UPDATE probe SET id = 2")).await;
        assert!(matches!(failed, Err(StoreError::Query(..))), "{failed:?}");
        store.writer().execute(WHAT, set(9)).await.expect("written");
        store.close().await;
        let store = Store::open(&dir.path().join("db")).await.expect("a store");
        assert_eq!(writes(&store).await, 9);
    }

    #[tokio::test]
    async fn a_reader_cannot_write_and_a_closed_store_does_neither() {
        let store = Store::in_memory().await.expect("a store");
        assert!(set(1).execute(store.readers()).await.is_err());
        store.close().await;
        assert!(matches!(store.writer().execute(WHAT, set(1)).await, Err(StoreError::Closed(WHAT))));
        assert!(sqlx::query("SELECT 1").execute(store.readers()).await.is_err());
    }
}
