//! Whose tokens Forgejo does not take: for now, or until their user logs in again.

use sqlx::Row;

use crate::store::{Store, StoreError};
use wire::clock::UnixTime;

const COUNTING: &str = "counting who must log in again";

impl Store {
    /// Notes that Forgejo does not let a credential's account in since now, if not since before. It counts as looked at
    /// at `looked_at`.
    pub(crate) async fn note_barred(
        &self,
        credential: &str,
        now: UnixTime,
        looked_at: UnixTime,
    ) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "UPDATE upstream_credentials SET barred_since = COALESCE(barred_since, $1), checked_at = $2 WHERE id = $3",
        )
        .bind(now.secs())
        .bind(looked_at.secs())
        .bind(credential);
        self.writer().execute("noting a barred account", statement).await?;
        Ok(())
    }

    /// Notes which application the tokens are of of which that was never noted.
    pub(crate) async fn note_application(&self, client_id: &str) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "UPDATE upstream_credentials SET application = $1 WHERE kind = 'oauth' AND application IS NULL",
        )
        .bind(client_id);
        self.writer().execute("noting which application tokens are of", statement).await?;
        Ok(())
    }

    /// How many users have live grants on tokens of another application than this one.
    pub(crate) async fn users_of_other_applications(&self, client_id: &str) -> Result<u64, StoreError> {
        let row = sqlx::query(
            "SELECT COUNT(*) AS n FROM upstream_credentials c WHERE c.kind = 'oauth' AND c.application <> $1 \
             AND EXISTS (SELECT 1 FROM grants g WHERE g.credential_id = c.id AND g.revoked_at IS NULL)",
        );
        let row = row.bind(client_id).fetch_one(self.readers()).await.map_err(StoreError::query(COUNTING))?;
        let count: i64 = row.try_get("n").map_err(StoreError::query(COUNTING))?;
        Ok(count.unsigned_abs())
    }

    /// How many users have lost all their connections since then although nobody here wanted that, by reason.
    pub(crate) async fn users_cut_off_since(&self, since: UnixTime) -> Result<Vec<(String, u64)>, StoreError> {
        let rows = sqlx::query(
            "SELECT g.revoked_reason AS reason, COUNT(DISTINCT g.tenant) AS n FROM grants g \
             WHERE g.revoked_at > $1 AND g.revoked_reason IN \
             ('refresh-refused', 'foreign-account', 'foreign-forge', 'damaged', 'key-lost') AND NOT EXISTS \
             (SELECT 1 FROM grants l WHERE l.tenant = g.tenant AND l.revoked_at IS NULL) \
             GROUP BY g.revoked_reason ORDER BY g.revoked_reason",
        );
        let rows = rows.bind(since.secs()).fetch_all(self.readers()).await;
        let counted = |row: &sqlx::sqlite::SqliteRow| {
            let count: i64 = row.try_get("n")?;
            Ok((row.try_get("reason")?, count.unsigned_abs()))
        };
        let rows = rows.map_err(StoreError::query(COUNTING))?;
        rows.iter().map(|row| counted(row).map_err(StoreError::query(COUNTING))).collect()
    }
}
