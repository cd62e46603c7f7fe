//! Session records: what outlives every child and every restart.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

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
    pub(crate) protocol_version: String,
    /// When it was last used, as far as that was written.
    pub(crate) last_used_at: UnixTime,
}

/// The columns of a [`LiveSession`], more, and which.
macro_rules! live_sessions {
    ($more:literal, $which:literal) => {
        concat!(
            "SELECT s.session_hash, s.grant_id, s.tenant, s.protocol_version, s.last_used_at, g.client_id, g.credential_id, \
             g.created_at AS granted_at",
            $more,
            " FROM sessions s JOIN grants g ON g.id = s.grant_id WHERE s.ended_at IS NULL AND ",
            $which
        )
    };
}

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
        let row =
            sqlx::query(live_sessions!(", s.initialize, s.answer, s.settings, s.created_at", "s.session_hash = $1"))
                .bind(digest.0.as_slice())
                .fetch_optional(self.readers())
                .await
                .map_err(StoreError::query("reading a session"))?;
        let Some(row) = row else { return Ok(None) };
        let live = live(&row)?;
        let column = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query("reading a session"));
        let created_at = row.try_get("created_at").map_err(StoreError::query("reading a session"))?;
        Ok(Some(SessionRecord {
            digest: live.digest,
            grant: live.given.grant,
            tenant: live.holder.tenant,
            protocol_version: live.protocol_version,
            initialize: column("initialize")?,
            answer: column("answer")?,
            created_at: UnixTime::from_secs(created_at),
            last_used_at: live.last_used_at,
            settings: column("settings")?,
        }))
    }

    /// All sessions that have not ended and whose grant is not revoked.
    pub(crate) async fn live_sessions(&self) -> Result<Vec<LiveSession>, StoreError> {
        let query = sqlx::query(live_sessions!("", "g.revoked_at IS NULL"));
        self.read_each("reading the sessions", query, live).await
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

fn live(row: &SqliteRow) -> Result<LiveSession, StoreError> {
    const WHAT: &str = "reading a session";
    let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(WHAT));
    let number = |name: &str| row.try_get::<i64, _>(name).map_err(StoreError::query(WHAT));
    let digest: Vec<u8> = row.try_get("session_hash").map_err(StoreError::query(WHAT))?;
    Ok(LiveSession {
        digest: SessionDigest(digest.try_into().map_err(|_| StoreError::Damaged(WHAT))?),
        holder: Holder {
            tenant: tenant_of(row, WHAT)?,
            client_id: text("client_id")?.into(),
            credential: text("credential_id")?.into(),
        },
        given: Given { at: UnixTime::from_secs(number("granted_at")?), grant: GrantId::new(text("grant_id")?) },
        protocol_version: text("protocol_version")?,
        last_used_at: UnixTime::from_secs(number("last_used_at")?),
    })
}
