//! Lists for the operator, page by page: each page costs the same however many there are, and nobody holds all of it.

use axum::Json;
use axum::extract::{Query, State};
use wire::clock::UnixTime;

use crate::admin::api::{GrantView, Page, PageQuery, UserView};
use crate::admin::{Admin, Refused};
use crate::auth::principal::GrantId;

/// Entries of a page where nothing else is asked for.
const PAGE: u32 = 500;
/// Entries of a page at most.
const MAX_PAGE: u32 = 1000;

fn size(query: &PageQuery) -> u32 {
    query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE)
}

/// The place behind the last entry of a full page; one that is not full is the last.
fn next<T>(entries: &[T], size: u32, place: impl FnOnce(&T) -> String) -> Option<String> {
    let is_full = u32::try_from(entries.len()).is_ok_and(|length| length >= size);
    entries.last().filter(|_| is_full).map(place)
}

fn no_place(text: &str) -> Refused {
    Refused::Input(format!("`{text}` is no place in a list: take `next` of the page before"))
}

/// `GET /tokens`: grants, the newest first.
pub(super) async fn tokens(
    State(admin): State<Admin>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<GrantView>>, Refused> {
    if query.after.is_none() {
        // Once a list: what was used a moment ago is shown so.
        admin.revocation.principals.flush_uses().await;
    }
    let place = |text: &String| grant_place(text).ok_or_else(|| no_place(text));
    let after = query.after.as_ref().map(place).transpose()?;
    let after = after.as_ref().map(|(at, grant)| (*at, grant));
    let grants = admin.store.grants_after(query.user.as_deref(), after, size(&query)).await?;
    let next = next(&grants, size(&query), |grant| format!("{}.{}", grant.created_at.secs(), grant.id));
    let view = grants.into_iter().map(|grant| GrantView {
        id: grant.id.as_str().to_owned(),
        user: grant.login.as_str().to_owned(),
        number: grant.tenant.get(),
        client: grant.client_id,
        scopes: grant.scopes.as_str().to_owned(),
        created_at: grant.created_at.secs(),
        expires_at: grant.expires_at.map(UnixTime::secs),
        last_used_at: grant.last_used_at.map(UnixTime::secs),
        revoked_at: grant.revoked_at.map(UnixTime::secs),
    });
    Ok(Json(Page { entries: view.collect(), next }))
}

fn grant_place(text: &str) -> Option<(UnixTime, GrantId)> {
    let (secs, id) = text.split_once('.')?;
    Some((UnixTime::from_secs(secs.parse().ok()?), GrantId::new(id)))
}

/// `GET /users`: everybody who was ever here, by number.
pub(super) async fn users(
    State(admin): State<Admin>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<UserView>>, Refused> {
    let after = match &query.after {
        Some(text) => text.parse().map_err(|_| no_place(text))?,
        None => 0,
    };
    let users = admin.store.users_after(after, size(&query)).await?;
    let next = next(&users, size(&query), |user| user.account.tenant.get().to_string());
    let view = users.into_iter().map(|user| UserView {
        number: user.account.tenant.get(),
        login: user.account.login.as_str().to_owned(),
        grants: user.grants,
        personal: user.personal,
        sessions: usize::try_from(user.sessions).unwrap_or_default(),
        last_used_at: user.last_used_at.map(UnixTime::secs),
        created_at: user.account.created.map(UnixTime::secs),
    });
    Ok(Json(Page { entries: view.collect(), next }))
}
