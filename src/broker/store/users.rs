//! Users as accounts at Forgejo: what tells one from its successor, what they hold here, and the end of all of it.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::auth::principal::GrantId;
use crate::store::writer::Statement;
use crate::store::{Store, StoreError, grant_ids, tenant_of, tenant_value};
use wire::clock::UnixTime;
use wire::message::{Label, TenantId};

/// What is known of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// Forgejo's number.
    pub(crate) tenant: TenantId,
    /// The login, as it was last told.
    pub(crate) login: Label,
    /// When Forgejo made it; unknown where Forgejo was not asked yet.
    pub(crate) created: Option<UnixTime>,
}

/// A user as the operator sees them.
#[derive(Debug)]
pub(crate) struct UserCounts {
    /// Who.
    pub(crate) account: Account,
    /// Grants that are not revoked.
    pub(crate) grants: i64,
    /// Of these, how many stand on a token that the operator gave.
    pub(crate) personal: i64,
    /// Sessions that have not ended.
    pub(crate) sessions: i64,
    /// When a grant was last used.
    pub(crate) last_used_at: Option<UnixTime>,
}

/// The accounts that an operator means by this parameter: by their login, whatever its case, or as `id:NUMBER`.
macro_rules! tenants_called {
    ($parameter:literal) => {
        concat!(
            "(SELECT n.tenant FROM users n WHERE LOWER(n.login) = LOWER(",
            $parameter,
            ") OR 'id:' || n.tenant = LOWER(",
            $parameter,
            "))"
        )
    };
}
pub(super) use tenants_called;

/// Writes who a user is together with something that is theirs.
pub(super) fn user_row(number: i64, login: &Label, now: UnixTime) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO users (tenant, login, updated_at) VALUES ($1, $2, $3) \
         ON CONFLICT (tenant) DO UPDATE SET login = excluded.login, updated_at = excluded.updated_at",
    )
    .bind(number)
    .bind(login.as_str())
    .bind(now.secs())
}

const READING: &str = "reading the users";
const ENDING: &str = "ending what a user has";

