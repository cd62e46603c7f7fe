//! The end of a grant or a token, whoever asks for it: first in the store, then in memory, then its sessions.
//!
//! Each runs in a task of its own and does all of it again when it is asked for again: who hangs up in the middle must
//! not leave what is over in the store alive in memory.

use tracing::info;

use crate::auth::bearer::Principals;
use crate::auth::principal::GrantId;
use crate::auth::restriction::Restrictions;
use crate::auth::token::TokenHash;
use crate::session::registry::Registry;
use crate::store::{Store, StoreError};
use wire::clock::{Clock, UnixTime};
use wire::message::TenantId;
use wire::telemetry::message_id;

/// Ends grants.
#[derive(Debug, Clone)]
pub(crate) struct Revocation {
    /// Where grants are kept.
    pub(crate) store: Store,
    /// Who would go on taking their tokens for good.
    pub(crate) principals: Principals,
    /// Whose sessions they have.
    pub(crate) registry: Registry,
    /// The time.
    pub(crate) clock: Clock,
}

impl Revocation {
    /// Revokes a grant; whether it was there and not revoked. Its children are being stopped when this returns.
    pub(crate) async fn revoke(&self, grant: &GrantId, reason: &'static str) -> Result<bool, StoreError> {
        let (all, grant) = (self.clone(), grant.clone());
        let task = tokio::spawn(async move {
            let is_first = all.store.revoke_grant(&grant, reason, all.clock.now()).await?;
            let sessions = all.end(&grant, reason);
            if is_first {
                info!(
                    MESSAGE_ID = message_id::GRANT_REVOKED, grant = %grant, sessions, reason,
                    "grant revoked: {grant}, with {sessions} sessions ({reason})"
                );
            }
            Ok(is_first)
        });
        task.await.unwrap_or(Err(StoreError::Interrupted("revoking a grant")))
    }

    /// Ends all that a user has here; how many grants and sessions. Nothing of it is alive when this returns.
    pub(crate) async fn end_user(&self, tenant: TenantId, reason: &'static str) -> Result<(usize, usize), StoreError> {
        let all = self.clone();
        let task = tokio::spawn(async move {
            let grants = all.store.end_user(tenant, None, reason, all.clock.now()).await?;
            let sessions = grants.iter().map(|grant| all.end(grant, reason)).sum();
            let count = grants.len();
            info!(
                MESSAGE_ID = message_id::GRANT_REVOKED, tenant = %tenant, grants = count, sessions, reason,
                "all that user {tenant} had is ended: {count} grants and {sessions} sessions ({reason})"
            );
            Ok((grants.len(), sessions))
        });
        task.await.unwrap_or(Err(StoreError::Interrupted("ending what a user has")))
    }

    /// Takes writing away from a grant; whether it had it. Its tokens only read from here on, in its sessions too.
    pub(crate) async fn reduce(&self, grant: &GrantId) -> Result<bool, StoreError> {
        let (all, grant) = (self.clone(), grant.clone());
        let task = tokio::spawn(async move {
            let is_less = all.store.reduce_grant(&grant, all.clock.now()).await?;
            all.forget_tokens(&grant);
            Ok(is_less)
        });
        task.await.unwrap_or(Err(StoreError::Interrupted("reducing a grant")))
    }

    /// Holds a token of the operator's to something else; how many of its sessions were ended, so that nothing goes on
    /// that it would not be let do any more. `None` where it is none.
    pub(crate) async fn change_token(
        &self,
        grant: &GrantId,
        restrictions: Restrictions,
        expires_at: Option<UnixTime>,
    ) -> Result<Option<usize>, StoreError> {
        let (all, grant) = (self.clone(), grant.clone());
        let task = tokio::spawn(async move {
            let is_one = all.store.change_token(&grant, &restrictions, expires_at).await?;
            Ok(is_one.then(|| all.end(&grant, "token-changed")))
        });
        task.await.unwrap_or(Err(StoreError::Interrupted("changing a token")))
    }

    /// Ends one access token of a grant.
    pub(crate) async fn revoke_token(&self, token: TokenHash, grant: &GrantId) -> Result<(), StoreError> {
        let (all, grant) = (self.clone(), grant.clone());
        let task = tokio::spawn(async move {
            all.store.forget_access_token(&token).await?;
            all.forget_tokens(&grant);
            Ok(())
        });
        task.await.unwrap_or(Err(StoreError::Interrupted("revoking a token")))
    }

    /// Ends what a grant has that is revoked in the store already; how many sessions.
    pub(crate) fn end(&self, grant: &GrantId, reason: &'static str) -> usize {
        self.principals.forget_grant(grant);
        self.registry.end_grant(grant, reason)
    }

    /// Stops what runs for a grant whose user Forgejo does not let in for now; how many children. Its sessions go on.
    pub(crate) fn suspend(&self, grant: &GrantId) -> usize {
        self.principals.forget_grant(grant);
        self.registry.suspend_grant(grant)
    }

    /// What is known of the grant's tokens is looked up anew.
    pub(crate) fn forget_tokens(&self, grant: &GrantId) {
        self.principals.forget_grant(grant);
    }
}
