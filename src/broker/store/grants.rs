//! Grants, their access tokens, and the upstream credential behind each.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::auth::principal::{GrantId, Scopes};
use crate::auth::restriction::Restrictions;
use crate::auth::token::TokenHash;
use crate::forge::vault::Sealed;
use crate::store::tidy::BATCH;
use crate::store::users::{tenants_called, user_row};
use crate::store::{Store, StoreError, grant_ids, tenant_of, tenant_value};
use wire::clock::UnixTime;
use wire::message::{Label, TenantId};

/// A grant that was just given, with its first token.
#[derive(Debug)]
pub(crate) struct NewGrant {
    /// Names it from now on.
    pub(crate) grant: GrantId,
    /// The client it is given to.
    pub(crate) client_id: String,
    /// Who gives it.
    pub(crate) tenant: TenantId,
    /// Their login now.
    pub(crate) login: Label,
    /// What it allows.
    pub(crate) scopes: Scopes,
    /// What it is held to besides.
    pub(crate) restrictions: Restrictions,
    /// Names the upstream credential; the text that sealed it.
    pub(crate) credential_id: String,
    /// The user's Forgejo token.
    pub(crate) credential: Sealed,
    /// The access token.
    pub(crate) token: TokenHash,
    /// Now.
    pub(crate) created_at: UnixTime,
    /// Of the access token.
    pub(crate) expires_at: UnixTime,
}

/// A grant and all that stands behind it.
#[derive(Debug)]
pub(crate) struct GrantRow {
    /// Names it.
    pub(crate) grant: GrantId,
    /// The grant's client.
    pub(crate) client_id: String,
    /// The grant's user.
    pub(crate) tenant: TenantId,
    /// Their login.
    pub(crate) login: Label,
    /// What the grant allows.
    pub(crate) scopes: Scopes,
    /// What it is held to besides.
    pub(crate) restrictions: Restrictions,
    /// When it was given.
    pub(crate) created_at: UnixTime,
    /// Names the credential.
    pub(crate) credential_id: String,
    /// The credential.
    pub(crate) credential: Sealed,
    /// When Forgejo's token ends, if that is known.
    pub(crate) credential_ends: Option<UnixTime>,
    /// Whether the grant was revoked.
    pub(crate) revoked: bool,
    /// Whether its client must show its key for it at the token endpoint.
    pub(crate) needs_key: bool,
}

/// That a grant was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GrantUse {
    /// Which.
    pub(crate) grant: GrantId,
    /// When, last.
    pub(crate) at: UnixTime,
    /// From where, if that was seen.
    pub(crate) network: Option<String>,
}

/// An access token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FoundToken {
    /// Its end.
    pub(crate) expires_at: UnixTime,
    /// The refresh token that it was given for.
    pub(crate) parent: Option<TokenHash>,
}

/// A grant as the operator sees it.
#[derive(Debug)]
pub(crate) struct Grant {
    /// Names it.
    pub(crate) id: GrantId,
    /// Its client.
    pub(crate) client_id: String,
    /// Its user.
    pub(crate) tenant: TenantId,
    /// Their login.
    pub(crate) login: Label,
    /// What it allows.
    pub(crate) scopes: Scopes,
    /// What it is held to besides.
    pub(crate) restrictions: Restrictions,
    /// Whether the operator made it, on a token of Forgejo's that was handed over.
    pub(crate) is_operators: bool,
    /// Whether it is a token of Forgejo's own that its user shows.
    pub(crate) is_shown: bool,
    /// When it was given.
    pub(crate) created_at: UnixTime,
    /// When it was last used, as far as that was written.
    pub(crate) last_used_at: Option<UnixTime>,
    /// When the last of its tokens ends.
    pub(crate) expires_at: Option<UnixTime>,
    /// When it was revoked.
    pub(crate) revoked_at: Option<UnixTime>,
}

/// The columns of a [`GrantRow`], one more, and where to look.
macro_rules! grant_rows {
    ($more:literal, $which:literal) => {
        concat!(
            "SELECT g.id, g.client_id, g.tenant, g.tools, g.networks, g.created_at, g.revoked_at, g.needs_key, u.login, \
             c.id AS credential_id, c.key_id, c.access_sealed, c.access_expires_at, ",
            $more,
            " FROM grants g JOIN users u ON u.tenant = g.tenant JOIN upstream_credentials c ON c.id = g.credential_id ",
            $which
        )
    };
}

