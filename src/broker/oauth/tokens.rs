//! `/oauth/token` and `/oauth/revoke`: codes and refresh tokens to pairs, and their end.
//!
//! Nothing here asks Forgejo: a client gets its next pair also while Forgejo is away, and calls say so themselves.
//! Whether the account is still good is looked after by whoever refreshes Forgejo's own tokens.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::SysRng;
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::{info, warn};

use crate::auth::principal::{GrantId, Scopes};
use crate::auth::token::{AccessToken, AuthorizationCode, Family, RefreshToken};
use crate::chain::chain;
use crate::hex;
use crate::oauth::client_authentication::{Caller, authenticate};
use crate::oauth::error::{OAuthError, uncached};
use crate::oauth::params::Params;
use crate::oauth::{Context, body, is_of};
use crate::store::{Code, Exchange, NewPair, NoPair, Redeemed, RefreshRow, Used};
use wire::clock::UnixTime;
use wire::telemetry::message_id;

/// Connections of one user through one client, such as on several machines; a further one ends the one that was not
/// used for longest.
const MAX_CONNECTIONS: u32 = 20;
/// How long a code is good.
pub(crate) const CODE_TTL: Duration = Duration::from_mins(1);
/// A code with its proof that comes again so soon is a client's whose answer was lost.
const CODE_REPEATED: Duration = Duration::from_secs(10);
/// Used refresh tokens are kept for the window of their reuse and so much longer, for who comes at its end.
const USED_ONES_STAY: Duration = Duration::from_mins(1);

/// A good answer (RFC 6749 section 5.1).
#[derive(Serialize)]
struct Granted {
    access_token: String,
    token_type: &'static str,
    expires_in: u64,
    refresh_token: String,
    scope: &'static str,
}

/// POST `/oauth/token`, and `/token` for clients that have not read where it is.
pub(crate) async fn token(State(context): State<Arc<Context>>, request: Request) -> Response {
    let network = context.limits.source(&request).network();
    answer(&context, request, async |params, caller| match params.get("grant_type") {
        Some("authorization_code") => redeem(&context, &params, &caller).await.map(respond),
        Some("refresh_token") => refresh(&context, &params, &caller, &network).await.map(respond),
        Some(_) => Err(OAuthError::Bad("unsupported_grant_type", "only authorization_code and refresh_token")),
        None => Err(OAuthError::invalid_request("grant_type is missing")),
    })
    .await
}

/// POST `/oauth/revoke` (RFC 7009).
pub(crate) async fn revoke(State(context): State<Arc<Context>>, request: Request) -> Response {
    answer(&context, request, async |params, caller| {
        revoked(&context, &params, &caller).await.map(|()| StatusCode::OK.into_response())
    })
    .await
}

/// Reads the form, finds out who asks, and counts what looks like guessing.
async fn answer(
    context: &Context,
    request: Request,
    act: impl AsyncFnOnce(Params, Caller) -> Result<Response, OAuthError>,
) -> Response {
    let source = context.limits.source(&request);
    let headers = request.headers().clone();
    let outcome = async {
        if !is_of(request.headers(), "application/x-www-form-urlencoded") {
            return Err(OAuthError::MediaType("the body must be application/x-www-form-urlencoded"));
        }
        let text = body(request).await.map_err(|_| OAuthError::invalid_request("the body is too long or broke off"))?;
        let params = Params::parse(&text).map_err(|_| OAuthError::invalid_request("a parameter is there twice"))?;
        let caller = authenticate(context, &headers, &params, source).await?;
        act(params, caller).await
    };
    let mut response = match outcome.await {
        Ok(response) => response,
        Err(error) if error.is_a_guess() => match context.limits.failures.count(&source) {
            Ok(()) => error.into_response(),
            Err(too_many) => OAuthError::TooMany(too_many).into_response(),
        },
        Err(error) => error.into_response(),
    };
    uncached(&mut response);
    response
}

fn respond(granted: Granted) -> Response {
    Json(granted).into_response()
}

