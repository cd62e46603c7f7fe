//! `Authorization: Bearer` with a user's own Forgejo token, where the operator lets it in (`[access] forgejo_tokens`): for
//! scripts that cannot log in.
//!
//! Only what looks like a personal token is ever shown to Forgejo; what Forgejo gives out by OAuth (a JWT) belongs to some
//! application, and is none of ours to take. The token is kept in memory for as long as Forgejo's word about it counts, and
//! nowhere else. It is a grant of its own, so that a token with few scopes reaches neither sessions nor children of another
//! one of the same user.
//!
//! Strangers may have Forgejo asked only so often: what it has just refused is refused without a question, and each network
//! may bring a few tokens a minute that were never good here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use axum::http::HeaderMap;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex as TurnMutex;
use tokio::time::timeout;
use tracing::{error, info};

use super::{CachedPrincipal, Denied, Principals, credentials};
use crate::auth::principal::{GrantId, Principal, PrincipalParts, Scopes};
use crate::auth::rates::RateLimits;
use crate::auth::source::Source;
use crate::auth::token::TokenHash;
use crate::chain::chain;
use crate::forge::access::NotAdmitted;
use crate::forge::rotation::{Rotation, ShownVerdict, Standing};
use crate::hex;
use crate::store::{ShownGrant, StoreError};
use wire::clock::UnixTime;
use wire::secret::UpstreamToken;

/// How long Forgejo's word counts that a token is good: a token that was deleted there is good here for so long at most.
const GOOD_FOR: Duration = Duration::from_mins(1);
/// And that it is not, or that Forgejo does not say.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Refused tokens that are remembered.
const MAX_REFUSED: usize = 10_000;
/// Questions to Forgejo at once; those about one token follow each other.
const TURNS: usize = 64;
/// How long a request waits for those before it that ask about tokens in the same turn, within its deadline.
const IN_LINE: Duration = Duration::from_secs(20);
/// Hexadecimal digits of a personal token (Forgejo, `models/auth/access_token.go`: 20 random bytes).
const DIGITS: usize = 40;

/// A text that may be a personal token of Forgejo's.
struct ShownToken {
    token: UpstreamToken,
    hash: TokenHash,
}

impl ShownToken {
    fn parse(text: &str) -> Option<Self> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != DIGITS || !text.bytes().all(is_digit) {
            return None;
        }
        // Of its own kind, so that it is no hash of the token that anybody else has.
        let hash = Sha256::new_with_prefix(b"forgejo-mcp-broker, a token of Forgejo's: ").chain_update(text);
        Some(Self { token: UpstreamToken::parse(text).ok()?, hash: TokenHash(hash.finalize().into()) })
    }

    /// The grant that it is: half of the hash, which tells nothing of the token.
    fn grant(&self) -> GrantId {
        GrantId::new(hex::encode(self.hash.0.get(..16).unwrap_or_default()))
    }
}

/// What is known of tokens that are shown, besides the principals of good ones.
#[derive(Debug)]
pub(super) struct ShownTokens {
    turns: [TurnMutex<()>; TURNS],
    refused: parking_lot::Mutex<HashMap<TokenHash, (UnixTime, Denied)>>,
}

impl Default for ShownTokens {
    fn default() -> Self {
        Self { turns: std::array::from_fn(|_| TurnMutex::default()), refused: parking_lot::Mutex::default() }
    }
}

/// Whether a refusal is remembered still.
fn counts(refused_at: UnixTime, now: UnixTime) -> bool {
    now.age_of(refused_at).is_some_and(|age| age < REFUSED_FOR)
}

impl ShownTokens {
    fn turn(&self, hash: &TokenHash) -> Option<&TurnMutex<()>> {
        self.turns.get(usize::from(*hash.0.first()?) % TURNS)
    }

    /// Why it was refused a moment ago.
    fn refused(&self, hash: &TokenHash, now: UnixTime) -> Option<Denied> {
        let refused = self.refused.lock();
        refused.get(hash).filter(|(at, _)| counts(*at, now)).map(|(_, why)| *why)
    }

