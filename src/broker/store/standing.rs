//! Whose tokens Forgejo does not take: for now, or until their user logs in again.

use sqlx::Row;

use crate::store::forge::round;
use crate::store::{Store, StoreError};
use wire::clock::UnixTime;

const COUNTING: &str = "counting who must log in again";

const NOTE_APPLICATION: &str =
    "UPDATE upstream_credentials SET application = $1 WHERE kind = 'oauth' AND application IS NULL";
/// Two ranges of an index: for `<>` it would be read from end to end.
const OF_OTHERS: &str = "SELECT COUNT(*) AS n FROM \
     (SELECT id FROM upstream_credentials WHERE kind = 'oauth' AND application < $1 UNION ALL \
     SELECT id FROM upstream_credentials WHERE kind = 'oauth' AND application > $1) c \
     WHERE EXISTS (SELECT 1 FROM grants g WHERE g.credential_id = c.id AND g.revoked_at IS NULL)";

impl Store {
    /// Notes that Forgejo does not let a credential's account in since now, if not since before. It counts as looked at
    /// at `looked_at`.
    pub(crate) async fn note_barred(
        &self,
        credential: &str,
        now: UnixTime,
        looked_at: UnixTime,
    ) -> Result<(), StoreError> {
        let statement = sqlx::query(concat!(
            "UPDATE upstream_credentials SET barred_since = COALESCE(barred_since, $1), checked_at = $2, checked_round = ",
            round!(),
            " WHERE id = $3"
        ))
        .bind(now.secs())
        .bind(looked_at.secs())
        .bind(credential);
        self.writer().execute("noting a barred account", statement).await?;
        Ok(())
    }

    /// Notes which application the tokens are of of which that was never noted.
    pub(crate) async fn note_application(&self, client_id: &str) -> Result<(), StoreError> {
        let statement = sqlx::query(NOTE_APPLICATION).bind(client_id);
        self.writer().execute("noting which application tokens are of", statement).await?;
        Ok(())
    }

    /// How many users have live grants on tokens of another application than this one.
    pub(crate) async fn users_of_other_applications(&self, client_id: &str) -> Result<u64, StoreError> {
        let row = sqlx::query(OF_OTHERS)
            .bind(client_id)
            .fetch_one(self.readers())
            .await
            .map_err(StoreError::query(COUNTING))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_start_looks_at_nobodys_tokens_to_find_those_of_no_application_or_another() {
        let store = Store::in_memory().await.expect("a store");
        for (statement, searches) in [(NOTE_APPLICATION, 1), (OF_OTHERS, 2)] {
            let steps = store.plan(statement).await;
            let by_index = "SEARCH upstream_credentials USING INDEX credentials_by_application";
            let found = steps.iter().filter(|step| step.contains(by_index)).count();
            assert_eq!(found, searches, "{steps:?}");
        }
    }
}
