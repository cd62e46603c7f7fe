//! Whose token is it? Nothing but Forgejo's own word says so, and it may change.
//!
//! A refresh may bring another user's token, a grant's number may be given out a second time, a forge may be set up
//! anew under its old address: a token that was stored for one user then acts as another. So each token is compared
//! with its owner before it is handed out for the first time and once an hour from then on, and whenever a child dies
//! at its start. The owner is an account: its number and the time of its making, because numbers begin at 1 again in a
//! new forge. What is another's is shut out with all that stands on it, and is an alarm.
//!
//! While Forgejo is away, a token that was its user's before is used on: it reaches nobody now, and Forgejo is asked
//! again as soon as it is back. One that never was is not used.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tracing::{error, warn};
use wire::clock::UnixTime;
use wire::message::TenantId;
use wire::secret::UpstreamToken;
use wire::telemetry::message_id;

use crate::auth::principal::GrantId;
use crate::chain::chain;
use crate::forge::access::{Access, AccessError, NotAdmitted};
use crate::forge::api::{ForgejoUser, UpstreamError};
use crate::forge::rotation::{Change, Fresh, Pause, Rotation, RotationError, Word};
use crate::store::{Account, Credential, Fingerprint, OwnerCheck, StoreError};

/// How long Forgejo's word about a token is believed.
pub(super) const GOOD_FOR: Duration = Duration::from_hours(1);
/// While Forgejo is away, or does not give an answer that can be used, it is asked no more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// A child may say this often that its token is refused before Forgejo is asked again.
const DOUBT_EVERY: Duration = Duration::from_mins(1);
/// How long whoever has a token that was good before waits for Forgejo's word.
const PATIENCE: Duration = Duration::from_secs(5);

/// When a token was looked at that must be looked at before it is used.
const NEVER: UnixTime = UnixTime::from_secs(0);

/// What Forgejo and the operator's lists say of a token and the account that it was stored for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    LetIn,
    /// It is the user's own; whether the lists let them in, Forgejo does not say, to nobody or only not about them.
    Owned {
        is_away: bool,
    },
    ShutOut,
    /// Forgejo does not let the account in for now.
    Barred,
    /// The token is that of another number.
    Foreign,
    /// The number is another account's now.
    Succeeded(ForgejoUser),
    /// Neither: the answer about this account cannot be used.
    None,
    /// Neither: Forgejo does not answer now.
    Away,
}

/// How it stands with a grant whose child could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Forgejo takes the token: it was not that.
    Good,
    /// The grant is over: its user must log in again.
    Ended,
    /// Forgejo does not let the account in for now.
    Barred,
    /// Forgejo does not say now.
    Unknown,
}

