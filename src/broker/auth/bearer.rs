//! The bearer layer: from an `Authorization` header to a [`Principal`], or 401.
//!
//! In front of everything that serves a user. It trusts the store and nothing in the request. A refusal has an
//! empty body and says in `WWW-Authenticate` what is wrong (RFC 6750 section 3) and where a client learns how to get
//! a token (RFC 9728 section 5.1). Where another token is no remedy, it is 403 with the reason in words (RFC 9110 section
//! 15.5.4), because a challenge would send the client to log in: Forgejo does not let the user in for now, or a good token
//! comes from a network that it is not for (RFC 6750 section 3.1 has no error for either).
//!
//! A token that was looked up once is kept, with its principal, in a bounded table, so that a call costs no query.
//! Revoking drops it at once; a look-up that was under way at that moment does not bring it back.

mod denied;
mod shown;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use parking_lot::Mutex;
use tokio::time::timeout_at;
use tracing::{debug, error, warn};

pub(crate) use crate::auth::bearer::denied::Denied;
use crate::auth::bearer::shown::ShownTokens;
use crate::auth::principal::{GrantId, Principal, PrincipalParts};
use crate::auth::rates::RateLimits;
use crate::auth::source::Source;
use crate::auth::token::{AccessToken, TokenHash};
use crate::chain::chain;
use crate::deadline::Deadline;
use crate::forge::rotation::{Rotation, RotationError, Standing};
use crate::forge::vault;
use crate::forge::vault::{Vault, VaultError};
use crate::metrics::Metrics;
use crate::store::{FoundToken, GrantRow, GrantUse, Store, StoreError};
use crate::trace::Trace;
use wire::clock::{Clock, UnixTime};
use wire::telemetry::message_id;

/// Principals kept in memory by the bearer layer.
pub(crate) const MAX_CACHED_PRINCIPALS: usize = 65_536;

/// What a refused client is told besides the reason.
#[derive(Debug, Clone)]
pub(crate) struct Challenge {
    /// The address of the protected resource's metadata (RFC 9728), where there is any.
    pub(crate) resource_metadata: Option<String>,
    /// The scopes to ask for.
    pub(crate) scope: &'static str,
    /// Whether who shows no credentials at all is told of no error (RFC 6750 section 3.1). Some clients take a challenge
    /// without one for no challenge, so it is the operator's choice.
    pub(crate) is_bare: bool,
}

impl Challenge {
    /// As parameters of `WWW-Authenticate`.
    pub(crate) fn parameters(&self) -> String {
        let scope = format!("scope=\"{}\"", self.scope);
        match &self.resource_metadata {
            Some(metadata) => format!("resource_metadata=\"{metadata}\", {scope}"),
            None => scope,
        }
    }
}

/// Tokens and their principals. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Principals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    vault: Arc<Vault>,
    clock: Clock,
    challenge: Challenge,
    rotation: Option<Rotation>,
    known: Mutex<Known>,
    shown: ShownTokens,
}

#[derive(Debug, Default)]
struct Known {
    tokens: HashMap<TokenHash, CachedPrincipal>,
    /// Counts revocations; a look-up that began before one must not be kept.
    generation: u64,
    /// Uses that are not written yet.
    used: HashMap<GrantId, LastUse>,
    /// The refresh tokens that tokens were given for which were used for the first time.
    succeeded: HashSet<TokenHash>,
}

/// When and from where a grant was last used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastUse {
    /// When.
    pub(crate) at: UnixTime,
    /// From where, as the layer saw it.
    pub(crate) source: Source,
}

#[derive(Debug)]
struct CachedPrincipal {
    principal: Principal,
    expires_at: UnixTime,
}