    fn refuse(&self, hash: TokenHash, why: Denied, now: UnixTime) {
        let mut refused = self.refused.lock();
        if refused.len() >= MAX_REFUSED {
            refused.retain(|_, (at, _)| counts(*at, now));
        }
        if refused.len() >= MAX_REFUSED
            && let Some(any) = refused.keys().next().copied()
        {
            refused.remove(&any);
        }
        refused.insert(hash, (now, why));
    }
}

impl Principals {
    /// Who sends these headers, if it is with a token of Forgejo's own and those are taken.
    pub(super) async fn authenticate_shown(
        &self,
        headers: &HeaderMap,
        from: IpAddr,
        limits: &RateLimits,
    ) -> Result<Principal, Denied> {
        let rotation = self.0.rotation.as_ref().filter(|rotation| rotation.takes_shown_tokens());
        let (Some(rotation), Some(shown)) = (rotation, ShownToken::parse(credentials(headers)?)) else {
            return Err(Denied::Unknown);
        };
        if let Some(known) = self.known_of(&shown.hash) {
            return known;
        }
        let turn = self.0.shown.turn(&shown.hash).ok_or(Denied::Unavailable)?;
        let _mine = timeout(IN_LINE, turn.lock()).await.map_err(|_| Denied::Unavailable)?;
        // Whoever was first has asked for those who waited.
        if let Some(known) = self.known_of(&shown.hash) {
            return known;
        }
        let outcome = self.asked(rotation, &shown, &Source::of_address(from), limits).await;
        // Who comes too often is told so each time, whatever the token.
        if let Err(denied) = &outcome
            && !matches!(denied, Denied::TooMany { .. })
        {
            self.0.shown.refuse(shown.hash, *denied, self.0.clock.now());
        }
        outcome
    }

    fn known_of(&self, hash: &TokenHash) -> Option<Result<Principal, Denied>> {
        let now = self.0.clock.now();
        let known = self.0.known.lock();
        if let Some(entry) = known.tokens.get(hash).filter(|entry| entry.expires_at > now) {
            return Some(Ok(entry.principal.clone()));
        }
        drop(known);
        self.0.shown.refused(hash, now).map(Err)
    }

    /// Asks Forgejo, where that may be asked.
    async fn asked(
        &self,
        rotation: &Rotation,
        shown: &ShownToken,
        source: &Source,
        limits: &RateLimits,
    ) -> Result<Principal, Denied> {
        let (store, grant) = (&self.0.store, shown.grant());
        let generation = self.0.known.lock().generation;
        let standing = store.shown_grant(&grant).await.map_err(|e| failed(&grant, &e))?;
        match standing {
            ShownGrant::Ended => return Err(Denied::Revoked),
            ShownGrant::New => {
                let counted = limits.shown_tokens.count(source);
                counted.map_err(|too_many| Denied::TooMany { seconds: too_many.seconds })?;
            }
            ShownGrant::Live => {}
        }
        let verdict = rotation.look_at_shown(&shown.token).await.map_err(|e| failed(&grant, &e))?;
        if standing == ShownGrant::Live {
            rotation.follow_shown(&grant, &verdict).await;
        }
        let user = match verdict {
            ShownVerdict::LetIn(user) => user,
            ShownVerdict::Refused if standing == ShownGrant::Live => return Err(Denied::Revoked),
            ShownVerdict::Refused => return Err(Denied::Unknown),
            ShownVerdict::Forbidden => return Err(Denied::NotTold),
            ShownVerdict::NotAdmitted(NotAdmitted::Locked) => return Err(Denied::Barred),
            ShownVerdict::NotAdmitted(_) => return Err(Denied::NotAdmitted),
            ShownVerdict::Unknown => return Err(Denied::Unavailable),
        };
        let now = self.0.clock.now();
        if standing == ShownGrant::New {
            let scopes = Scopes::parse(self.0.challenge.scope);
            let kept = store.keep_shown_grant(&grant, user.id, &user.login, scopes, now).await;
            if !kept.map_err(|e| failed(&grant, &e))? {
                return Err(Denied::TooManyTokens);
            }
            info!(
                grant = %grant, tenant = %user.id, login = %user.login, from = %source,
                "a Forgejo token of {} is used here for the first time", user.login
            );
        }
        let row = store.find_grant(&grant).await.map_err(|e| failed(&grant, &e))?;
        let row = row.filter(|row| !row.revoked && row.tenant == user.id).ok_or(Denied::Revoked)?;
        let principal = Principal::new(PrincipalParts {
            client_id: row.client_id.into(),
            credential: row.credential_id.into(),
            tenant: row.tenant,
            login: user.login,
            upstream: shown.token.clone(),
            upstream_ends: None,
            is_shown: true,
            scopes: row.scopes,
            restrictions: row.restrictions,
            grant: row.grant,
            granted_at: row.created_at,
        });
        let mut known = self.0.known.lock();
        if known.generation == generation {
            let entry = CachedPrincipal { principal: principal.clone(), expires_at: now.plus(GOOD_FOR) };
            known.keep(shown.hash, entry, now);
        }
        Ok(principal)
    }

