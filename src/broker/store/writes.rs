//! The last calls of each grant that may have changed something, for its user to see. The journal has them all.

use std::borrow::Cow;

use sqlx::Row;

use crate::auth::principal::GrantId;
use crate::store::tidy::BATCH;
use crate::store::{Store, StoreError, tenant_value};
use wire::clock::UnixTime;
use wire::message::TenantId;

/// Calls that are kept of a grant.
pub(crate) const WRITES_KEPT: u32 = 20;

/// A call that may have changed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WriteCall {
    /// Whose.
    pub(crate) grant: GrantId,
    /// When it ended.
    pub(crate) at: UnixTime,
    /// The tool's name, as the audit tells it.
    pub(crate) tool: String,
    /// The repository, or what else was named, as the audit tells it; empty where nothing was.
    pub(crate) target: String,
    /// How it ended, in the audit's words.
    pub(crate) outcome: Cow<'static, str>,
}

const READING: &str = "reading a user's last writes";

impl Store {
    /// Writes calls, in their order, and forgets those that are more than [`WRITES_KEPT`] calls old.
    pub(crate) async fn keep_writes(&self, calls: &[WriteCall]) -> Result<(), StoreError> {
        for calls in calls.chunks(BATCH) {
            let statements = calls.iter().flat_map(|call| {
                // A grant that has been removed since has none.
                let insert = sqlx::query(
                    "INSERT INTO grant_writes (grant_id, number, called_at, tool, target, outcome) \
                     SELECT g.id, COALESCE((SELECT MAX(number) FROM grant_writes w WHERE w.grant_id = g.id), 0) + 1, \
                     $2, $3, $4, $5 FROM grants g WHERE g.id = $1",
                )
                .bind(call.grant.as_str())
                .bind(call.at.secs())
                .bind(&call.tool)
                .bind(&call.target)
                .bind(call.outcome.as_ref());
                let forget = sqlx::query(
                    "DELETE FROM grant_writes WHERE grant_id = $1 AND number <= \
                     (SELECT MAX(number) FROM grant_writes w WHERE w.grant_id = $1) - $2",
                )
                .bind(call.grant.as_str())
                .bind(WRITES_KEPT);
                [insert, forget]
            });
            let statements: Vec<_> = statements.collect();
            self.writer().execute_all("keeping the last writes", statements).await?;
        }
        Ok(())
    }

    /// What is kept of all live grants of a user, the last call first.
    pub(crate) async fn writes_of(&self, tenant: TenantId) -> Result<Vec<WriteCall>, StoreError> {
        let rows = sqlx::query(
            "SELECT w.grant_id, w.called_at, w.tool, w.target, w.outcome FROM grant_writes w \
             JOIN grants g ON g.id = w.grant_id WHERE g.tenant = $1 AND g.revoked_at IS NULL \
             ORDER BY w.grant_id, w.number DESC",
        )
        .bind(tenant_value(tenant)?)
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query(READING))?;
        let call = |row: &sqlx::sqlite::SqliteRow| {
            let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(READING));
            Ok(WriteCall {
                grant: GrantId::new(text("grant_id")?),
                at: UnixTime::from_secs(row.try_get("called_at").map_err(StoreError::query(READING))?),
                tool: text("tool")?,
                target: text("target")?,
                outcome: text("outcome")?.into(),
            })
        };
        rows.iter().map(call).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::identity::fixture::{START, fixture};

    #[tokio::test]
    async fn the_last_twenty_calls_of_a_grant_are_kept_and_no_more_however_many_there_were() {
        let fixture = fixture().await;
        let call = |n: u32| WriteCall {
            grant: fixture.grant.clone(),
            at: START,
            tool: format!("tool-{n}"),
            target: "acme/site".to_owned(),
            outcome: "ok".into(),
        };
        let (store, user) = (&fixture.store, TenantId::new(1).expect("an id"));
        let calls: Vec<_> = (0..50).map(call).collect();
        store.keep_writes(&calls).await.expect("kept");
        store.keep_writes(&[call(50)]).await.expect("kept");
        let gone = WriteCall { grant: GrantId::new("gone"), ..call(0) };
        store.keep_writes(&[gone]).await.expect("nothing to keep it for");
        let kept = store.writes_of(user).await.expect("read");
        let tools: Vec<_> = kept.iter().map(|call| call.tool.clone()).collect();
        assert_eq!(tools, (31..=50).rev().map(|n| format!("tool-{n}")).collect::<Vec<_>>());
        assert!(store.writes_of(TenantId::new(2).expect("an id")).await.expect("read").is_empty());
        store.revoke_grant(&fixture.grant, "test", START).await.expect("revoked");
        store.tidy(START.plus(std::time::Duration::from_hours(24 * 365))).await.expect("tidied");
        let left: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM grant_writes").fetch_one(store.readers()).await.expect("n");
        assert_eq!(left, 0, "they go with their grant");
    }
}
