//! Keeps upstream tokens fresh: refreshed ahead of their end, one refresh a user at a time, stored before used.
//!
//! What goes wrong is told apart with care. A refresh that Forgejo refuses for good ends the user's grants, so that
//! their clients log in again; one that fails for now is tried again with a growing pause and costs nobody anything; a
//! broker that Forgejo does not know is an alarm for the operator and ends no grant. An answer that was lost may have
//! burnt the refresh token: the next try is then refused for good, and the user logs in again.
//!
//! No token leaves this room before Forgejo has said that it is the user's own ([`ownership`]).

mod barred;
mod exchanges;
mod login;
mod names;
mod offboarding;
mod ownership;
mod pause;
mod persist;
mod recheck;
mod registration;
mod reseal;
mod shown;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use rand::rngs::SysRng;
use tokio::sync::{Mutex as TurnMutex, RwLock, RwLockReadGuard, mpsc};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::auth::principal::GrantId;
use crate::chain::chain;
use crate::forge::access::Lists;
use crate::forge::api::Forgejo;
use crate::forge::application::Application;
use crate::forge::rotation::exchanges::Exchanges;
use crate::forge::rotation::login::Places;
pub(crate) use crate::forge::rotation::login::{LogInError, LoggedIn};
pub(crate) use crate::forge::rotation::ownership::Standing;
use crate::forge::rotation::pause::{Pause, Recovery};
pub(crate) use crate::forge::rotation::persist::HeldUp;
use crate::forge::rotation::persist::persist;
pub(crate) use crate::forge::rotation::reseal::ResealError;
pub(crate) use crate::forge::rotation::shown::ShownVerdict;
use crate::forge::token_endpoint::{Pair, PairError};
use crate::forge::vault;
use crate::forge::vault::{Vault, VaultError};
use crate::store::{Credential, OwnerCheck, Store, StoreError};
use wire::clock::{Clock, UnixTime};
use wire::message::TenantId;
use wire::secret::UpstreamToken;
use wire::telemetry::message_id;

/// How long a refresh that was refused waits for logins that may be the reason.
const LOGINS_WITHIN: Duration = Duration::from_secs(20);
/// How long whoever has a token that is good for now waits for its successor.
const SUCCESSOR_WITHIN: Duration = Duration::from_secs(1);
/// Refreshes of a sweep that run at once: while Forgejo is slow, one user must not wait for all the others.
const MAX_REFRESHES: usize = 8;
/// How often Forgejo is asked whether it knows the broker's application, until it says so.
const ASK_REGISTRATION: Duration = Duration::from_mins(1);
/// Changes that wait to be followed.
const CHANGE_QUEUE: usize = 256;

/// What has become of a credential; whoever holds tokens of it must act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// There is a new token for these grants.
    Rotated(Vec<GrantId>),
    /// These grants are revoked: their user must log in again.
    Lost(Vec<GrantId>),
    /// Forgejo does not let the user in for now: nothing of theirs runs, and nothing is over.
    Barred(Vec<GrantId>),
}

/// A token that is good now.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    /// The token.
    pub(crate) token: UpstreamToken,
    /// When it ends, where it does.
    pub(crate) ends: Option<UnixTime>,
}

/// Why there is no good token now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotationError {
    /// The user must log in again; their grants are revoked.
    #[error("the user must log in at Forgejo again")]
    LoginAgain,
    /// Forgejo does not let the account in for now; nothing is lost.
    #[error("Forgejo does not let the account in now")]
    Barred,
    /// Not now; nothing is lost.
    #[error("Forgejo gives no fresh token now")]
    NotNow,
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The vault failed.
    #[error("the vault failed")]
    Vault(#[from] VaultError),
}

/// Keeps tokens fresh. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Rotation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    vault: Arc<Vault>,
    forgejo: Forgejo,
    /// Absent while OAuth is not configured: then there is nothing to refresh.
    application: Option<Application>,
    access: Lists,
    clock: Clock,
    lead: Duration,
    /// Logins whose pair is not stored yet.
    exchanges: Arc<Exchanges>,
    /// Places of logins that ask Forgejo something.
    places: Places,
    changes: mpsc::Sender<Change>,
    /// Exchanges under way: Forgejo may have given out a pair that is not stored yet.
    tasks: TaskTracker,
    /// Held to read from the sealing of a token until it is stored: the key that sealed it must not go in between.
    storing: RwLock<()>,
    /// Held while the key is being replaced.
    resealing: TurnMutex<()>,
    /// Whether Forgejo has said that it knows the application.
    registered: TurnMutex<Registered>,
    /// When Forgejo was last asked about a credential because a child had said that its token is refused.
    doubted: Mutex<HashMap<String, UnixTime>>,
    /// When the forge itself was last compared with the one that the database belongs to.
    forge_seen: TurnMutex<Option<UnixTime>>,
    recovery: Recovery,
    /// When Forgejo is asked again whose the logins on the lists are.
    names_due: Mutex<Option<UnixTime>>,
    /// One refresh a credential at a time.
    turns: Mutex<HashMap<String, Arc<TurnMutex<Pause>>>>,
    /// What was found of a credential's token and is being written.
    unwritten: Mutex<HashMap<String, OwnerCheck>>,
}