/// A page of [`Grant`]s in the order of an index, so that each costs the same: before the place ($1, $2), $3 rows.
macro_rules! grants_page {
    ($which:expr) => {
        concat!(
            "SELECT g.id, g.client_id, g.tenant, g.scopes, g.tools, g.networks, g.created_at, g.last_used_at, g.revoked_at, \
             u.login, c.kind = 'pat' AND c.is_shown = 0 AS is_operators, c.is_shown, \
             COALESCE((SELECT MAX(r.expires_at) FROM refresh_tokens r WHERE r.grant_id = g.id), \
             (SELECT MAX(t.expires_at) FROM access_tokens t WHERE t.grant_id = g.id)) AS expires_at \
             FROM grants g JOIN users u ON u.tenant = g.tenant JOIN upstream_credentials c ON c.id = g.credential_id \
             WHERE (g.created_at, g.id) < ($1, $2) ",
            $which,
            "ORDER BY g.created_at DESC, g.id DESC LIMIT $3"
        )
    };
}

impl Store {
    /// Writes a grant with its user, client, credential and token, all or none.
    pub(crate) async fn insert_grant(&self, new: &NewGrant) -> Result<(), StoreError> {
        let tenant = tenant_value(new.tenant)?;
        let now = new.created_at.secs();
        let (tools, networks) = new.restrictions.texts();
        let statements = [
            user_row(tenant, &new.login, new.created_at),
            sqlx::query(
                "INSERT INTO clients (client_id, name, created_at) VALUES ($1, $1, $2) ON CONFLICT (client_id) DO NOTHING",
            )
            .bind(&new.client_id)
            .bind(now),
            sqlx::query(
                "INSERT INTO upstream_credentials (id, tenant, kind, key_id, access_sealed, updated_at) \
                 VALUES ($1, $2, 'pat', $3, $4, $5)",
            )
            .bind(&new.credential_id)
            .bind(tenant)
            .bind(&new.credential.key_id)
            .bind(&new.credential.bytes)
            .bind(now),
            sqlx::query(
                "INSERT INTO grants (id, client_id, tenant, credential_id, scopes, created_at, tools, networks) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .bind(new.grant.as_str())
            .bind(&new.client_id)
            .bind(tenant)
            .bind(&new.credential_id)
            .bind(new.scopes.as_str())
            .bind(now)
            .bind(tools)
            .bind(networks),
            sqlx::query("INSERT INTO access_tokens (token_hash, grant_id, created_at, expires_at) VALUES ($1, $2, $3, $4)")
                .bind(new.token.0.as_slice())
                .bind(new.grant.as_str())
                .bind(now)
                .bind(new.expires_at.secs()),
        ];
        self.writer().execute_all("storing a grant", statements).await
    }

    /// What stands behind a token, and what is known of the token itself.
    pub(crate) async fn find_token(&self, token: &TokenHash) -> Result<Option<(GrantRow, FoundToken)>, StoreError> {
        let row = sqlx::query(grant_rows!(
            "t.expires_at, t.parent_hash, COALESCE(t.scopes, g.scopes) AS scopes",
            "JOIN access_tokens t ON t.grant_id = g.id WHERE t.token_hash = $1"
        ))
        .bind(token.0.as_slice())
        .fetch_optional(self.readers())
        .await
        .map_err(StoreError::query("reading a token"))?;
        let Some(row) = row else { return Ok(None) };
        let expires_at = time(&row, "expires_at")?.ok_or(StoreError::Damaged(READING))?;
        let parent: Option<Vec<u8>> = row.try_get("parent_hash").map_err(StoreError::query(READING))?;
        let parent = parent.map(|hash| hash.try_into().map(TokenHash).map_err(|_| StoreError::Damaged(READING)));
        Ok(Some((grant_row(&row)?, FoundToken { expires_at, parent: parent.transpose()? })))
    }

    /// A grant and what stands behind it.
    pub(crate) async fn find_grant(&self, grant: &GrantId) -> Result<Option<GrantRow>, StoreError> {
        let row = sqlx::query(grant_rows!("g.scopes", "WHERE g.id = $1"))
            .bind(grant.as_str())
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::query(READING))?;
        row.as_ref().map(grant_row).transpose()
    }

