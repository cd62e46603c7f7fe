//! Session records: what outlives every child and every restart.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use tokio::try_join;

use crate::auth::principal::{Given, GrantId, Holder};
use crate::hex;
use crate::store::tidy::BATCH;
use crate::store::{Store, StoreError, tenant_of, tenant_value};
use wire::clock::UnixTime;
use wire::message::TenantId;

/// SHA-256 of a session's id: what the broker knows it by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionDigest(pub(crate) [u8; 32]);

impl std::fmt::Debug for SessionDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0.get(..4).unwrap_or_default()))
    }
}

/// A session as it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionRecord {
    /// Names it.
    pub(crate) digest: SessionDigest,
    /// The grant that it was opened with, or has moved to.
    pub(crate) grant: GrantId,
    /// Whose it is.
    pub(crate) tenant: TenantId,
    /// Negotiated.
    pub(crate) protocol_version: String,
    /// The parameters of the client's `initialize`, as JSON.
    pub(crate) initialize: String,
    /// The child's result, as JSON.
    pub(crate) answer: String,
    /// When it was opened.
    pub(crate) created_at: UnixTime,
    /// When it was last used, as far as that was written.
    pub(crate) last_used_at: UnixTime,
    /// What the client has set beyond the handshake, as JSON, as far as that was written.
    pub(crate) settings: String,
}

/// What is needed of a session that is not being used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveSession {
    /// Names it.
    pub(crate) digest: SessionDigest,
    /// What it belongs to.
    pub(crate) holder: Holder,
    /// The holder's grant that used it last.
    pub(crate) given: Given,
    /// Negotiated.
    pub(crate) protocol_version: Box<str>,
    /// When it was last used, as far as that was written.
    pub(crate) last_used_at: UnixTime,
}

const READING: &str = "reading the sessions";

/// What is read of grants and of sessions at a start, in the order in which they lie in the file.
const LIVE_GRANTS: &str =
    "SELECT id, client_id, credential_id, created_at FROM grants NOT INDEXED WHERE revoked_at IS NULL";
const OPEN_SESSIONS: &str = "SELECT session_hash, grant_id, tenant, protocol_version, last_used_at \
     FROM sessions NOT INDEXED WHERE ended_at IS NULL";

