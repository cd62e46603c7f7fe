//! Whose the logins are that the operator's lists name.

use sqlx::Row;

use crate::forge::access::names::{NamedAccount, Names};
use crate::store::{Store, StoreError, tenant_of, tenant_value};
use wire::clock::UnixTime;

const READING: &str = "reading whose the logins on the lists are";
const NOTING: &str = "noting whose the logins on the lists are";

impl Store {
    /// All of them.
    pub(crate) async fn list_names(&self) -> Result<Names, StoreError> {
        let rows =
            sqlx::query("SELECT login, tenant, account_created_at FROM list_names").fetch_all(self.readers()).await;
        let mut names = Names::default();
        for row in rows.map_err(StoreError::query(READING))? {
            let login: String = row.try_get("login").map_err(StoreError::query(READING))?;
            let created = row.try_get("account_created_at").map_err(StoreError::query(READING))?;
            let account = NamedAccount { tenant: tenant_of(&row, READING)?, created: UnixTime::from_secs(created) };
            names.pin(&login, account);
        }
        Ok(names)
    }

    /// Notes whose a login is; what was noted before stays.
    pub(crate) async fn note_list_name(
        &self,
        login: &str,
        account: NamedAccount,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "INSERT INTO list_names (login, tenant, account_created_at, pinned_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (login) DO NOTHING",
        )
        .bind(login)
        .bind(tenant_value(account.tenant)?)
        .bind(account.created.secs())
        .bind(now.secs());
        self.writer().execute(NOTING, statement).await?;
        Ok(())
    }

    /// Forgets a login that no list names any more.
    pub(crate) async fn forget_list_name(&self, login: &str) -> Result<(), StoreError> {
        self.writer().execute(NOTING, sqlx::query("DELETE FROM list_names WHERE login = $1").bind(login)).await?;
        Ok(())
    }
}
