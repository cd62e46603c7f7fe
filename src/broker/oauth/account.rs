//! `/account`: what a user's clients are, and how to be rid of them.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use askama::Template;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use tracing::{error, info};
use wire::clock::UnixTime;
use wire::message::TenantId;

use crate::auth::principal::GrantId;
use crate::auth::token::TokenHash;
use crate::chain::chain;
use crate::forge::scopes::difference;
use crate::metrics::CallOutcome;
use crate::oauth::browser::Browser;
use crate::oauth::client_name::ClientName;
use crate::oauth::page;
use crate::oauth::page::Message;
use crate::oauth::params::Params;
use crate::oauth::site::Site;
use crate::oauth::tokens::why_ended;
use crate::oauth::{Context, body, login};
use crate::store::{StoreError, Visitor, WRITES_KEPT, WriteCall};

/// How long the page tells of what looked like a theft.
const REMEMBERED: Duration = Duration::from_hours(30 * 24);
/// What all forms of the page are about; which one it is stands in the form itself.
const FORM: &str = "account";

#[derive(Debug, Template)]
#[template(path = "account.html", config = ".askama.toml")]
struct AccountPage<'a> {
    site: &'a Site,
    login: String,
    forgejo: String,
    token: String,
    /// Where Forgejo holds the user to other scopes than this service asks for.
    scopes: Option<ScopesView>,
    connections: Vec<ConnectionView>,
    /// Connections that were ended because they may have been stolen.
    ended: Vec<EndedView>,
    /// Approvals without a connection.
    approvals: Vec<ApprovalView>,
}

#[derive(Debug, Template)]
#[template(path = "account_login.html", config = ".askama.toml")]
struct LogInPage<'a> {
    site: &'a Site,
    token: String,
}

#[derive(Debug)]
struct ConnectionView {
    grant: String,
    client: ClientName,
    client_id: String,
    writes: bool,
    /// Whether the user sees it for the first time.
    is_new: bool,
    since: String,
    /// To the second: what tells two connections of one client apart.
    since_exactly: String,
    used: String,
    /// Address family and network of the last use.
    network: Option<String>,
    sessions: usize,
    /// The last calls that may have changed something.
    calls: Vec<CallView>,
    /// Further programs that came to use it.
    forks: Vec<ForkView>,
}

#[derive(Debug)]
struct CallView {
    tool: String,
    target: String,
    when: String,
    /// What it came to, where it was not carried out well.
    outcome: Option<String>,
}

#[derive(Debug)]
struct ForkView {
    when: String,
    network: String,
}

#[derive(Debug)]
struct EndedView {
    client: ClientName,
    when: String,
    why: &'static str,
}

#[derive(Debug)]
struct ScopesView {
    missing: String,
    excess: String,
}

#[derive(Debug)]
struct ApprovalView {
    client: ClientName,
    client_id: String,
    place: String,
    writes: bool,
}

/// GET.
pub(crate) async fn show(State(context): State<Arc<Context>>, request: Request) -> Response {
    let headers = request.headers();
    let Ok(browser) = context.cookies.browser(headers) else { return page::trouble(&[]) };
    let shown = async {
        let Some((visitor, _)) = visitor(&context, headers).await? else {
            let page = LogInPage { site: &context.site, token: browser.form_token(FORM) };
            return Ok(page::respond(StatusCode::OK, &page));
        };
        let page = overview(&context, &visitor, &browser).await?;
        // A browser that fetches ahead shows nobody anything.
        if page.shows_new && !headers.contains_key("sec-purpose") {
            note_seen(&context, visitor.tenant);
        }
        Ok(page.response)
    };
    let response = shown.await.unwrap_or_else(|e: StoreError| failed(&e));
    page::with_cookies(response, browser.set)
}

/// The page, and whether there is a connection on it that its user has not been shown before.
struct Overview {
    response: Response,
    shows_new: bool,
}

/// Writes that all was shown. The page does not wait for it: who is shown a connection as new twice loses nothing.
fn note_seen(context: &Arc<Context>, tenant: TenantId) {
    let context = Arc::clone(context);
    tokio::spawn(async move {
        if let Err(e) = context.store.note_seen(tenant, context.clock.now()).await {
            error!(error = %e, tenant = %tenant, "what a user was shown could not be noted: {}", chain(&e));
        }
    });
}

fn failed(e: &StoreError) -> Response {
    error!(error = %e, "the account page failed: {}", chain(&e));
    page::store_failed(e, &[])
}

async fn visitor(context: &Context, headers: &HeaderMap) -> Result<Option<(Visitor, TokenHash)>, StoreError> {
    let Some(visit) = context.cookies.visit(headers) else { return Ok(None) };
    Ok(context.store.find_visit(&visit, context.clock.now()).await?.map(|visitor| (visitor, visit)))
}