impl Rotation {
    /// Lets a token pass that is known to be the user's, and asks Forgejo where that is not known or was long ago. A
    /// token that passes for the first time is to be followed by the children that run.
    pub(super) async fn vouched(
        &self,
        credential: &Credential,
        token: &UpstreamToken,
        pause: &mut Pause,
        change: &mut Option<Change>,
    ) -> Result<(), RotationError> {
        let (inner, now, lists) = (&self.0, self.0.clock.now(), self.0.access.now());
        let before = self.owner_check(&credential.id).await?;
        let known = before.filter(|check| check.token == fingerprint(token));
        let was_barred = credential.barred_since.is_some() || pause.is_barred;
        if !pause.asks_anew && !was_barred && known.is_some_and(|check| check.at > now.minus(GOOD_FOR)) {
            return Ok(());
        }
        let verdict = if pause.look_at.is_some_and(|at| at > now) {
            Verdict::Away
        } else if known.is_some() {
            // Somebody waits, and there is a way without the answer.
            timeout(PATIENCE, self.verdict(credential.tenant, token)).await.unwrap_or(Ok(Verdict::Away))?
        } else {
            self.verdict(credential.tenant, token).await?
        };
        pause.word = match verdict {
            Verdict::LetIn => Word::LetIn,
            Verdict::Away | Verdict::Owned { is_away: true } => Word::Away,
            _ => Word::Other,
        };
        match verdict {
            Verdict::LetIn | Verdict::Owned { .. } => {
                // Lists that cannot be applied throw nobody out, but Forgejo is asked again.
                let at = if verdict == Verdict::LetIn { now } else { NEVER };
                Self::unbar(credential, pause);
                pause.look_at = (verdict != Verdict::LetIn).then(|| now.plus(ASK_AGAIN));
                let check = OwnerCheck { token: fingerprint(token), at };
                match known {
                    // It was the user's before, and Forgejo has just said so again: nobody waits until that is kept.
                    Some(before) if !was_barred => self.note_behind(credential, before, check, &lists),
                    _ => {
                        inner.store.note_owner_check(&credential.id, check).await?;
                        self.hold_to_lists(&credential.id, check, &lists).await?;
                        inner.unwritten.lock().remove(&credential.id);
                    }
                }
                if known.is_none() && credential.refresh.is_some() {
                    *change = Some(Change::Rotated(inner.store.grants_on(&credential.id).await?));
                }
                Ok(())
            }
            Verdict::Away => {
                pause.look_at = Some(pause.look_at.filter(|at| *at > now).unwrap_or(now.plus(ASK_AGAIN)));
                if let Some(before) = known.filter(|before| pause.asks_anew && before.at != NEVER) {
                    // There was a reason to ask: whoever comes next asks.
                    self.note_behind(credential, before, OwnerCheck { at: NEVER, ..before }, &lists);
                }
                match () {
                    () if was_barred => Err(RotationError::Barred),
                    () if known.is_some() => Ok(()),
                    () => Err(RotationError::NotNow),
                }
            }
            Verdict::None => {
                pause.look_at = Some(now.plus(ASK_AGAIN));
                warn!(tenant = %credential.tenant, "Forgejo's answer about an account cannot be used");
                Err(RotationError::NotNow)
            }
            Verdict::Barred => {
                let refused = self.bar(credential, pause, change).await?;
                let mut unwritten = inner.unwritten.lock();
                // Also where the store takes nothing now, nobody is let in by an earlier word.
                match refused {
                    RotationError::Barred => {
                        let check = OwnerCheck { token: fingerprint(token), at: NEVER };
                        unwritten.insert(credential.id.clone(), check);
                    }
                    _ => drop(unwritten.remove(&credential.id)),
                }
                Err(refused)
            }
            out @ (Verdict::ShutOut | Verdict::Foreign | Verdict::Succeeded(_)) => {
                *change = Some(self.shut_out(credential, token, &out).await?);
                Err(RotationError::LoginAgain)
            }
        }
    }

    /// Asks Forgejo about the token behind a grant whose child has died at its start, however fresh the last answer is:
    /// a token that was taken back a minute ago is the likeliest reason. Where it is no good any more, the grant is over
    /// when this returns.
    pub(crate) async fn look_again(&self, grant: &GrantId) -> Standing {
        let found = self.0.store.find_grant(grant).await;
        let Ok(row) =
            found.inspect_err(|e| error!(grant = %grant, error = %e, "a grant cannot be looked at: {}", chain(&e)))
        else {
            return Standing::Unknown;
        };
        let Some(row) = row.filter(|row| !row.revoked) else { return Standing::Ended };
        let look = self.looked_at_in_a_task(&row.credential_id, true).await;
        match look.fresh {
            Ok(_) if look.word == Word::LetIn => Standing::Good,
            Err(RotationError::LoginAgain) => Standing::Ended,
            Err(RotationError::Barred) => Standing::Barred,
            Ok(_) | Err(_) => Standing::Unknown,
        }
    }

    /// The same because a child has said that Forgejo refuses its token: asked once a credential and minute, so that no
    /// child can have Forgejo asked as often as it likes. `None` where that was just done.
    pub(crate) async fn look_at_doubted(&self, grant: &GrantId) -> Option<Standing> {
        let row = self.0.store.find_grant(grant).await.ok().flatten()?;
        if self.may_doubt(&row.credential_id) { Some(self.look_again(grant).await) } else { None }
    }

    /// Whether Forgejo was not asked about a credential because of such a doubt for a while; it counts as asked then.
    pub(super) fn may_doubt(&self, credential: &str) -> bool {
        let now = self.0.clock.now();
        let mut doubted = self.0.doubted.lock();
        doubted.retain(|_, at| now.age_of(*at).is_some_and(|age| age < DOUBT_EVERY));
        let may = !doubted.contains_key(credential);
        if may {
            doubted.insert(credential.to_owned(), now);
        }
        may
    }

