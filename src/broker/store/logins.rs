//! Logins under way at Forgejo, and who is logged in at the broker's own pages.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::auth::principal::Scopes;
use crate::auth::source::Source;
use crate::auth::token::TokenHash;
use crate::store::writer::Statement;
use crate::store::{Code, Consent, Store, StoreError, tenant_of, tenant_value};
use wire::clock::UnixTime;
use wire::message::{Label, TenantId};

/// A login that was sent to Forgejo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    /// Names it towards Forgejo.
    pub(crate) state: TokenHash,
    /// The browser that began it.
    pub(crate) browser: TokenHash,
    /// The client's authorization request, as its query; `None` for the account page.
    pub(crate) request: Option<String>,
    /// What the person agreed to on the consent page, if it was shown.
    pub(crate) consented: Option<Scopes>,
    /// When it began.
    pub(crate) created_at: UnixTime,
}

/// That somebody is logged in at the broker's own pages.
#[derive(Debug)]
pub(crate) struct Visit {
    /// Names it.
    pub(crate) key: TokenHash,
    /// The browser.
    pub(crate) browser: TokenHash,
    /// Who.
    pub(crate) tenant: TenantId,
    /// Until when.
    pub(crate) ends: UnixTime,
}

/// Somebody who is logged in at the broker's own pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Visitor {
    /// Who.
    pub(crate) tenant: TenantId,
    /// Their login.
    pub(crate) login: Label,
}

/// What a login leaves behind that has succeeded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FinishedLogin<'a> {
    /// Which login.
    pub(crate) state: &'a TokenHash,
    /// Somebody is logged in from now on, in the browser that began it.
    pub(crate) visit: &'a Visit,
    /// The visit that the browser named.
    pub(crate) former: Option<&'a TokenHash>,
    /// What was agreed to and is remembered.
    pub(crate) consent: Option<&'a Consent>,
    /// For the client.
    pub(crate) code: Option<&'a Code>,
}

const FINDING: &str = "reading a login";
const READING: &str = "reading a visit";

