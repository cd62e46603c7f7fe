//! Open sessions and known clients as the operator lists them: a page at a time, in the order of an index.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::auth::principal::GrantId;
use crate::store::users::tenants_called;
use crate::store::{SessionDigest, Store, StoreError, tenant_of};
use wire::clock::UnixTime;
use wire::message::TenantId;

/// An open session.
#[derive(Debug)]
pub(crate) struct OpenSession {
    /// Names it.
    pub(crate) digest: SessionDigest,
    /// Whose it is.
    pub(crate) tenant: TenantId,
    /// Their login.
    pub(crate) login: String,
    /// The grant that it lives on.
    pub(crate) grant: GrantId,
    /// The grant's client.
    pub(crate) client_id: String,
    /// What that calls itself.
    pub(crate) client_name: String,
    /// Negotiated.
    pub(crate) version: String,
    /// What the child said of itself at the handshake, as JSON.
    pub(crate) answer: String,
    /// When it was opened.
    pub(crate) created_at: UnixTime,
    /// When it was last used, as far as that was written.
    pub(crate) last_used_at: UnixTime,
}

/// A client that was ever connected, or has registered and may be.
#[derive(Debug)]
pub(crate) struct KnownClient {
    /// Names it.
    pub(crate) client_id: String,
    /// What it calls itself.
    pub(crate) name: String,
    /// When it was first seen.
    pub(crate) created_at: UnixTime,
    /// Grants that are not revoked.
    pub(crate) grants: i64,
    /// When one of them was last used.
    pub(crate) last_used_at: Option<UnixTime>,
}

const SESSIONS: &str = "reading the open sessions";
const CLIENTS: &str = "reading the clients";

/// Before the place ($1, $2), $3 rows.
macro_rules! sessions_page {
    ($which:expr) => {
        concat!(
            "SELECT s.session_hash, s.tenant, s.grant_id, s.protocol_version, s.answer, s.created_at, s.last_used_at, \
             u.login, g.client_id, c.name FROM sessions s JOIN grants g ON g.id = s.grant_id \
             JOIN users u ON u.tenant = s.tenant JOIN clients c ON c.client_id = g.client_id \
             WHERE s.ended_at IS NULL AND g.revoked_at IS NULL AND (s.created_at, s.session_hash) < ($1, $2) ",
            $which,
            "ORDER BY s.created_at DESC, s.session_hash DESC LIMIT $3"
        )
    };
}

impl Store {
    /// Open sessions of the accounts with a login, or of everybody, the newest first: at most `limit` of those behind
    /// `after`.
    pub(crate) async fn sessions_after(
        &self,
        user: Option<&str>,
        after: Option<(UnixTime, SessionDigest)>,
        limit: u32,
    ) -> Result<Vec<OpenSession>, StoreError> {
        let (at, digest) = after.map_or((i64::MAX, [0; 32]), |(at, digest)| (at.secs(), digest.0));
        let statement = match user {
            None => sqlx::query(sessions_page!("")).bind(at).bind(digest.to_vec()).bind(limit),
            Some(user) => sqlx::query(sessions_page!(concat!("AND s.tenant IN ", tenants_called!("$4"), " ")))
                .bind(at)
                .bind(digest.to_vec())
                .bind(limit)
                .bind(user),
        };
        let rows = statement.fetch_all(self.readers()).await.map_err(StoreError::query(SESSIONS))?;
        rows.iter().map(session).collect()
    }

    /// Clients by their id, after `after`, at most `limit`.
    pub(crate) async fn clients_after(&self, after: &str, limit: u32) -> Result<Vec<KnownClient>, StoreError> {
        let rows = sqlx::query(
            "SELECT k.client_id, k.name, k.created_at, \
             (SELECT COUNT(*) FROM grants g WHERE g.client_id = k.client_id AND g.revoked_at IS NULL) AS live, \
             (SELECT MAX(g.last_used_at) FROM grants g WHERE g.client_id = k.client_id AND g.revoked_at IS NULL) AS used_at \
             FROM (SELECT client_id, name, created_at FROM clients WHERE client_id > $1 UNION ALL \
             SELECT client_id, name, created_at FROM registered_clients r WHERE client_id > $1 AND NOT EXISTS \
             (SELECT 1 FROM clients c WHERE c.client_id = r.client_id) ORDER BY client_id LIMIT $2) k ORDER BY k.client_id",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query(CLIENTS))?;
        rows.iter().map(client).collect()
    }
}

fn session(row: &SqliteRow) -> Result<OpenSession, StoreError> {
    let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(SESSIONS));
    let time = |name: &str| row.try_get(name).map(UnixTime::from_secs).map_err(StoreError::query(SESSIONS));
    let digest: Vec<u8> = row.try_get("session_hash").map_err(StoreError::query(SESSIONS))?;
    Ok(OpenSession {
        digest: SessionDigest(digest.try_into().map_err(|_| StoreError::Damaged(SESSIONS))?),
        tenant: tenant_of(row, SESSIONS)?,
        login: text("login")?,
        grant: GrantId::new(text("grant_id")?),
        client_id: text("client_id")?,
        client_name: text("name")?,
        version: text("protocol_version")?,
        answer: text("answer")?,
        created_at: time("created_at")?,
        last_used_at: time("last_used_at")?,
    })
}

fn client(row: &SqliteRow) -> Result<KnownClient, StoreError> {
    let number = |name: &str| row.try_get::<Option<i64>, _>(name).map_err(StoreError::query(CLIENTS));
    Ok(KnownClient {
        client_id: row.try_get("client_id").map_err(StoreError::query(CLIENTS))?,
        name: row.try_get("name").map_err(StoreError::query(CLIENTS))?,
        created_at: UnixTime::from_secs(number("created_at")?.ok_or(StoreError::Damaged(CLIENTS))?),
        grants: number("live")?.unwrap_or_default(),
        last_used_at: number("used_at")?.map(UnixTime::from_secs),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_of_sessions_is_read_in_the_order_of_an_index_and_nothing_is_sorted() {
        let store = Store::in_memory().await.expect("a store");
        let steps = store.plan(sessions_page!("")).await;
        assert!(steps.iter().any(|step| step.contains("live_sessions_by_age")), "{steps:?}");
        assert!(!steps.iter().any(|step| step.contains("ORDER BY")), "{steps:?}");
    }
}
