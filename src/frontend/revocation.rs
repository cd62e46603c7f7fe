//! The end of a grant, whoever asks for it: first in the store, then in memory, then its sessions.

use tracing::info;

use super::bearer::Principals;
use super::principal::GrantId;
use super::session::registry::Registry;
use super::store::{Store, StoreError};
use crate::clock::Clock;

/// Ends grants.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// Where grants are kept.
    pub store: Store,
    /// Who would go on taking their tokens for good.
    pub principals: Principals,
    /// Whose sessions they have.
    pub registry: Registry,
    /// The time.
    pub clock: Clock,
}

impl Revocation {
    /// Revokes a grant; whether it was there and not revoked. Its children are being stopped when this returns.
    pub async fn revoke(&self, grant: &GrantId, reason: &'static str) -> Result<bool, StoreError> {
        if !self.store.revoke_grant(grant, reason, self.clock.now()).await? {
            return Ok(false);
        }
        let sessions = self.end(grant, reason);
        info!(grant = %grant, sessions, reason, "grant revoked");
        Ok(true)
    }

    /// Ends what a grant has that is revoked in the store already; how many sessions.
    pub fn end(&self, grant: &GrantId, reason: &'static str) -> usize {
        self.principals.forget_grant(grant);
        self.registry.end_grant(grant, reason)
    }

    /// One of the grant's access tokens is gone from the store.
    pub fn forget_token(&self, grant: &GrantId) {
        self.principals.forget_grant(grant);
    }
}
