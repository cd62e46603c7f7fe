//! The broker's application at Forgejo, and the tokens that another one was given before.
//!
//! A refresh token of one application is never shown to another: Forgejo would refuse it, and every user would lose all
//! they have. Such an access token is good until its end; then its user logs in again, and all their connections that are
//! left go on with the new one. Whether the configured application exists at all Forgejo is asked first: a mistyped
//! `client_id` logs nobody out.

use std::time::Duration;

use tracing::warn;
use wire::telemetry::message_id;

use crate::auth::principal::GrantId;
use crate::chain::chain;
use crate::forge::application::Application;
use crate::forge::rotation::{ASK_REGISTRATION, Rotation};
use crate::store::{Credential, StoreError};

/// Who was cut off longer ago has heard of it.
const REMEMBERED: Duration = Duration::from_hours(30 * 24);

impl Rotation {
    /// Whether a credential's tokens are of another application than the broker's own.
    pub(super) fn is_of_another(application: &Application, credential: &Credential) -> bool {
        credential.application.as_ref().is_some_and(|of| *of != application.client_id)
    }

    /// Whether Forgejo knows the broker's application and its secret. Asked until it says yes, and now and then only.
    pub(super) async fn is_registered(&self, application: &Application) -> bool {
        let (inner, now) = (&self.0, self.0.clock.now());
        let mut state = inner.registered.lock().await;
        let answers = inner.recovery.answers();
        if !state.is_so && (state.answers != answers || state.ask_at.is_none_or(|at| at <= now)) {
            state.is_so = inner.forgejo.knows(application).await;
            (state.ask_at, state.answers) = (Some(now.plus(ASK_REGISTRATION)), answers);
        }
        state.is_so
    }

    /// Whether only a login at Forgejo brings this grant a token: what it stands on is of another application, and over.
    pub(crate) async fn needs_login(&self, grant: &GrantId) -> Result<bool, StoreError> {
        let inner = &self.0;
        let Some(application) = &inner.application else { return Ok(false) };
        let Some(row) = inner.store.find_grant(grant).await? else { return Ok(false) };
        let Some(credential) = inner.store.find_credential(&row.credential_id).await? else { return Ok(false) };
        let is_over = credential.expires_at.is_some_and(|end| end <= inner.clock.now());
        Ok(is_over && Self::is_of_another(application, &credential) && self.is_registered(application).await)
    }

    /// Who must log in again although nobody here wanted that: how many users, and why.
    pub(crate) async fn cut_off(&self) -> Result<Vec<(u64, &'static str)>, StoreError> {
        let inner = &self.0;
        let mut all = Vec::new();
        if let Some(application) = &inner.application {
            let of_others = inner.store.users_of_other_applications(&application.client_id).await?;
            all.push((of_others, "[forgejo] client_id names another application than the one that they logged in at"));
        }
        for (reason, users) in inner.store.users_cut_off_since(inner.clock.now().minus(REMEMBERED)).await? {
            all.push((
                users,
                match reason.as_str() {
                    "refresh-refused" => {
                        "Forgejo refuses their refresh tokens (taken back there, or this database is an older copy)"
                    }
                    "foreign-account" => "their tokens at Forgejo are another account's now",
                    "foreign-forge" => "the operator has adopted another forge",
                    "key-lost" => "the key that sealed their tokens was given up",
                    _ => "their stored tokens cannot be opened",
                },
            ));
        }
        all.retain(|(users, _)| *users > 0);
        Ok(all)
    }

    /// At the start: whose tokens these are is noted where it was not, and the operator is told once who must log in again.
    pub(crate) async fn begin(&self) -> Result<(), StoreError> {
        if let Some(application) = &self.0.application {
            self.0.store.note_application(&application.client_id).await?;
        }
        match self.cut_off().await {
            Ok(all) => {
                for (users, why) in all {
                    warn!(
                        MESSAGE_ID = message_id::TOKEN_NOT_ROTATED,
                        users,
                        reason = "login-again",
                        "{users} users must log in again, because {why}"
                    );
                }
            }
            Err(e) => warn!(error = %e, "who must log in again cannot be counted: {}", chain(&e)),
        }
        Ok(())
    }
}
