//! A login at Forgejo begins: written down, single-use, ten minutes, bound to this browser, with PKCE (RFC 7636) towards
//! Forgejo too.

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};

use crate::auth::principal::Scopes;
use crate::auth::source::Source;
use crate::auth::token::LoginState;
use crate::oauth::browser::Browser;
use crate::oauth::{Context, LOGIN_TTL, page};
use crate::store::{Login, StoreError};

/// Why no login was begun.
pub(crate) enum NotBegun {
    TooMany,
    /// A browser that is sent to a forge that does not answer shows a page that helps nobody.
    ForgejoAway,
    Store(StoreError),
    NoRandomness,
}

/// Where a login begins once more that was begun with this request of a client's, or on the account page.
pub(crate) fn again(request: Option<&str>) -> String {
    request.map_or_else(|| "/account".to_owned(), |query| format!("/oauth/authorize?{query}"))
}

/// Sends the browser to Forgejo. `request` is the client's, or nothing for the account page; `consented` is what the
/// person has just agreed to, or nothing where that is to be remembered.
pub(crate) async fn begin(
    context: &Context,
    browser: Browser,
    request: Option<String>,
    consented: Option<Scopes>,
    source: Source,
) -> Result<Response, NotBegun> {
    context.limits.logins.count(&source).map_err(|_| NotBegun::TooMany)?;
    let now = context.clock.now();
    let expired = now.minus(LOGIN_TTL);
    if context.store.logins_under_way(expired).await.map_err(NotBegun::Store)? >= context.policy.bounds.logins
        && !context.store.make_room_for_login(source, expired).await.map_err(NotBegun::Store)?
    {
        return Err(NotBegun::TooMany);
    }
    if !context.forgejo.answers().await {
        return Err(NotBegun::ForgejoAway);
    }
    let state = LoginState::mint(&mut SysRng).map_err(|_| NotBegun::NoRandomness)?;
    let login = Login { state: state.hash(), browser: browser.hash(), request, consented, created_at: now };
    context.store.insert_login(&login, source).await.map_err(NotBegun::Store)?;
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(browser.verifier(state.expose()).as_bytes()));
    let Some(application) = &context.application else { return Err(NotBegun::ForgejoAway) };
    let url = context.forgejo.authorize_url(&[
        ("client_id", &application.client_id),
        ("redirect_uri", &context.callback),
        ("response_type", "code"),
        ("state", state.expose()),
        ("scope", &application.scopes.join(" ")),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ]);
    Ok(page::with_cookies(page::redirect(&url), browser.set))
}
