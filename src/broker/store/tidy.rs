//! What is over goes. What tells a thief from its owner (used refresh tokens of no family, redeemed codes) stays until
//! it would have expired anyway.
//!
//! Readers find what is over, and the writer removes it by its key, a few rows a transaction: whoever else writes waits
//! for one of these at most, however much there is to remove, and mostly for none, because the writer rests in between.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Decode, Encode, QueryBuilder, Row, Sqlite, Type};

use crate::auth::principal::GrantId;
use crate::store::writer::Statement;
use crate::store::{Store, StoreError, grant_ids};
use wire::clock::UnixTime;

/// Rows that one transaction changes: some milliseconds.
pub(crate) const BATCH: usize = 100;
/// Keys that are read at once: some hundred kilobytes.
const FOUND: usize = 100 * BATCH;

/// Access tokens stay for so long after their end, so that a client is told «expired» and not «unknown».
pub(super) const AFTER_THE_END: Duration = Duration::from_hours(24);
/// Codes stay for so long, so that a second redemption is noticed.
const CODES: Duration = Duration::from_hours(24);
/// Forgejo's tokens that no live grant needs stay for so long: a code that is on its way may make one.
const UNNEEDED: Duration = Duration::from_hours(1);
/// Revoked grants stay for so long, for an operator who asks what became of one.
const REVOKED: Duration = Duration::from_hours(90 * 24);

const WHAT: &str = "removing what has expired";

/// A live grant whose last refresh token has expired, at `$1`. Of a token of the operator's, which has none, the token.
macro_rules! expired {
    ($then:literal) => {
        concat!(
            "revoked_at IS NULL AND NOT EXISTS (SELECT 1 FROM refresh_tokens r WHERE r.grant_id = grants.id AND \
             r.expires_at > $1) AND (EXISTS (SELECT 1 FROM refresh_tokens r WHERE r.grant_id = grants.id) OR \
             EXISTS (SELECT 1 FROM access_tokens t JOIN upstream_credentials c ON c.id = grants.credential_id \
             WHERE t.grant_id = grants.id AND c.kind = 'pat' AND t.expires_at <= $1)) ",
            $then
        )
    };
}

/// A credential that holds tokens which no live grant has needed since `$1`.
macro_rules! unneeded {
    () => {
        "updated_at < $1 AND LENGTH(access_sealed) > 0 AND NOT EXISTS (SELECT 1 FROM grants g \
         WHERE g.credential_id = upstream_credentials.id AND g.revoked_at IS NULL)"
    };
}

impl Store {
    /// Revokes grants whose last refresh token, or operator's token, has expired, all or none, and gives them back: a batch
    /// of them, and none when there are no more.
    pub(crate) async fn expire_grants(&self, now: UnixTime) -> Result<Vec<GrantId>, StoreError> {
        const WHAT: &str = "revoking expired grants";
        let batch = i64::try_from(BATCH).unwrap_or(i64::MAX);
        let found =
            sqlx::query(concat!("SELECT id FROM grants WHERE ", expired!("LIMIT $2"))).bind(now.secs()).bind(batch);
        let found = grant_ids(&found.fetch_all(self.readers()).await.map_err(StoreError::query(WHAT))?, WHAT)?;
        if found.is_empty() {
            return Ok(found);
        }
        let mut ended = Vec::new();
        let mut write = self.writer().begin(WHAT).await?;
        for grant in found {
            // Asked again, because a refresh may have been faster.
            let revoke = sqlx::query(concat!(
                "UPDATE grants SET revoked_at = $1, revoked_reason = 'expired' WHERE id = $2 AND ",
                expired!("")
            ));
            if write.execute(revoke.bind(now.secs()).bind(grant.as_str())).await?.rows_affected() > 0 {
                ended.push(grant);
            }
        }
        write.commit_and_rest().await?;
        Ok(ended)
    }

    /// Removes what is over.
    pub(crate) async fn tidy(&self, now: UnixTime) -> Result<(), StoreError> {
        self.remove_tokens(now).await?;
        let codes = now.minus(CODES).secs();
        let found = || sqlx::query("SELECT code_hash FROM authorization_codes WHERE created_at < $1").bind(codes);
        self.remove::<Vec<u8>>(WHAT, found, "DELETE FROM authorization_codes WHERE code_hash IN (").await?;
        let found = || sqlx::query("SELECT visit_hash FROM visits WHERE expires_at < $1").bind(now.secs());
        self.remove::<Vec<u8>>(WHAT, found, "DELETE FROM visits WHERE visit_hash IN (").await?;
        self.erase_unneeded(now).await?;
        self.remove_revoked(now).await?;
        self.shrink().await
    }