/// A code for the first pair of a grant.
async fn redeem(context: &Context, params: &Params, caller: &Caller) -> Result<Granted, OAuthError> {
    const WORTHLESS: OAuthError = OAuthError::invalid_grant("the code is unknown, used, expired, or not this client's");
    let given = params.get("code").ok_or(OAuthError::invalid_request("code is missing"))?;
    let verifier = params.get("code_verifier").ok_or(OAuthError::invalid_request("code_verifier is missing"))?;
    if !params.resource_is(&context.resource) {
        return Err(OAuthError::Bad("invalid_target", "resource is not this service"));
    }
    let code = AuthorizationCode::parse(given).ok_or(WORTHLESS)?.hash();
    let mut code = context.store.find_code(&code).await?.ok_or(WORTHLESS)?;
    // Who cannot show all of this changes nothing as long as the code is good: a thief must not be able to burn it.
    // The address is not sent again by clients of OAuth 2.1 (draft -16, section 10.2); by others it must be the same.
    let same_address = params.get("redirect_uri").is_none_or(|redirect| redirect == code.redirect_uri);
    let proven = code.client_id == caller.id && same_address && proves(verifier, &code.challenge);
    if code.client_id == caller.id {
        caller.show_key_if(code.needs_key)?;
    }
    let now = context.clock.now();
    if let Some(redeemed) = &code.redeemed {
        return replayed(context, &code, redeemed, proven, now).await.and(Err(WORTHLESS));
    }
    // A code from the future is none: the clock went backwards, and nobody knows how old it is.
    if !proven || now.age_of(code.created_at).is_none_or(|age| age >= CODE_TTL) {
        return Err(WORTHLESS);
    }
    // Whoever has shown its key is held to it, though its document may let it come without.
    code.needs_key |= caller.has_key;
    let grant = GrantId::new(hex::random_id(&mut SysRng)?);
    let (pair, granted) = mint(context, &Family::mint(&mut SysRng)?, code.scopes, None)?;
    if !context.store.redeem_code(&code, &grant, &pair, now).await? {
        // Somebody with the same proof was faster by a moment: the client itself.
        return Err(WORTHLESS);
    }
    let (tenant, client, scopes) = (code.tenant, &code.client_name, code.scopes.as_str());
    info!(
        MESSAGE_ID = message_id::CLIENT_CONNECTED, grant = %grant, tenant = %tenant, client = %code.client_id, scopes,
        "client connected: {client:?} by user {tenant}, for {scopes}"
    );
    // The tokens are given out whatever becomes of this: a failure must not make the client come with its code again.
    match context.store.surplus_grants(code.tenant, &code.client_id, MAX_CONNECTIONS).await {
        Ok(surplus) => {
            for old in surplus {
                // What fails is logged there, and comes up again with the next connection.
                let _ = context.revocation.revoke(&old, "made-room").await;
            }
        }
        Err(e) => warn!(error = %e, "a client's connections could not be counted: {}", chain(&e)),
    }
    Ok(granted)
}

/// A code that comes a second time: its grant ends (RFC 6749 section 4.1.2), unless its client has only not heard the first
/// answer.
async fn replayed(
    context: &Context,
    code: &Code,
    redeemed: &Redeemed,
    proven: bool,
    now: UnixTime,
) -> Result<(), OAuthError> {
    let grant = &redeemed.grant;
    let (tenant, client) = (code.tenant, &code.client_id);
    let age = redeemed.at.and_then(|at| now.age_of(at));
    if proven && age.is_some_and(|age| age < CODE_REPEATED) {
        info!(grant = %grant, tenant = %tenant, client = %client, reason = "code-repeated", "a code came twice at once");
        return Ok(());
    }
    warn!(
        MESSAGE_ID = message_id::TOKEN_STOLEN, grant = %grant, tenant = %tenant, client = %client,
        reason = "code-replayed", "a code of user {tenant} for {client} came twice: its grant is revoked"
    );
    context.revocation.revoke(grant, "code-replayed").await?;
    Ok(())
}

/// PKCE (RFC 7636 section 4.6), S256.
fn proves(verifier: &str, challenge: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let shaped = (43..=128).contains(&verifier.len()) && verifier.bytes().all(allowed);
    let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    shaped && bool::from(hash.as_bytes().ct_eq(challenge.as_bytes()))
}

