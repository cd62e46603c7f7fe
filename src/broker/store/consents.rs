//! What people agreed to, and what they are connected with: the account page's view.

use sqlx::{QueryBuilder, Row};

use crate::auth::principal::{GrantId, Scopes};
use crate::store::writer::Statement;
use crate::store::{Store, StoreError, tenant_value};
use wire::clock::UnixTime;
use wire::message::TenantId;

/// A remembered approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Consent {
    /// Who agreed.
    pub(crate) tenant: TenantId,
    /// The client.
    pub(crate) client_id: String,
    /// What it called itself then.
    pub(crate) client_name: String,
    /// Where its codes go, without the port where that is on this machine.
    pub(crate) redirect: String,
    /// What was agreed to.
    pub(crate) scopes: Scopes,
}

/// A live connection of a user, for their own eyes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Names it.
    pub(crate) grant: GrantId,
    /// The client.
    pub(crate) client_id: String,
    /// What it calls itself.
    pub(crate) client_name: String,
    /// What it may do.
    pub(crate) scopes: Scopes,
    /// When it was connected.
    pub(crate) created_at: UnixTime,
    /// When it was last used, as far as that was written.
    pub(crate) last_used_at: Option<UnixTime>,
    /// From which network, then.
    pub(crate) network: Option<String>,
    /// Whether its user has not been shown it.
    pub(crate) is_new: bool,
    /// Sessions that have not ended.
    pub(crate) sessions: usize,
}

const READING: &str = "reading consents";
const CONNECTIONS: &str = "reading a user's connections";

/// A connection that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedConnection {
    /// What its client calls itself.
    pub(crate) client_name: String,
    /// Why, as it was logged.
    pub(crate) reason: String,
    /// When.
    pub(crate) at: UnixTime,
}

impl Consent {
    /// Remembers it; a later one for the same client and place replaces it.
    pub(super) fn statement(&self, now: UnixTime) -> Result<Statement<'_>, StoreError> {
        Ok(sqlx::query(
            "INSERT INTO consents (tenant, client_id, redirect, client_name, scopes, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant, client_id, redirect) DO UPDATE SET \
             client_name = excluded.client_name, scopes = excluded.scopes, created_at = excluded.created_at",
        )
        .bind(tenant_value(self.tenant)?)
        .bind(&self.client_id)
        .bind(&self.redirect)
        .bind(&self.client_name)
        .bind(self.scopes.as_str())
        .bind(now.secs()))
    }
}