/// What Forgejo has said of the broker's own application.
#[derive(Debug, Default)]
struct Registered {
    is_so: bool,
    ask_at: Option<UnixTime>,
    /// [`Recovery::answers`] when it was asked: where Forgejo answers again, it is asked again.
    answers: u64,
}

/// What Forgejo said when it was asked about an account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Word {
    /// Nothing that matters here, or it was not asked.
    #[default]
    Other,
    /// Nothing, and to nobody now.
    Away,
    /// That the account is let in, also by the lists.
    LetIn,
}

/// What came of a look at a credential.
struct Look {
    fresh: Result<Fresh, RotationError>,
    word: Word,
}

impl Rotation {
    /// Refreshes `lead` ahead of the end; what changes is told through the receiver.
    pub(crate) fn new(
        store: Store,
        vault: Arc<Vault>,
        forgejo: Forgejo,
        application: Option<Application>,
        access: impl Into<Lists>,
        clock: Clock,
        lead: Duration,
    ) -> (Self, mpsc::Receiver<Change>) {
        let (changes, told) = mpsc::channel(CHANGE_QUEUE);
        let inner = Inner {
            store,
            vault,
            forgejo,
            application,
            access: access.into(),
            clock,
            lead,
            exchanges: Arc::default(),
            places: Places::default(),
            changes,
            tasks: TaskTracker::new(),
            storing: RwLock::default(),
            resealing: TurnMutex::default(),
            registered: TurnMutex::default(),
            doubted: Mutex::default(),
            forge_seen: TurnMutex::default(),
            recovery: Recovery::default(),
            names_due: Mutex::default(),
            turns: Mutex::default(),
            unwritten: Mutex::default(),
        };
        (Self(Arc::new(inner)), told)
    }

    /// Who is let in; what is put in their place is in force at once.
    pub(crate) fn lists(&self) -> &Lists {
        &self.0.access
    }

    /// Waits for exchanges under way, for at most `limit`: a pair that is not stored is lost with all that stands on it.
    pub(crate) async fn finish(&self, limit: Duration) {
        self.0.tasks.close();
        if timeout(limit, self.0.tasks.wait()).await.is_err() {
            warn!("the broker ends with exchanges at Forgejo under way; their users may have to log in again");
        }
    }

    /// Whether a token that ends then should be refreshed now.
    pub(crate) fn is_due(&self, expires_at: Option<UnixTime>) -> bool {
        expires_at.is_some_and(|end| end <= self.0.clock.now().plus(self.0.lead))
    }

    /// Refreshes every credential that is due and that a live grant needs.
    pub(crate) async fn sweep(&self) {
        let due = match self.0.store.credentials_ending(self.0.clock.now().plus(self.0.lead)).await {
            Ok(due) => due,
            Err(e) => {
                error!(error = %e, "credentials that end soon cannot be looked up: {}", chain(&e));
                return;
            }
        };
        // What went wrong was logged where it happened; the next sweep tries again.
        let refresh = |credential: Credential| {
            let rotation = self.clone();
            // To its end, so that no more are under way at once than may be.
            async move { drop(rotation.looked_at_in_a_task(&credential.id, false).await) }
        };
        stream::iter(due).for_each_concurrent(MAX_REFRESHES, refresh).await;
    }

    /// A good access token of the credential, refreshed if it is due, of which Forgejo has said not long ago that it is
    /// the user's. Of many callers one refreshes, and the others
    /// get what it got. A token that has not ended yet is good while Forgejo is away.
    ///
    /// While its successor is long in coming, from Forgejo or into the store, a token is handed out that is good for now.
    pub(crate) async fn fresh(&self, credential_id: &str) -> Result<Fresh, RotationError> {
        let mut looking = pin!(self.looked_at_in_a_task(credential_id, false));
        if let Ok(look) = timeout(SUCCESSOR_WITHIN, &mut looking).await {
            return look.fresh;
        }
        match self.good_for_now(credential_id).await {
            Ok(Some(held)) => Ok(held),
            Ok(None) | Err(_) => looking.await.fresh,
        }
    }

