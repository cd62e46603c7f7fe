//! Forgejo tokens that users show themselves, where the operator lets them (`[access] forgejo_tokens`): whose one is, and
//! whether they are let in.
//!
//! Nothing of such a token is kept here, so Forgejo is asked while it is being used, and not in between. What it says about
//! the account, and the operator's lists, count as for everybody else.

use std::time::Duration;

use tokio::time::timeout;
use tracing::{error, warn};

use crate::auth::principal::GrantId;
use crate::chain::chain;
use crate::forge::access::{AccessError, NotAdmitted};
use crate::forge::api::{ForgejoUser, UpstreamError};
use crate::forge::rotation::{Change, Rotation};
use crate::store::StoreError;
use wire::secret::UpstreamToken;
use wire::telemetry::message_id;

/// How long a request waits for Forgejo's word about the token that it shows.
const PATIENCE: Duration = Duration::from_secs(10);

/// What Forgejo and the operator's lists say of a token that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ShownVerdict {
    /// Its user is let in.
    LetIn(ForgejoUser),
    /// Forgejo does not take it.
    Refused,
    /// Forgejo takes it, and does not say whose it is: it lacks the scope `read:user`, or the account is barred.
    Forbidden,
    /// Its user is not let in.
    NotAdmitted(NotAdmitted),
    /// Forgejo does not say now.
    Unknown,
}

impl Rotation {
    /// Whether such tokens are taken at all.
    pub(crate) fn takes_shown_tokens(&self) -> bool {
        self.0.access.now().forgejo_tokens
    }

    /// Asks Forgejo about a token.
    pub(crate) async fn look_at_shown(&self, token: &UpstreamToken) -> Result<ShownVerdict, StoreError> {
        let looked = timeout(PATIENCE, self.shown_verdict(token)).await;
        looked.unwrap_or(Ok(ShownVerdict::Unknown))
    }

    async fn shown_verdict(&self, token: &UpstreamToken) -> Result<ShownVerdict, StoreError> {
        let inner = &self.0;
        let user = match inner.forgejo.whoami(token).await {
            Ok(user) => user,
            Err(UpstreamError::BadToken) => return Ok(ShownVerdict::Refused),
            Err(UpstreamError::Forbidden) => return Ok(ShownVerdict::Forbidden),
            Err(_) => return Ok(ShownVerdict::Unknown),
        };
        if !self.recognise(&user).await? {
            // What an earlier account of this number had is being ended at this moment.
            return Ok(ShownVerdict::Unknown);
        }
        Ok(match self.admits(&user, token).await {
            Ok(()) => ShownVerdict::LetIn(user),
            Err(AccessError::NotAdmitted(why)) => ShownVerdict::NotAdmitted(why),
            Err(AccessError::Memberships(_)) => ShownVerdict::Unknown,
        })
    }

    /// The same because a child has said that Forgejo refuses the token; `None` where that was asked a moment ago.
    pub(crate) async fn look_at_doubted_shown(
        &self,
        credential: &str,
        token: &UpstreamToken,
    ) -> Option<Result<ShownVerdict, StoreError>> {
        if self.may_doubt(credential) { Some(self.look_at_shown(token).await) } else { None }
    }

    /// Ends, or stops, what runs for a token that is not let in as it was before.
    pub(crate) async fn follow_shown(&self, grant: &GrantId, verdict: &ShownVerdict) {
        let inner = &self.0;
        let change = match verdict {
            ShownVerdict::LetIn(_) | ShownVerdict::Unknown => return,
            ShownVerdict::Forbidden | ShownVerdict::NotAdmitted(NotAdmitted::Locked) => {
                Change::Barred(vec![grant.clone()])
            }
            ShownVerdict::NotAdmitted(why) => {
                warn!(
                    MESSAGE_ID = message_id::LOGIN_DENIED, grant = %grant, reason = "not-admitted", error = %why,
                    "a Forgejo token is not taken any more: {why}"
                );
                Change::Lost(vec![grant.clone()])
            }
            ShownVerdict::Refused => {
                // Forgejo never takes a token again that it has deleted.
                if let Err(e) = inner.store.revoke_grant(grant, "forgejo-token-refused", inner.clock.now()).await {
                    error!(grant = %grant, error = %e, "the end of a Forgejo token could not be stored: {}", chain(&e));
                }
                warn!(
                    MESSAGE_ID = message_id::GRANT_REVOKED, grant = %grant, reason = "forgejo-token-refused",
                    "Forgejo does not take a token any more that was used here: its sessions are ended"
                );
                Change::Lost(vec![grant.clone()])
            }
        };
        let _ = inner.changes.send(change).await;
    }

    /// Such tokens are not taken any more: what runs for them is ended. Each is taken again when they all are.
    pub(super) async fn end_shown(&self) -> Result<(), StoreError> {
        let grants = self.0.store.live_shown_grants().await?;
        if !grants.is_empty() {
            let _ = self.0.changes.send(Change::Lost(grants)).await;
        }
        Ok(())
    }
}