    /// Grants of the accounts with a login, or of everybody, the newest first: at most `limit` of those behind `after`.
    pub(crate) async fn grants_after(
        &self,
        user: Option<&str>,
        after: Option<(UnixTime, &GrantId)>,
        limit: u32,
    ) -> Result<Vec<Grant>, StoreError> {
        let (created_at, id) = after.map_or((i64::MAX, ""), |(at, grant)| (at.secs(), grant.as_str()));
        let statement = match user {
            None => sqlx::query(grants_page!("")).bind(created_at).bind(id).bind(limit),
            Some(user) => sqlx::query(grants_page!(concat!("AND g.tenant IN ", tenants_called!("$4"), " ")))
                .bind(created_at)
                .bind(id)
                .bind(limit)
                .bind(user),
        };
        let rows = statement.fetch_all(self.readers()).await.map_err(StoreError::query("reading the grants"))?;
        rows.iter().map(grant).collect()
    }

    /// The grants whose ids begin like that, at most two.
    pub(crate) async fn grants_beginning(&self, prefix: &str) -> Result<Vec<GrantId>, StoreError> {
        const WHAT: &str = "looking for a grant";
        // Ids are hexadecimal digits, and no digit comes behind f but g.
        let rows = sqlx::query("SELECT id FROM grants WHERE id >= $1 AND id < $2 ORDER BY id LIMIT 2")
            .bind(prefix)
            .bind(format!("{prefix}g"))
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::query(WHAT))?;
        grant_ids(&rows, WHAT)
    }

    /// Revokes a grant; whether it was there and not revoked.
    pub(crate) async fn revoke_grant(
        &self,
        grant: &GrantId,
        reason: &'static str,
        now: UnixTime,
    ) -> Result<bool, StoreError> {
        let statement =
            sqlx::query("UPDATE grants SET revoked_at = $1, revoked_reason = $2 WHERE id = $3 AND revoked_at IS NULL")
                .bind(now.secs())
                .bind(reason)
                .bind(grant.as_str());
        let done = self.writer().execute("revoking a grant", statement).await?;
        Ok(done.rows_affected() > 0)
    }

    /// Holds a token of the operator's to something else from now on, with another end where one is given; whether there
    /// is such a token.
    pub(crate) async fn change_token(
        &self,
        grant: &GrantId,
        restrictions: &Restrictions,
        expires_at: Option<UnixTime>,
    ) -> Result<bool, StoreError> {
        let (tools, networks) = restrictions.texts();
        let mut write = self.writer().begin("changing a token").await?;
        let restrict = sqlx::query(
            "UPDATE grants SET tools = $1, networks = $2 WHERE id = $3 AND revoked_at IS NULL AND credential_id IN \
             (SELECT c.id FROM upstream_credentials c WHERE c.kind = 'pat' AND c.is_shown = 0)",
        )
        .bind(tools)
        .bind(networks)
        .bind(grant.as_str());
        let is_one = write.execute(restrict).await?.rows_affected() > 0;
        if let Some(expires_at) = expires_at.filter(|_| is_one) {
            let end = sqlx::query("UPDATE access_tokens SET expires_at = $1 WHERE grant_id = $2");
            write.execute(end.bind(expires_at.secs()).bind(grant.as_str())).await?;
        }
        write.commit().await?;
        Ok(is_one)
    }

    /// Writes when grants were last used, a batch at a time: after a failure, the same may be written once more.
    pub(crate) async fn touch_grants(&self, uses: &[GrantUse]) -> Result<(), StoreError> {
        for uses in uses.chunks(BATCH) {
            let statements = uses.iter().map(|GrantUse { grant, at, network }| {
                sqlx::query("UPDATE grants SET last_used_at = $1, network = COALESCE($3, network) WHERE id = $2")
                    .bind(at.secs())
                    .bind(grant.as_str())
                    .bind(network)
            });
            let statements: Vec<_> = statements.collect();
            self.writer().execute_all("storing the last use of grants", statements).await?;
        }
        Ok(())
    }
}

const READING: &str = "reading a grant";

fn text(row: &SqliteRow, name: &str) -> Result<String, StoreError> {
    row.try_get(name).map_err(StoreError::query(READING))
}

fn time(row: &SqliteRow, name: &str) -> Result<Option<UnixTime>, StoreError> {
    let secs: Option<i64> = row.try_get(name).map_err(StoreError::query(READING))?;
    Ok(secs.map(UnixTime::from_secs))
}

fn login(row: &SqliteRow) -> Result<Label, StoreError> {
    Label::parse(text(row, "login")?).map_err(|_| StoreError::Damaged(READING))
}