async fn overview(context: &Context, visitor: &Visitor, browser: &Browser) -> Result<Overview, StoreError> {
    let now = context.clock.now();
    let connections = context.store.connections_of(visitor.tenant).await?;
    let approvals = context.store.consents_of(visitor.tenant).await?;
    let approvals = approvals
        .into_iter()
        .filter(|consent| !connections.iter().any(|connection| connection.client_id == consent.client_id));
    let approvals = approvals.map(|consent| ApprovalView {
        client: ClientName::of(&consent.client_name),
        client_id: consent.client_id,
        place: consent.redirect,
        writes: consent.scopes.write,
    });
    let since = now.minus(REMEMBERED);
    let forks = context.store.forks_of(visitor.tenant, since).await?;
    let ended = context.store.ended_connections_of(
        visitor.tenant,
        &["refresh-token-reused", "second-branch", "code-replayed"],
        since,
    );
    let ended = ended.await?.into_iter().map(|one| EndedView {
        client: ClientName::of(&one.client_name),
        when: ago(now.since(one.at)),
        why: why_ended(&one.reason),
    });
    let calls = context.store.writes_of(visitor.tenant).await?;
    let granted = context.store.granted_scopes_of(visitor.tenant).await?;
    let differ = granted.and_then(|granted| difference(context.scopes_at_forgejo(), &granted));
    let page = AccountPage {
        site: &context.site,
        scopes: differ.map(|found| ScopesView { missing: found.missing.join(", "), excess: found.excess.join(", ") }),
        login: visitor.login.as_str().to_owned(),
        forgejo: context.forgejo.url().to_owned(),
        token: browser.form_token(FORM),
        approvals: approvals.collect(),
        ended: ended.collect(),
        connections: connections
            .into_iter()
            .map(|one| {
                // Not written yet, and the page does not wait until it is.
                let last = context.revocation.principals.unwritten_use(&one.grant);
                let network = last.as_ref().map(|last| last.source.network());
                let used_at = last.map(|last| last.at).or(one.last_used_at);
                ConnectionView {
                    sessions: one.sessions.saturating_add(context.revocation.registry.stateless_of(&one.grant)),
                    calls: last_calls(context, &one.grant, &calls, now),
                    forks: forks
                        .iter()
                        .filter(|fork| fork.grant == one.grant)
                        .map(|fork| ForkView { when: ago(now.since(fork.at)), network: fork.network.clone() })
                        .collect(),
                    grant: one.grant.as_str().to_owned(),
                    client: ClientName::of(&one.client_name),
                    client_id: one.client_id,
                    writes: one.scopes.write,
                    is_new: one.is_new,
                    since: ago(now.since(one.created_at)),
                    since_exactly: exactly(one.created_at),
                    network: network.as_deref().or(one.network.as_deref()).map(with_family),
                    used: match used_at {
                        Some(used) => format!("last used {}", ago(now.since(used))),
                        None => "never used".to_owned(),
                    },
                }
            })
            .collect(),
    };
    let shows_new = page.connections.iter().any(|one| one.is_new);
    Ok(Overview { response: page::respond(StatusCode::OK, &page), shows_new })
}

/// The last calls of a grant that may have changed something: those that are not kept yet, then those that are.
fn last_calls(context: &Context, grant: &GrantId, kept: &[WriteCall], now: UnixTime) -> Vec<CallView> {
    let waiting = context.writes.waiting(grant);
    let all = waiting.iter().chain(kept.iter().filter(|call| call.grant == *grant));
    let view = |call: &WriteCall| CallView {
        tool: call.tool.clone(),
        target: call.target.clone(),
        when: ago(now.since(call.at)),
        outcome: (call.outcome != CallOutcome::Ok.as_str()).then(|| call.outcome.replace('-', " ")),
    };
    all.take(usize::try_from(WRITES_KEPT).unwrap_or(usize::MAX)).map(view).collect()
}

/// A time as people write it down.
fn exactly(time: UnixTime) -> String {
    let secs = u64::try_from(time.secs()).unwrap_or_default();
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(secs))
}

/// A network as [`Source::network`](crate::auth::source::Source::network) writes it, with its family.
fn with_family(network: &str) -> String {
    format!("{}, {network}", if network.contains(':') { "IPv6" } else { "IPv4" })
}

/// How long ago, as a person says it.
fn ago(span: Duration) -> String {
    let minutes = span.as_secs() / 60;
    let (number, unit) = match minutes {
        0 => return "just now".to_owned(),
        1..60 => (minutes, "minute"),
        60..1440 => (minutes / 60, "hour"),
        _ => (minutes / 1440, "day"),
    };
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{s} ago")
}

