//! What the journal says of sessions and their children: in the text what happened, to whom and why, for people; in the
//! fields the same for programs.

use tracing::{info, warn};
use wire::telemetry::message_id;

use crate::auth::principal::{GrantId, Principal};
use crate::child::bridge::Bridge;
use crate::session::error::SessionError;
use crate::session::id;
use crate::session::record::Session;
use crate::session::route::Route;

pub(super) fn opened(session: &Session, principal: &Principal, bridge: &Bridge, duration_ms: u64) {
    let tag = id::tag(&session.digest);
    info!(
        MESSAGE_ID = message_id::SESSION_OPENED, session = %tag, grant = %principal.grant, tenant = %principal.tenant,
        login = %principal.login, client = %principal.client_id, version = %session.version, child_pid = bridge.pid,
        duration_ms, "session opened: {tag}, by {} with {}, in {duration_ms} ms", principal.login, principal.client_id
    );
}

pub(super) fn moved(session: &Session, from: &GrantId, principal: &Principal) {
    info!(
        session = %id::tag(&session.digest), tenant = %principal.tenant, login = %principal.login,
        client = %principal.client_id, grant = %principal.grant, from_grant = %from,
        "session moved to a later login of the same user and client"
    );
}

pub(super) fn ended(session: &Session, reason: &'static str) {
    let (tag, tenant, client) = (id::tag(&session.digest), session.tenant(), session.client());
    info!(
        MESSAGE_ID = message_id::SESSION_ENDED, session = %tag, tenant = %tenant, client = %client, reason,
        "session ended: {tag}, of user {tenant} with {client} ({reason})"
    );
}

/// The line that joins a session or a grant with its child, and all that the child does from now on with the session.
pub(super) fn serves(route: &Route, bridge: &Bridge) {
    let tag = route.session_tag();
    if let Some(tag) = &tag {
        bridge.serves(tag);
    }
    info!(
        MESSAGE_ID = message_id::CHILD_SERVES, session = tag.map(tracing::field::display), tenant = %route.tenant, child_pid = bridge.pid,
        child_uid = bridge.uid, "child {} (uid {}) serves {} of user {}", bridge.pid, bridge.uid, route.key, route.tenant
    );
}

pub(super) fn stopped(route: &Route, bridge: &Bridge, reason: &'static str) {
    info!(
        MESSAGE_ID = message_id::CHILD_STOPPED, session = route.session_tag().map(tracing::field::display), tenant = %route.tenant,
        child_pid = bridge.pid, reason,
        "child stopped: {}, of {} of user {}, which goes on ({reason})", bridge.pid, route.key, route.tenant
    );
}

pub(super) fn no_child(route: &Route, what: &str, error: &SessionError) {
    warn!(
        session = route.session_tag().map(tracing::field::display), tenant = %route.tenant, reason = error.code(), error = %error,
        "{what} for {} of user {}: {error}", route.key, route.tenant
    );
}
