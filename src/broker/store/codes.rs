//! Authorization codes and refresh tokens: from a login to a grant, and from one pair of tokens to the next.

use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::auth::principal::{GrantId, Scopes};
use crate::auth::token::{RefreshName, TokenHash};
use crate::store::tidy::AFTER_THE_END;
use crate::store::writer::Write;
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
    /// When it was made.
    pub(crate) created_at: UnixTime,
    /// The grant that it was redeemed for.
    pub(crate) redeemed: Option<GrantId>,
}

/// The tokens that one answer hands out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewPair {
    /// The access token.
    pub(crate) access: TokenHash,
    /// Its end.
    pub(crate) access_ends: UnixTime,
    /// Its scopes, where they are fewer than the grant's.
    pub(crate) access_scopes: Option<Scopes>,
    /// The refresh token.
    pub(crate) refresh: TokenHash,
    /// Its family.
    pub(crate) family: TokenHash,
    /// Its end.
    pub(crate) refresh_ends: UnixTime,
}

/// A refresh token with what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefreshRow {
    /// Its family.
    pub(crate) grant: GrantId,
    /// The client whose family it is.
    pub(crate) client_id: String,
    /// The user whose family it is.
    pub(crate) tenant: TenantId,
    /// What the family allows.
    pub(crate) scopes: Scopes,
    /// Whether the family was revoked.
    pub(crate) revoked: bool,
    /// Its end.
    pub(crate) expires_at: UnixTime,
    /// Its first exchange.
    pub(crate) used: Used,
}

/// When a refresh token was first exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Used {
    /// It was not.
    Never,
    /// Then.
    At(UnixTime),
    /// So long ago that it is not kept any more; its family and its end are known from itself.
    LongAgo,
}

/// Used refresh tokens are kept for so long, while what becomes of one depends on when it was used. Later they are known
/// by their family alone: a client that refreshes every hour has two rows, not one for each hour of a month.
pub(crate) const USED_ONES_STAY: Duration = Duration::from_mins(5);

const CODE: &str = "reading a code";
const REFRESH: &str = "reading a refresh token";

impl Store {
    /// Writes a code.
    pub(crate) async fn insert_code(&self, code: &Code) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "INSERT INTO authorization_codes (code_hash, client_id, client_name, redirect_uri, challenge, tenant, \
             credential_id, scopes, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(code.hash.0.as_slice())
        .bind(&code.client_id)
        .bind(&code.client_name)
        .bind(&code.redirect_uri)
        .bind(&code.challenge)
        .bind(tenant_value(code.tenant)?)
        .bind(&code.credential_id)
        .bind(code.scopes.as_str())
        .bind(code.created_at.secs());
        self.writer().execute("storing a code", statement).await?;
        Ok(())
    }

    /// A code, also one that was redeemed.
    pub(crate) async fn find_code(&self, code: &TokenHash) -> Result<Option<Code>, StoreError> {
        let row = sqlx::query("SELECT * FROM authorization_codes WHERE code_hash = $1").bind(code.0.as_slice());
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
                "INSERT INTO grants (id, client_id, tenant, credential_id, scopes, created_at, family_hash) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(grant.as_str())
            .bind(&code.client_id)
            .bind(tenant_value(code.tenant)?)
            .bind(&code.credential_id)
            .bind(code.scopes.as_str())
            .bind(now.secs())
            .bind(pair.family.0.as_slice()),
        ];
        for statement in statements {
            write.execute(statement).await?;
        }
        insert_pair(&mut write, grant, pair, now).await?;
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

    /// A refresh token, also one that was used, for as long as it would have lived and a day more.
    pub(crate) async fn find_refresh_token(
        &self,
        token: &RefreshName,
        now: UnixTime,
    ) -> Result<Option<RefreshRow>, StoreError> {
        let row = sqlx::query(
            "SELECT r.grant_id, r.expires_at, r.used_at, g.client_id, g.tenant, g.scopes, g.revoked_at \
             FROM refresh_tokens r JOIN grants g ON g.id = r.grant_id WHERE r.token_hash = $1",
        )
        .bind(token.hash.0.as_slice())
        .fetch_optional(self.readers())
        .await
        .map_err(StoreError::query(REFRESH))?;
        if let Some(row) = row {
            let time = |name: &str| row.try_get::<Option<i64>, _>(name).map_err(StoreError::query(REFRESH));
            let used = time("used_at")?.map_or(Used::Never, |at| Used::At(UnixTime::from_secs(at)));
            let ends = time("expires_at")?.ok_or(StoreError::Damaged(REFRESH))?;
            return refresh_row(&row, UnixTime::from_secs(ends), used).map(Some);
        }
        if token.ends <= now.minus(AFTER_THE_END) {
            return Ok(None);
        }
        let row = sqlx::query(
            "SELECT g.id AS grant_id, g.client_id, g.tenant, g.scopes, g.revoked_at FROM grants g \
             WHERE g.family_hash = $1",
        )
        .bind(token.family.0.as_slice())
        .fetch_optional(self.readers())
        .await
        .map_err(StoreError::query(REFRESH))?;
        row.map(|row| refresh_row(&row, token.ends, Used::LongAgo)).transpose()
    }

    /// Exchanges a refresh token for a new pair, all or nothing; `false` where the grant was revoked meanwhile.
    pub(crate) async fn exchange_refresh_token(
        &self,
        token: &TokenHash,
        grant: &GrantId,
        pair: &NewPair,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        const WHAT: &str = "exchanging a refresh token";
        let mut write = self.writer().begin(WHAT).await?;
        // A revocation is either seen here or waits until this is done. A token that is not kept is never exchanged.
        let live = sqlx::query(
            "SELECT g.id FROM grants g JOIN refresh_tokens r ON r.grant_id = g.id \
             WHERE g.id = $1 AND g.revoked_at IS NULL AND r.token_hash = $2",
        )
        .bind(grant.as_str())
        .bind(token.0.as_slice());
        if write.fetch_all(live).await?.is_empty() {
            return write.abandon().await.map(|()| false);
        }
        let used = sqlx::query("UPDATE refresh_tokens SET used_at = $1 WHERE token_hash = $2 AND used_at IS NULL")
            .bind(now.secs())
            .bind(token.0.as_slice());
        write.execute(used).await?;
        // Grants of before there were families get theirs now.
        let family = sqlx::query("UPDATE grants SET family_hash = $1 WHERE id = $2 AND family_hash IS NULL")
            .bind(pair.family.0.as_slice())
            .bind(grant.as_str());
        write.execute(family).await?;
        let used_up = sqlx::query("DELETE FROM refresh_tokens WHERE grant_id = $1 AND in_family = 1 AND used_at < $2")
            .bind(grant.as_str())
            .bind(now.minus(USED_ONES_STAY).secs());
        write.execute(used_up).await?;
        insert_pair(&mut write, grant, pair, now).await?;
        write.commit().await?;
        Ok(true)
    }

    /// Removes one access token; its grant lives on.
    pub(crate) async fn forget_access_token(&self, token: &TokenHash) -> Result<(), StoreError> {
        let statement = sqlx::query("DELETE FROM access_tokens WHERE token_hash = $1").bind(token.0.as_slice());
        self.writer().execute("removing an access token", statement).await?;
        Ok(())
    }
}

