//! What is over goes. What tells a thief from its owner (used refresh tokens, redeemed codes) stays until it would
//! have expired anyway.

use std::time::Duration;

use crate::auth::principal::GrantId;
use crate::store::{Store, StoreError, grant_ids};
use wire::clock::UnixTime;

/// Access tokens stay for so long after their end, so that a client is told «expired» and not «unknown».
const AFTER_THE_END: Duration = Duration::from_hours(24);
/// Codes stay for so long, so that a second redemption is noticed.
const CODES: Duration = Duration::from_hours(24);
/// Forgejo's tokens that no live grant needs stay for so long: a code that is on its way may make one.
const UNNEEDED: Duration = Duration::from_hours(1);
/// Revoked grants stay for so long, for an operator who asks what became of one.
const REVOKED: Duration = Duration::from_hours(90 * 24);

const WHAT: &str = "removing what has expired";

impl Store {
    /// Revokes the grants whose last refresh token has expired, gives them back, and removes what is over.
    pub(crate) async fn tidy(&self, now: UnixTime) -> Result<Vec<GrantId>, StoreError> {
        let failed = || StoreError::query(WHAT);
        let mut transaction = self.0.begin().await.map_err(failed())?;
        let ended = sqlx::query(
            "UPDATE grants SET revoked_at = $1, revoked_reason = 'expired' WHERE revoked_at IS NULL \
             AND EXISTS (SELECT 1 FROM refresh_tokens r WHERE r.grant_id = grants.id) \
             AND NOT EXISTS (SELECT 1 FROM refresh_tokens r WHERE r.grant_id = grants.id AND r.expires_at > $1) \
             RETURNING id",
        )
        .bind(now.secs())
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed())?;
        let (ended_before, revoked_before) = (now.minus(AFTER_THE_END).secs(), now.minus(REVOKED).secs());
        let statements = [
            // Tokens made by the operator stay, for the operator's list.
            sqlx::query(
                "DELETE FROM access_tokens WHERE expires_at < $1 AND grant_id IN (SELECT g.id FROM grants g \
                 JOIN upstream_credentials c ON c.id = g.credential_id WHERE c.kind = 'oauth')",
            )
            .bind(ended_before),
            sqlx::query(
                "DELETE FROM refresh_tokens WHERE expires_at < $1 AND EXISTS \
                 (SELECT 1 FROM grants g WHERE g.id = refresh_tokens.grant_id AND \
                 (g.revoked_at IS NOT NULL OR refresh_tokens.used_at IS NOT NULL OR EXISTS \
                 (SELECT 1 FROM refresh_tokens r WHERE r.grant_id = g.id AND r.expires_at > $2)))",
            )
            .bind(ended_before)
            .bind(now.secs()),
            sqlx::query("DELETE FROM authorization_codes WHERE created_at < $1").bind(now.minus(CODES).secs()),
            sqlx::query("DELETE FROM visits WHERE expires_at < $1").bind(now.secs()),
            // What nobody needs any more cannot be stolen: the row stays for the grants that name it, empty.
            sqlx::query(
                "UPDATE upstream_credentials SET access_sealed = $1, refresh_sealed = NULL, access_expires_at = NULL \
                 WHERE updated_at < $2 AND access_sealed <> $1 AND NOT EXISTS (SELECT 1 FROM grants g \
                 WHERE g.credential_id = upstream_credentials.id AND g.revoked_at IS NULL)",
            )
            .bind(Vec::<u8>::new())
            .bind(now.minus(UNNEEDED).secs()),
            sqlx::query("DELETE FROM sessions WHERE grant_id IN (SELECT id FROM grants WHERE revoked_at < $1)")
                .bind(revoked_before),
            sqlx::query("DELETE FROM access_tokens WHERE grant_id IN (SELECT id FROM grants WHERE revoked_at < $1)")
                .bind(revoked_before),
            sqlx::query("DELETE FROM refresh_tokens WHERE grant_id IN (SELECT id FROM grants WHERE revoked_at < $1)")
                .bind(revoked_before),
            sqlx::query("DELETE FROM grants WHERE revoked_at < $1").bind(revoked_before),
        ];
        for statement in statements {
            statement.execute(&mut *transaction).await.map_err(failed())?;
        }
        transaction.commit().await.map_err(failed())?;
        grant_ids(&ended, WHAT)
    }
}