    /// How it stands with a caller who shows a token of Forgejo's, asked because of a child of theirs: because it said that
    /// Forgejo refuses the token, once a minute at most, or because it died.
    pub(super) async fn look_at_shown_again(&self, caller: &Principal, is_doubt: bool) -> Option<Standing> {
        let rotation = self.0.rotation.as_ref()?;
        let verdict = if is_doubt {
            rotation.look_at_doubted_shown(&caller.credential, &caller.upstream).await?
        } else {
            rotation.look_at_shown(&caller.upstream).await
        };
        let Ok(verdict) = verdict.map_err(|e| failed(&caller.grant, &e)) else { return Some(Standing::Unknown) };
        rotation.follow_shown(&caller.grant, &verdict).await;
        Some(match verdict {
            ShownVerdict::LetIn(_) => Standing::Good,
            ShownVerdict::Refused => Standing::Ended,
            ShownVerdict::Forbidden | ShownVerdict::NotAdmitted(_) => Standing::Barred,
            ShownVerdict::Unknown => Standing::Unknown,
        })
    }
}

fn failed(grant: &GrantId, error: &StoreError) -> Denied {
    error!(grant = %grant, error = %error, "a Forgejo token cannot be looked at: {}", chain(error));
    Denied::Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_forgejo_mints_as_a_personal_token_is_taken_for_one() {
        let good = "0123456789abcdef0123456789abcdef01234567";
        let shown = ShownToken::parse(good).expect("one");
        assert_eq!(shown.token.expose(), good);
        assert_eq!(shown.grant().as_str().len(), 32);
        assert!(!good.contains(&shown.grant().as_str()[..6]), "it tells nothing of the token");
        for bad in [
            "",
            "0123456789ABCDEF0123456789ABCDEF01234567",
            "0123456789abcdef0123456789abcdef0123456",
            "0123456789abcdef0123456789abcdef012345678",
            "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJnbnQiOjF9.c2ln",
            "fjb_at_0123456789abcdef0123456789abcdef0",
        ] {
            assert!(ShownToken::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_is_remembered_of_refused_tokens_is_bounded_and_short() {
        let (shown, start) = (ShownTokens::default(), UnixTime::from_secs(1_800_000_000));
        let hash = |n: usize| TokenHash(Sha256::digest(n.to_string()).into());
        for n in 0..MAX_REFUSED + 50 {
            shown.refuse(hash(n), Denied::Unknown, start);
        }
        assert_eq!(shown.refused.lock().len(), MAX_REFUSED);
        let last = hash(MAX_REFUSED + 49);
        assert_eq!(shown.refused(&last, start.plus(Duration::from_secs(9))), Some(Denied::Unknown));
        assert_eq!(shown.refused(&last, start.plus(REFUSED_FOR)), None);
        assert_eq!(shown.refused(&last, start.minus(Duration::from_secs(1))), None, "a clock that went back");
        shown.refuse(hash(0), Denied::Unknown, start.plus(REFUSED_FOR));
        assert_eq!(shown.refused.lock().len(), 1, "those that are over made room");
    }
}
