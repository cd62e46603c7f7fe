//! A login at Forgejo: its code becomes the user's credential.
//!
//! Each code exchange makes the refresh token that is stored worthless, so from here on there are two outcomes only:
//! the new pair is stored, or the user has to log in again some day.

use std::time::Duration;

use rand::rngs::SysRng;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::auth::token::NoRandomness;
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::forge::access::{AccessError, NotAdmitted};
use crate::forge::api::{ForgejoUser, UpstreamError};
use crate::forge::application::Application;
use crate::forge::rotation::exchanges::Order;
use crate::forge::rotation::persist::{HeldUp, persist};
use crate::forge::rotation::{Change, Rotation};
use crate::forge::scopes::difference;
use crate::forge::token_endpoint::{AuthorizationAnswer, Pair, PairError};
use crate::forge::vault::VaultError;
use crate::hex;
use crate::store::{Credential, StoreError};
use wire::secret::UpstreamToken;
use wire::telemetry::message_id;

/// How long Forgejo may take to tell what a user is a member of.
const MEMBERSHIPS_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a login waits to hear which scopes Forgejo has granted: good to know, and no more.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a login waits for a place among those that exchange their codes.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long Forgejo is asked whose pair it has just given out. Further logins of the same user, and refreshes that were
/// refused, wait for it, and are told to come back, not that all is lost.
const RETRY_FOR: Duration = Duration::from_mins(2);
/// How long the first of these questions may take: whoever Forgejo does not name soon gives its place to others.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Logins that ask Forgejo at once: a burst of people gets through, and a forge that is slow is not buried.
const MAX_ASKING: usize = 64;
/// Of those that were not answered, so many ask again at once. They have places of their own, so that accounts about which
/// Forgejo does not answer keep nobody else waiting.
const MAX_ASKING_AGAIN: usize = 16;
/// Between questions whose pair it is. A browser waits, and is not to wait on when Forgejo is well again.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));

/// Places of logins that ask Forgejo something.
#[derive(Debug)]
pub(super) struct Places {
    first: Semaphore,
    again: Semaphore,
}

impl Default for Places {
    fn default() -> Self {
        Self { first: Semaphore::new(MAX_ASKING), again: Semaphore::new(MAX_ASKING_AGAIN) }
    }
}

/// Somebody who has logged in.
#[derive(Debug, Clone)]
pub(crate) struct LoggedIn {
    /// Who.
    pub(crate) user: ForgejoUser,
    /// What their grants stand on.
    pub(crate) credential_id: String,
}

/// A login whose code was exchanged.
struct Exchanged {
    user: ForgejoUser,
    /// As it is stored.
    credential: Credential,
    access: UpstreamToken,
}

