//! What is over goes. What tells a thief from its owner (used refresh tokens, redeemed codes) stays until it would
//! have expired anyway.

use std::time::Duration;

use sqlx::Row;

use super::{Store, StoreError};
use crate::clock::UnixTime;
use crate::frontend::principal::GrantId;

/// Access tokens stay for so long after their end, so that a client is told «expired» and not «unknown».
const AFTER_THE_END: Duration = Duration::from_hours(24);
/// Codes stay for so long, so that a second redemption is noticed.
const CODES: Duration = Duration::from_hours(24);

impl Store {
    /// Removes what has expired, and revokes the grants whose last refresh token has; those are given back.
    pub async fn tidy(&self, now: UnixTime) -> Result<Vec<GrantId>, StoreError> {
        const WHAT: &str = "removing what has expired";
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
        let statements = [
            // Tokens made by the operator stay, for the operator's list.
            sqlx::query(
                "DELETE FROM access_tokens WHERE expires_at < $1 \
                 AND EXISTS (SELECT 1 FROM refresh_tokens r WHERE r.grant_id = access_tokens.grant_id)",
            )
            .bind(now.minus(AFTER_THE_END).secs()),
            sqlx::query(
                "DELETE FROM refresh_tokens WHERE expires_at < $1 AND EXISTS \
                 (SELECT 1 FROM grants g WHERE g.id = refresh_tokens.grant_id AND \
                 (g.revoked_at IS NOT NULL OR refresh_tokens.used_at IS NOT NULL))",
            )
            .bind(now.minus(AFTER_THE_END).secs()),
            sqlx::query("DELETE FROM authorization_codes WHERE created_at < $1").bind(now.minus(CODES).secs()),
            sqlx::query("DELETE FROM visits WHERE expires_at < $1").bind(now.secs()),
        ];
        for statement in statements {
            statement.execute(&mut *transaction).await.map_err(failed())?;
        }
        transaction.commit().await.map_err(failed())?;
        let id = |row: &sqlx::sqlite::SqliteRow| row.try_get::<String, _>("id").map(GrantId::new);
        ended.iter().map(|row| id(row).map_err(failed())).collect()
    }
}
