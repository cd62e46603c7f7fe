//! Who leaves, leaves at once: the operator's lists are applied to everybody who is connected, not only to who logs in.

use tracing::warn;

use crate::forge::rotation::{Change, Rotation};
use crate::store::StoreError;
use wire::telemetry::message_id;

impl Rotation {
    /// Applies the lists that are in force: at the start, and when they were read anew. Whom they keep out by name is
    /// out when this returns, also while Forgejo is away. What else keeps somebody out (a deactivated account, a team)
    /// only Forgejo knows: everybody counts as not looked at, so that nobody is served before Forgejo was asked, and the
    /// next look asks about everybody. How many users were ended.
    pub(crate) async fn apply_lists(&self) -> Result<usize, StoreError> {
        let (inner, lists) = (&self.0, self.0.access.now());
        let mut ended = 0_usize;
        for account in inner.store.accounts_with_grants().await? {
            if !lists.keeps_out(account.login.as_str()) {
                continue;
            }
            let (tenant, login) = (account.tenant, &account.login);
            warn!(
                MESSAGE_ID = message_id::LOGIN_DENIED, tenant = %tenant, login = %login, reason = "account-refused",
                "the lists of [access] do not let {login} in any more: all grants are revoked"
            );
            let grants = inner.store.end_user(tenant, None, "account-refused", inner.clock.now()).await?;
            let _ = inner.changes.send(Change::Lost(grants)).await;
            ended = ended.saturating_add(1);
        }
        inner.store.age_owner_checks().await?;
        if !lists.forgejo_tokens {
            self.end_shown().await?;
        }
        Ok(ended)
    }
}
