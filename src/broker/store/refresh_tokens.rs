//! Refresh tokens: from one pair of tokens to the next. What a used one that comes back means is decided elsewhere
//! ([`Seen`] in, [`Verdict`] out), within the transaction that carries it out.

use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::auth::principal::{GrantId, Scopes};
use crate::auth::token::{RefreshName, TokenHash};
use crate::store::tidy::{AFTER_THE_END, BATCH};
use crate::store::writer::{Statement, Write};
use crate::store::{Store, StoreError, tenant_of, tenant_value};
use wire::clock::UnixTime;
use wire::message::TenantId;

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
    /// Whether its user has taken writing away from it.
    pub(crate) is_reduced: bool,
    /// Whether its client must show its key for it.
    pub(crate) needs_key: bool,
    /// Why the family was revoked, if it was.
    pub(crate) revoked: Option<String>,
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

impl Used {
    /// For the log.
    pub(crate) fn secs(self) -> Option<i64> {
        match self {
            Self::At(at) => Some(at.secs()),
            Self::Never | Self::LongAgo => None,
        }
    }
}

/// What is known of a refresh token that is to be exchanged, and of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// When it was exchanged before.
    pub(crate) used: Option<UnixTime>,
    /// Whether something that it was exchanged for was used.
    pub(crate) succeeded: bool,
    /// Its branch.
    pub(crate) branch: u32,
    /// Branches with a token that can be exchanged.
    pub(crate) live_branches: u32,
    /// When the family forked last.
    pub(crate) forked: Option<UnixTime>,
    /// The branch that refreshed first after that fork's window.
    pub(crate) settled: Option<u32>,
}

/// What is to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The next pair of its branch; whether that branch is the one that was settled on from now on.
    Next {
        /// That.
        settle: bool,
    },
    /// A pair that begins a branch.
    Fork,
    /// Nothing.
    No(NoPair),
}

/// Why there is no pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPair {
    /// The grant was revoked meanwhile, or the token is not kept any more.
    Gone,
    /// It is a thief's, or the thief was first.
    Reused,
    /// Two branches of the family refresh, and the operator does not want that.
    SecondBranch,
    /// The family has as many branches as it may.
    TooManyBranches,
}

/// A token to exchange.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    /// It.
    pub(crate) token: &'a TokenHash,
    /// Its family.
    pub(crate) grant: &'a GrantId,
    /// What it is exchanged for.
    pub(crate) pair: &'a NewPair,
    /// Where the request comes from, for a fork.
    pub(crate) network: &'a str,
    /// Used tokens are kept for so long, while what becomes of one depends on when it was used. Later they are known by
    /// their family alone: a client that refreshes every hour has two rows, not one for each hour of a month.
    pub(crate) keep: Duration,
    /// Now.
    pub(crate) now: UnixTime,
}

/// A fork of a family, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fork {
    /// Of which.
    pub(crate) grant: GrantId,
    /// When.
    pub(crate) at: UnixTime,
    /// Where from.
    pub(crate) network: String,
}

/// Where a pair stands in its family.
#[derive(Debug)]
pub(super) struct Place {
    parent: Option<TokenHash>,
    branch: u32,
}

impl Place {
    /// That of the pair that a code is redeemed for.
    pub(super) const FIRST: Self = Self { parent: None, branch: 0 };
}

const REFRESH: &str = "reading a refresh token";

impl Store {
    /// A refresh token, also one that was used, for as long as it would have lived and a day more.
    pub(crate) async fn find_refresh_token(
        &self,
        token: &RefreshName,
        now: UnixTime,
    ) -> Result<Option<RefreshRow>, StoreError> {
        let row = sqlx::query(
            "SELECT r.grant_id, r.expires_at, r.used_at, g.client_id, g.tenant, g.scopes, g.reduced_at, g.revoked_at, \
             g.revoked_reason, g.needs_key FROM refresh_tokens r JOIN grants g ON g.id = r.grant_id WHERE r.token_hash = $1",
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
            "SELECT g.id AS grant_id, g.client_id, g.tenant, g.scopes, g.reduced_at, g.revoked_at, g.revoked_reason, g.needs_key \
             FROM grants g \
             WHERE g.family_hash = $1",
        )
        .bind(token.family.0.as_slice())
        .fetch_optional(self.readers())
        .await
        .map_err(StoreError::query(REFRESH))?;
        row.map(|row| refresh_row(&row, token.ends, Used::LongAgo)).transpose()
    }

