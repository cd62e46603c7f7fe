//! Results as text for people, or as JSON for programs.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::CtlError;
use forgejo_mcp_broker::admin::api::{GrantView, KeyView, StatusView, SupervisorView, UserView};

pub(crate) fn json(value: &impl Serialize) -> Result<String, CtlError> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|_| CtlError::Answer)
}

/// A time in UTC, to the second.
pub(crate) fn time(secs: Option<i64>) -> String {
    let secs = secs.and_then(|secs| u64::try_from(secs).ok());
    let at = secs.and_then(|secs| UNIX_EPOCH.checked_add(Duration::from_secs(secs)));
    at.map_or_else(|| "-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}

/// What stands in a line of a table.
pub(crate) trait Row: Serialize + DeserializeOwned {
    /// The columns' names.
    const COLUMNS: &'static [&'static str];
    /// As many cells.
    fn cells(&self) -> Vec<String>;
}

impl Row for GrantView {
    const COLUMNS: &'static [&'static str] = &["ID", "USER", "CLIENT", "SCOPES", "EXPIRES", "LAST USED", "STATE"];

    fn cells(&self) -> Vec<String> {
        let state = if self.revoked_at.is_some() { "revoked" } else { "active" };
        vec![
            self.id.clone(),
            self.user.clone(),
            self.client.clone(),
            self.scopes.clone(),
            time(self.expires_at),
            time(self.last_used_at),
            state.to_owned(),
        ]
    }
}

impl Row for UserView {
    const COLUMNS: &'static [&'static str] = &["NUMBER", "LOGIN", "GRANTS", "PERSONAL", "SESSIONS", "LAST USED"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.number.to_string(),
            self.login.clone(),
            self.grants.to_string(),
            self.personal.to_string(),
            self.sessions.to_string(),
            time(self.last_used_at),
        ]
    }
}

/// A table that comes part by part. A column is as wide as its widest cell so far: each cell is measured once.
#[derive(Debug, Default)]
pub(crate) struct Table {
    widths: Vec<usize>,
    measured: usize,
}

impl Table {
    /// The next lines; before the first of all, the names of the columns.
    pub(crate) fn part<T: Row>(&mut self, rows: &[T]) -> String {
        let is_first = self.widths.is_empty();
        let header = is_first.then(|| T::COLUMNS.iter().map(|&name| name.to_owned()).collect());
        let lines: Vec<Vec<String>> = header.into_iter().chain(rows.iter().map(Row::cells)).collect();
        self.widths.resize(T::COLUMNS.len(), 0);
        for line in &lines {
            for (cell, width) in line.iter().zip(&mut self.widths) {
                self.measured = self.measured.saturating_add(1);
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for line in &lines {
            let mut cells = line.iter().zip(&self.widths).peekable();
            while let Some((cell, width)) = cells.next() {
                let width = if cells.peek().is_some() { width.saturating_add(2) } else { 0 };
                // Writing to a String cannot fail.
                let _ = write!(text, "{cell:<width$}");
            }
            text.push('\n');
        }
        text
    }
}

/// An array that comes part by part.
#[derive(Debug, Default)]
pub(crate) struct JsonArray {
    has_begun: bool,
}

impl JsonArray {
    /// The next elements.
    pub(crate) fn part<T: Serialize>(&mut self, elements: &[T]) -> Result<String, CtlError> {
        let mut text = String::new();
        for element in elements {
            text.push_str(if self.has_begun { ",\n" } else { "[\n" });
            self.has_begun = true;
            text.push_str(&serde_json::to_string(element).map_err(|_| CtlError::Answer)?);
        }
        Ok(text)
    }

    /// What stands behind the last one.
    pub(crate) fn end(&self) -> &'static str {
        if self.has_begun { "\n]\n" } else { "[]\n" }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn users(numbers: std::ops::Range<u64>) -> Vec<UserView> {
        let user = |number: u64| UserView {
            number,
            login: format!("user-{number}"),
            grants: 1,
            personal: 0,
            sessions: 0,
            last_used_at: None,
            created_at: None,
        };
        numbers.map(user).collect()
    }

    #[test]
    fn each_cell_of_a_table_is_measured_once_however_long_it_is() {
        for count in [100, 1000, 10_000] {
            let mut table = Table::default();
            let lines: usize = users(0..count).chunks(100).map(|part| table.part(part).lines().count()).sum();
            let rows = usize::try_from(count).expect("small") + 1;
            assert_eq!((lines, table.measured), (rows, rows * UserView::COLUMNS.len()));
        }
    }

    #[test]
    fn columns_are_aligned_and_the_header_is_there_once() {
        let mut table = Table::default();
        let text = table.part(&users(9..11)) + &table.part(&users(11..12));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        let column = lines.first().and_then(|line| line.find("GRANTS"));
        assert!(
            lines.iter().skip(1).all(|line| line.find('1').is_some()
                && line.get(column.expect("there")..).is_some_and(|rest| rest.starts_with("1 "))),
            "{text}"
        );
    }

    #[test]
    fn a_list_that_comes_in_parts_is_one_array() {
        for parts in [vec![], vec![users(0..2)], vec![users(0..2), users(2..3)]] {
            let mut array = JsonArray::default();
            let text: String =
                parts.iter().map(|part| array.part(part).expect("json")).collect::<String>() + array.end();
            let whole: Vec<UserView> = serde_json::from_str(&text).expect("one array");
            assert_eq!(whole.len(), parts.iter().map(Vec::len).sum::<usize>());
        }
    }
}
