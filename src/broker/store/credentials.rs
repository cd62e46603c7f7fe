//! Upstream credentials: the user's Forgejo tokens, sealed.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::auth::principal::GrantId;
use crate::forge::vault::Sealed;
use crate::store::users::user_row;
use crate::store::{Store, StoreError, grant_ids, tenant_of, tenant_value};
use wire::clock::UnixTime;
use wire::message::{Label, TenantId};

/// A credential as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credential {
    /// Names it, and is part of what seals it.
    pub(crate) id: String,
    /// Whose.
    pub(crate) tenant: TenantId,
    /// The access token.
    pub(crate) access: Sealed,
    /// The refresh token; personal tokens have none.
    pub(crate) refresh: Option<Sealed>,
    /// When the access token ends; unknown for personal tokens.
    pub(crate) expires_at: Option<UnixTime>,
    /// The client id of the application that the tokens are of; none for personal tokens.
    pub(crate) application: Option<String>,
    /// Since when Forgejo does not let the account in, while it may do so again.
    pub(crate) barred_since: Option<UnixTime>,
}

const READING: &str = "reading a credential";

/// The columns that [`credential`] reads, from `upstream_credentials c`.
macro_rules! credential_rows {
    ($which:literal) => {
        concat!(
            "SELECT c.id, c.tenant, c.key_id, c.access_sealed, c.refresh_sealed, c.access_expires_at, \
             c.application, c.barred_since FROM upstream_credentials c ",
            $which
        )
    };
}

impl Store {
    /// Stores the user and the credential of a login at Forgejo, both or neither. There is one credential a user: an
    /// earlier one is replaced under its own id, because Forgejo has just made its refresh token worthless, and the
    /// grants that stand on it go on with the new one.
    pub(crate) async fn put_oauth_credential(
        &self,
        credential: &Credential,
        login: &Label,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let tenant = tenant_value(credential.tenant)?;
        let statements = [
            user_row(tenant, login, now),
            sqlx::query(
                "INSERT INTO upstream_credentials (id, tenant, kind, key_id, access_sealed, refresh_sealed, \
                 access_expires_at, updated_at, application) VALUES ($1, $2, 'oauth', $3, $4, $5, $6, $7, $8) \
                 ON CONFLICT (id) DO UPDATE SET key_id = excluded.key_id, access_sealed = excluded.access_sealed, \
                 refresh_sealed = excluded.refresh_sealed, access_expires_at = excluded.access_expires_at, \
                 updated_at = excluded.updated_at, application = excluded.application",
            )
            .bind(&credential.id)
            .bind(tenant)
            .bind(&credential.access.key_id)
            .bind(&credential.access.bytes)
            .bind(credential.refresh.as_ref().map(|refresh| &refresh.bytes))
            .bind(credential.expires_at.map(UnixTime::secs))
            .bind(now.secs())
            .bind(&credential.application),
        ];
        self.writer().execute_all("storing a credential", statements).await
    }

    /// Stores what a refresh gave, unless the credential is no longer the one that was refreshed; whether it was.
    pub(crate) async fn replace_credential(
        &self,
        old: &Credential,
        fresh: &Credential,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        let statement = sqlx::query(
            "UPDATE upstream_credentials SET key_id = $1, access_sealed = $2, refresh_sealed = $3, \
             access_expires_at = $4, updated_at = $5 WHERE id = $6 AND refresh_sealed = $7",
        )
        .bind(&fresh.access.key_id)
        .bind(&fresh.access.bytes)
        .bind(fresh.refresh.as_ref().map(|refresh| &refresh.bytes))
        .bind(fresh.expires_at.map(UnixTime::secs))
        .bind(now.secs())
        .bind(&old.id)
        .bind(old.refresh.as_ref().map(|refresh| &refresh.bytes));
        let done = self.writer().execute("replacing a credential", statement).await?;
        Ok(done.rows_affected() > 0)
    }