    async fn remove_tokens(&self, now: UnixTime) -> Result<(), StoreError> {
        let ended_before = now.minus(AFTER_THE_END).secs();
        // Tokens made by the operator stay, for the operator's list.
        let found = || {
            sqlx::query(
                "SELECT t.token_hash FROM access_tokens t JOIN grants g ON g.id = t.grant_id \
                 JOIN upstream_credentials c ON c.id = g.credential_id WHERE t.expires_at < $1 AND c.kind = 'oauth'",
            )
            .bind(ended_before)
        };
        self.remove::<Vec<u8>>(WHAT, found, "DELETE FROM access_tokens WHERE token_hash IN (").await?;
        // The last one of a live grant stays: it tells that the grant has expired.
        let found = || {
            sqlx::query(
                "SELECT t.token_hash FROM refresh_tokens t JOIN grants g ON g.id = t.grant_id WHERE t.expires_at < $1 \
                 AND (g.revoked_at IS NOT NULL OR t.used_at IS NOT NULL OR EXISTS \
                 (SELECT 1 FROM refresh_tokens r WHERE r.grant_id = g.id AND r.expires_at > $2))",
            )
            .bind(ended_before)
            .bind(now.secs())
        };
        self.remove::<Vec<u8>>(WHAT, found, "DELETE FROM refresh_tokens WHERE token_hash IN (").await?;
        Ok(())
    }

    /// What nobody needs any more cannot be stolen: the row stays for the grants that name it, empty.
    async fn erase_unneeded(&self, now: UnixTime) -> Result<(), StoreError> {
        let before = now.minus(UNNEEDED).secs();
        let found = sqlx::query(concat!("SELECT id FROM upstream_credentials WHERE ", unneeded!())).bind(before);
        let found = found.fetch_all(self.readers()).await.map_err(StoreError::query(WHAT))?;
        for batch in found.chunks(BATCH) {
            let ids: Result<Vec<String>, _> = batch.iter().map(|row| row.try_get("id")).collect();
            let ids = ids.map_err(StoreError::query(WHAT))?;
            // Asked again, because a login may have been faster.
            let erase = ids.iter().map(|id| {
                let erase = sqlx::query(concat!(
                    "UPDATE upstream_credentials SET access_sealed = $2, refresh_sealed = NULL, \
                     access_expires_at = NULL WHERE id = $3 AND ",
                    unneeded!()
                ));
                erase.bind(before).bind(Vec::<u8>::new()).bind(id)
            });
            let mut write = self.writer().begin(WHAT).await?;
            for erase in erase {
                write.execute(erase).await?;
            }
            write.commit_and_rest().await?;
        }
        Ok(())
    }

    async fn remove_revoked(&self, now: UnixTime) -> Result<(), StoreError> {
        let before = now.minus(REVOKED).secs();
        for (key, table) in
            [("session_hash", "sessions"), ("token_hash", "access_tokens"), ("token_hash", "refresh_tokens")]
        {
            let found = || {
                let of = "grant_id IN (SELECT id FROM grants WHERE revoked_at < $1)";
                sqlx::query(AssertSqlSafe(format!("SELECT {key} FROM {table} WHERE {of}"))).bind(before)
            };
            self.remove::<Vec<u8>>(WHAT, found, &format!("DELETE FROM {table} WHERE {key} IN (")).await?;
        }
        for table in ["refresh_forks", "grant_writes"] {
            let found = || {
                let of = "grant_id IN (SELECT id FROM grants WHERE revoked_at < $1)";
                sqlx::query(AssertSqlSafe(format!("SELECT DISTINCT grant_id FROM {table} WHERE {of}"))).bind(before)
            };
            self.remove::<String>(WHAT, found, &format!("DELETE FROM {table} WHERE grant_id IN (")).await?;
        }
        let found = || sqlx::query("SELECT id FROM grants WHERE revoked_at < $1").bind(before);
        self.remove::<String>(WHAT, found, "DELETE FROM grants WHERE id IN (").await?;
        Ok(())
    }

    /// Removes the rows whose keys `found` selects, by `remove`, which ends where the list of keys begins; how many.
    /// Nothing that is found may come to be needed again.
    pub(super) async fn remove<K>(
        &self,
        what: &'static str,
        found: impl Fn() -> Statement<'static>,
        remove: &str,
    ) -> Result<u64, StoreError>
    where
        K: for<'r> Decode<'r, Sqlite> + for<'q> Encode<'q, Sqlite> + Type<Sqlite> + Send,
    {
        let mut removed = 0;
        loop {
            let keys = self.keys::<K>(what, found()).await?;
            let more = keys.len() == FOUND;
            let mut keys = keys.into_iter().peekable();
            while keys.peek().is_some() {
                let mut write = self.writer().begin(what).await?;
                let mut statement = QueryBuilder::new(remove);
                let mut list = statement.separated(", ");
                for key in keys.by_ref().take(BATCH) {
                    list.push_bind(key);
                }
                statement.push(")");
                removed += write.execute(statement.build()).await?.rows_affected();
                write.commit_and_rest().await?;
            }
            if !more {
                return Ok(removed);
            }
        }
    }

