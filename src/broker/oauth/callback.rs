//! `/oauth/callback`: back from Forgejo. Who is it, are they let in, and did they agree?

use std::sync::Arc;

use axum::extract::{RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use rand::rngs::SysRng;
use tracing::{error, info, warn};

use crate::auth::principal::Scopes;
use crate::auth::rates::Source;
use crate::auth::token::{AuthorizationCode, LoginState, NoRandomness, TokenHash, VisitKey};
use crate::chain::chain;
use crate::forge::rotation::{LogInError, LoggedIn};
use crate::forge::token_endpoint::AuthorizationAnswer;
use crate::oauth::browser::Browser;
use crate::oauth::page;
use crate::oauth::page::Message;
use crate::oauth::params::Params;
use crate::oauth::request;
use crate::oauth::request::AuthorizationRequest;
use crate::oauth::{Context, LOGIN_TTL};
use crate::oauth::{authorize, consent};
use crate::store::{Code, Consent, Login, StoreError, Visit, Visitor};

/// GET.
pub(crate) async fn back(State(context): State<Arc<Context>>, RawQuery(query): RawQuery, request: Request) -> Response {
    let source = context.limits.source(&request);
    let Ok(params) = Params::parse(query.unwrap_or_default().as_bytes()) else { return not_begun() };
    let state = params.get("state").and_then(LoginState::parse);
    let (Some(state), Some(browser)) = (state, context.cookies.known_browser(request.headers())) else {
        return not_begun();
    };
    // Taken with the browser in the condition: whoever has the state alone can neither use nor use up the login.
    let login = match context.store.take_login(&state.hash(), &browser.hash()).await {
        Ok(Some(login)) => login,
        Ok(None) => return not_begun(),
        Err(e) => return failed(&e),
    };
    if context.clock.now().since(login.created_at) >= LOGIN_TTL {
        let text = "More than ten minutes have passed since this login began. Start again from your MCP client.";
        return Message { title: "The login took too long", text, way: None }.respond(StatusCode::BAD_REQUEST);
    }
    let asked = match &login.request {
        Some(query) => match authorize::read_again(&context, query, source).await {
            Ok(asked) => Some(asked),
            Err(response) => return response,
        },
        None => None,
    };
    let Some(code) = params.get("code") else { return refused_by_forgejo(&context, &params, asked.as_ref()) };
    let answer = AuthorizationAnswer {
        code: code.to_owned(),
        verifier: browser.verifier(state.expose()),
        redirect: context.callback.clone(),
    };
    let visit = context.cookies.visit(request.headers());
    match context.rotation.log_in(answer).await {
        Ok(logged_in) => {
            go_on(&context, &logged_in, &login, asked, browser, visit).await.unwrap_or_else(|e| failed(&e))
        }
        Err(e) => not_logged_in(&context, &e, asked.as_ref(), source),
    }
}

/// The state is unknown, used, or of another browser. One page for all, because an attacker should not learn which.
fn not_begun() -> Response {
    let text = "This login was not begun in this browser, was finished already, or took more than ten minutes. Nothing was changed. Start again from your MCP client.";
    Message { title: "This login cannot be finished", text, way: None }.respond(StatusCode::BAD_REQUEST)
}

fn failed(e: &StoreError) -> Response {
    error!(error = %e, "a login failed: {}", chain(&e));
    page::trouble()
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
            Message { title: "The login failed", text, way: Some(("/account", "Try again")) }
                .respond(StatusCode::BAD_GATEWAY)
        }
    }
}