    /// A caller who goes away must not take a pair along that Forgejo has just given out. Where `asks_anew`, Forgejo is
    /// asked whatever it said before.
    async fn looked_at_in_a_task(&self, credential_id: &str, asks_anew: bool) -> Look {
        let (rotation, id) = (self.clone(), credential_id.to_owned());
        let task = self.0.tasks.spawn(async move {
            let turn = Arc::clone(rotation.0.turns.lock().entry(id.clone()).or_default());
            let (look, change) = rotation.in_turn(&id, &turn, asks_anew).await;
            drop(turn);
            rotation.forget_idle_turns();
            // After the turn: whoever follows changes may need it.
            if let Some(change) = change {
                let _ = rotation.0.changes.send(change).await;
            }
            look
        });
        let lost = Look { fresh: Err(RotationError::NotNow), word: Word::Other };
        task.await.unwrap_or(lost)
    }

    /// Keeps those that somebody waits for and those with a pause that is not over.
    fn forget_idle_turns(&self) {
        let (now, answers) = (self.0.clock.now(), self.0.recovery.answers());
        let is_over = |turn: &TurnMutex<Pause>| turn.try_lock().is_ok_and(|pause| pause.is_over(now, answers));
        self.0.turns.lock().retain(|_, turn| Arc::strong_count(turn) > 1 || !is_over(turn));
    }

    async fn in_turn(&self, id: &str, turn: &TurnMutex<Pause>, asks_anew: bool) -> (Look, Option<Change>) {
        let mut pause = turn.lock().await;
        let mut change = None;
        (pause.asks_anew, pause.word) = (asks_anew, Word::Other);
        let fresh = self.looked_at(id, &mut pause, &mut change).await;
        (Look { fresh, word: pause.word }, change)
    }

    async fn looked_at(
        &self,
        credential_id: &str,
        pause: &mut Pause,
        change: &mut Option<Change>,
    ) -> Result<Fresh, RotationError> {
        let inner = &self.0;
        let credential = inner.store.find_credential(credential_id).await?.ok_or(RotationError::LoginAgain)?;
        let fresh = self.kept_fresh(&credential, pause, change).await?;
        match self.vouched(&credential, &fresh.token, pause, change).await {
            // It is not known yet whose the new token is; the one before it is good until its own end.
            Err(RotationError::NotNow)
                if fresh.ends != credential.expires_at
                    && credential.expires_at.is_some_and(|end| end > inner.clock.now()) =>
            {
                let held = self.held(&credential)?;
                self.vouched(&credential, &held.token, pause, change).await?;
                Ok(held)
            }
            outcome => outcome.map(|()| fresh),
        }
    }

    /// The newest token that can be had, whoever's it is.
    async fn kept_fresh(
        &self,
        credential: &Credential,
        pause: &mut Pause,
        change: &mut Option<Change>,
    ) -> Result<Fresh, RotationError> {
        let inner = &self.0;
        let (Some(sealed), true) = (&credential.refresh, self.is_due(credential.expires_at)) else {
            return self.held(credential);
        };
        let now = inner.clock.now();
        let still_good = credential.expires_at.is_some_and(|end| end > now);
        let not_now = || if still_good { self.held(credential) } else { Err(RotationError::NotNow) };
        let answers = inner.recovery.answers();
        let mut ahead = None;
        if pause.holds(now, answers) {
            // Who can do without waits for the end of the pause; who would be refused may be the first to find it well.
            ahead = (!still_good).then(|| inner.recovery.ask_ahead(pause, now)).flatten();
            if ahead.is_none() {
                return not_now();
            }
        }
        let Some(application) = &inner.application else { return not_now() };
        if Self::is_of_another(application, credential) {
            let is_over = !still_good && self.is_registered(application).await;
            return if is_over { Err(RotationError::LoginAgain) } else { not_now() };
        }
        let refresh = inner.vault.open_sealed(sealed, &vault::refresh_place(&credential.id))?;
        let refreshed = self.refreshed(application, credential, &refresh, change).await;
        drop(ahead);
        match refreshed {
            Ok(fresh) => {
                // Tokens may live shorter than the lead: half of their life passes before the next refresh.
                let life = fresh.ends.map(|end| end.since(now)).unwrap_or_default();
                pause.succeed(now, life / 2);
                Ok(fresh)
            }
            Err(RotationError::NotNow) => {
                pause.fail(inner.clock.now(), answers);
                not_now()
            }
            Err(e) => Err(e),
        }
    }

