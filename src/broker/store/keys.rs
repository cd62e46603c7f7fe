//! Which keys seal what is here, and sealing anew.

use sqlx::Row;

use crate::auth::principal::GrantId;
use crate::store::{Credential, Store, StoreError, grant_ids};
use wire::clock::UnixTime;

const READING: &str = "reading which keys seal Forgejo's tokens";

/// From one key to the next by the index, because a few keys seal everything.
const SEALING: &str = "WITH RECURSIVE keys (id) AS (SELECT MIN(key_id) FROM upstream_credentials UNION ALL \
     SELECT (SELECT MIN(key_id) FROM upstream_credentials WHERE key_id > keys.id) FROM keys WHERE id IS NOT NULL) \
     SELECT id FROM keys WHERE EXISTS \
     (SELECT 1 FROM upstream_credentials c WHERE c.key_id = keys.id AND LENGTH(c.access_sealed) > 0)";

impl Store {
    /// The ids of the keys that seal something, each with how many credentials.
    pub(crate) async fn sealing_keys(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query(
            "SELECT key_id, COUNT(*) AS held FROM upstream_credentials WHERE LENGTH(access_sealed) > 0 \
             GROUP BY key_id ORDER BY key_id",
        )
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query(READING))?;
        let key = |row: &sqlx::sqlite::SqliteRow| Ok((row.try_get("key_id")?, row.try_get("held")?));
        rows.iter().map(|row| key(row).map_err(StoreError::query(READING))).collect()
    }

    /// Their ids alone, found without a look at all that they seal.
    pub(crate) async fn sealing_key_ids(&self) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(SEALING).fetch_all(self.readers()).await.map_err(StoreError::query(READING))
    }

    /// The ids of credentials that are sealed under another key than this one, at most `limit`.
    pub(crate) async fn sealed_under_others(&self, key_id: &str, limit: u32) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query(
            "SELECT id FROM upstream_credentials WHERE key_id <> $1 AND LENGTH(access_sealed) > 0 ORDER BY id LIMIT $2",
        )
        .bind(key_id)
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query(READING))?;
        rows.iter().map(|row| row.try_get("id").map_err(StoreError::query(READING))).collect()
    }

    /// Puts the same tokens, sealed anew, in place of `old`, unless the credential holds others by now.
    pub(crate) async fn reseal(&self, old: &Credential, fresh: &Credential) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "UPDATE upstream_credentials SET key_id = $1, access_sealed = $2, refresh_sealed = $3 \
             WHERE id = $4 AND access_sealed = $5",
        )
        .bind(&fresh.access.key_id)
        .bind(&fresh.access.bytes)
        .bind(fresh.refresh.as_ref().map(|refresh| &refresh.bytes))
        .bind(&old.id)
        .bind(&old.access.bytes);
        self.writer().execute("sealing a credential anew", statement).await?;
        Ok(())
    }

    /// Gives up what is sealed under a key, all or nothing: the tokens are erased and the grants that stand on them
    /// revoked. Which grants.
    pub(crate) async fn forget_sealed_under(&self, key_id: &str, now: UnixTime) -> Result<Vec<GrantId>, StoreError> {
        const WHAT: &str = "giving up what cannot be opened";
        let mut write = self.writer().begin(WHAT).await?;
        let revoked = sqlx::query(
            "UPDATE grants SET revoked_at = $1, revoked_reason = 'key-lost' WHERE revoked_at IS NULL AND credential_id \
             IN (SELECT id FROM upstream_credentials WHERE key_id = $2 AND LENGTH(access_sealed) > 0) RETURNING id",
        );
        let rows = write.fetch_all(revoked.bind(now.secs()).bind(key_id)).await?;
        let erased = sqlx::query(
            "UPDATE upstream_credentials SET access_sealed = $1, refresh_sealed = NULL, access_expires_at = NULL \
             WHERE key_id = $2",
        );
        write.execute(erased.bind(Vec::<u8>::new()).bind(key_id)).await?;
        write.commit().await?;
        grant_ids(&rows, WHAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::identity::fixture::{START, fixture, grant, vault};

    #[tokio::test]
    async fn each_key_that_seals_something_is_found_once_without_a_look_at_all_that_it_seals() {
        let fixture = fixture().await;
        let (store, other) = (&fixture.store, vault());
        let (second, third) = (grant(&fixture.vault, "grant-2", 2).0, grant(&other, "grant-3", 3).0);
        for new in [&second, &third] {
            store.insert_grant(new).await.expect("stored");
        }
        let mut keys = vec![fixture.vault.key_id(), other.key_id()];
        keys.sort();
        assert_eq!(store.sealing_key_ids().await.expect("read"), keys);
        store.forget_sealed_under(&other.key_id(), START).await.expect("given up");
        assert_eq!(store.sealing_key_ids().await.expect("read"), [fixture.vault.key_id()]);
        let steps = store.plan(SEALING).await;
        assert!(!steps.iter().any(|step| step.contains("SCAN upstream_credentials")), "{steps:?}");
    }
}