/// A refresh token for the next pair of its family.
async fn refresh(context: &Context, params: &Params, caller: &Caller, network: &str) -> Result<Granted, OAuthError> {
    const WORTHLESS: OAuthError = OAuthError::invalid_grant("the refresh token is unknown, or not this client's");
    let given = params.get("refresh_token").ok_or(OAuthError::invalid_request("refresh_token is missing"))?;
    if !params.resource_is(&context.resource) {
        return Err(OAuthError::Bad("invalid_target", "resource is not this service"));
    }
    let token = RefreshToken::parse(given).ok_or(WORTHLESS)?;
    let now = context.clock.now();
    let row = context.store.find_refresh_token(&token.name(), now).await?.ok_or(WORTHLESS)?;
    if row.client_id != caller.id {
        return Err(WORTHLESS);
    }
    caller.show_key_if(row.needs_key)?;
    if let Some(reason) = &row.revoked {
        return Err(OAuthError::invalid_grant(why_ended(reason)));
    }
    if context.rotation.needs_login(&row.grant).await? {
        // Nothing is ended by that: a login with any client brings all of the user's connections a token again.
        return Err(OAuthError::invalid_grant(
            "this service has a new registration at Forgejo, and Forgejo's tokens of the old one have ended; log in again",
        ));
    }
    if row.used == Used::LongAgo {
        return Err(end_family(context, &row, NoPair::Reused).await);
    }
    if row.expires_at <= now {
        return Err(OAuthError::invalid_grant("the refresh token has expired"));
    }
    context.limits.refreshes.count(&row.grant).map_err(OAuthError::TooMany)?;
    if row.used != Used::Never {
        // Whether its answer was lost is decided by what was used, so nothing of that may wait to be written.
        context.revocation.principals.flush_succeeded().await?;
    }
    let narrowed = params.get("scope").map(|asked| narrowed(asked, row.scopes, row.is_reduced)).transpose()?.flatten();
    let (pair, granted) = mint(context, &token.family(), row.scopes, narrowed)?;
    let reuse = context.policy.reuse;
    let exchange = Exchange {
        token: &token.hash(),
        grant: &row.grant,
        pair: &pair,
        network,
        keep: reuse.window + USED_ONES_STAY,
        now,
    };
    match context.store.exchange_refresh_token(&exchange, |seen| reuse.judge(seen, now)).await? {
        Ok(false) => Ok(granted),
        Ok(true) => {
            info!(
                grant = %row.grant, tenant = %row.tenant, client = %row.client_id, network, reason = "login-forked",
                used_at = row.used.secs(), "a used refresh token came again and was given a sibling"
            );
            Ok(granted)
        }
        Err(NoPair::Gone) => Err(WORTHLESS),
        Err(NoPair::TooManyBranches) => {
            warn!(grant = %row.grant, tenant = %row.tenant, client = %row.client_id, reason = "too-many-branches", "refresh refused");
            Err(OAuthError::invalid_grant("too many programs share this login: log in again"))
        }
        Err(why @ (NoPair::Reused | NoPair::SecondBranch)) => Err(end_family(context, &row, why).await),
    }
}

/// Ends a family, and tells the operator about whom and what.
async fn end_family(context: &Context, row: &RefreshRow, why: NoPair) -> OAuthError {
    let reason = if why == NoPair::SecondBranch { "second-branch" } else { "refresh-token-reused" };
    warn!(
        MESSAGE_ID = message_id::TOKEN_STOLEN, grant = %row.grant, tenant = %row.tenant, client = %row.client_id, reason,
        used_at = row.used.secs(),
        "the login of user {} with {} is ended: {}", row.tenant, row.client_id, why_ended(reason)
    );
    match context.revocation.revoke(&row.grant, reason).await {
        Ok(_) => OAuthError::invalid_grant(why_ended(reason)),
        Err(error) => error.into(),
    }
}

/// Why a grant has ended, for its client and its user.
pub(crate) fn why_ended(reason: &str) -> &'static str {
    match reason {
        "refresh-token-reused" => "a refresh token that had been used long before came back; log in again",
        "second-branch" => "two programs refreshed one login; log in again in each",
        "code-replayed" => "its authorization code came twice; log in again",
        "expired" => "it was not used for too long; log in again",
        "user-disconnected" => "its user has disconnected it",
        "client-revoked" => "the client itself has revoked it",
        "made-room" => "the user has connected this client too often; log in again",
        _ => "it was revoked; log in again",
    }
}