#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error("the store")]
    Store(#[from] StoreError),
    #[error("the vault")]
    Vault(#[from] VaultError),
    #[error("no fresh upstream token")]
    Rotation(#[from] RotationError),
}

impl Principals {
    /// Over a store, with nothing known yet. `rotation` refreshes upstream tokens that end; without it they are used
    /// until they do.
    pub(crate) fn new(
        store: Store,
        vault: Arc<Vault>,
        clock: Clock,
        challenge: Challenge,
        rotation: Option<Rotation>,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            vault,
            clock,
            challenge,
            rotation,
            known: Mutex::default(),
            shown: ShownTokens::default(),
        }))
    }

    /// Who sends these headers, wherever they come from.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Denied> {
        let token = AccessToken::parse(credentials(headers)?).ok_or(Denied::Unknown)?;
        let hash = token.hash();
        let now = self.0.clock.now();
        let generation = {
            let mut known = self.0.known.lock();
            if let Some(entry) = known.tokens.get(&hash) {
                if entry.expires_at <= now {
                    known.tokens.remove(&hash);
                    return Err(Denied::Expired);
                }
                // Shortly before Forgejo's token ends, the entry is looked up anew.
                if !self.is_due(entry.principal.upstream_ends) {
                    return Ok(entry.principal.clone());
                }
            }
            known.generation
        };
        let (entry, parent) = self.look_up(&hash, now).await?;
        let principal = entry.principal.clone();
        let mut known = self.0.known.lock();
        known.succeeded.extend(parent);
        if known.generation == generation {
            known.keep(hash, entry, now);
        }
        Ok(principal)
    }

    fn is_due(&self, upstream_ends: Option<UnixTime>) -> bool {
        self.0.rotation.as_ref().is_some_and(|rotation| rotation.is_due(upstream_ends))
    }

    /// Whose token it is, and the refresh token that it was given for.
    async fn look_up(&self, hash: &TokenHash, now: UnixTime) -> Result<(CachedPrincipal, Option<TokenHash>), Denied> {
        let row = self.0.store.find_token(hash).await.map_err(|e| unavailable(&e.into()))?;
        let (grant, FoundToken { expires_at, parent }) = row.ok_or(Denied::Unknown)?;
        if grant.revoked {
            return Err(Denied::Revoked);
        }
        if expires_at <= now {
            return Err(Denied::Expired);
        }
        let principal = self.principal(grant).await.map_err(|error| match error {
            LookupError::Rotation(RotationError::LoginAgain) => Denied::Revoked,
            LookupError::Rotation(RotationError::Barred) => Denied::Barred,
            error => unavailable(&error),
        })?;
        Ok((CachedPrincipal { principal, expires_at }, parent))
    }

    /// Who stands behind a grant now, with a token that is good now; `None` where the grant is revoked.
    pub(crate) async fn behind(&self, grant: &GrantId) -> Option<Principal> {
        let row = match self.0.store.find_grant(grant).await {
            Ok(row) => row.filter(|row| !row.revoked)?,
            Err(e) => {
                unavailable(&e.into());
                return None;
            }
        };
        self.principal(row).await.map_err(|e| unavailable(&e)).ok()
    }

    async fn principal(&self, row: GrantRow) -> Result<Principal, LookupError> {
        let (upstream, upstream_ends) = if let Some(rotation) = &self.0.rotation {
            // Also where it does not end yet: nobody is served with a token that is not known to be theirs.
            let fresh = rotation.fresh(&row.credential_id).await?;
            (fresh.token, fresh.ends)
        } else {
            let place = vault::access_place(&row.credential_id);
            (self.0.vault.open_sealed(&row.credential, &place)?, row.credential_ends)
        };
        Ok(Principal::new(PrincipalParts {
            client_id: row.client_id.into(),
            credential: row.credential_id.into(),
            tenant: row.tenant,
            login: row.login,
            upstream,
            upstream_ends,
            is_shown: false,
            scopes: row.scopes,
            restrictions: row.restrictions,
            grant: row.grant,
            granted_at: row.created_at,
        }))
    }

    /// A child with the caller's token died at its start: the answer for its client, where Forgejo does not let the
    /// account in any more.
    pub(crate) async fn refusal_of(&self, caller: &Principal) -> Option<Response> {
        let standing = if caller.is_shown {
            self.look_at_shown_again(caller, false).await?
        } else {
            self.0.rotation.as_ref()?.look_again(&caller.grant).await
        };
        self.refusal_for(standing, caller)
    }

    /// A child with the caller's token says that Forgejo refuses it: the answer for its client, where that is so. Forgejo
    /// is asked once a minute at most.
    pub(crate) async fn refusal_of_doubted(&self, caller: &Principal) -> Option<Response> {
        let standing = if caller.is_shown {
            self.look_at_shown_again(caller, true).await?
        } else {
            self.0.rotation.as_ref()?.look_at_doubted(&caller.grant).await?
        };
        self.refusal_for(standing, caller)
    }

    fn refusal_for(&self, standing: Standing, caller: &Principal) -> Option<Response> {
        let denied = match standing {
            Standing::Ended => Denied::Revoked,
            Standing::Barred => Denied::Barred,
            Standing::Good | Standing::Unknown => return None,
        };
        self.forget_grant(&caller.grant);
        Some(self.refuse(denied))
    }

    /// Forgets the tokens of a grant, and does not let a look-up that is under way bring them back. Call it after the
    /// store knows of the revocation.
    pub(crate) fn forget_grant(&self, grant: &GrantId) {
        let mut known = self.0.known.lock();
        known.generation = known.generation.wrapping_add(1);
        known.tokens.retain(|_, entry| entry.principal.grant != *grant);
    }

    /// A grant is used from there.
    pub(crate) fn note_use(&self, grant: &GrantId, source: Source) {
        let (mut known, now) = (self.0.known.lock(), self.0.clock.now());
        match known.used.get_mut(grant) {
            Some(last) => *last = LastUse { at: now, source },
            None => drop(known.used.insert(grant.clone(), LastUse { at: now, source })),
        }
    }

    /// The last use of a grant, where it is not written yet.
    pub(crate) fn unwritten_use(&self, grant: &GrantId) -> Option<LastUse> {
        self.0.known.lock().used.get(grant).cloned()
    }

    /// Writes which refresh tokens have had their answer used since the last time. What cannot be written stays for the
    /// next time.
    pub(crate) async fn flush_succeeded(&self) -> Result<(), StoreError> {
        let parents: Vec<_> = std::mem::take(&mut self.0.known.lock().succeeded).into_iter().collect();
        let done = self.0.store.note_succeeded(&parents, self.0.clock.now()).await;
        if done.is_err() {
            self.0.known.lock().succeeded.extend(parents);
        }
        done
    }

    /// Writes what was used since the last time. What cannot be written stays for the next time.
    pub(crate) async fn flush_uses(&self) {
        if let Err(error) = self.flush_succeeded().await {
            error!(error = %error, "the first use of tokens could not be stored: {}", chain(&error));
        }
        let unwritten = self.0.known.lock().used.clone();
        let row = |(grant, last): (&GrantId, &LastUse)| GrantUse {
            grant: grant.clone(),
            at: last.at,
            network: Some(last.source.network()),
        };
        let uses: Vec<_> = unwritten.iter().map(row).collect();
        match self.0.store.touch_grants(&uses).await {
            // Whoever was used again meanwhile waits for the next time.
            Ok(()) => self.0.known.lock().used.retain(|grant, last| unwritten.get(grant) != Some(last)),
            Err(error) => error!(error = %error, "the last use of grants could not be stored: {}", chain(&error)),
        }
    }

    fn refuse(&self, denied: Denied) -> Response {
        let mut response = Response::new(Body::empty());
        if let Some(seconds) = denied.retry_after() {
            let too_many = matches!(denied, Denied::TooMany { .. });
            *response.status_mut() =
                if too_many { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::SERVICE_UNAVAILABLE };
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            return response;
        }
        if let Some(words) = denied.words() {
            // No challenge: another token would be refused like this one, and nothing is to be done with the client.
            *response.status_mut() = StatusCode::FORBIDDEN;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            *response.body_mut() = Body::from(words);
            return response;
        }
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        let error = match denied.reason() {
            Some(reason) => format!("error=\"invalid_token\", reason=\"{reason}\", "),
            None if denied == Denied::Absent && self.0.challenge.is_bare => String::new(),
            None => "error=\"invalid_request\", ".to_owned(),
        };
        let challenge = format!("Bearer {error}{}", self.0.challenge.parameters());
        // Our own address and scopes are header characters; without them the client still learns that it needs a token.
        let challenge = HeaderValue::try_from(challenge).unwrap_or(HeaderValue::from_static("Bearer"));
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        response
    }
}