    /// Exchanges a refresh token for a new pair as `judge` says, all or nothing; whether the family forked.
    pub(crate) async fn exchange_refresh_token(
        &self,
        exchange: &Exchange<'_>,
        judge: impl FnOnce(&Seen) -> Verdict,
    ) -> Result<Result<bool, NoPair>, StoreError> {
        const WHAT: &str = "exchanging a refresh token";
        let Exchange { token, grant, pair, network, keep, now } = exchange;
        let mut write = self.writer().begin(WHAT).await?;
        // A revocation is either seen here or waits until this is done. A token that is not kept is never exchanged.
        let seen = sqlx::query(
            "SELECT r.used_at, r.succeeded_at, r.branch, r.parent_hash, g.settled_branch, \
             (SELECT MAX(forked_at) FROM refresh_forks f WHERE f.grant_id = g.id) AS forked_at, \
             (SELECT MAX(branch) FROM refresh_forks f WHERE f.grant_id = g.id) AS last_branch, \
             (SELECT COUNT(DISTINCT branch) FROM refresh_tokens l WHERE l.grant_id = g.id AND l.used_at IS NULL \
             AND l.expires_at > $3) AS live_branches \
             FROM grants g JOIN refresh_tokens r ON r.grant_id = g.id \
             WHERE g.id = $1 AND g.revoked_at IS NULL AND r.token_hash = $2",
        )
        .bind(grant.as_str())
        .bind(token.0.as_slice())
        .bind(now.secs());
        let rows = write.fetch_all(seen).await?;
        let Some(row) = rows.first() else { return write.abandon().await.map(|()| Err(NoPair::Gone)) };
        let (seen, last_branch) = (seen_in(row)?, number(row, "last_branch")?.unwrap_or(0));
        let parent: Option<Vec<u8>> = row.try_get("parent_hash").map_err(StoreError::query(REFRESH))?;
        let branch = match judge(&seen) {
            Verdict::No(why) => return write.abandon().await.map(|()| Err(why)),
            Verdict::Next { settle } => {
                if settle {
                    let settled = sqlx::query("UPDATE grants SET settled_branch = $1 WHERE id = $2");
                    write.execute(settled.bind(i64::from(seen.branch)).bind(grant.as_str())).await?;
                }
                seen.branch
            }
            Verdict::Fork => {
                let branch = last_branch.saturating_add(1);
                let fork = sqlx::query(
                    "INSERT INTO refresh_forks (grant_id, branch, forked_at, network) VALUES ($1, $2, $3, $4)",
                )
                .bind(grant.as_str())
                .bind(i64::from(branch))
                .bind(now.secs())
                .bind(*network);
                write.execute(fork).await?;
                let unsettled = sqlx::query("UPDATE grants SET settled_branch = NULL WHERE id = $1");
                write.execute(unsettled.bind(grant.as_str())).await?;
                branch
            }
        };
        let used = sqlx::query("UPDATE refresh_tokens SET used_at = $1 WHERE token_hash = $2 AND used_at IS NULL")
            .bind(now.secs())
            .bind(token.0.as_slice());
        write.execute(used).await?;
        if let Some(parent) = parent {
            write.execute(succeeded(parent, *now)).await?;
        }
        // Grants of before there were families get theirs now.
        let family = sqlx::query("UPDATE grants SET family_hash = $1 WHERE id = $2 AND family_hash IS NULL")
            .bind(pair.family.0.as_slice())
            .bind(grant.as_str());
        write.execute(family).await?;
        // One whose answer was lost stays: it is still good.
        let used_up = sqlx::query(
            "DELETE FROM refresh_tokens WHERE grant_id = $1 AND in_family = 1 AND used_at < $2 AND succeeded_at IS NOT NULL",
        )
        .bind(grant.as_str())
        .bind(now.minus(*keep).secs());
        write.execute(used_up).await?;
        insert_pair(&mut write, grant, pair, &Place { parent: Some(**token), branch }, *now).await?;
        write.commit().await?;
        Ok(Ok(branch != seen.branch))
    }

    /// Writes that access tokens were used which were given for these refresh tokens.
    pub(crate) async fn note_succeeded(&self, parents: &[TokenHash], now: UnixTime) -> Result<(), StoreError> {
        for parents in parents.chunks(BATCH) {
            let statements: Vec<_> = parents.iter().map(|parent| succeeded(parent.0.to_vec(), now)).collect();
            self.writer().execute_all("storing which tokens were used", statements).await?;
        }
        Ok(())
    }

