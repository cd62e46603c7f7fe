//! Whose a credential is, and which forge everything here is about.

use sqlx::Row;

use crate::auth::principal::GrantId;
use crate::store::{Store, StoreError, grant_ids, tenant_value};
use wire::clock::UnixTime;
use wire::message::TenantId;

const WHOSE: &str = "reading an account";
const FORGE: &str = "reading which forge the database belongs to";

impl Store {
    /// When a user's account was created, as far as Forgejo has said.
    pub(crate) async fn account_created(&self, tenant: TenantId) -> Result<Option<UnixTime>, StoreError> {
        let row = sqlx::query("SELECT account_created FROM users WHERE tenant = $1")
            .bind(tenant_value(tenant)?)
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::query(WHOSE))?;
        let created: Option<Option<i64>> =
            row.map(|row| row.try_get("account_created")).transpose().map_err(StoreError::query(WHOSE))?;
        Ok(created.flatten().map(UnixTime::from_secs))
    }

    /// Notes that Forgejo has just said whose a credential is: its user's, whose account was created then.
    pub(crate) async fn note_account(
        &self,
        credential: &str,
        tenant: TenantId,
        created: Option<UnixTime>,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let statements = [
            sqlx::query("UPDATE users SET account_created = $1 WHERE tenant = $2 AND account_created IS NULL")
                .bind(created.map(UnixTime::secs))
                .bind(tenant_value(tenant)?),
            sqlx::query("UPDATE upstream_credentials SET checked_at = $1 WHERE id = $2")
                .bind(now.secs())
                .bind(credential),
        ];
        self.writer().execute_all("noting an account", statements).await
    }

    /// A user's number belongs to another account than before: nothing of the earlier one is the new one's. Revokes its
    /// grants, ends its visits and forgets what it has agreed to; the grants.
    pub(crate) async fn replace_account(
        &self,
        tenant: TenantId,
        created: Option<UnixTime>,
        now: UnixTime,
    ) -> Result<Vec<GrantId>, StoreError> {
        const WHAT: &str = "replacing an account";
        let value = tenant_value(tenant)?;
        // First what could be used, so that a failure in between leaves less and not more.
        let revoke = sqlx::query(
            "UPDATE grants SET revoked_at = $1, revoked_reason = 'foreign-account' \
             WHERE tenant = $2 AND revoked_at IS NULL RETURNING id",
        )
        .bind(now.secs())
        .bind(value);
        let revoked = grant_ids(&self.writer().fetch_all(WHAT, revoke).await?, WHAT)?;
        let statements = [
            sqlx::query("DELETE FROM visits WHERE tenant = $1").bind(value),
            sqlx::query("DELETE FROM consents WHERE tenant = $1").bind(value),
            sqlx::query("DELETE FROM authorization_codes WHERE tenant = $1 AND grant_id IS NULL").bind(value),
            sqlx::query("UPDATE users SET account_created = $2 WHERE tenant = $1")
                .bind(value)
                .bind(created.map(UnixTime::secs)),
        ];
        self.writer().execute_all(WHAT, statements).await?;
        Ok(revoked)
    }

    /// Which forge the users, grants and credentials here are of; `None` before the first start.
    pub(crate) async fn forge_url(&self) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT url FROM forge").fetch_optional(self.readers()).await;
        let row = row.map_err(StoreError::query(FORGE))?;
        row.map(|row| row.try_get("url")).transpose().map_err(StoreError::query(FORGE))
    }

    /// Notes which forge everything here is of.
    pub(crate) async fn adopt_forge(&self, url: &str, now: UnixTime) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "INSERT INTO forge (one, url, adopted_at) VALUES (1, $1, $2) \
             ON CONFLICT (one) DO UPDATE SET url = excluded.url, adopted_at = excluded.adopted_at",
        )
        .bind(url)
        .bind(now.secs());
        self.writer().execute("noting the forge", statement).await?;
        Ok(())
    }
}