    /// The id of a user's credential from a login at Forgejo.
    pub(crate) async fn oauth_credential_of(&self, tenant: TenantId) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT id FROM upstream_credentials WHERE tenant = $1 AND kind = 'oauth'")
            .bind(tenant_value(tenant)?)
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::query(READING))?;
        row.map(|row| row.try_get("id")).transpose().map_err(StoreError::query(READING))
    }

    /// Notes the scopes that Forgejo holds a user to.
    pub(crate) async fn note_granted_scopes(&self, credential: &str, scopes: &[String]) -> Result<(), StoreError> {
        let statement = sqlx::query("UPDATE upstream_credentials SET granted_scopes = $1 WHERE id = $2")
            .bind(scopes.join(" "))
            .bind(credential);
        self.writer().execute("noting Forgejo's scopes", statement).await?;
        Ok(())
    }

    /// The scopes that Forgejo holds a user to, as far as it has told.
    pub(crate) async fn granted_scopes_of(&self, tenant: TenantId) -> Result<Option<Vec<String>>, StoreError> {
        let row = sqlx::query("SELECT granted_scopes FROM upstream_credentials WHERE tenant = $1 AND kind = 'oauth'")
            .bind(tenant_value(tenant)?)
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::query(READING))?;
        let text: Option<Option<String>> =
            row.map(|row| row.try_get("granted_scopes")).transpose().map_err(StoreError::query(READING))?;
        Ok(text.flatten().map(|text| text.split_whitespace().map(ToOwned::to_owned).collect()))
    }

    /// One credential.
    pub(crate) async fn find_credential(&self, id: &str) -> Result<Option<Credential>, StoreError> {
        let row = sqlx::query(credential_rows!("WHERE c.id = $1"))
            .bind(id)
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::query(READING))?;
        row.as_ref().map(credential).transpose()
    }

    /// Credentials that a live grant needs and whose access token ends before `before`.
    pub(crate) async fn credentials_ending(&self, before: UnixTime) -> Result<Vec<Credential>, StoreError> {
        let query = sqlx::query(credential_rows!(
            "WHERE kind = 'oauth' AND access_expires_at < $1 AND EXISTS \
             (SELECT 1 FROM grants g WHERE g.credential_id = c.id AND g.revoked_at IS NULL)"
        ));
        self.read_each("reading the credentials", query.bind(before.secs()), credential).await
    }

    /// Revokes every grant that stands on a credential, all or none; which.
    pub(crate) async fn revoke_grants_on(
        &self,
        credential: &str,
        reason: &'static str,
        now: UnixTime,
    ) -> Result<Vec<GrantId>, StoreError> {
        const WHAT: &str = "revoking a credential's grants";
        let statement = sqlx::query(
            "UPDATE grants SET revoked_at = $1, revoked_reason = $2 WHERE credential_id = $3 AND revoked_at IS NULL \
             RETURNING id",
        )
        .bind(now.secs())
        .bind(reason)
        .bind(credential);
        grant_ids(&self.writer().fetch_all(WHAT, statement).await?, WHAT)
    }

    /// Erases Forgejo's tokens of a credential, unless it holds others by now. The row stays for what names it.
    pub(crate) async fn erase_credential(&self, held: &Credential) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "UPDATE upstream_credentials SET access_sealed = $1, refresh_sealed = NULL, access_expires_at = NULL \
             WHERE id = $2 AND access_sealed = $3",
        )
        .bind(Vec::<u8>::new())
        .bind(&held.id)
        .bind(&held.access.bytes);
        self.writer().execute("erasing a credential", statement).await?;
        Ok(())
    }

    /// The live grants that stand on a credential.
    pub(crate) async fn grants_on(&self, credential: &str) -> Result<Vec<GrantId>, StoreError> {
        let rows = sqlx::query("SELECT id FROM grants WHERE credential_id = $1 AND revoked_at IS NULL ORDER BY id")
            .bind(credential)
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::query("reading a credential's grants"))?;
        grant_ids(&rows, "reading a credential's grants")
    }
}

/// A row with the columns of a [`Credential`].
fn credential(row: &SqliteRow) -> Result<Credential, StoreError> {
    let failed = || StoreError::query(READING);
    let key_id: String = row.try_get("key_id").map_err(failed())?;
    let refresh: Option<Vec<u8>> = row.try_get("refresh_sealed").map_err(failed())?;
    let expires_at: Option<i64> = row.try_get("access_expires_at").map_err(failed())?;
    let barred: Option<i64> = row.try_get("barred_since").map_err(failed())?;
    Ok(Credential {
        id: row.try_get("id").map_err(failed())?,
        tenant: tenant_of(row, READING)?,
        access: Sealed { key_id: key_id.clone(), bytes: row.try_get("access_sealed").map_err(failed())? },
        refresh: refresh.map(|bytes| Sealed { key_id, bytes }),
        expires_at: expires_at.map(UnixTime::from_secs),
        application: row.try_get("application").map_err(failed())?,
        barred_since: barred.map(UnixTime::from_secs),
    })
}
