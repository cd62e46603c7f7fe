//! What stands for a Forgejo token that its user shows with each request: a grant, and a credential without a token.
//!
//! The grant's id is made from the token, one way, so that sessions go on after a restart; of the token itself nothing is
//! here.

use sqlx::Row;

use crate::auth::principal::{GrantId, Scopes};
use crate::store::users::user_row;
use crate::store::{Store, StoreError, grant_ids, tenant_value};
use wire::clock::UnixTime;
use wire::message::{Label, TenantId};

/// Live ones of a user at most: each is a row, and a user may make any number of tokens at Forgejo.
const MAX_OF_USER: i64 = 100;
/// The client that all of them are of.
const CLIENT: &str = "forgejo-token";

const READING: &str = "reading what stands for a Forgejo token";
/// Begins with those few credentials, by their index.
const LIVE: &str = "SELECT id FROM grants WHERE revoked_at IS NULL \
     AND credential_id IN (SELECT id FROM upstream_credentials WHERE is_shown = 1)";
const KEEPING: &str = "keeping what stands for a Forgejo token";

/// How it stands with a grant of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShownGrant {
    /// There is none that counts: it was never there, was not used for long, or its user was not let in for a while.
    New,
    /// It is there.
    Live,
    /// Somebody wanted it to be over.
    Ended,
}

impl Store {
    /// How it stands with the grant of a token.
    pub(crate) async fn shown_grant(&self, grant: &GrantId) -> Result<ShownGrant, StoreError> {
        let row = sqlx::query(
            "SELECT revoked_at IS NULL AS live, COALESCE(revoked_reason IN ('unused', 'account-refused'), 0) AS passed \
             FROM grants WHERE id = $1",
        );
        let row = row.bind(grant.as_str()).fetch_optional(self.readers()).await.map_err(StoreError::query(READING))?;
        let Some(row) = row else { return Ok(ShownGrant::New) };
        let is = |name: &str| row.try_get::<bool, _>(name).map_err(StoreError::query(READING));
        Ok(match (is("live")?, is("passed")?) {
            (true, _) => ShownGrant::Live,
            (false, true) => ShownGrant::New,
            (false, false) => ShownGrant::Ended,
        })
    }

    /// Writes the grant of a token that Forgejo has just vouched for; whether the user may have one more.
    pub(crate) async fn keep_shown_grant(
        &self,
        grant: &GrantId,
        tenant: TenantId,
        login: &Label,
        scopes: Scopes,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        let (number, credential) = (tenant_value(tenant)?, format!("shown-{grant}"));
        let mut write = self.writer().begin(KEEPING).await?;
        let count = sqlx::query(
            "SELECT COUNT(*) AS n FROM grants g JOIN upstream_credentials c ON c.id = g.credential_id \
             WHERE g.tenant = $1 AND g.revoked_at IS NULL AND c.is_shown = 1",
        );
        let rows = write.fetch_all(count.bind(number)).await?;
        let count =
            rows.first().map(|row| row.try_get::<i64, _>("n")).transpose().map_err(StoreError::query(KEEPING))?;
        if count.unwrap_or_default() >= MAX_OF_USER {
            return write.abandon().await.map(|()| false);
        }
        let statements = [
            user_row(number, login, now),
            sqlx::query(
                "INSERT INTO clients (client_id, name, created_at) VALUES ($1, 'Forgejo token', $2) \
                 ON CONFLICT (client_id) DO NOTHING",
            )
            .bind(CLIENT)
            .bind(now.secs()),
            sqlx::query(
                "INSERT INTO upstream_credentials (id, tenant, kind, key_id, access_sealed, updated_at, is_shown) \
                 VALUES ($1, $2, 'pat', '', $3, $4, 1) ON CONFLICT (id) DO NOTHING",
            )
            .bind(&credential)
            .bind(number)
            .bind(Vec::<u8>::new())
            .bind(now.secs()),
            sqlx::query(
                "INSERT INTO grants (id, client_id, tenant, credential_id, scopes, created_at) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET revoked_at = NULL, \
                 revoked_reason = NULL, scopes = excluded.scopes WHERE revoked_reason IN ('unused', 'account-refused')",
            )
            .bind(grant.as_str())
            .bind(CLIENT)
            .bind(number)
            .bind(&credential)
            .bind(scopes.as_str())
            .bind(now.secs()),
        ];
        for statement in statements {
            write.execute(statement).await?;
        }
        write.commit().await?;
        Ok(true)
    }

    /// All that are live.
    pub(crate) async fn live_shown_grants(&self) -> Result<Vec<GrantId>, StoreError> {
        let rows = sqlx::query(LIVE);
        grant_ids(&rows.fetch_all(self.readers()).await.map_err(StoreError::query(READING))?, READING)
    }

    /// Ends those that were not used since; a token that comes again begins a new one.
    pub(crate) async fn end_unused_shown(&self, since: UnixTime, now: UnixTime) -> Result<Vec<GrantId>, StoreError> {
        let statement = sqlx::query(
            "UPDATE grants SET revoked_at = $1, revoked_reason = 'unused' WHERE revoked_at IS NULL \
             AND COALESCE(last_used_at, created_at) < $2 \
             AND credential_id IN (SELECT c.id FROM upstream_credentials c WHERE c.is_shown = 1) RETURNING id",
        );
        let statement = statement.bind(now.secs()).bind(since.secs());
        grant_ids(&self.writer().fetch_all(KEEPING, statement).await?, KEEPING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_stands_for_forgejo_tokens_is_found_without_a_look_at_everybodys_grants() {
        let store = Store::in_memory().await.expect("a store");
        let steps = store.plan(LIVE).await;
        assert!(!steps.iter().any(|step| step.contains("SCAN grants")), "{steps:?}");
        assert!(steps.iter().any(|step| step.contains("shown_credentials")), "{steps:?}");
    }
}
