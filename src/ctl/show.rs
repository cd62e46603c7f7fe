//! Results as text for people, or as JSON for programs.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use crate::client::CtlError;
use forgejo_mcp_broker::admin::api::{GrantView, KeyView, StatusView, SupervisorView};

pub(crate) fn json(value: &impl Serialize) -> Result<String, CtlError> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|_| CtlError::Answer)
}

/// A time in UTC, to the second.
pub(crate) fn time(secs: Option<i64>) -> String {
    let secs = secs.and_then(|secs| u64::try_from(secs).ok());
    let at = secs.and_then(|secs| UNIX_EPOCH.checked_add(Duration::from_secs(secs)));
    at.map_or_else(|| "-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}

pub(crate) fn grants(grants: &[GrantView]) -> String {
    let header = ["ID", "USER", "CLIENT", "SCOPES", "EXPIRES", "LAST USED", "STATE"].map(str::to_owned);
    let rows = grants.iter().map(|grant| {
        let state = if grant.revoked_at.is_some() { "revoked" } else { "active" };
        let (expires, used) = (time(grant.expires_at), time(grant.last_used_at));
        [
            grant.id.clone(),
            grant.user.clone(),
            grant.client.clone(),
            grant.scopes.clone(),
            expires,
            used,
            state.to_owned(),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = if column + 1 == row.len() { 0 } else { width(column).unwrap_or_default() + 2 };
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell:<width$}");
        }
        text.push('\n');
    }
    text
}

pub(crate) fn key(view: &KeyView) -> String {
    let KeyView { file, managed, key, replacing, sealed } = view;
    let whose = if *managed { " (provided by the service manager)" } else { "" };
    let mut text = format!("file: {file}{whose}\nkey: {key}\n");
    if let Some(older) = replacing {
        let _ = writeln!(text, "being replaced: {older}");
    }
    for one in sealed {
        let _ = writeln!(text, "sealed under {}: {} credentials", one.key, one.credentials);
    }
    text
}

pub(crate) fn status(status: &StatusView) -> String {
    let mut text = format!("sessions: {}\nchildren: {}\n", status.sessions, status.children);
    let Some(supervisor) = &status.supervisor else {
        return text + "supervisor: cannot be reached\n";
    };
    let SupervisorView { own_uid, cgroup, landlock, seccomp, children, max_children, tenants, uids_free, uids_unclean } =
        supervisor;
    let _ = writeln!(text, "supervisor: {children} of {max_children} children, {tenants} users");
    let _ = writeln!(text, "uids: {uids_free} free, {uids_unclean} not clean");
    let parts = [("uid", own_uid), ("cgroup", cgroup), ("landlock", landlock), ("seccomp", seccomp)];
    for (what, on) in parts {
        let _ = writeln!(text, "{what}: {}", if *on { "yes" } else { "NO" });
    }
    if !own_uid {
        text.push_str("NOT ISOLATED: the users' processes share one uid and can read each other's tokens\n");
    }
    text
}