impl Store {
    /// Writes a login that is sent to Forgejo now, and from where.
    pub(crate) async fn insert_login(&self, login: &Login, from: Source) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "INSERT INTO logins (state_hash, browser_hash, request, consented, created_at, network) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(login.state.0.as_slice())
        .bind(login.browser.0.as_slice())
        .bind(&login.request)
        .bind(login.consented.map(Scopes::as_str))
        .bind(login.created_at.secs())
        .bind(from.network());
        self.writer().execute("storing a login", statement).await?;
        Ok(())
    }

    /// The login that this state names, if this browser began it.
    pub(crate) async fn find_login(&self, state: &TokenHash, browser: &TokenHash) -> Result<Option<Login>, StoreError> {
        let row = sqlx::query(
            "SELECT request, consented, created_at FROM logins WHERE state_hash = $1 AND browser_hash = $2",
        )
        .bind(state.0.as_slice())
        .bind(browser.0.as_slice());
        let row = row.fetch_optional(self.readers()).await.map_err(StoreError::query(FINDING))?;
        let Some(row) = row else { return Ok(None) };
        let consented: Option<String> = row.try_get("consented").map_err(StoreError::query(FINDING))?;
        Ok(Some(Login {
            state: *state,
            browser: *browser,
            request: row.try_get("request").map_err(StoreError::query(FINDING))?,
            consented: consented.map(|scopes| Scopes::parse(&scopes)),
            created_at: UnixTime::from_secs(row.try_get("created_at").map_err(StoreError::query(FINDING))?),
        }))
    }

    /// Removes a login that came to nothing.
    pub(crate) async fn forget_login(&self, state: &TokenHash) -> Result<(), StoreError> {
        let statement = sqlx::query("DELETE FROM logins WHERE state_hash = $1").bind(state.0.as_slice());
        self.writer().execute("removing a login", statement).await?;
        Ok(())
    }

    /// Removes a login that has succeeded and writes what it leaves behind, all or nothing; `false` where it is not there
    /// any more. Every visit of the browser before, and the `former` one that it named, is over.
    pub(crate) async fn finish_login(&self, finished: &FinishedLogin<'_>, now: UnixTime) -> Result<bool, StoreError> {
        let FinishedLogin { state, visit, former, consent, code } = *finished;
        let begun =
            sqlx::query("INSERT INTO visits (visit_hash, browser_hash, tenant, expires_at) VALUES ($1, $2, $3, $4)")
                .bind(visit.key.0.as_slice())
                .bind(visit.browser.0.as_slice())
                .bind(tenant_value(visit.tenant)?)
                .bind(visit.ends.secs());
        let consent = consent.map(|consent| consent.statement(now)).transpose()?;
        let code = code.map(Code::statement).transpose()?;
        let mut write = self.writer().begin("finishing a login").await?;
        let take = sqlx::query("DELETE FROM logins WHERE state_hash = $1 AND browser_hash = $2");
        let take = take.bind(state.0.as_slice()).bind(visit.browser.0.as_slice());
        if write.execute(take).await?.rows_affected() == 0 {
            return write.abandon().await.map(|()| false);
        }
        for statement in [visits_of(&visit.browser, former), begun].into_iter().chain(consent).chain(code) {
            write.execute(statement).await?;
        }
        write.commit().await?;
        Ok(true)
    }

    /// How many logins that began after `since` are under way.
    pub(crate) async fn logins_under_way(&self, since: UnixTime) -> Result<i64, StoreError> {
        let count = sqlx::query("SELECT COUNT(*) AS n FROM logins WHERE created_at > $1").bind(since.secs());
        let row = count.fetch_one(self.readers()).await;
        row.and_then(|row| row.try_get("n")).map_err(StoreError::query("counting logins"))
    }

    /// Removes logins that began before `before`.
    pub(crate) async fn forget_logins(&self, before: UnixTime) -> Result<(), StoreError> {
        let statement = sqlx::query("DELETE FROM logins WHERE created_at < $1").bind(before.secs());
        self.writer().execute("removing old logins", statement).await?;
        Ok(())
    }

    /// Who this is, unless the visit is over.
    pub(crate) async fn find_visit(&self, visit: &TokenHash, now: UnixTime) -> Result<Option<Visitor>, StoreError> {
        let row = sqlx::query(
            "SELECT v.tenant, u.login FROM visits v JOIN users u ON u.tenant = v.tenant \
             WHERE v.visit_hash = $1 AND v.expires_at > $2",
        )
        .bind(visit.0.as_slice())
        .bind(now.secs())
        .fetch_optional(self.readers())
        .await
        .map_err(StoreError::query(READING))?;
        row.as_ref().map(visitor).transpose()
    }

    /// Ends every visit of a browser, and the one that it names.
    pub(crate) async fn end_visits(&self, browser: &TokenHash, named: Option<&TokenHash>) -> Result<(), StoreError> {
        self.writer().execute("ending a browser's visits", visits_of(browser, named)).await?;
        Ok(())
    }

    /// Ends every visit of a user: Forgejo does not let them in any more.
    pub(crate) async fn end_visits_of(&self, tenant: TenantId) -> Result<(), StoreError> {
        let statement = sqlx::query("DELETE FROM visits WHERE tenant = $1").bind(tenant_value(tenant)?);
        self.writer().execute("ending a user's visits", statement).await?;
        Ok(())
    }
}

/// Removes the visits of a browser. Its key may be younger than a visit, so the one that it names goes by its own name.
fn visits_of<'a>(browser: &'a TokenHash, named: Option<&'a TokenHash>) -> Statement<'a> {
    let statement = sqlx::query("DELETE FROM visits WHERE browser_hash = $1 OR visit_hash = $2");
    statement.bind(browser.0.as_slice()).bind(named.map(|visit| visit.0.as_slice()))
}

fn visitor(row: &SqliteRow) -> Result<Visitor, StoreError> {
    let login: String = row.try_get("login").map_err(StoreError::query(READING))?;
    Ok(Visitor {
        tenant: tenant_of(row, READING)?,
        login: Label::parse(login).map_err(|_| StoreError::Damaged(READING))?,
    })
}