/// The scopes of an access token for which fewer are asked than the grant allows. More is refused, and so is what is not
/// known here (RFC 6749 section 6): a client that needs more asks its user.
fn narrowed(asked: &str, granted: Scopes, is_reduced: bool) -> Result<Option<Scopes>, OAuthError> {
    if asked.split(' ').any(|scope| !["", Scopes::READ, Scopes::WRITE].contains(&scope)) {
        return Err(OAuthError::Bad("invalid_scope", "the scopes are forgejo:read and forgejo:write"));
    }
    let asked = Scopes::parse(asked);
    // Who was given writing at first may go on asking for it, and is told what is left (section 3.3).
    if asked.write && !granted.write && !is_reduced {
        return Err(OAuthError::Bad("invalid_scope", "the user has not given forgejo:write to this client"));
    }
    Ok((granted.write && !asked.write).then_some(asked))
}

fn mint(
    context: &Context,
    family: &Family,
    scopes: Scopes,
    narrowed: Option<Scopes>,
) -> Result<(NewPair, Granted), OAuthError> {
    let now = context.clock.now();
    let refresh_ends = now.plus(context.policy.refresh_ttl);
    let access = AccessToken::mint(&mut SysRng)?;
    let refresh = RefreshToken::mint_in(family, refresh_ends, &mut SysRng)?;
    let pair = NewPair {
        access: access.hash(),
        access_ends: now.plus(context.policy.access_ttl),
        access_scopes: narrowed,
        refresh: refresh.hash(),
        family: family.hash(),
        refresh_ends,
    };
    let granted = Granted {
        access_token: access.expose().to_owned(),
        token_type: "Bearer",
        expires_in: context.policy.access_ttl.as_secs(),
        refresh_token: refresh.expose().to_owned(),
        scope: narrowed.unwrap_or(scopes).as_str(),
    };
    Ok((pair, granted))
}

/// Ends a token: with a refresh token its whole grant, with an access token that alone (RFC 7009 section 2.1). A token
/// that is unknown is as good as revoked; one of another client is not touched.
async fn revoked(context: &Context, params: &Params, caller: &Caller) -> Result<(), OAuthError> {
    const FOREIGN: OAuthError = OAuthError::Bad("unauthorized_client", "the token is not this client's");
    let given = params.get("token").ok_or(OAuthError::invalid_request("token is missing"))?;
    if let Some(token) = RefreshToken::parse(given)
        && let Some(row) = context.store.find_refresh_token(&token.name(), context.clock.now()).await?
    {
        if row.client_id != caller.id {
            return Err(FOREIGN);
        }
        caller.show_key_if(row.needs_key)?;
        context.revocation.revoke(&row.grant, "client-revoked").await?;
    } else if let Some(token) = AccessToken::parse(given)
        && let Some((row, _)) = context.store.find_token(&token.hash()).await?
    {
        if row.client_id != caller.id {
            return Err(FOREIGN);
        }
        caller.show_key_if(row.needs_key)?;
        context.revocation.revoke_token(token.hash(), &row.grant).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_of_rfc_7636_appendix_b_proves_its_challenge() {
        let (verifier, challenge) =
            ("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        assert!(proves(verifier, challenge));
        assert!(!proves(challenge, challenge));
        assert!(!proves("short", challenge));
        assert!(!proves("", ""));
    }

    #[test]
    fn a_refresh_may_ask_for_less_and_never_for_more() {
        let (read, write) = (Scopes { write: false }, Scopes { write: true });
        assert_eq!(narrowed("forgejo:read", write, false), Ok(Some(read)));
        assert_eq!(narrowed("forgejo:read forgejo:write", write, false), Ok(None));
        assert_eq!(narrowed("forgejo:write", write, false), Ok(None));
        assert_eq!(narrowed("forgejo:read", read, false), Ok(None));
        for (asked, granted) in
            [("forgejo:read forgejo:write", read), ("forgejo:write", read), ("openid", write), ("forgejo:READ", write)]
        {
            assert_eq!(narrowed("forgejo:write", read, true), Ok(None), "its user has taken writing away");
            let refused = narrowed(asked, granted, false).expect_err(asked);
            assert!(matches!(refused, OAuthError::Bad("invalid_scope", _)), "{asked}");
        }
    }
}