impl Store {
    /// One account.
    pub(crate) async fn account(&self, tenant: TenantId) -> Result<Option<Account>, StoreError> {
        let row = sqlx::query("SELECT tenant, login, account_created_at FROM users WHERE tenant = $1")
            .bind(tenant_value(tenant)?)
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::query(READING))?;
        row.as_ref().map(account).transpose()
    }

    /// The accounts with a login, whatever its case, or with the number that `id:NUMBER` names.
    pub(crate) async fn accounts_named(&self, user: &str) -> Result<Vec<Account>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT tenant, login, account_created_at FROM users WHERE tenant IN ",
            tenants_called!("$1")
        ))
        .bind(user)
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query(READING))?;
        rows.iter().map(account).collect()
    }

    /// The live grants of an account.
    pub(crate) async fn grants_of(&self, tenant: TenantId) -> Result<Vec<GrantId>, StoreError> {
        let rows = sqlx::query("SELECT id FROM grants WHERE tenant = $1 AND revoked_at IS NULL ORDER BY id")
            .bind(tenant_value(tenant)?)
            .fetch_all(self.readers())
            .await
            .map_err(StoreError::query(READING))?;
        grant_ids(&rows, READING)
    }

    /// The accounts that have a live grant.
    pub(crate) async fn accounts_with_grants(&self) -> Result<Vec<Account>, StoreError> {
        let query = sqlx::query(
            "SELECT tenant, login, account_created_at FROM users u WHERE EXISTS \
             (SELECT 1 FROM grants g WHERE g.tenant = u.tenant AND g.revoked_at IS NULL) ORDER BY tenant",
        );
        self.read_each(READING, query, account).await
    }

    /// Users by their number, after `after`, at most `limit`.
    pub(crate) async fn users_after(&self, after: u64, limit: u32) -> Result<Vec<UserCounts>, StoreError> {
        let rows = sqlx::query(
            "SELECT u.tenant, u.login, u.account_created_at, \
             (SELECT COUNT(*) FROM grants g WHERE g.tenant = u.tenant AND g.revoked_at IS NULL) AS live, \
             (SELECT COUNT(*) FROM grants g JOIN upstream_credentials c ON c.id = g.credential_id \
             WHERE g.tenant = u.tenant AND g.revoked_at IS NULL AND c.kind = 'pat' AND c.is_shown = 0) AS personal, \
             (SELECT COUNT(*) FROM sessions s JOIN grants g ON g.id = s.grant_id \
             WHERE g.tenant = u.tenant AND g.revoked_at IS NULL AND s.ended_at IS NULL) AS open, \
             (SELECT MAX(g.last_used_at) FROM grants g WHERE g.tenant = u.tenant) AS used_at \
             FROM users u WHERE u.tenant > $1 ORDER BY u.tenant LIMIT $2",
        )
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query(READING))?;
        rows.iter().map(counts).collect()
    }

    /// Notes what Forgejo says of an account: its login may have changed, and the time of its making is kept once and
    /// for all. Whoever had that login before has another one now: until Forgejo is asked which, which is due, theirs is
    /// shown with `_` in front, as no login begins.
    pub(crate) async fn note_account(
        &self,
        tenant: TenantId,
        login: &Label,
        created: UnixTime,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let number = tenant_value(tenant)?;
        let due = sqlx::query(
            "UPDATE upstream_credentials SET checked_at = 0 WHERE checked_at > 0 AND tenant IN \
             (SELECT tenant FROM users WHERE LOWER(login) = LOWER($1) AND tenant <> $2)",
        );
        let former =
            sqlx::query("UPDATE users SET login = '_' || login WHERE LOWER(login) = LOWER($1) AND tenant <> $2");
        let noted = sqlx::query(
            "INSERT INTO users (tenant, login, account_created_at, updated_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (tenant) DO UPDATE SET login = excluded.login, updated_at = excluded.updated_at, \
             account_created_at = COALESCE(users.account_created_at, excluded.account_created_at)",
        )
        .bind(number)
        .bind(login.as_str())
        .bind(created.secs())
        .bind(now.secs());
        let all = [due.bind(login.as_str()).bind(number), former.bind(login.as_str()).bind(number), noted];
        self.writer().execute_all("noting an account", all).await
    }

    /// Ends all that a user has here, all or none: grants, visits, consents, codes on their way, Forgejo's tokens.
    /// Which grants were live. With a `successor`, the number belongs to that account from now on.
    pub(crate) async fn end_user(
        &self,
        tenant: TenantId,
        successor: Option<(&Label, UnixTime)>,
        reason: &'static str,
        now: UnixTime,
    ) -> Result<Vec<GrantId>, StoreError> {
        let number = tenant_value(tenant)?;
        let mut write = self.writer().begin(ENDING).await?;
        let revoked = sqlx::query(
            "UPDATE grants SET revoked_at = $1, revoked_reason = $2 WHERE tenant = $3 AND revoked_at IS NULL \
             RETURNING id",
        );
        let rows = write.fetch_all(revoked.bind(now.secs()).bind(reason).bind(number)).await?;
        let mut statements = vec![
            sqlx::query("DELETE FROM visits WHERE tenant = $1").bind(number),
            sqlx::query("DELETE FROM consents WHERE tenant = $1").bind(number),
            // Redeemed ones stay, so that a second redemption is noticed.
            sqlx::query("DELETE FROM authorization_codes WHERE tenant = $1 AND grant_id IS NULL").bind(number),
            sqlx::query(
                "UPDATE upstream_credentials SET access_sealed = $1, refresh_sealed = NULL, access_expires_at = NULL, \
                 checked_token = NULL, checked_at = NULL, checked_round = 0 WHERE tenant = $2",
            )
            .bind(Vec::<u8>::new())
            .bind(number),
        ];
        if let Some((login, created)) = successor {
            statements.push(
                sqlx::query("UPDATE users SET login = $1, account_created_at = $2, updated_at = $3 WHERE tenant = $4")
                    .bind(login.as_str())
                    .bind(created.secs())
                    .bind(now.secs())
                    .bind(number),
            );
        }
        for statement in statements {
            write.execute(statement).await?;
        }
        write.commit().await?;
        grant_ids(&rows, ENDING)
    }

    /// The same for everybody, with what is known of their accounts: the next login finds nobody it knows.
    pub(crate) async fn end_everybody(&self, reason: &'static str, now: UnixTime) -> Result<u64, StoreError> {
        let mut write = self.writer().begin(ENDING).await?;
        let revoked = sqlx::query("UPDATE grants SET revoked_at = $1, revoked_reason = $2 WHERE revoked_at IS NULL");
        let ended = write.execute(revoked.bind(now.secs()).bind(reason)).await?;
        let statements = [
            sqlx::query("DELETE FROM visits"),
            sqlx::query("DELETE FROM consents"),
            sqlx::query("DELETE FROM authorization_codes WHERE grant_id IS NULL"),
            sqlx::query(
                "UPDATE upstream_credentials SET access_sealed = $1, refresh_sealed = NULL, access_expires_at = NULL, \
                 checked_token = NULL, checked_at = NULL, checked_round = 0",
            )
            .bind(Vec::<u8>::new()),
            sqlx::query("UPDATE users SET account_created_at = NULL"),
            // The logins on the lists are other accounts' there.
            sqlx::query("DELETE FROM list_names"),
        ];
        for statement in statements {
            write.execute(statement).await?;
        }
        write.commit().await?;
        Ok(ended.rows_affected())
    }
}

fn account(row: &SqliteRow) -> Result<Account, StoreError> {
    let login: String = row.try_get("login").map_err(StoreError::query(READING))?;
    let created: Option<i64> = row.try_get("account_created_at").map_err(StoreError::query(READING))?;
    Ok(Account {
        tenant: tenant_of(row, READING)?,
        login: Label::parse(login).map_err(|_| StoreError::Damaged(READING))?,
        created: created.map(UnixTime::from_secs),
    })
}

fn counts(row: &SqliteRow) -> Result<UserCounts, StoreError> {
    let number = |name: &str| row.try_get::<i64, _>(name).map_err(StoreError::query(READING));
    let used: Option<i64> = row.try_get("used_at").map_err(StoreError::query(READING))?;
    Ok(UserCounts {
        account: account(row)?,
        grants: number("live")?,
        personal: number("personal")?,
        sessions: number("open")?,
        last_used_at: used.map(UnixTime::from_secs),
    })
}
