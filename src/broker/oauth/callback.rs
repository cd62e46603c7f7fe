//! `/oauth/callback`: back from Forgejo. Who is it, are they let in, and did they agree?

use std::sync::Arc;

use axum::extract::{RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use rand::rngs::SysRng;
use tracing::{error, info, warn};

use crate::auth::principal::Scopes;
use crate::auth::source::Source;
use crate::auth::token::{AuthorizationCode, LoginState, TokenHash, VisitKey};
use crate::chain::chain;
use crate::forge::rotation::{LogInError, LoggedIn};
use crate::forge::token_endpoint::AuthorizationAnswer;
use crate::oauth::arrivals::Arrived;
use crate::oauth::browser::Browser;
use crate::oauth::page;
use crate::oauth::page::Message;
use crate::oauth::params::Params;
use crate::oauth::request;
use crate::oauth::request::AuthorizationRequest;
use crate::oauth::{Context, LOGIN_TTL};
use crate::oauth::{authorize, consent, login};
use crate::store::{Code, Consent, FinishedLogin, Login, StoreError, Visit, Visitor};
use wire::clock::UnixTime;

/// GET.
pub(crate) async fn back(State(context): State<Arc<Context>>, RawQuery(query): RawQuery, request: Request) -> Response {
    let source = context.limits.source(&request);
    let Ok(params) = Params::parse(query.unwrap_or_default().as_bytes()) else { return not_begun() };
    let state = params.get("state").and_then(LoginState::parse);
    let (Some(state), Some(browser)) = (state, context.cookies.known_browser(request.headers())) else {
        return not_begun();
    };
    // Found with the browser in the condition: whoever has the state alone can neither use nor use up the login. It is
    // there until it has succeeded once, so that a page that says "try again" can be reloaded.
    let login = match context.store.find_login(&state.hash(), &browser.hash()).await {
        Ok(Some(login)) => login,
        Ok(None) => return not_begun(),
        Err(e) => return failed(&e),
    };
    let again = login::again(login.request.as_deref());
    if context.clock.now().since(login.created_at) >= LOGIN_TTL {
        let text = "More than ten minutes have passed since this login began.";
        let ways = &[(again.as_str(), "Start again")];
        return Message { title: "The login took too long", text, ways }.respond(StatusCode::BAD_REQUEST);
    }
    let asked = match &login.request {
        Some(query) => match authorize::read_again(&context, query, source).await {
            Ok(asked) => Some(asked),
            Err(response) => return response,
        },
        None => None,
    };
    let Some(code) = params.get("code") else {
        return match context.store.forget_login(&login.state).await {
            Ok(()) => refused_by_forgejo(&context, &params, asked.as_ref()),
            Err(e) => failed(&e),
        };
    };
    let answer = AuthorizationAnswer {
        code: code.to_owned(),
        verifier: browser.verifier(state.expose()),
        redirect: context.callback.clone(),
    };
    let rotation = context.rotation.clone();
    let may_try_again = || context.limits.logins.count(&source).is_ok();
    let exchanging = move |held_up| async move { rotation.log_in(answer, held_up).await };
    let outcome = match context.arrivals.outcome(login.state, login.created_at, may_try_again, exchanging).await {
        Arrived::Ended(outcome) => outcome,
        Arrived::GoesOn => return page::waiting(&context.site),
        Arrived::HeldUp => return page::not_kept(&[page::TRY_AGAIN]),
        Arrived::TooOften => return page::too_many(),
    };
    match &*outcome {
        Ok(logged_in) => {
            let visit = context.cookies.visit(request.headers());
            go_on(&context, logged_in, &login, asked, browser, visit).await.unwrap_or_else(|e| failed(&e))
        }
        Err(e) => {
            // Forgejo may yet take the code, or the store what comes of it; whatever else it was stays as it is.
            let may_pass = matches!(e, LogInError::NotNow | LogInError::Store(_));
            if !may_pass {
                context.arrivals.forget(&login.state);
                if let Err(e) = context.store.forget_login(&login.state).await {
                    return failed(&e);
                }
            }
            not_logged_in(&context, e, asked.as_ref(), &again, source)
        }
    }
}

/// The state is unknown, used, or of another browser. One page for all, because an attacker should not learn which.
fn not_begun() -> Response {
    let text = "This login was not begun in this browser, was finished already, or took more than ten minutes. Nothing was changed. Start again from your MCP client.";
    Message { title: "This login cannot be finished", text, ways: &[] }.respond(StatusCode::BAD_REQUEST)
}

fn failed(e: &StoreError) -> Response {
    error!(error = %e, "a login failed: {}", chain(&e));
    page::store_failed(e, &[page::TRY_AGAIN])
}

/// Forgejo sends an error (RFC 6749 section 4.1.2.1): the person said no there, or something is wrong.
fn refused_by_forgejo(context: &Context, params: &Params, asked: Option<&AuthorizationRequest>) -> Response {
    let denied = params.get("error") == Some("access_denied");
    if !denied {
        // The code only: a description may repeat anything.
        let code = params.get("error").filter(|code| code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        warn!(error = code.unwrap_or("none"), "Forgejo refused a login");
    }
    match asked {
        Some(asked) => {
            let why = if denied { request::DENIED } else { request::UPSTREAM };
            page::redirect(&asked.back.refusing(why, &context.public_url))
        }
        None if denied => page::redirect("/account"),
        None => {
            let text = "Forgejo refused the login. Try again; if it stays, tell the operator of this service.";
            Message { title: "The login failed", text, ways: &[("/account", "Try again")] }
                .respond(StatusCode::BAD_GATEWAY)
        }
    }
}

/// The ways on from a login that failed, the way back to the client last.
fn ways<'a>(first: Option<page::Way<'a>>, back: Option<&'a str>) -> Vec<page::Way<'a>> {
    first.into_iter().chain(back.map(|back| (back, "Back to the client"))).collect()
}

fn not_logged_in(
    context: &Context,
    e: &LogInError,
    asked: Option<&AuthorizationRequest>,
    again: &str,
    source: Source,
) -> Response {
    let back = |why| asked.map(|asked| asked.back.refusing(why, &context.public_url));
    match e {
        LogInError::NotAdmitted(why) => {
            let back = back(request::DENIED);
            let text = format!(
                "You are logged in at Forgejo, but {why}. Ask the operator of this service, or log in at Forgejo with another account."
            );
            let ways = ways(None, back.as_deref());
            Message { title: "You may not use this service", text: &text, ways: &ways }.respond(StatusCode::FORBIDDEN)
        }
        LogInError::NotNow => {
            let back = back(request::NOT_NOW);
            page::forgejo_away(&ways(Some(page::TRY_AGAIN), back.as_deref()))
        }
        LogInError::Code | LogInError::Misconfigured | LogInError::NotConfigured => {
            warn!(error = %e, source = %source, "a login failed: {}", chain(&e));
            let back = back(request::UPSTREAM);
            let text = "Forgejo did not confirm the login: it does so once, and its answer may have been lost. Start again; if it stays, tell the operator of this service.";
            let ways = ways(Some((again, "Start again")), back.as_deref());
            Message { title: "The login failed", text, ways: &ways }.respond(StatusCode::BAD_GATEWAY)
        }
        LogInError::Store(_) | LogInError::Vault(_) | LogInError::NoRandomness(_) => {
            error!(error = %e, cause = ?std::error::Error::source(e), "a login failed: {}", chain(&e));
            // Forgejo takes its code once.
            let ways = [(again, "Start again")];
            if let LogInError::Store(e) = e { page::store_failed(e, &ways) } else { page::trouble(&ways) }
        }
    }
}

/// Somebody has logged in: their visit begins, and the client gets its code if they agreed.
async fn go_on(
    context: &Context,
    logged_in: &LoggedIn,
    login: &Login,
    asked: Option<AuthorizationRequest>,
    browser: Browser,
    former: Option<TokenHash>,
) -> Result<Response, StoreError> {
    let tenant = logged_in.user.id;
    let now = context.clock.now();
    let known = match former {
        Some(visit) => context.store.find_visit(&visit, now).await?,
        None => None,
    };
    let (Ok(visit), Ok(code)) = (VisitKey::mint(&mut SysRng), AuthorizationCode::mint(&mut SysRng)) else {
        error!("a login failed: no random bytes");
        return Ok(page::trouble(&[page::TRY_AGAIN]));
    };
    let begun = Visit { key: visit.hash(), browser: browser.hash(), tenant, ends: now.plus(context.policy.visit_ttl) };
    // The page named the visitor, and without the page it was the visitor's consent that was remembered; Forgejo may
    // have let in another.
    let is_the_one = known.is_none_or(|known| known.tenant == tenant);
    let scopes = match (&asked, login.consented) {
        (None, _) => None,
        (Some(_), Some(scopes)) => Some(scopes).filter(|_| is_the_one),
        (Some(asked), None) => consent::remembered(context, tenant, asked).await?,
    };
    let agreed = asked.as_ref().zip(scopes);
    let code_row = agreed.map(|(asked, scopes)| row(&code, logged_in, asked, scopes, now));
    let newly = agreed.filter(|(asked, _)| login.consented.is_some() && consent::is_remembered_at(asked));
    let consent = newly.map(|(asked, scopes)| Consent {
        tenant,
        client_id: asked.client.id.clone(),
        client_name: asked.client.name.to_string(),
        redirect: asked.back.redirect.as_str().to_owned(),
        scopes,
    });
    let finished = FinishedLogin {
        state: &login.state,
        visit: &begun,
        former: former.as_ref(),
        consent: consent.as_ref(),
        code: code_row.as_ref(),
    };
    if !context.store.finish_login(&finished, now).await? {
        return Ok(not_begun());
    }
    context.arrivals.forget(&login.state);
    if let Some(consent) = &consent {
        info!(tenant = %tenant, client = %consent.client_id, scopes = consent.scopes.as_str(), "consent given");
    }
    let answer = match (&asked, agreed) {
        (None, _) => page::redirect("/account"),
        (Some(asked), Some(_)) => page::redirect(&asked.back.with(&[("code", code.expose())], &context.public_url)),
        (Some(asked), None) => {
            let query = login.request.as_deref().unwrap_or_default();
            let visitor = Visitor { tenant, login: logged_in.user.login.clone() };
            consent::page(context, asked, query, browser, Some(&visitor), false).await?
        }
    };
    Ok(page::with_cookies(answer, context.cookies.begin_visit(&visit, context.policy.visit_ttl)))
}

fn row(
    code: &AuthorizationCode,
    logged_in: &LoggedIn,
    asked: &AuthorizationRequest,
    scopes: Scopes,
    now: UnixTime,
) -> Code {
    Code {
        hash: code.hash(),
        client_id: asked.client.id.clone(),
        client_name: asked.client.name.to_string(),
        redirect_uri: asked.back.redirect.as_str().to_owned(),
        challenge: asked.challenge.clone(),
        tenant: logged_in.user.id,
        credential_id: logged_in.credential_id.clone(),
        scopes,
        needs_key: asked.client.needs_key(),
        created_at: now,
        redeemed: None,
    }
}
