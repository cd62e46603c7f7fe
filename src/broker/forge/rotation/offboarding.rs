//! Who leaves, leaves at once: the operator's lists are applied to everybody who is connected, not only to who logs in.

use tracing::warn;

use crate::forge::rotation::{Change, Rotation};
use crate::store::{Account, StoreError};
use wire::telemetry::message_id;

impl Rotation {
    /// Applies the lists that are in force: at the start, and when they were read anew. Whom they keep out by name or number
    /// is out when this returns, also while Forgejo is away. What else keeps somebody out (a deactivated account, a team)
    /// only Forgejo knows: everybody counts as not looked at, so that nobody is served before Forgejo was asked, and the
    /// next look asks about everybody. How many users were ended.
    pub(crate) async fn apply_lists(&self) -> Result<usize, StoreError> {
        let inner = &self.0;
        self.take_up_names().await?;
        let mut ended = self.end_kept_out().await?;
        if self.look_up_names().await {
            ended.extend(self.end_kept_out().await?);
        }
        if inner.access.now().has_unknown_logins() {
            // Whoever was out by their login just now stays out under another one.
            for account in inner.store.accounts_with_grants().await?.iter().chain(&ended) {
                self.pin_connected(account).await;
            }
        }
        inner.store.age_owner_checks().await?;
        // After it: what is not written yet was found before, too.
        inner.unwritten.lock().clear();
        if !inner.access.now().forgejo_tokens {
            self.end_shown().await?;
        }
        Ok(ended.len())
    }

    /// Ends what those have here whom the lists keep out, as far as the store knows them; who they are.
    pub(super) async fn end_kept_out(&self) -> Result<Vec<Account>, StoreError> {
        let (inner, lists) = (&self.0, self.0.access.now());
        let mut ended = Vec::new();
        if !lists.names_accounts() {
            return Ok(ended);
        }
        for account in inner.store.accounts_with_grants().await? {
            if !lists.keeps_out(&account) {
                continue;
            }
            let (tenant, login) = (account.tenant, &account.login);
            warn!(
                MESSAGE_ID = message_id::LOGIN_DENIED, tenant = %tenant, login = %login, reason = "account-refused",
                "the lists of [access] do not let {login} in any more: all grants are revoked"
            );
            let grants = inner.store.end_user(tenant, None, "account-refused", inner.clock.now()).await?;
            let _ = inner.changes.send(Change::Lost(grants)).await;
            ended.push(account);
        }
        Ok(ended)
    }
}
