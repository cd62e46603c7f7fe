//! Forgejo does not let an account in for now: it must change its password, or is locked. What it has here waits.
//!
//! Its children are stopped and its requests are refused with the reason, until Forgejo lets it in again. Only an account
//! that stays out for longer than the operator's `[access] revoke_barred_after` loses its grants. While Forgejo is away, who
//! was barred stays barred.

use std::time::Duration;

use tracing::{info, warn};

use crate::chain::chain;
use crate::forge::rotation::ownership::GOOD_FOR;
use crate::forge::rotation::{Change, Pause, Rotation, RotationError};
use crate::store::Credential;
use wire::telemetry::message_id;

/// Who comes after a look that found them barred is looked at again after this: a password is changed quickly.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Who does not come is looked at as often as this.
const LOOK_EVERY: Duration = Duration::from_mins(10);

impl Rotation {
    /// Forgejo has just said no to an account that is there: it waits, or has waited for long enough.
    pub(super) async fn bar(
        &self,
        credential: &Credential,
        pause: &mut Pause,
        change: &mut Option<Change>,
    ) -> Result<RotationError, RotationError> {
        let (inner, now, tenant) = (&self.0, self.0.clock.now(), credential.tenant);
        let limit = inner.access.now().revoke_barred_after;
        let so_long = credential.barred_since.map(|since| now.since(since)).unwrap_or_default();
        if so_long >= limit {
            warn!(
                MESSAGE_ID = message_id::LOGIN_DENIED, tenant = %tenant, reason = "account-refused",
                "Forgejo has not let user {tenant} in for {}: the grants are revoked", humantime::format_duration(so_long)
            );
            *change = Some(self.revoke(&credential.id, "account-refused").await?);
            inner.store.end_visits_of(tenant).await?;
            return Ok(RotationError::LoginAgain);
        }
        (pause.look_at, pause.is_barred) = (Some(now.plus(ASK_AGAIN)), true);
        let looked_at = now.minus(GOOD_FOR).plus(LOOK_EVERY);
        if let Err(e) = inner.store.note_barred(&credential.id, now, looked_at).await {
            // It is refused all the same, and looked at again.
            warn!(tenant = %tenant, error = %e, "that an account is barred is not kept: {}", chain(&e));
        }
        if credential.barred_since.is_none() {
            warn!(
                MESSAGE_ID = message_id::LOGIN_DENIED, tenant = %tenant, reason = "account-barred",
                "Forgejo does not let user {tenant} in now (the account is locked, or must change its password): its \
                 children are stopped, and all goes on when Forgejo lets it in again within {}",
                humantime::format_duration(limit)
            );
            *change = Some(Change::Barred(inner.store.grants_on(&credential.id).await?));
        }
        Ok(RotationError::Barred)
    }

    /// Forgejo lets an account in that was barred.
    pub(super) fn unbar(credential: &Credential, pause: &mut Pause) {
        pause.is_barred = false;
        if credential.barred_since.is_some() {
            let tenant = credential.tenant;
            info!(tenant = %tenant, reason = "account-let-in", "Forgejo lets user {tenant} in again: all goes on");
        }
    }
}