impl Known {
    /// Keeps an entry within the bound: expired ones give way first, then any.
    fn keep(&mut self, hash: TokenHash, entry: CachedPrincipal, now: UnixTime) {
        if self.tokens.len() >= MAX_CACHED_PRINCIPALS {
            self.tokens.retain(|_, entry| entry.expires_at > now);
        }
        if self.tokens.len() >= MAX_CACHED_PRINCIPALS
            && let Some(any) = self.tokens.keys().next().copied()
        {
            self.tokens.remove(&any);
        }
        self.tokens.insert(hash, entry);
    }
}

fn unavailable(error: &LookupError) -> Denied {
    error!(error = %error, cause = ?std::error::Error::source(error), "a token cannot be looked up: {}", chain(&error));
    Denied::Unavailable
}

/// What stands behind `Bearer ` in the one `Authorization` header (RFC 6750 section 2.1; the scheme's case is free,
/// RFC 9110 section 11.1).
fn credentials(headers: &HeaderMap) -> Result<&str, Denied> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Denied::Absent)?;
    if values.next().is_some() {
        return Err(Denied::Malformed);
    }
    let value = value.to_str().map_err(|_| Denied::Malformed)?;
    let (scheme, token) = value.split_once(' ').ok_or(Denied::Malformed)?;
    let token = token.trim_start_matches(' ');
    if scheme.eq_ignore_ascii_case("bearer") && is_b64token(token) { Ok(token) } else { Err(Denied::Malformed) }
}