impl Store {
    /// Writes a session that was just opened; refused when its grant was revoked meanwhile.
    pub(crate) async fn insert_session(&self, session: &SessionRecord) -> Result<(), StoreError> {
        let tenant = tenant_value(session.tenant)?;
        let statement = sqlx::query(
            "INSERT INTO sessions (session_hash, grant_id, tenant, protocol_version, initialize, answer, created_at, \
             last_used_at) SELECT $1, $2, $3, $4, $5, $6, $7, $8 \
             WHERE EXISTS (SELECT 1 FROM grants WHERE id = $2 AND revoked_at IS NULL)",
        )
        .bind(session.digest.0.as_slice())
        .bind(session.grant.as_str())
        .bind(tenant)
        .bind(&session.protocol_version)
        .bind(&session.initialize)
        .bind(&session.answer)
        .bind(session.created_at.secs())
        .bind(session.last_used_at.secs());
        let done = self.writer().execute("storing a session", statement).await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::GrantRevoked) }
    }

    /// A session that has not ended.
    pub(crate) async fn find_session(&self, digest: &SessionDigest) -> Result<Option<SessionRecord>, StoreError> {
        const WHAT: &str = "reading a session";
        let row = sqlx::query(
            "SELECT grant_id, tenant, protocol_version, initialize, answer, created_at, last_used_at, settings \
             FROM sessions WHERE session_hash = $1 AND ended_at IS NULL",
        );
        let row = row.bind(digest.0.as_slice()).fetch_optional(self.readers()).await;
        let Some(row) = row.map_err(StoreError::query(WHAT))? else { return Ok(None) };
        let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(WHAT));
        let time = |name: &str| row.try_get(name).map(UnixTime::from_secs).map_err(StoreError::query(WHAT));
        Ok(Some(SessionRecord {
            digest: *digest,
            grant: GrantId::new(text("grant_id")?),
            tenant: tenant_of(&row, WHAT)?,
            protocol_version: text("protocol_version")?,
            initialize: text("initialize")?,
            answer: text("answer")?,
            created_at: time("created_at")?,
            last_used_at: time("last_used_at")?,
            settings: text("settings")?,
        }))
    }

    /// All sessions that have not ended and whose grant is not revoked, before anything changes. Both tables are read from
    /// end to end and put together here: looked up one by one, the rows of grants lie all over the file, and that takes
    /// ten times as long.
    pub(crate) async fn live_sessions(&self) -> Result<Vec<LiveSession>, StoreError> {
        let grants = self.read_each(READING, sqlx::query(LIVE_GRANTS), live_grant);
        let sessions = self.read_each(READING, sqlx::query(OPEN_SESSIONS), open_session);
        let (grants, sessions) = try_join!(grants, sessions)?;
        let grants: HashMap<GrantId, LiveGrant> = grants.into_iter().map(|grant| (grant.id.clone(), grant)).collect();
        // A few clients are everybody's.
        let mut clients = HashSet::<Arc<str>>::new();
        let mut live = Vec::with_capacity(sessions.len());
        for session in sessions {
            // Of a grant that is revoked.
            let Some(grant) = grants.get(&session.grant) else { continue };
            let client_id = clients.get(&grant.client_id).unwrap_or(&grant.client_id);
            let client_id = Arc::clone(client_id);
            clients.insert(Arc::clone(&client_id));
            live.push(LiveSession {
                digest: session.digest,
                holder: Holder { tenant: session.tenant, client_id, credential: Arc::clone(&grant.credential) },
                given: Given { at: grant.at, grant: grant.id.clone() },
                protocol_version: session.protocol_version,
                last_used_at: session.last_used_at,
            });
        }
        Ok(live)
    }

    /// Gives a session to a later grant of its holder; refused when that was revoked meanwhile.
    pub(crate) async fn move_session(&self, digest: &SessionDigest, to: &GrantId) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "UPDATE sessions SET grant_id = $1 WHERE session_hash = $2 AND \
             EXISTS (SELECT 1 FROM grants WHERE id = $1 AND revoked_at IS NULL)",
        )
        .bind(to.as_str())
        .bind(digest.0.as_slice());
        let done = self.writer().execute("moving a session", statement).await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::GrantRevoked) }
    }

    /// Whether a grant is there and was not revoked.
    pub(crate) async fn grant_stands(&self, grant: &GrantId) -> Result<bool, StoreError> {
        let found = sqlx::query("SELECT 1 FROM grants WHERE id = $1 AND revoked_at IS NULL")
            .bind(grant.as_str())
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::query("reading a grant"))?;
        Ok(found.is_some())
    }

    /// Marks a session as ended; the first reason stays. What only its children needed, and what a client may make as
    /// large as it is allowed to, goes at once.
    pub(crate) async fn end_session(
        &self,
        digest: &SessionDigest,
        reason: &'static str,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "UPDATE sessions SET ended_at = $1, end_reason = $2, initialize = '', answer = '', settings = '{}' \
             WHERE session_hash = $3 AND ended_at IS NULL",
        )
        .bind(now.secs())
        .bind(reason)
        .bind(digest.0.as_slice());
        self.writer().execute("ending a session", statement).await?;
        Ok(())
    }

    /// Writes when sessions were last used, a batch at a time: after a failure, the same may be written once more.
    pub(crate) async fn touch_sessions(&self, uses: &[(SessionDigest, UnixTime)]) -> Result<(), StoreError> {
        for uses in uses.chunks(BATCH) {
            let statements = uses.iter().map(|(digest, at)| {
                sqlx::query("UPDATE sessions SET last_used_at = $1 WHERE session_hash = $2")
                    .bind(at.secs())
                    .bind(digest.0.as_slice())
            });
            let statements: Vec<_> = statements.collect();
            self.writer().execute_all("storing the last use of sessions", statements).await?;
        }
        Ok(())
    }

    /// Writes what clients have set beyond the handshake, a batch at a time: after a failure, the same may be written
    /// once more.
    pub(crate) async fn keep_session_settings(&self, settings: &[(SessionDigest, String)]) -> Result<(), StoreError> {
        for settings in settings.chunks(BATCH) {
            let statements = settings.iter().map(|(digest, settings)| {
                sqlx::query("UPDATE sessions SET settings = $1 WHERE session_hash = $2 AND ended_at IS NULL")
                    .bind(settings)
                    .bind(digest.0.as_slice())
            });
            let statements: Vec<_> = statements.collect();
            self.writer().execute_all("storing the settings of sessions", statements).await?;
        }
        Ok(())
    }

    /// Removes sessions that ended before `before`; how many.
    pub(crate) async fn forget_sessions(&self, before: UnixTime) -> Result<u64, StoreError> {
        const WHAT: &str = "removing ended sessions";
        let found = || sqlx::query("SELECT session_hash FROM sessions WHERE ended_at < $1").bind(before.secs());
        self.remove::<Vec<u8>>(WHAT, found, "DELETE FROM sessions WHERE session_hash IN (").await
    }
}