    /// Whether Forgejo's user is the account that this number was until now, as far as that is known. Where it is not,
    /// all that the earlier one had is ended, and the number is the new account's from now on.
    pub(crate) async fn recognise(&self, user: &ForgejoUser) -> Result<bool, StoreError> {
        let known = self.0.store.account(user.id).await?;
        if is_the_same(known.as_ref(), user) {
            self.note(user, known.as_ref()).await?;
            return Ok(true);
        }
        let change = self.succeed(user).await?;
        let _ = self.0.changes.send(change).await;
        Ok(false)
    }

    /// What was last found of a credential's token, also where that waits to be written.
    async fn owner_check(&self, credential: &str) -> Result<Option<OwnerCheck>, StoreError> {
        let unwritten = self.0.unwritten.lock().get(credential).copied();
        match unwritten {
            Some(check) => Ok(Some(check)),
            None => self.0.store.owner_check(credential).await,
        }
    }

    /// Lets what was found by these lists, and is written, count no more where others are in force now: those have aged
    /// everything before, or do after this. It does not count either while the store does not take that.
    async fn hold_to_lists(&self, credential: &str, check: OwnerCheck, lists: &Access) -> Result<(), StoreError> {
        if self.are_in_force(lists) {
            return Ok(());
        }
        self.0.unwritten.lock().insert(credential.to_owned(), OwnerCheck { at: NEVER, ..check });
        self.0.store.age_owner_check(credential).await
    }

    fn are_in_force(&self, lists: &Access) -> bool {
        self.0.access.now().lets_in_like(lists)
    }

    /// Writes what was found of a token that was its user's before, by these lists, unless something else was found
    /// meanwhile.
    fn note_behind(&self, credential: &Credential, before: OwnerCheck, check: OwnerCheck, lists: &Arc<Access>) {
        let (rotation, id, tenant) = (self.clone(), credential.id.clone(), credential.tenant);
        let lists = Arc::clone(lists);
        let check = if self.are_in_force(&lists) { check } else { OwnerCheck { at: NEVER, ..check } };
        self.0.unwritten.lock().insert(id.clone(), check);
        self.0.tasks.spawn(async move {
            let store = &rotation.0.store;
            let written = match store.renew_owner_check(&id, before, check).await {
                Ok(()) => rotation.hold_to_lists(&id, check, &lists).await,
                failed => failed,
            };
            if let Err(e) = written {
                // It stays here for as long as it is good.
                warn!(tenant = %tenant, error = %e, "Forgejo's word on an account is not kept: {}", chain(&e));
                return;
            }
            let mut unwritten = rotation.0.unwritten.lock();
            if unwritten.get(&id) == Some(&check) {
                unwritten.remove(&id);
            }
        });
    }

    /// The token of a credential, where it is good for now by all that is known without asking Forgejo or writing.
    pub(super) async fn good_for_now(&self, credential_id: &str) -> Result<Option<Fresh>, RotationError> {
        let (inner, now) = (&self.0, self.0.clock.now());
        let Some(credential) = inner.store.find_credential(credential_id).await? else { return Ok(None) };
        if credential.barred_since.is_some() || credential.expires_at.is_some_and(|end| end <= now) {
            return Ok(None);
        }
        let held = self.held(&credential)?;
        let check = self.owner_check(credential_id).await?;
        let is_good =
            check.is_some_and(|check| check.token == fingerprint(&held.token) && check.at > now.minus(GOOD_FOR));
        Ok(is_good.then_some(held))
    }

    /// Notes that a token is its user's.
    pub(crate) async fn note_vouched(&self, credential: &str, token: &UpstreamToken) -> Result<(), StoreError> {
        let check = OwnerCheck { token: fingerprint(token), at: self.0.clock.now() };
        self.0.store.note_owner_check(credential, check).await
    }