/// `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="` (RFC 6750 section 2.1).
fn is_b64token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
    !body.is_empty() && body.bytes().all(allowed)
}

/// The layer in front of what serves users.
#[derive(Debug, Clone)]
pub(crate) struct BearerLayer {
    /// Knows tokens.
    pub(crate) principals: Principals,
    /// Says who asks, and how often that is worth a line.
    pub(crate) limits: Arc<RateLimits>,
    /// Counts who is refused.
    pub(crate) metrics: Metrics,
}

impl BearerLayer {
    /// Counts a refusal and, where somebody shows what was never a token here, tells it with the address, for whoever
    /// shuts out those who guess. A client whose token has ended does nothing wrong.
    pub(crate) fn refused(&self, denied: Denied, request: &Request) {
        self.metrics.refused(denied.code());
        debug!(reason = denied.code(), "request without a good token");
        let address = self.limits.address(request);
        if denied == Denied::Unknown && self.limits.may_tell_bad_token(address) {
            warn!(
                MESSAGE_ID = message_id::BAD_TOKEN,
                reason = "bad-token",
                address = %address,
                "refused a bearer token from {address}"
            );
        }
    }

    /// Lets a caller pass from where their token is for. Elsewhere somebody else may have it, so its operator hears of it.
    fn admit(&self, caller: &Principal, from: IpAddr) -> Result<(), Denied> {
        if caller.restrictions.allow_from(from) {
            self.principals.note_use(&caller.grant, Source::of_address(from));
            return Ok(());
        }
        if self.limits.may_tell_bad_token(from) {
            warn!(
                MESSAGE_ID = message_id::TOKEN_ELSEWHERE, grant = %caller.grant, tenant = %caller.tenant,
                login = %caller.login, client = %caller.client_id, reason = Denied::Elsewhere.code(), address = %from,
                "the token {} of {} came from {from}, which is none of its networks: it may be in the wrong hands",
                caller.grant, caller.login
            );
        }
        Err(Denied::Elsewhere)
    }
}

/// Lets only authenticated requests through, with their [`Principal`] in the extensions; for
/// [`axum::middleware::from_fn_with_state`].
pub(crate) async fn require_bearer(
    State(layer): State<BearerLayer>,
    Extension(deadline): Extension<Deadline>,
    mut request: Request,
    next: Next,
) -> Response {
    let (from, headers) = (layer.limits.unseen_address(&request), request.headers());
    let authenticating = async {
        match layer.principals.authenticate(headers).await {
            Err(Denied::Unknown) => layer.principals.authenticate_shown(headers, from, &layer.limits).await,
            outcome => outcome,
        }
    };
    let authenticated = timeout_at(deadline.at(), authenticating).await.unwrap_or(Err(Denied::Unavailable));
    match authenticated.and_then(|principal| layer.admit(&principal, from).map(|()| principal)) {
        Ok(principal) => {
            // Nothing behind this layer has a use for the token.
            request.headers_mut().remove(AUTHORIZATION);
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(denied) => {
            // Nobody reads its message.
            Trace::of(request.extensions(), request.headers()).settle(None);
            layer.refused(denied, &request);
            layer.principals.refuse(denied)
        }
    }
}