async fn insert_pair(write: &mut Write<'_>, grant: &GrantId, pair: &NewPair, now: UnixTime) -> Result<(), StoreError> {
    let statements = [
        sqlx::query(
            "INSERT INTO access_tokens (token_hash, grant_id, created_at, expires_at, scopes) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(pair.access.0.to_vec())
        .bind(grant.as_str())
        .bind(now.secs())
        .bind(pair.access_ends.secs())
        .bind(pair.access_scopes.map(Scopes::as_str)),
        sqlx::query(
            "INSERT INTO refresh_tokens (token_hash, grant_id, created_at, expires_at, in_family) \
             SELECT $1, $2, $3, $4, COUNT(*) FROM grants WHERE id = $2 AND family_hash = $5",
        )
        .bind(pair.refresh.0.to_vec())
        .bind(grant.as_str())
        .bind(now.secs())
        .bind(pair.refresh_ends.secs())
        .bind(pair.family.0.to_vec()),
    ];
    for statement in statements {
        write.execute(statement).await?;
    }
    Ok(())
}

fn code_row(code: TokenHash, row: &SqliteRow) -> Result<Code, StoreError> {
    let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(CODE));
    let redeemed: Option<String> = row.try_get("grant_id").map_err(StoreError::query(CODE))?;
    Ok(Code {
        hash: code,
        client_id: text("client_id")?,
        client_name: text("client_name")?,
        redirect_uri: text("redirect_uri")?,
        challenge: text("challenge")?,
        tenant: tenant_of(row, CODE)?,
        credential_id: text("credential_id")?,
        scopes: Scopes::parse(&text("scopes")?),
        created_at: UnixTime::from_secs(row.try_get("created_at").map_err(StoreError::query(CODE))?),
        redeemed: redeemed.map(GrantId::new),
    })
}

fn refresh_row(row: &SqliteRow, expires_at: UnixTime, used: Used) -> Result<RefreshRow, StoreError> {
    let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(REFRESH));
    let revoked: Option<i64> = row.try_get("revoked_at").map_err(StoreError::query(REFRESH))?;
    Ok(RefreshRow {
        grant: GrantId::new(text("grant_id")?),
        client_id: text("client_id")?,
        tenant: tenant_of(row, REFRESH)?,
        scopes: Scopes::parse(&text("scopes")?),
        revoked: revoked.is_some(),
        expires_at,
        used,
    })
}

#[cfg(test)]
impl Store {
    /// How many refresh tokens have a row.
    pub(crate) async fn refresh_tokens_kept(&self) -> i64 {
        sqlx::query_scalar("SELECT COUNT(*) FROM refresh_tokens").fetch_one(self.readers()).await.expect("counted")
    }

    /// Makes all grants and their tokens as they were before there were families.
    pub(crate) async fn forget_families(&self) {
        let statements = ["UPDATE grants SET family_hash = NULL", "UPDATE refresh_tokens SET in_family = 0"];
        self.writer().execute_all("testing", statements.map(sqlx::query)).await.expect("written");
    }
}
