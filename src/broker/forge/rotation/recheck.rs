//! Personal tokens are never refreshed, so the accounts behind them are looked at now and then.

use std::time::Duration;

use tracing::{error, warn};

use crate::forge::rotation::{Rotation, RotationError, Verdict};
use crate::forge::vault;
use crate::store::Credential;

/// How often, for each.
const EVERY: Duration = Duration::from_hours(1);

impl Rotation {
    /// Looks at the accounts behind personal tokens that a live grant needs and that were not looked at for an hour.
    /// Who is not let in any more loses the grants that stand on the token; trouble on the way is no verdict.
    pub(crate) async fn recheck(&self) {
        let before = self.0.clock.now().minus(EVERY);
        let due = match self.0.store.personal_credentials(before).await {
            Ok(due) => due,
            Err(e) => {
                error!(error = %e, "personal tokens cannot be looked up");
                return;
            }
        };
        for credential in due {
            match self.rechecked(&credential).await {
                Ok(Verdict::Away) => return,
                Ok(Verdict::LetIn | Verdict::ShutOut) => {}
                // It comes up again; the others must not wait for it.
                Ok(Verdict::None) => {
                    warn!(tenant = %credential.tenant, "Forgejo's answer about an account cannot be used");
                }
                Err(e) => error!(tenant = %credential.tenant, error = %e, "an account could not be looked at"),
            }
        }
    }

    async fn rechecked(&self, credential: &Credential) -> Result<Verdict, RotationError> {
        let inner = &self.0;
        let token = inner.vault.open_sealed(&credential.access, &vault::access_place(&credential.id))?;
        let verdict = self.verdict(&token).await;
        match verdict {
            Verdict::LetIn => inner.store.note_checked(&credential.id, inner.clock.now()).await?,
            Verdict::ShutOut => {
                warn!(tenant = %credential.tenant, reason = "account-refused", "the account is not let in any more");
                let change = self.revoke(&credential.id, "account-refused").await?;
                let _ = inner.changes.send(change).await;
            }
            Verdict::None | Verdict::Away => {}
        }
        Ok(verdict)
    }
}