/// A form of the page, if it is ours and of this browser.
async fn form(context: &Context, request: Request) -> Result<(Params, HeaderMap, Browser), Response> {
    let refused = || {
        let text = "This form was not made for this browser, or it is too old. Nothing was changed.";
        Message { title: "This form cannot be used", text, ways: &[("/account", "To your account")] }
            .respond(StatusCode::FORBIDDEN)
    };
    let headers = request.headers().clone();
    let text = body(request).await.map_err(|_| refused())?;
    let form = Params::parse(&text).map_err(|_| refused())?;
    match context.cookies.sender(&headers, FORM, form.get("token")) {
        Ok(browser) => Ok((form, headers, browser)),
        Err(_) => Err(refused()),
    }
}

/// POST `/account/login`.
pub(crate) async fn log_in(State(context): State<Arc<Context>>, request: Request) -> Response {
    let source = context.limits.source(&request);
    let browser = match form(&context, request).await {
        Ok((_, _, browser)) => browser,
        Err(response) => return response,
    };
    match login::begin(&context, browser, None, None, source).await {
        Ok(response) => response,
        Err(login::NotBegun::TooMany) => page::too_many(),
        Err(login::NotBegun::ForgejoAway) => page::forgejo_away(&[("/account", "Try again")]),
        Err(login::NotBegun::Store(e)) => failed(&e),
        Err(login::NotBegun::NoRandomness) => page::trouble(&[]),
    }
}

/// POST `/account/logout`.
pub(crate) async fn log_out(State(context): State<Arc<Context>>, request: Request) -> Response {
    let (headers, browser) = match form(&context, request).await {
        Ok((_, headers, browser)) => (headers, browser),
        Err(response) => return response,
    };
    if let Err(e) = context.store.end_visits(&browser.hash(), context.cookies.visit(&headers).as_ref()).await {
        return failed(&e);
    }
    page::with_cookies(page::redirect("/account"), context.cookies.end_visit())
}

/// POST `/account/reduce`: one connection (`grant`) may only read from here on.
pub(crate) async fn reduce(State(context): State<Arc<Context>>, request: Request) -> Response {
    let (form, headers) = match form(&context, request).await {
        Ok((form, headers, _)) => (form, headers),
        Err(response) => return response,
    };
    let done = async {
        let Some((visitor, _)) = visitor(&context, &headers).await? else { return Ok(()) };
        let connections = context.store.connections_of(visitor.tenant).await?;
        let grant = form.get("grant").map(GrantId::new);
        if let Some(one) = connections.iter().find(|one| Some(&one.grant) == grant.as_ref())
            && context.revocation.reduce(&one.grant).await?
        {
            info!(
                tenant = %visitor.tenant, login = %visitor.login, grant = %one.grant, client = %one.client_id,
                "{} took writing away from {}", visitor.login, one.client_id
            );
        }
        Ok(())
    };
    match done.await {
        Ok(()) => page::redirect("/account"),
        Err(e) => failed(&e),
    }
}

/// POST `/account/disconnect`: one connection (`grant`), all of a client and what was agreed to (`client`), or all that there
/// is (`all`).
pub(crate) async fn disconnect(State(context): State<Arc<Context>>, request: Request) -> Response {
    let (form, headers) = match form(&context, request).await {
        Ok((form, headers, _)) => (form, headers),
        Err(response) => return response,
    };
    let done = async {
        let Some((visitor, _)) = visitor(&context, &headers).await? else { return Ok(()) };
        let connections = context.store.connections_of(visitor.tenant).await?;
        let (grant, client) = (form.get("grant").map(GrantId::new), form.get("client"));
        let all = form.get("all").is_some();
        // Only what is the visitor's own is looked at, so another's grant is simply not there.
        for one in &connections {
            if all || Some(&one.grant) == grant.as_ref() || Some(one.client_id.as_str()) == client {
                context.revocation.revoke(&one.grant, "user-disconnected").await?;
                info!(
                    tenant = %visitor.tenant, login = %visitor.login, grant = %one.grant, client = %one.client_id,
                    "{} disconnected {}", visitor.login, one.client_id
                );
            }
        }
        if all {
            return context.store.forget_all_consents(visitor.tenant).await;
        }
        // Who disconnects a client's last connection does not want it to come back without being asked.
        let ended = connections.iter().find(|one| Some(&one.grant) == grant.as_ref()).map(|one| one.client_id.as_str());
        let is_left =
            |id: &str| connections.iter().any(|one| one.client_id == id && Some(&one.grant) != grant.as_ref());
        if let Some(id) = client.or(ended.filter(|id| !is_left(id))) {
            context.store.forget_consents(visitor.tenant, id).await?;
        }
        Ok(())
    };
    match done.await {
        Ok(()) => page::redirect("/account"),
        Err(e) => failed(&e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = |secs| ago(UnixTime::from_secs(secs).since(UnixTime::from_secs(0)));
        assert_eq!(
            [said(3), said(60), said(3599), said(7200), said(200_000)],
            ["just now", "1 minute ago", "59 minutes ago", "2 hours ago", "2 days ago"]
        );
    }
}
