//! The accounts behind credentials are looked at now and then: whether they are still the ones that they are kept for, and
//! still let in. (Personal tokens are never refreshed, and a refresh may come while the API does not answer.)

use std::time::Duration;

use tracing::{error, warn};

use crate::forge::rotation::{Rotation, RotationError, Verdict};
use crate::forge::vault;
use crate::store::Credential;

/// How often, for each.
pub(crate) const EVERY: Duration = Duration::from_hours(1);

impl Rotation {
    /// Looks at the accounts behind credentials that a live grant needs and that were not looked at for an hour. Who is not
    /// let in any more loses the grants that stand on the credential; trouble on the way is no verdict.
    pub(crate) async fn recheck(&self) {
        let before = self.0.clock.now().minus(EVERY);
        let due = match self.0.store.unchecked_credentials(before).await {
            Ok(due) => due,
            Err(e) => {
                error!(error = %e, "credentials cannot be looked up");
                return;
            }
        };
        for credential in due {
            match self.rechecked(&credential).await {
                Ok(Verdict::Away | Verdict::Known { away: true }) => return,
                Ok(Verdict::LetIn | Verdict::ShutOut | Verdict::Foreign) => {}
                // It comes up again; the others must not wait for it.
                Ok(Verdict::None | Verdict::Known { away: false }) => {
                    warn!(tenant = %credential.tenant, "Forgejo's answer about an account cannot be used");
                }
                Err(e) => error!(tenant = %credential.tenant, error = %e, "an account could not be looked at"),
            }
        }
    }

    async fn rechecked(&self, credential: &Credential) -> Result<Verdict, RotationError> {
        let inner = &self.0;
        let token = inner.vault.open_sealed(&credential.access, &vault::access_place(&credential.id))?;
        let verdict = self.verdict(credential, &token).await;
        let reason = match verdict {
            Verdict::ShutOut => "account-refused",
            Verdict::Foreign => "foreign-account",
            Verdict::LetIn | Verdict::Known { .. } | Verdict::None | Verdict::Away => return Ok(verdict),
        };
        let change = self.shut_out(credential, reason).await?;
        let _ = inner.changes.send(change).await;
        Ok(verdict)
    }
}
