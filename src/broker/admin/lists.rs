//! Lists for the operator, page by page: each page costs the same however many there are, and nobody holds all of it.

use axum::Json;
use axum::extract::{Query, State};
use wire::clock::UnixTime;

use crate::admin::api::{ClientView, GrantKind, GrantView, Page, PageQuery, SessionView, UserView};
use crate::admin::{Admin, Refused, is_called};
use crate::auth::principal::GrantId;
use crate::child::era::STATELESS;
use crate::hex;
use crate::session::id;
use crate::session::registry::grants::WarmChild;
use crate::store::SessionDigest;

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
    let place = |text: &String| grant_place(text).ok_or_else(|| no_place(text));
    let after = query.after.as_ref().map(place).transpose()?;
    let after = after.as_ref().map(|(at, grant)| (*at, grant));
    let grants = admin.store.grants_after(query.user.as_deref(), after, size(&query)).await?;
    let next = next(&grants, size(&query), |grant| format!("{}.{}", grant.created_at.secs(), grant.id));
    let unwritten = |grant: &GrantId| admin.revocation.principals.unwritten_use(grant).map(|last| last.at);
    let view = grants.into_iter().map(|grant| GrantView {
        id: grant.id.as_str().to_owned(),
        user: grant.login.as_str().to_owned(),
        number: grant.tenant.get(),
        client: grant.client_id,
        scopes: grant.scopes.as_str().to_owned(),
        kind: match (grant.is_operators, grant.is_shown) {
            (true, _) => GrantKind::Token,
            (_, true) => GrantKind::Forgejo,
            _ => GrantKind::Login,
        },
        tools: grant.restrictions.tools.map(|tools| tools.names()),
        networks: grant.restrictions.networks.map(|networks| networks.texts()),
        created_at: grant.created_at.secs(),
        expires_at: grant.expires_at.map(UnixTime::secs),
        last_used_at: unwritten(&grant.id).or(grant.last_used_at).map(UnixTime::secs),
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

/// `GET /sessions`: open ones, the newest first; before them the children that serve clients without a session.
pub(super) async fn sessions(
    State(admin): State<Admin>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<SessionView>>, Refused> {
    let place = |text: &String| session_place(text).ok_or_else(|| no_place(text));
    let after = query.after.as_ref().map(place).transpose()?;
    let sessions = admin.store.sessions_after(query.user.as_deref(), after, size(&query)).await?;
    let next = next(&sessions, size(&query), |one| format!("{}.{}", one.created_at.secs(), hex::encode(&one.digest.0)));
    // One that has ended meanwhile, whose end is just being written, is none.
    let view = sessions.into_iter().filter_map(|session| {
        let (last_used, child) = admin.revocation.registry.look_at(&session.digest)?;
        Some(SessionView {
            session: id::tag(&session.digest),
            digest: hex::encode(&session.digest.0),
            user: session.login,
            number: session.tenant.get(),
            client: session.client_id,
            client_name: session.client_name,
            grant: session.grant.as_str().to_owned(),
            version: session.version,
            created_at: session.created_at.secs(),
            last_used_at: last_used.max(session.last_used_at).secs(),
            child_pid: child.map(|(pid, _)| pid),
            in_flight: child.map_or(0, |(_, requests)| requests),
        })
    });
    let mut entries: Vec<SessionView> = view.collect();
    if query.after.is_none() {
        let of_user = |child: &WarmChild| {
            query.user.as_ref().is_none_or(|user| is_called(user, child.login.as_str(), child.tenant))
        };
        let warm = admin.revocation.registry.warm_children().into_iter().filter(of_user);
        entries.splice(0..0, warm.map(|child| without_session(&child)));
    }
    Ok(Json(Page { entries, next }))
}

/// A child that serves a grant's stateless requests, in the list of sessions.
fn without_session(child: &WarmChild) -> SessionView {
    SessionView {
        session: "-".to_owned(),
        digest: String::new(),
        user: child.login.as_str().to_owned(),
        number: child.tenant.get(),
        client: child.client.to_string(),
        client_name: String::new(),
        grant: child.grant.as_str().to_owned(),
        version: STATELESS.to_owned(),
        created_at: child.since.secs(),
        last_used_at: child.last_used.secs(),
        child_pid: Some(child.pid),
        in_flight: child.in_flight,
    }
}

fn session_place(text: &str) -> Option<(UnixTime, SessionDigest)> {
    let (secs, digest) = text.split_once('.')?;
    let mut bytes = [0; 32];
    if digest.len() != 64 || !digest.is_ascii() {
        return None;
    }
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digest.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some((UnixTime::from_secs(secs.parse().ok()?), SessionDigest(bytes)))
}

/// `GET /clients`: by their id.
pub(super) async fn clients(
    State(admin): State<Admin>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<ClientView>>, Refused> {
    let clients = admin.store.clients_after(query.after.as_deref().unwrap_or_default(), size(&query)).await?;
    let next = next(&clients, size(&query), |client| client.client_id.clone());
    let view = clients.into_iter().map(|client| ClientView {
        client: client.client_id,
        name: client.name,
        grants: client.grants,
        created_at: client.created_at.secs(),
        last_used_at: client.last_used_at.map(UnixTime::secs),
    });
    Ok(Json(Page { entries: view.collect(), next }))
}