    /// Forgejo's refresh does not notice a deactivated account, a changed membership, nor whose the token is; its API
    /// does. Trouble on the way is no verdict.
    pub(super) async fn verdict(&self, tenant: TenantId, access: &UpstreamToken) -> Result<Verdict, StoreError> {
        let inner = &self.0;
        let user = match inner.forgejo.whoami(access).await {
            Ok(user) => user,
            Err(UpstreamError::BadToken) => return Ok(Verdict::ShutOut),
            Err(UpstreamError::Forbidden) => return Ok(Verdict::Barred),
            Err(e) if e.is_an_outage() => return Ok(Verdict::Away),
            Err(_) => return Ok(Verdict::None),
        };
        if user.id != tenant {
            return Ok(Verdict::Foreign);
        }
        let known = inner.store.account(user.id).await?;
        if !is_the_same(known.as_ref(), &user) {
            return Ok(Verdict::Succeeded(user));
        }
        self.note_known(&user, known.as_ref()).await?;
        Ok(match self.admits(&user, access).await {
            Ok(()) => Verdict::LetIn,
            Err(AccessError::NotAdmitted(NotAdmitted::Locked)) => Verdict::Barred,
            Err(AccessError::NotAdmitted(_)) => Verdict::ShutOut,
            Err(AccessError::Memberships(e)) => Verdict::Owned { is_away: e.is_an_outage() },
        })
    }

    /// Ends what stands on a token that is not let in, for the reason given; nothing where that is none.
    pub(super) async fn shut_out(
        &self,
        credential: &Credential,
        token: &UpstreamToken,
        verdict: &Verdict,
    ) -> Result<Change, RotationError> {
        let (inner, tenant) = (&self.0, credential.tenant);
        match verdict {
            Verdict::Succeeded(user) => Ok(self.succeed(user).await?),
            Verdict::Foreign => {
                error!(
                    MESSAGE_ID = message_id::FOREIGN_ACCOUNT, tenant = %tenant, reason = "foreign-account",
                    "Forgejo says that a token that was stored for this user is another user's; it is used no more"
                );
                let change = self.revoke(&credential.id, "foreign-account").await?;
                inner.store.end_visits_of(tenant).await?;
                // Nobody here has a right to it. What a login has put in its place meanwhile stays.
                if let Some(stored) = inner.store.find_credential(&credential.id).await?
                    && self.held(&stored)?.token == *token
                {
                    inner.store.erase_credential(&stored).await?;
                }
                Ok(change)
            }
            Verdict::ShutOut => {
                warn!(
                    MESSAGE_ID = message_id::LOGIN_DENIED, tenant = %tenant, reason = "account-refused",
                    "user {tenant} is not let in any more, by Forgejo or by the lists of [access]: the grants are revoked"
                );
                let change = self.revoke(&credential.id, "account-refused").await?;
                inner.store.end_visits_of(tenant).await?;
                Ok(change)
            }
            Verdict::LetIn | Verdict::Owned { .. } | Verdict::Barred | Verdict::None | Verdict::Away => {
                Ok(Change::Lost(Vec::new()))
            }
        }
    }

    /// Notes what Forgejo says of an account that is the same as before. Where the time of its making is known already,
    /// nothing but a changed login is lost with it: a store that takes nothing now, on a full disk, keeps nobody out.
    async fn note_known(&self, user: &ForgejoUser, known: Option<&Account>) -> Result<(), StoreError> {
        match self.note(user, known).await {
            Err(e) if known.is_some_and(|account| account.created.is_some()) => {
                warn!(tenant = %user.id, error = %e, "what Forgejo says of an account is not kept: {}", chain(&e));
                Ok(())
            }
            noted => noted,
        }
    }

    async fn succeed(&self, user: &ForgejoUser) -> Result<Change, StoreError> {
        error!(
            MESSAGE_ID = message_id::FOREIGN_ACCOUNT, tenant = %user.id, login = %user.login, reason = "foreign-account",
            "Forgejo has given the number of an earlier account to another; all that the earlier one had is ended. Was \
             the forge set up anew, or restored from an old copy?"
        );
        let (store, now) = (&self.0.store, self.0.clock.now());
        let ended = store.end_user(user.id, Some((&user.login, user.created)), "foreign-account", now).await?;
        Ok(Change::Lost(ended))
    }
}

fn fingerprint(token: &UpstreamToken) -> Fingerprint {
    Fingerprint(Sha256::digest(token.expose().as_bytes()).into())
}

/// Whether it is the account that was here before under its number, as far as the time of its making is known.
fn is_the_same(known: Option<&Account>, user: &ForgejoUser) -> bool {
    known.and_then(|account| account.created).is_none_or(|created| created == user.created)
}