fn restrictions(row: &SqliteRow) -> Result<Restrictions, StoreError> {
    let list = |name| row.try_get::<Option<String>, _>(name).map_err(StoreError::query(READING));
    let parsed = Restrictions::parse(list("tools")?.as_deref(), list("networks")?.as_deref());
    parsed.map_err(|_| StoreError::Damaged(READING))
}

fn grant_row(row: &SqliteRow) -> Result<GrantRow, StoreError> {
    let bytes = row.try_get("access_sealed").map_err(StoreError::query(READING))?;
    Ok(GrantRow {
        grant: GrantId::new(text(row, "id")?),
        client_id: text(row, "client_id")?,
        tenant: tenant_of(row, READING)?,
        login: login(row)?,
        scopes: Scopes::parse(&text(row, "scopes")?),
        restrictions: restrictions(row)?,
        created_at: time(row, "created_at")?.ok_or(StoreError::Damaged(READING))?,
        credential_id: text(row, "credential_id")?,
        credential: Sealed { key_id: text(row, "key_id")?, bytes },
        credential_ends: time(row, "access_expires_at")?,
        revoked: time(row, "revoked_at")?.is_some(),
        needs_key: row.try_get("needs_key").map_err(StoreError::query(READING))?,
    })
}

fn grant(row: &SqliteRow) -> Result<Grant, StoreError> {
    Ok(Grant {
        id: GrantId::new(text(row, "id")?),
        client_id: text(row, "client_id")?,
        tenant: tenant_of(row, READING)?,
        login: login(row)?,
        scopes: Scopes::parse(&text(row, "scopes")?),
        restrictions: restrictions(row)?,
        is_operators: row.try_get("is_operators").map_err(StoreError::query(READING))?,
        is_shown: row.try_get("is_shown").map_err(StoreError::query(READING))?,
        created_at: time(row, "created_at")?.ok_or(StoreError::Damaged(READING))?,
        last_used_at: time(row, "last_used_at")?,
        expires_at: time(row, "expires_at")?,
        revoked_at: time(row, "revoked_at")?,
    })
}

#[cfg(test)]
impl Store {
    /// All grants, the newest first.
    pub(crate) async fn grants(&self) -> Result<Vec<Grant>, StoreError> {
        self.grants_after(None, None, u32::MAX).await
    }

    /// Many grants of many users, for tests of lists: two a second, every tenth of user 1.
    pub(crate) async fn fill_with_grants(&self, count: i64) -> Result<(), StoreError> {
        // In parts, because each write has a deadline, which a busy machine reaches with all of them at once.
        const PART: i64 = 10_000;
        let everybody = [
            "INSERT INTO clients (client_id, name, created_at) VALUES ('c', 'c', 0)",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1 / 10) \
             INSERT INTO users (tenant, login, updated_at) SELECT i, 'user-' || i, 0 FROM n",
            "INSERT INTO upstream_credentials (id, tenant, kind, key_id, access_sealed, updated_at) \
             SELECT 'of-' || tenant, tenant, 'oauth', 'k', x'00', 0 FROM users WHERE $1 > 0",
        ];
        for statement in everybody {
            self.writer().execute("filling a table", sqlx::query(statement).bind(count)).await?;
        }
        for first in (0..count).step_by(usize::try_from(PART).unwrap_or(usize::MAX)) {
            let grants = sqlx::query(
                "WITH RECURSIVE n(i) AS (SELECT $2 UNION ALL SELECT i + 1 FROM n WHERE i < MIN($1, $2 + $3) - 1), \
                 g(i, t) AS (SELECT i, CASE WHEN i % 10 = 0 THEN 1 ELSE 1 + i % ($1 / 10) END FROM n) \
                 INSERT INTO grants (id, client_id, tenant, credential_id, scopes, created_at) \
                 SELECT 'grant-' || i, 'c', t, 'of-' || t, 'forgejo:read', i / 2 FROM g",
            );
            self.writer().execute("filling a table", grants.bind(count).bind(first).bind(PART)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_of_grants_is_read_in_the_order_of_an_index_and_nothing_is_sorted() {
        let store = Store::in_memory().await.expect("a store");
        store.fill_with_grants(1000).await.expect("filled");
        let steps = store.plan(grants_page!("")).await;
        assert!(steps.iter().any(|step| step.contains("grants_by_age")), "{steps:?}");
        assert!(!steps.iter().any(|step| step.contains("ORDER BY")), "{steps:?}");
    }
}
