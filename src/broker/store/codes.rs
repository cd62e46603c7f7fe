//! Authorization codes: from a login to a grant.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::auth::principal::{GrantId, Scopes};
use crate::auth::token::TokenHash;
use crate::store::refresh_tokens::{NewPair, Place, insert_pair};
use crate::store::writer::Statement;
use crate::store::{Store, StoreError, grant_ids, tenant_of, tenant_value};
use wire::clock::UnixTime;
use wire::message::TenantId;

/// A code, bound to everything that the client must show again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Code {
    /// Names it.
    pub(crate) hash: TokenHash,
    /// Whom it was given to.
    pub(crate) client_id: String,
    /// What that client calls itself.
    pub(crate) client_name: String,
    /// Where it was sent.
    pub(crate) redirect_uri: String,
    /// S256 of the verifier that redeems it.
    pub(crate) challenge: String,
    /// Who logged in.
    pub(crate) tenant: TenantId,
    /// Their credential.
    pub(crate) credential_id: String,
    /// What they agreed to.
    pub(crate) scopes: Scopes,
    /// Whether it is good only for whoever shows the client's key.
    pub(crate) needs_key: bool,
    /// When it was made.
    pub(crate) created_at: UnixTime,
    /// What became of it.
    pub(crate) redeemed: Option<Redeemed>,
}

/// A code that was redeemed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Redeemed {
    /// For this grant.
    pub(crate) grant: GrantId,
    /// When; none where that is not known any more.
    pub(crate) at: Option<UnixTime>,
}

const CODE: &str = "reading a code";

impl Code {
    /// Writes it.
    pub(super) fn statement(&self) -> Result<Statement<'_>, StoreError> {
        Ok(sqlx::query(
            "INSERT INTO authorization_codes (code_hash, client_id, client_name, redirect_uri, challenge, tenant, \
             credential_id, scopes, created_at, needs_key) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(self.hash.0.as_slice())
        .bind(&self.client_id)
        .bind(&self.client_name)
        .bind(&self.redirect_uri)
        .bind(&self.challenge)
        .bind(tenant_value(self.tenant)?)
        .bind(&self.credential_id)
        .bind(self.scopes.as_str())
        .bind(self.created_at.secs())
        .bind(i64::from(self.needs_key)))
    }
}

impl Store {
    /// Writes a code that no login of this test has led to.
    #[cfg(test)]
    pub(crate) async fn insert_code(&self, code: &Code) -> Result<(), StoreError> {
        self.writer().execute("storing a code", code.statement()?).await?;
        Ok(())
    }

    /// A code, also one that was redeemed.
    pub(crate) async fn find_code(&self, code: &TokenHash) -> Result<Option<Code>, StoreError> {
        let row = sqlx::query(
            "SELECT c.*, g.created_at AS redeemed_at FROM authorization_codes c LEFT JOIN grants g ON g.id = c.grant_id \
             WHERE c.code_hash = $1",
        )
        .bind(code.0.as_slice());
        let row = row.fetch_optional(self.readers()).await.map_err(StoreError::query(CODE))?;
        row.map(|row| code_row(*code, &row)).transpose()
    }

    /// Redeems a code for a grant with its first tokens, all or nothing; `false` where somebody was faster.
    pub(crate) async fn redeem_code(
        &self,
        code: &Code,
        grant: &GrantId,
        pair: &NewPair,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        const WHAT: &str = "redeeming a code";
        let mut write = self.writer().begin(WHAT).await?;
        let take =
            sqlx::query("UPDATE authorization_codes SET grant_id = $1 WHERE code_hash = $2 AND grant_id IS NULL")
                .bind(grant.as_str())
                .bind(code.hash.0.as_slice());
        if write.execute(take).await?.rows_affected() == 0 {
            return write.abandon().await.map(|()| false);
        }
        let statements = [
            // From the first login that was completed a client is never forgotten.
            sqlx::query(
                "UPDATE registered_clients SET logged_in_at = $1 WHERE client_id = $2 AND logged_in_at IS NULL",
            )
            .bind(now.secs())
            .bind(&code.client_id),
            sqlx::query(
                "INSERT INTO clients (client_id, name, created_at) VALUES ($1, $2, $3) \
                 ON CONFLICT (client_id) DO UPDATE SET name = excluded.name",
            )
            .bind(&code.client_id)
            .bind(&code.client_name)
            .bind(now.secs()),
            sqlx::query(
                "INSERT INTO grants (id, client_id, tenant, credential_id, scopes, created_at, family_hash, needs_key) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .bind(grant.as_str())
            .bind(&code.client_id)
            .bind(tenant_value(code.tenant)?)
            .bind(&code.credential_id)
            .bind(code.scopes.as_str())
            .bind(now.secs())
            .bind(pair.family.0.as_slice())
            .bind(i64::from(code.needs_key)),
        ];
        for statement in statements {
            write.execute(statement).await?;
        }
        insert_pair(&mut write, grant, pair, &Place::FIRST, now).await?;
        write.commit().await?;
        Ok(true)
    }

    /// The live grants of a user for one client beyond the `most` that were used last.
    pub(crate) async fn surplus_grants(
        &self,
        tenant: TenantId,
        client_id: &str,
        most: u32,
    ) -> Result<Vec<GrantId>, StoreError> {
        let rows = sqlx::query(
            "SELECT id FROM grants WHERE tenant = $1 AND client_id = $2 AND revoked_at IS NULL \
             ORDER BY COALESCE(last_used_at, created_at) DESC, created_at DESC LIMIT 1000 OFFSET $3",
        )
        .bind(tenant_value(tenant)?)
        .bind(client_id)
        .bind(i64::from(most))
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query("reading a client's grants"))?;
        grant_ids(&rows, "reading a client's grants")
    }
}

fn code_row(code: TokenHash, row: &SqliteRow) -> Result<Code, StoreError> {
    let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(CODE));
    let grant: Option<String> = row.try_get("grant_id").map_err(StoreError::query(CODE))?;
    let at: Option<i64> = row.try_get("redeemed_at").map_err(StoreError::query(CODE))?;
    let redeemed = grant.map(|grant| Redeemed { grant: GrantId::new(grant), at: at.map(UnixTime::from_secs) });
    Ok(Code {
        hash: code,
        client_id: text("client_id")?,
        client_name: text("client_name")?,
        redirect_uri: text("redirect_uri")?,
        challenge: text("challenge")?,
        tenant: tenant_of(row, CODE)?,
        credential_id: text("credential_id")?,
        scopes: Scopes::parse(&text("scopes")?),
        needs_key: row.try_get("needs_key").map_err(StoreError::query(CODE))?,
        created_at: UnixTime::from_secs(row.try_get("created_at").map_err(StoreError::query(CODE))?),
        redeemed,
    })
}