    /// One refresh: asked for and stored.
    async fn refreshed(
        &self,
        application: &Application,
        credential: &Credential,
        refresh: &UpstreamToken,
        change: &mut Option<Change>,
    ) -> Result<Fresh, RotationError> {
        let inner = &self.0;
        let tenant = credential.tenant;
        let answer = inner.forgejo.refresh(application, refresh).await;
        self.heard(&answer);
        let pair = match answer {
            Ok(pair) => pair,
            Err(e @ PairError::Refused) => {
                // A login of the same user may just have made it worthless; then the login's pair is the one to use.
                let settled = timeout(LOGINS_WITHIN, inner.exchanges.settled(tenant)).await;
                settled.map_err(|_| RotationError::NotNow)?;
                if let Some(newer) = self.newer_than(credential).await? {
                    return Ok(newer);
                }
                warn!(
                    MESSAGE_ID = message_id::TOKEN_NOT_ROTATED, tenant = %tenant, reason = "refresh-refused", error = %e,
                    "Forgejo refuses to refresh the token of user {tenant}: they must log in again"
                );
                *change = Some(self.revoke(&credential.id, "refresh-refused").await?);
                return Err(RotationError::LoginAgain);
            }
            Err(e @ PairError::Misconfigured) => {
                error!(
                    MESSAGE_ID = message_id::TOKEN_NOT_ROTATED, tenant = %tenant, reason = "client-refused", error = %e,
                    "no token can be refreshed: {e}"
                );
                return Err(RotationError::NotNow);
            }
            Err(e @ PairError::NotNow) => {
                warn!(
                    MESSAGE_ID = message_id::TOKEN_NOT_ROTATED, tenant = %tenant, reason = "refresh-failed", error = %e,
                    "the token of user {tenant} could not be refreshed; it is tried again: {e}"
                );
                return Err(RotationError::NotNow);
            }
        };
        // Stored before it is used: Forgejo has forgotten the old refresh token by now.
        let storing = self.storing().await;
        let fresh = self.sealed(credential.id.clone(), tenant, &pair)?;
        if !persist(&HeldUp::default(), || inner.store.replace_credential(credential, &fresh, inner.clock.now()))
            .await?
            && let Some(newer) = self.newer_than(credential).await?
        {
            return Ok(newer);
        }
        drop(storing);
        // Until Forgejo has said whose it is: should this broker end now, its successor looks again at once.
        inner.store.age_owner_check(&credential.id).await?;
        info!(MESSAGE_ID = message_id::TOKEN_ROTATED, tenant = %tenant, "token refreshed at Forgejo, of user {tenant}");
        Ok(Fresh { token: pair.access, ends: fresh.expires_at })
    }

    /// Notes that the token endpoint has answered, where it has: nobody waits for it any more.
    fn heard(&self, answer: &Result<Pair, PairError>) {
        if matches!(answer, Ok(_) | Err(PairError::Refused)) {
            self.0.recovery.note_answer();
        }
    }

    /// The token that a credential holds.
    fn held(&self, credential: &Credential) -> Result<Fresh, RotationError> {
        let token = self.0.vault.open_sealed(&credential.access, &vault::access_place(&credential.id))?;
        Ok(Fresh { token, ends: credential.expires_at })
    }

    /// What is stored now, if it is no longer `old`.
    async fn newer_than(&self, old: &Credential) -> Result<Option<Fresh>, RotationError> {
        let stored = self.0.store.find_credential(&old.id).await?;
        stored.filter(|stored| stored.refresh != old.refresh).map(|stored| self.held(&stored)).transpose()
    }

    /// To be held from the sealing of a token until it is stored.
    pub(crate) async fn storing(&self) -> RwLockReadGuard<'_, ()> {
        self.0.storing.read().await
    }

    fn sealed(&self, id: String, tenant: TenantId, pair: &Pair) -> Result<Credential, VaultError> {
        let inner = &self.0;
        Ok(Credential {
            access: inner.vault.seal(&pair.access, &vault::access_place(&id), &mut SysRng)?,
            refresh: Some(inner.vault.seal(&pair.refresh, &vault::refresh_place(&id), &mut SysRng)?),
            expires_at: Some(inner.clock.now().plus(pair.expires_in)),
            id,
            tenant,
            application: inner.application.as_ref().map(|application| application.client_id.clone()),
            barred_since: None,
        })
    }

    /// Revokes every grant that stands on the credential.
    async fn revoke(&self, credential: &str, reason: &'static str) -> Result<Change, StoreError> {
        let inner = &self.0;
        Ok(Change::Lost(inner.store.revoke_grants_on(credential, reason, inner.clock.now()).await?))
    }
}
