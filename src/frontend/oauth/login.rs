//! A login at Forgejo begins: written down, single-use, ten minutes, bound to this browser, with PKCE (RFC 7636) towards
//! Forgejo too.

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};

use super::browser::Browser;
use super::{LOGIN_TTL, MAX_LOGINS, Parts, page};
use crate::frontend::limiter::Source;
use crate::frontend::principal::Scopes;
use crate::frontend::store::{Login, StoreError};
use crate::frontend::token::LoginState;

/// Why no login was begun.
pub(super) enum NotBegun {
    TooMany,
    /// A browser that is sent to a forge that does not answer shows a page that helps nobody.
    ForgejoAway,
    Store(StoreError),
    NoRandomness,
}

/// Sends the browser to Forgejo. `request` is the client's, or nothing for the account page; `consented` is what the
/// person has just agreed to, or nothing where that is to be remembered.
pub(super) async fn begin(
    parts: &Parts,
    browser: Browser,
    request: Option<String>,
    consented: Option<Scopes>,
    source: Source,
) -> Result<Response, NotBegun> {
    parts.limits.logins.count(&source).map_err(|_| NotBegun::TooMany)?;
    let now = parts.clock.now();
    if parts.store.logins_under_way(now.minus(LOGIN_TTL)).await.map_err(NotBegun::Store)? >= MAX_LOGINS {
        return Err(NotBegun::TooMany);
    }
    if !parts.forgejo.answers().await {
        return Err(NotBegun::ForgejoAway);
    }
    let state = LoginState::mint(&mut SysRng).map_err(|_| NotBegun::NoRandomness)?;
    let login = Login { state: state.hash(), browser: browser.hash(), request, consented, created_at: now };
    parts.store.insert_login(&login).await.map_err(NotBegun::Store)?;
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(browser.verifier(state.expose()).as_bytes()));
    let Some(application) = &parts.application else { return Err(NotBegun::ForgejoAway) };
    let url = parts.forgejo.authorize_url(&[
        ("client_id", &application.client_id),
        ("redirect_uri", &parts.callback),
        ("response_type", "code"),
        ("state", state.expose()),
        ("scope", &application.scopes.join(" ")),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ]);
    Ok(page::with_cookies(page::redirect(&url), browser.set))
}