/// Why a login came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogInError {
    /// The broker has no registration at Forgejo.
    #[error("no application is configured")]
    NotConfigured,
    /// Forgejo refuses the code: used, or of another login.
    #[error("Forgejo does not accept the code")]
    Code,
    /// Forgejo does not accept the broker itself.
    #[error("Forgejo does not accept the broker's client id or secret")]
    Misconfigured,
    /// Forgejo does not answer, or not in a way that can be used.
    #[error("Forgejo does not answer")]
    NotNow,
    /// The account may not.
    #[error("{0}")]
    NotAdmitted(NotAdmitted),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The vault failed.
    #[error("the vault failed")]
    Vault(#[from] VaultError),
    /// The random source failed.
    #[error("no random bytes")]
    NoRandomness(#[from] NoRandomness),
}

impl Rotation {
    /// Exchanges a login's code and stores what comes of it: the user, and their one credential. Their children that
    /// run get the new token.
    ///
    /// Runs in a task of its own: whoever waits no more must not take a pair along that Forgejo has just given out. Where
    /// the store takes nothing, that is told at its first failure, and the pair is kept and tried for a while.
    pub(crate) async fn log_in(&self, answer: AuthorizationAnswer, held_up: HeldUp) -> Result<LoggedIn, LogInError> {
        let rotation = self.clone();
        let task = self.0.tasks.spawn(async move {
            let login = rotation.exchanged(&answer, &held_up).await?;
            let (verdict, change) = rotation.judged(&login).await?;
            let _ = rotation.0.changes.send(change).await;
            verdict?;
            let _ = timeout(PROBE_TIMEOUT, rotation.compare_scopes(&login)).await;
            Ok(LoggedIn { user: login.user, credential_id: login.credential.id })
        });
        task.await.unwrap_or(Err(LogInError::NotNow))
    }

    /// Exchanges the code, and stores what comes of it under the user whose it is: what was stored for them before is
    /// worthless by now, whatever becomes of this login.
    async fn exchanged(&self, answer: &AuthorizationAnswer, held_up: &HeldUp) -> Result<Exchanged, LogInError> {
        let inner = &self.0;
        let application = inner.application.as_ref().ok_or(LogInError::NotConfigured)?;
        // Not begun, so that nothing is lost: the code at Forgejo is good for another try.
        let place = timeout(QUEUE_TIMEOUT, inner.places.first.acquire()).await.map_err(|_| LogInError::NotNow)?;
        let mut exchange = inner.exchanges.begin();
        let pair = inner.forgejo.exchange(application, answer).await;
        self.heard(&pair);
        let pair = pair.map_err(|e| match e {
            PairError::Refused => LogInError::Code,
            PairError::Misconfigured => {
                error!(reason = "client-refused", error = %e, "nobody can log in: {}", chain(&e));
                LogInError::Misconfigured
            }
            PairError::NotNow => LogInError::NotNow,
        })?;
        let span = exchange.came();
        let first = timeout(FIRST_LOOK, inner.forgejo.whoami(&pair.access)).await;
        drop(place);
        let first = first.unwrap_or(Err(UpstreamError::Unreachable));
        let user = timeout(RETRY_FOR, self.whose(&pair.access, first)).await.unwrap_or(Err(LogInError::NotNow))?;
        let turn = exchange.is_of(user.id);
        let mut stored = timeout(RETRY_FOR, turn.lock()).await.map_err(|_| LogInError::NotNow)?;
        // Not with this pair: what the earlier account had here is being ended at this moment.
        if !persist(held_up, || self.recognise(&user)).await? {
            return Err(LogInError::NotAdmitted(NotAdmitted::Successor));
        }
        let known = inner.store.oauth_credential_of(user.id).await?;
        let (newest, span) = match span.order(*stored) {
            Order::Newer => (Ok(pair), span),
            Order::Older => (Err(pair.access), span),
            Order::Unknown => {
                exchange.asks_again();
                let successor = self.successor(application, &user, &pair).await;
                (successor.ok_or(pair.access), exchange.came())
            }
        };
        let pair = match newest {
            Ok(pair) => pair,
            // Another login of this user has stored a newer one.
            Err(access) => {
                let id = known.ok_or(LogInError::NotNow)?;
                let credential = inner.store.find_credential(&id).await?.ok_or(LogInError::NotNow)?;
                return Ok(Exchanged { user, credential, access });
            }
        };
        let id = match known {
            Some(known) => known,
            None => hex::random_id(&mut SysRng)?,
        };
        let storing = self.storing().await;
        let credential = self.sealed(id, user.id, &pair)?;
        let put = || inner.store.put_oauth_credential(&credential, &user.login, inner.clock.now());
        persist(held_up, put).await?;
        drop(storing);
        *stored = Some(span);
        self.note_vouched(&credential.id, &pair.access).await?;
        Ok(Exchanged { user, credential, access: pair.access })
    }

    /// What comes after a pair that was asked for at the same time as the one that is stored; `None` where that one is
    /// the newer, whose refresh token alone Forgejo takes.
    async fn successor(&self, application: &Application, user: &ForgejoUser, pair: &Pair) -> Option<Pair> {
        let asking = async {
            let mut failures = 0_u32;
            loop {
                let answer = self.0.forgejo.refresh(application, &pair.refresh).await;
                self.heard(&answer);
                match answer {
                    Ok(successor) => return Some(successor),
                    Err(PairError::Refused) => return None,
                    Err(e @ (PairError::NotNow | PairError::Misconfigured)) => {
                        warn!(tenant = %user.id, error = %e, "two logins came at once, and Forgejo does not say which is the later; asking again");
                        failures = failures.saturating_add(1);
                        sleep(BACKOFF.after(failures)).await;
                    }
                }
            }
        };
        timeout(RETRY_FOR, asking).await.unwrap_or(None)
    }

    /// Whether the user is let in, and what that means for the grants that they have already.
    async fn judged(&self, login: &Exchanged) -> Result<(Result<(), LogInError>, Change), LogInError> {
        let (inner, Exchanged { user, credential, access }) = (&self.0, login);
        let verdict = timeout(MEMBERSHIPS_TIMEOUT, self.admits(user, access)).await;
        let verdict = match verdict.unwrap_or(Err(AccessError::Memberships(UpstreamError::Unreachable))) {
            Err(AccessError::NotAdmitted(why)) => {
                // What bars an account for now ends nothing; the next look notes it.
                if why == NotAdmitted::Locked {
                    inner.store.age_owner_check(&credential.id).await?;
                    let grants = inner.store.grants_on(&credential.id).await?;
                    return Ok((Err(LogInError::NotAdmitted(why)), Change::Barred(grants)));
                }
                warn!(
                    MESSAGE_ID = message_id::LOGIN_DENIED, tenant = %user.id, login = %user.login,
                    reason = "not-admitted", error = %why, "login refused: {}, because {why}", user.login
                );
                let change = self.revoke(&credential.id, "account-refused").await?;
                inner.store.end_visits_of(user.id).await?;
                inner.store.erase_credential(credential).await?;
                return Ok((Err(LogInError::NotAdmitted(why)), change));
            }
            Err(e @ AccessError::Memberships(_)) => {
                warn!(
                    MESSAGE_ID = message_id::LOGIN_DENIED, tenant = %user.id, login = %user.login,
                    reason = "memberships", error = %e, "login refused for now: {}, because {e}", user.login
                );
                Err(LogInError::NotNow)
            }
            Ok(()) => {
                info!(
                    MESSAGE_ID = message_id::LOGGED_IN, tenant = %user.id, login = %user.login,
                    "logged in at Forgejo: {} (user {})", user.login, user.id
                );
                Ok(())
            }
        };
        Ok((verdict, Change::Rotated(inner.store.grants_on(&credential.id).await?)))
    }

    /// Whose pair this is, asked until Forgejo answers: given up here, it would be lost with every connection of a user
    /// whose older pair it has made worthless.
    async fn whose(
        &self,
        access: &UpstreamToken,
        first: Result<ForgejoUser, UpstreamError>,
    ) -> Result<ForgejoUser, LogInError> {
        let mut failures = 0_u32;
        let mut answer = first;
        loop {
            match answer {
                Ok(user) => return Ok(user),
                Err(UpstreamError::BadToken | UpstreamError::Forbidden) => {
                    return Err(LogInError::NotAdmitted(NotAdmitted::Locked));
                }
                Err(e) if e.is_an_outage() => {
                    warn!(error = %e, "Forgejo does not say who has logged in; asking again: {}", chain(&e));
                    failures = failures.saturating_add(1);
                    sleep(BACKOFF.after(failures)).await;
                }
                Err(_) => return Err(LogInError::NotNow),
            }
            let _place = self.0.places.again.acquire().await;
            answer = self.0.forgejo.whoami(access).await;
        }
    }

    /// Forgejo fixes the scopes of a user and an application at their first login and keeps silent about it later. The
    /// operator is told here and the user on their page, because tools then fail that the configuration means to allow.
    async fn compare_scopes(&self, login: &Exchanged) {
        let (inner, Exchanged { user, credential, access }) = (&self.0, login);
        let Some(application) = &inner.application else { return };
        let Some(granted) = inner.forgejo.granted_scopes(application, access).await else { return };
        if let Err(e) = inner.store.note_granted_scopes(&credential.id, &granted).await {
            warn!(tenant = %user.id, error = %e, "the scopes of a login could not be noted: {}", chain(&e));
        }
        if let Some(found) = difference(&application.scopes, &granted) {
            warn!(
                tenant = %user.id, login = %user.login, reason = "scopes-differ",
                missing = %found.missing.join(" "), excess = %found.excess.join(" "),
                "Forgejo keeps the scopes of the user's first login; to change them the user must remove the application \
                 at Forgejo (Settings, Applications) and log in again"
            );
        }
    }
}