fn not_logged_in(context: &Context, e: &LogInError, asked: Option<&AuthorizationRequest>, source: Source) -> Response {
    let back = |why| asked.map(|asked| asked.back.refusing(why, &context.public_url));
    match e {
        LogInError::NotAdmitted(why) => {
            let back = back(request::DENIED);
            let text = format!(
                "You are logged in at Forgejo, but {why}. Ask the operator of this service, or log in at Forgejo with another account."
            );
            let way = back.as_deref().map(|back| (back, "Back to the client"));
            Message { title: "You may not use this service", text: &text, way }.respond(StatusCode::FORBIDDEN)
        }
        LogInError::NotNow => {
            let back = back(request::NOT_NOW);
            page::forgejo_away(back.as_deref().map(|back| (back, "Back to the client")))
        }
        LogInError::Code | LogInError::Misconfigured | LogInError::NotConfigured => {
            warn!(error = %e, source = %source, "a login failed: {}", chain(&e));
            let back = back(request::UPSTREAM);
            let text = "Forgejo did not confirm the login. Start again from your MCP client; if it stays, tell the operator of this service.";
            let way = back.as_deref().map(|back| (back, "Back to the client"));
            Message { title: "The login failed", text, way }.respond(StatusCode::BAD_GATEWAY)
        }
        LogInError::Store(_) | LogInError::Vault(_) | LogInError::NoRandomness(_) => {
            error!(error = %e, cause = ?std::error::Error::source(e), "a login failed: {}", chain(&e));
            page::trouble()
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
    visit: Option<TokenHash>,
) -> Result<Response, StoreError> {
    let tenant = logged_in.user.id;
    let now = context.clock.now();
    let known = match visit {
        Some(visit) => context.store.find_visit(&visit, now).await?,
        None => None,
    };
    let former = visit;
    let Ok(visit) = VisitKey::mint(&mut SysRng) else { return Ok(page::trouble()) };
    let begun = Visit { key: visit.hash(), browser: browser.hash(), tenant, ends: now.plus(context.policy.visit_ttl) };
    context.store.begin_visit(&begun, former.as_ref()).await?;
    let cookie = context.cookies.begin_visit(&visit, context.policy.visit_ttl);
    let Some(asked) = asked else { return Ok(page::with_cookies(page::redirect("/account"), cookie)) };
    // The page named the visitor, and without the page it was the visitor's consent that was remembered; Forgejo may
    // have let in another.
    let is_the_one = known.is_none_or(|known| known.tenant == tenant);
    let scopes = match login.consented {
        Some(scopes) => Some(scopes).filter(|_| is_the_one),
        None => consent::remembered(context, tenant, &asked).await?,
    };
    let Some(scopes) = scopes else {
        let query = login.request.as_deref().unwrap_or_default();
        let visitor = Visitor { tenant, login: logged_in.user.login.clone() };
        let page = consent::page(context, &asked, query, browser, Some(&visitor), false).await?;
        return Ok(page::with_cookies(page, cookie));
    };
    if login.consented.is_some() && consent::is_remembered_at(&asked) {
        let consent = Consent {
            tenant,
            client_id: asked.client.id.clone(),
            client_name: asked.client.name.to_string(),
            redirect: asked.back.redirect.as_str().to_owned(),
            scopes,
        };
        context.store.put_consent(&consent, context.clock.now()).await?;
        info!(tenant = %tenant, client = %asked.client.id, scopes = scopes.as_str(), "consent given");
    }
    Ok(match send_code(context, logged_in, &asked, scopes).await? {
        Ok(response) => page::with_cookies(response, cookie),
        Err(NoRandomness) => page::trouble(),
    })
}

async fn send_code(
    context: &Context,
    logged_in: &LoggedIn,
    asked: &AuthorizationRequest,
    scopes: Scopes,
) -> Result<Result<Response, NoRandomness>, StoreError> {
    let code = match AuthorizationCode::mint(&mut SysRng) {
        Ok(code) => code,
        Err(e) => return Ok(Err(e)),
    };
    let row = Code {
        hash: code.hash(),
        client_id: asked.client.id.clone(),
        client_name: asked.client.name.to_string(),
        redirect_uri: asked.back.redirect.as_str().to_owned(),
        challenge: asked.challenge.clone(),
        tenant: logged_in.user.id,
        credential_id: logged_in.credential_id.clone(),
        scopes,
        created_at: context.clock.now(),
        redeemed: None,
    };
    context.store.insert_code(&row).await?;
    Ok(Ok(page::redirect(&asked.back.with(&[("code", code.expose())], &context.public_url))))
}