    /// The first keys that are found.
    async fn keys<K>(&self, what: &'static str, found: Statement<'static>) -> Result<Vec<K>, StoreError>
    where
        K: for<'r> Decode<'r, Sqlite> + Type<Sqlite>,
    {
        let mut rows = found.fetch(self.readers());
        let mut keys = Vec::new();
        while keys.len() < FOUND
            && let Some(row) = rows.try_next().await.map_err(StoreError::query(what))?
        {
            keys.push(row.try_get(0).map_err(StoreError::query(what))?);
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::identity::fixture::{START, fixture};

    const ROWS: i64 = 20_000;
    const PARTS: i64 = 2;

    /// Who writes again and again gets a turn after each of the tidying's transactions, and mostly several: it rests.
    #[tokio::test]
    async fn a_write_waits_for_one_batch_at_most_and_most_wait_for_none_while_twenty_thousand_rows_are_removed() {
        let fixture = fixture().await;
        let store = fixture.store.clone();
        // In parts, because each write has a deadline, which a busy machine reaches with all of them at once.
        for _ in 0..PARTS {
            let expired = sqlx::query(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) INSERT INTO refresh_tokens \
                 (token_hash, grant_id, created_at, expires_at, used_at) SELECT randomblob(32), $2, 1, 2, 1 FROM n",
            );
            let expired = expired.bind(ROWS / PARTS).bind(fixture.grant.as_str());
            store.writer().execute("testing", expired).await.expect("written");
        }
        let tidying = tokio::spawn({
            let store = store.clone();
            async move { store.tidy(START).await }
        });
        let batch = i64::try_from(BATCH).expect("small");
        let (mut before, mut turns, mut met) = (ROWS, 0, 0);
        while before > ROWS - 20 * batch {
            assert!(!tidying.is_finished(), "not in one go");
            let mut write = store.writer().begin("testing").await.expect("its turn");
            let count = sqlx::query("SELECT COUNT(*) FROM refresh_tokens");
            let left: i64 = write.fetch_all(count).await.expect("counted")[0].get(0);
            write.commit().await.expect("done");
            assert!(before - left <= batch, "{} rows were removed before its turn", before - left);
            // Until the first batch it is alone.
            if left < ROWS {
                turns += 1;
                met += i32::from(left < before);
            }
            before = left;
        }
        assert!(2 * met < turns, "{met} of {turns} turns came after a batch");
        tidying.await.expect("no panic").expect("tidied");
        assert_eq!(count(&store, "SELECT COUNT(*) FROM refresh_tokens").await, 0);
    }

    async fn count(store: &Store, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(store.readers()).await.expect("counted")
    }

    /// So many grants of clients with one refresh token each, which ends then.
    async fn grants(store: &Store, grants: i64, ends: i64) {
        let n = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)";
        for what in [
            "INSERT INTO grants (id, client_id, tenant, credential_id, scopes, created_at) \
             SELECT 'g' || i || '-' || $2, 'cli', 1, 'credential-grant-1', 's', 1 FROM n",
            "INSERT INTO refresh_tokens (token_hash, grant_id, created_at, expires_at) \
             SELECT randomblob(32), 'g' || i || '-' || $2, 1, $2 FROM n",
            "INSERT INTO access_tokens (token_hash, grant_id, created_at, expires_at) \
             SELECT randomblob(32), 'g' || i || '-' || $2, 1, $2 FROM n",
        ] {
            let statement = sqlx::query(AssertSqlSafe(format!("{n} {what}"))).bind(grants).bind(ends);
            store.writer().execute("testing", statement).await.expect("written");
        }
    }

    #[tokio::test]
    async fn expired_grants_are_revoked_batch_by_batch_and_gone_after_ninety_days_with_all_that_was_theirs() {
        let fixture = fixture().await;
        let store = &fixture.store;
        let batch = i64::try_from(BATCH).expect("small");
        grants(store, 2 * batch + 7, START.secs() - 1).await;
        let later = START.plus(REVOKED * 3);
        grants(store, 3, later.secs()).await;
        let mut ended = Vec::new();
        for expected in [BATCH, BATCH, 7, 0] {
            let batch = store.expire_grants(START).await.expect("revoked");
            assert_eq!(batch.len(), expected);
            ended.extend(batch);
        }
        ended.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        ended.dedup_by(|a, b| a.as_str() == b.as_str());
        assert_eq!(ended.len(), 2 * BATCH + 7, "each is told once");
        for grant in ended.iter().take(3) {
            let session = sqlx::query(
                "INSERT INTO sessions (session_hash, grant_id, tenant, protocol_version, initialize, answer, \
                 created_at, last_used_at) VALUES (randomblob(32), $1, 1, 'v', '{}', '{}', 1, 1)",
            );
            store.writer().execute("testing", session.bind(grant.as_str())).await.expect("written");
        }
        store.tidy(START.plus(REVOKED)).await.expect("tidied");
        assert_eq!(count(store, "SELECT COUNT(*) FROM grants").await, 2 * batch + 7 + 3 + 1, "not yet");
        store.tidy(START.plus(REVOKED + Duration::from_secs(1))).await.expect("tidied");
        assert_eq!(count(store, "SELECT COUNT(*) FROM grants").await, 3 + 1, "the live ones, and the operator's");
        assert_eq!(count(store, "SELECT COUNT(*) FROM refresh_tokens").await, 3);
        assert_eq!(count(store, "SELECT COUNT(*) FROM access_tokens").await, 3 + 1);
        assert_eq!(count(store, "SELECT COUNT(*) FROM sessions").await, 0);
    }
}