/// A grant of [`LIVE_GRANTS`].
struct LiveGrant {
    id: GrantId,
    client_id: Arc<str>,
    credential: Arc<str>,
    at: UnixTime,
}

/// A session of [`OPEN_SESSIONS`].
struct OpenSession {
    digest: SessionDigest,
    grant: GrantId,
    tenant: TenantId,
    protocol_version: Box<str>,
    last_used_at: UnixTime,
}

fn live_grant(row: &SqliteRow) -> Result<LiveGrant, StoreError> {
    let text = |name: &str| row.try_get::<&str, _>(name).map_err(StoreError::query(READING));
    Ok(LiveGrant {
        id: GrantId::new(text("id")?),
        client_id: text("client_id")?.into(),
        credential: text("credential_id")?.into(),
        at: UnixTime::from_secs(row.try_get("created_at").map_err(StoreError::query(READING))?),
    })
}

fn open_session(row: &SqliteRow) -> Result<OpenSession, StoreError> {
    let text = |name: &str| row.try_get::<&str, _>(name).map_err(StoreError::query(READING));
    let digest: &[u8] = row.try_get("session_hash").map_err(StoreError::query(READING))?;
    Ok(OpenSession {
        digest: SessionDigest(digest.try_into().map_err(|_| StoreError::Damaged(READING))?),
        grant: GrantId::new(text("grant_id")?),
        tenant: tenant_of(row, READING)?,
        protocol_version: text("protocol_version")?.into(),
        last_used_at: UnixTime::from_secs(row.try_get("last_used_at").map_err(StoreError::query(READING))?),
    })
}

#[cfg(test)]
mod tests {
    use sqlx::AssertSqlSafe;

    use super::*;
    use crate::tests::identity::fixture::{START, fixture};

    #[tokio::test]
    async fn a_start_finds_every_session_once_however_many_there_are_and_none_in_a_damaged_store() {
        let fixture = fixture().await;
        let (store, many) = (&fixture.store, 2_500);
        let sessions = sqlx::query(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) INSERT INTO sessions \
             (session_hash, grant_id, tenant, protocol_version, initialize, answer, created_at, last_used_at) \
             SELECT randomblob(32), $2, 1, '2025-06-18', '{}', '{}', $3, $3 FROM n",
        );
        let sessions = sessions.bind(i64::try_from(many).expect("few")).bind(fixture.grant.as_str()).bind(START.secs());
        store.writer().execute(READING, sessions).await.expect("stored");
        let mut found: Vec<_> = store.live_sessions().await.expect("read").iter().map(|live| live.digest.0).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), many);
        for damage in
            ["session_hash = x'00'", "tenant = 'x'", "tenant = 0", "protocol_version = x'ff'", "last_used_at = 'x'"]
        {
            let damaged = sqlx::query(AssertSqlSafe(format!("UPDATE sessions SET {damage} WHERE rowid = 7")));
            store.writer().execute(READING, damaged).await.expect("damaged");
            assert!(store.live_sessions().await.is_err(), "{damage}");
            let restored = "UPDATE sessions SET (session_hash, tenant, protocol_version, last_used_at) = \
                            (SELECT randomblob(32), tenant, protocol_version, last_used_at FROM sessions WHERE rowid = 8) \
                            WHERE rowid = 7";
            store.writer().execute(READING, sqlx::query(restored)).await.expect("restored");
        }
        assert_eq!(store.live_sessions().await.expect("read").len(), many);
    }
}