impl Store {
    /// What a user has agreed to, the newest first.
    pub(crate) async fn consents_of(&self, tenant: TenantId) -> Result<Vec<Consent>, StoreError> {
        let rows = sqlx::query(
            "SELECT client_id, client_name, redirect, scopes FROM consents WHERE tenant = $1 \
             ORDER BY created_at DESC, client_id, redirect",
        )
        .bind(tenant_value(tenant)?)
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query(READING))?;
        let consent = |row: &sqlx::sqlite::SqliteRow| {
            let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(READING));
            Ok(Consent {
                tenant,
                client_id: text("client_id")?,
                client_name: text("client_name")?,
                redirect: text("redirect")?,
                scopes: Scopes::parse(&text("scopes")?),
            })
        };
        rows.iter().map(consent).collect()
    }

    /// The scopes that a user has agreed to for this client and this place.
    pub(crate) async fn find_consent(
        &self,
        tenant: TenantId,
        client_id: &str,
        redirect: &str,
    ) -> Result<Option<Scopes>, StoreError> {
        let row = sqlx::query("SELECT scopes FROM consents WHERE tenant = $1 AND client_id = $2 AND redirect = $3")
            .bind(tenant_value(tenant)?)
            .bind(client_id)
            .bind(redirect)
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::query(READING))?;
        let scopes = row.map(|row| row.try_get::<String, _>("scopes")).transpose();
        Ok(scopes.map_err(StoreError::query(READING))?.map(|scopes| Scopes::parse(&scopes)))
    }

    /// Forgets what a user has agreed to for a client.
    pub(crate) async fn forget_consents(&self, tenant: TenantId, client_id: &str) -> Result<(), StoreError> {
        let statement = sqlx::query("DELETE FROM consents WHERE tenant = $1 AND client_id = $2")
            .bind(tenant_value(tenant)?)
            .bind(client_id);
        self.writer().execute("forgetting a consent", statement).await?;
        Ok(())
    }

    /// Forgets all that a user has agreed to.
    pub(crate) async fn forget_all_consents(&self, tenant: TenantId) -> Result<(), StoreError> {
        let statement = sqlx::query("DELETE FROM consents WHERE tenant = $1").bind(tenant_value(tenant)?);
        self.writer().execute("forgetting all consents", statement).await?;
        Ok(())
    }

    /// The grants of a user that were revoked for one of `reasons` since `since`, the last one first.
    pub(crate) async fn ended_connections_of(
        &self,
        tenant: TenantId,
        reasons: &[&str],
        since: UnixTime,
    ) -> Result<Vec<EndedConnection>, StoreError> {
        let mut query = QueryBuilder::new(
            "SELECT c.name, g.revoked_at, g.revoked_reason FROM grants g JOIN clients c ON c.client_id = g.client_id \
             WHERE g.tenant = ",
        );
        query.push_bind(tenant_value(tenant)?).push(" AND g.revoked_at >= ").push_bind(since.secs());
        query.push(" AND g.revoked_reason IN (");
        let mut list = query.separated(", ");
        for reason in reasons {
            list.push_bind(*reason);
        }
        query.push(") ORDER BY g.revoked_at DESC LIMIT 20");
        let rows = query.build().fetch_all(self.readers()).await.map_err(StoreError::query(CONNECTIONS))?;
        let ended = |row: &sqlx::sqlite::SqliteRow| {
            let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(CONNECTIONS));
            let at = row.try_get("revoked_at").map_err(StoreError::query(CONNECTIONS))?;
            Ok(EndedConnection {
                client_name: text("name")?,
                reason: text("revoked_reason")?,
                at: UnixTime::from_secs(at),
            })
        };
        rows.iter().map(ended).collect()
    }

    /// The user has been shown all of their connections.
    pub(crate) async fn note_seen(&self, tenant: TenantId, now: UnixTime) -> Result<(), StoreError> {
        let statement = sqlx::query("UPDATE grants SET seen_at = $1 WHERE tenant = $2 AND seen_at IS NULL")
            .bind(now.secs())
            .bind(tenant_value(tenant)?);
        self.writer().execute("noting what a user was shown", statement).await?;
        Ok(())
    }

    /// Takes writing away from a live grant, and forgets what its user agreed to for its client, so that it does not come
    /// back unasked; whether there was something to take.
    pub(crate) async fn reduce_grant(&self, grant: &GrantId, now: UnixTime) -> Result<bool, StoreError> {
        let mut write = self.writer().begin("reducing a grant").await?;
        let reduce = sqlx::query(
            "UPDATE grants SET scopes = $1, reduced_at = $2 WHERE id = $3 AND scopes <> $1 AND revoked_at IS NULL",
        );
        let reduce = reduce.bind(Scopes { write: false }.as_str()).bind(now.secs()).bind(grant.as_str());
        let is_less = write.execute(reduce).await?.rows_affected() > 0;
        let forget = sqlx::query(
            "DELETE FROM consents WHERE EXISTS (SELECT 1 FROM grants g WHERE g.id = $1 AND g.tenant = consents.tenant \
             AND g.client_id = consents.client_id)",
        );
        write.execute(forget.bind(grant.as_str())).await?;
        write.commit().await?;
        Ok(is_less)
    }

    /// The live grants of a user, the newest first.
    pub(crate) async fn connections_of(&self, tenant: TenantId) -> Result<Vec<Connection>, StoreError> {
        let rows = sqlx::query(
            "SELECT g.id, g.client_id, c.name, g.scopes, g.created_at, g.last_used_at, \
             g.network, g.seen_at, \
             (SELECT COUNT(*) FROM sessions s WHERE s.grant_id = g.id AND s.ended_at IS NULL) AS open FROM grants g \
             JOIN clients c ON c.client_id = g.client_id WHERE g.tenant = $1 AND g.revoked_at IS NULL \
             ORDER BY g.created_at DESC, g.id",
        )
        .bind(tenant_value(tenant)?)
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query(CONNECTIONS))?;
        let connection = |row: &sqlx::sqlite::SqliteRow| {
            let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(CONNECTIONS));
            let time = |name: &str| row.try_get::<Option<i64>, _>(name).map_err(StoreError::query(CONNECTIONS));
            Ok(Connection {
                grant: GrantId::new(text("id")?),
                client_id: text("client_id")?,
                client_name: text("name")?,
                scopes: Scopes::parse(&text("scopes")?),
                created_at: UnixTime::from_secs(time("created_at")?.ok_or(StoreError::Damaged(CONNECTIONS))?),
                last_used_at: time("last_used_at")?.map(UnixTime::from_secs),
                network: row.try_get("network").map_err(StoreError::query(CONNECTIONS))?,
                is_new: time("seen_at")?.is_none(),
                sessions: usize::try_from(time("open")?.unwrap_or_default()).unwrap_or_default(),
            })
        };
        rows.iter().map(connection).collect()
    }
}