    /// The forks of a user's live families since `since`, the newest first.
    pub(crate) async fn forks_of(&self, tenant: TenantId, since: UnixTime) -> Result<Vec<Fork>, StoreError> {
        const WHAT: &str = "reading the forks of a user's connections";
        let rows = sqlx::query(
            "SELECT f.grant_id, f.forked_at, f.network FROM refresh_forks f JOIN grants g ON g.id = f.grant_id \
             WHERE g.tenant = $1 AND g.revoked_at IS NULL AND f.forked_at >= $2 ORDER BY f.forked_at DESC",
        )
        .bind(tenant_value(tenant)?)
        .bind(since.secs())
        .fetch_all(self.readers())
        .await
        .map_err(StoreError::query(WHAT))?;
        let fork = |row: &SqliteRow| {
            let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(WHAT));
            let at = row.try_get("forked_at").map_err(StoreError::query(WHAT))?;
            Ok(Fork { grant: GrantId::new(text("grant_id")?), at: UnixTime::from_secs(at), network: text("network")? })
        };
        rows.iter().map(fork).collect()
    }

    /// Removes one access token; its grant lives on.
    pub(crate) async fn forget_access_token(&self, token: &TokenHash) -> Result<(), StoreError> {
        let statement = sqlx::query("DELETE FROM access_tokens WHERE token_hash = $1").bind(token.0.as_slice());
        self.writer().execute("removing an access token", statement).await?;
        Ok(())
    }
}

pub(super) async fn insert_pair(
    write: &mut Write<'_>,
    grant: &GrantId,
    pair: &NewPair,
    place: &Place,
    now: UnixTime,
) -> Result<(), StoreError> {
    let statements = [
        sqlx::query(
            "INSERT INTO access_tokens (token_hash, grant_id, created_at, expires_at, scopes, parent_hash) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(pair.access.0.to_vec())
        .bind(grant.as_str())
        .bind(now.secs())
        .bind(pair.access_ends.secs())
        .bind(pair.access_scopes.map(Scopes::as_str))
        .bind(place.parent.map(|parent| parent.0.to_vec())),
        sqlx::query(
            "INSERT INTO refresh_tokens (token_hash, grant_id, created_at, expires_at, in_family, parent_hash, branch) \
             SELECT $1, $2, $3, $4, COUNT(*), $6, $7 FROM grants WHERE id = $2 AND family_hash = $5",
        )
        .bind(pair.refresh.0.to_vec())
        .bind(grant.as_str())
        .bind(now.secs())
        .bind(pair.refresh_ends.secs())
        .bind(pair.family.0.to_vec())
        .bind(place.parent.map(|parent| parent.0.to_vec()))
        .bind(i64::from(place.branch)),
    ];
    for statement in statements {
        write.execute(statement).await?;
    }
    Ok(())
}

fn succeeded(parent: Vec<u8>, now: UnixTime) -> Statement<'static> {
    sqlx::query("UPDATE refresh_tokens SET succeeded_at = $1 WHERE token_hash = $2 AND succeeded_at IS NULL")
        .bind(now.secs())
        .bind(parent)
}

fn number(row: &SqliteRow, name: &str) -> Result<Option<u32>, StoreError> {
    let number: Option<i64> = row.try_get(name).map_err(StoreError::query(REFRESH))?;
    number.map(|number| u32::try_from(number).map_err(|_| StoreError::Damaged(REFRESH))).transpose()
}

fn seen_in(row: &SqliteRow) -> Result<Seen, StoreError> {
    let time = |name: &str| row.try_get::<Option<i64>, _>(name).map_err(StoreError::query(REFRESH));
    Ok(Seen {
        used: time("used_at")?.map(UnixTime::from_secs),
        succeeded: time("succeeded_at")?.is_some(),
        branch: number(row, "branch")?.unwrap_or(0),
        live_branches: number(row, "live_branches")?.unwrap_or(0),
        forked: time("forked_at")?.map(UnixTime::from_secs),
        settled: number(row, "settled_branch")?,
    })
}

fn refresh_row(row: &SqliteRow, expires_at: UnixTime, used: Used) -> Result<RefreshRow, StoreError> {
    let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(REFRESH));
    let revoked: Option<i64> = row.try_get("revoked_at").map_err(StoreError::query(REFRESH))?;
    let reason: Option<String> = row.try_get("revoked_reason").map_err(StoreError::query(REFRESH))?;
    let reduced: Option<i64> = row.try_get("reduced_at").map_err(StoreError::query(REFRESH))?;
    Ok(RefreshRow {
        grant: GrantId::new(text("grant_id")?),
        client_id: text("client_id")?,
        tenant: tenant_of(row, REFRESH)?,
        scopes: Scopes::parse(&text("scopes")?),
        is_reduced: reduced.is_some(),
        needs_key: row.try_get("needs_key").map_err(StoreError::query(REFRESH))?,
        revoked: revoked.map(|_| reason.unwrap_or_default()),
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
