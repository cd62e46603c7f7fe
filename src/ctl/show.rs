//! Results as text for people, or as JSON for programs.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::CtlError;
use forgejo_mcp_broker::admin::api::{
    ClientView, EnforcedView, Finding, GrantView, KeyView, SessionView, State, StatusView, SupervisorView, UserView,
};
use forgejo_mcp_broker::admin::inspected::{ChildView, LimitView, Unlimited};

pub(crate) fn json(value: &impl Serialize) -> Result<String, CtlError> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|_| CtlError::Answer)
}

/// A time in UTC, to the second.
pub(crate) fn time(secs: Option<i64>) -> String {
    let secs = secs.and_then(|secs| u64::try_from(secs).ok());
    let at = secs.and_then(|secs| UNIX_EPOCH.checked_add(Duration::from_secs(secs)));
    at.map_or_else(|| "-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}

/// Spaces between columns.
const GAP: usize = 2;
/// A column is not made narrower than this.
const NARROWEST: usize = 6;
/// Digits of a grant's id that a table shows; `grant revoke` takes them.
const GRANT_DIGITS: usize = 12;

/// A time in UTC, to the minute.
fn minute(secs: Option<i64>) -> String {
    time(secs).replace('T', " ").chars().take(16).collect()
}

/// A time in UTC, to the day.
fn day(secs: Option<i64>) -> String {
    time(secs).chars().take(10).collect()
}

/// The text, or as much of it as there is room for. Without control characters, which would act on a terminal.
fn cut(text: &str, width: usize) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// What stands in a line of a table.
pub(crate) trait Row: Serialize + DeserializeOwned {
    /// The columns' names.
    const COLUMNS: &'static [&'static str];
    /// The columns that are cut where the terminal is narrow. What a command asks for again is none of them.
    const CUT: &'static [usize];
    /// As many cells.
    fn cells(&self) -> Vec<String>;
}

impl Row for GrantView {
    const COLUMNS: &'static [&'static str] = &["ID", "USER", "CLIENT", "MAY", "EXPIRES", "LAST USED", "STATE"];
    const CUT: &'static [usize] = &[1, 2, 3];

    fn cells(&self) -> Vec<String> {
        let state = match (self.revoked_at, self.expires_at) {
            (None, _) => "active",
            (Some(revoked), Some(expires)) if expires <= revoked => "expired",
            (Some(_), _) => "revoked",
        };
        let mut may = if self.scopes.contains("write") { "write" } else { "read" }.to_owned();
        for (list, what) in [(&self.tools, "tools"), (&self.networks, "networks")] {
            if let Some(list) = list {
                // Writing to a String cannot fail.
                let _ = write!(may, ", {} {what}", list.len());
            }
        }
        vec![
            self.id.chars().take(GRANT_DIGITS).collect(),
            self.user.clone(),
            self.client.clone(),
            may,
            day(self.expires_at),
            minute(self.last_used_at),
            state.to_owned(),
        ]
    }
}

impl Row for UserView {
    const COLUMNS: &'static [&'static str] = &["NUMBER", "LOGIN", "GRANTS", "PERSONAL", "SESSIONS", "LAST USED"];
    const CUT: &'static [usize] = &[1];

    fn cells(&self) -> Vec<String> {
        vec![
            self.number.to_string(),
            self.login.clone(),
            self.grants.to_string(),
            self.personal.to_string(),
            self.sessions.to_string(),
            minute(self.last_used_at),
        ]
    }
}

impl Row for SessionView {
    const COLUMNS: &'static [&'static str] = &["SESSION", "USER", "CLIENT", "OPENED", "LAST USED", "CHILD", "CALLS"];
    const CUT: &'static [usize] = &[1, 2];

    fn cells(&self) -> Vec<String> {
        vec![
            self.session.clone(),
            self.user.clone(),
            self.client_name.clone(),
            minute(Some(self.created_at)),
            minute(Some(self.last_used_at)),
            self.child_pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            self.in_flight.to_string(),
        ]
    }
}

impl Row for ClientView {
    const COLUMNS: &'static [&'static str] = &["NAME", "GRANTS", "FIRST SEEN", "LAST USED", "CLIENT"];
    const CUT: &'static [usize] = &[0, 4];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.grants.to_string(),
            day(Some(self.created_at)),
            minute(self.last_used_at),
            self.client.clone(),
        ]
    }
}

/// A table that comes part by part. A column is as wide as its widest cell so far: each cell is measured once.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Of the terminal, where there is one: cells are cut to fit it.
    fits: Option<usize>,
    widths: Vec<usize>,
    measured: usize,
}

/// The terminal's width, where standard output is one.
pub(crate) fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0))
}

impl Table {
    /// For a terminal of this width, or for a program.
    pub(crate) fn new(fits: Option<usize>) -> Self {
        Self { fits, ..Self::default() }
    }

    /// The columns' widths, the widest of those that may be cut made narrower until all fit.
    fn fitted(&self, cut: &[usize]) -> Vec<usize> {
        let mut widths = self.widths.clone();
        let gaps = GAP.saturating_mul(widths.len().saturating_sub(1));
        let Some(room) = self.fits.map(|fits| fits.saturating_sub(gaps)) else { return widths };
        while widths.iter().sum::<usize>() > room {
            let may_be =
                widths.iter_mut().enumerate().filter(|(column, _)| cut.contains(column)).map(|(_, width)| width);
            let Some(widest) = may_be.max().filter(|width| **width > NARROWEST) else { break };
            *widest = widest.saturating_sub(1);
        }
        widths
    }

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
        let widths = self.fitted(T::CUT);
        let mut text = String::new();
        for line in &lines {
            let mut cells = line.iter().zip(&widths).peekable();
            while let Some((cell, width)) = cells.next() {
                let cell = cut(cell, *width);
                let width = if cells.peek().is_some() { width.saturating_add(GAP) } else { 0 };
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

/// What `doctor` has found: what must be mended last, where it is read.
pub(crate) fn findings(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.state);
    let mut text = String::new();
    for Finding { check, state, found, advice } in sorted {
        let state = match state {
            State::Ok => "ok  ",
            State::Note => "note",
            State::Warn => "WARN",
            State::Fail => "FAIL",
        };
        let _ = writeln!(text, "{state}  {check}: {}", found.replace('\n', "\n      "));
        if let Some(advice) = advice {
            let _ = writeln!(text, "      -> {advice}");
        }
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
    text.push_str(&isolation(supervisor));
    if !supervisor.running.is_empty() {
        text.push('\n');
        text.push_str(&Table::default().part(&supervisor.running));
    }
    text
}

fn isolation(supervisor: &SupervisorView) -> String {
    let SupervisorView { own_uid, cgroup, landlock, seccomp, children, max_children, tenants, .. } = supervisor;
    let mut text = format!("supervisor: {children} of {max_children} children, {tenants} users\n");
    let _ = writeln!(text, "uids: {} free, {} not clean", supervisor.uids_free, supervisor.uids_unclean);
    let parts = [("uid", own_uid), ("cgroup", cgroup), ("landlock", landlock), ("seccomp", seccomp)];
    for (what, on) in parts {
        let version = match supervisor.landlock_abi {
            abi if abi > 0 && what == "landlock" && *on => format!(" (version {abi})"),
            _ => String::new(),
        };
        let _ = writeln!(text, "{what}: {}{version}", yes(*on));
    }
    let EnforcedView { memory, pids, cpu, io } = supervisor.enforced;
    let parts = [("memory", memory), ("processes", pids), ("cpu", cpu), ("io", io)];
    let parts = parts.map(|(what, on)| format!("{what} {}", yes(on)));
    let _ = writeln!(text, "limits by cgroup: {}", parts.join(", "));
    if let Some(all) = &supervisor.all {
        let memory = used(all.memory, all.memory_max, mib);
        let processes = used(all.processes, all.pids_max, |n| n.to_string());
        let _ = writeln!(text, "all children together: memory {memory}, processes {processes}");
    }
    if !own_uid {
        text.push_str("NOT ISOLATED: the users' processes share one uid and can read each other's tokens\n");
    }
    if !memory {
        text.push_str("NOT LIMITED: no cgroup bounds the memory of the users' processes\n");
    }
    text
}

fn yes(on: bool) -> &'static str {
    if on { "yes" } else { "NO" }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// A limit; `-` where nothing enforces it.
fn limit(limit: Option<LimitView>, form: impl Fn(u64) -> String) -> String {
    match limit {
        None => "-".to_owned(),
        Some(LimitView::Word(Unlimited::Max)) => "max".to_owned(),
        Some(LimitView::At(n)) => form(n),
    }
}

fn used(used: Option<u64>, most: Option<LimitView>, form: impl Fn(u64) -> String) -> String {
    format!("{} of {}", used.map_or_else(|| "-".to_owned(), &form), limit(most, &form))
}

/// One line a child. MEMORY, PROCESSES and CPU are of all children of its user, against the user's limits; PEAK is the
/// child's own.
impl Row for ChildView {
    const COLUMNS: &'static [&'static str] = &[
        "USER",
        "PID",
        "UID",
        "MEMORY",
        "PROCESSES",
        "CPU",
        "PEAK",
        "FILES",
        "NO_NEW_PRIVS",
        "SECCOMP",
        "CAPABILITIES",
    ];
    const CUT: &'static [usize] = &[];

    fn cells(&self) -> Vec<String> {
        let number = |n: u64| n.to_string();
        let (user, own) = (self.user_cgroup.as_ref(), self.own_cgroup.as_ref());
        let uid = match self.uids.first() {
            Some(first) if self.uids.iter().chain(&self.gids).all(|id| id == first) => first.to_string(),
            _ => format!("{:?} {:?}", self.uids, self.gids),
        };
        vec![
            self.user.to_string(),
            self.pid.to_string(),
            uid,
            user.map_or_else(|| "-".to_owned(), |group| used(group.memory, group.memory_max, mib)),
            user.map_or_else(|| "-".to_owned(), |group| used(group.processes, group.pids_max, number)),
            user.map_or_else(|| "-".to_owned(), |group| limit(group.cpu_max, |percent| format!("{percent} %"))),
            own.and_then(|group| group.memory_peak).map_or_else(|| "-".to_owned(), mib),
            limit(self.rlimits.open_files, number),
            yes(self.no_new_privs).to_owned(),
            yes(self.seccomp == 2).to_owned(),
            format!("{:x}", self.capabilities),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgejo_mcp_broker::admin::api::GrantKind;

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

    fn supervised(json: &serde_json::Value) -> String {
        let mut supervisor = serde_json::json!({
            "own_uid": true, "cgroup": false, "landlock": true, "landlock_abi": 7, "seccomp": true,
            "enforced": {"memory": false, "pids": false, "cpu": false, "io": false}, "all": null,
            "children": 1, "max_children": 2, "tenants": 1, "uids_free": 3, "uids_unclean": 0, "running": [],
        });
        for (name, value) in json.as_object().expect("an object") {
            supervisor[name] = value.clone();
        }
        let view = serde_json::json!({"sessions": 1, "children": 1, "supervisor": supervisor});
        status(&serde_json::from_value(view).expect("a status"))
    }

    #[test]
    fn the_status_says_what_is_not_limited() {
        let text = supervised(&serde_json::json!({}));
        for line in [
            "landlock: yes (version 7)",
            "cgroup: NO",
            "limits by cgroup: memory NO, processes NO, cpu NO, io NO",
            "NOT LIMITED: no cgroup bounds the memory of the users' processes",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        let on = serde_json::json!({"enforced": {"memory": true, "pids": true, "cpu": true, "io": false}});
        assert!(!supervised(&on).contains("NOT LIMITED"));
    }

    #[test]
    fn the_status_shows_each_child_as_the_kernel_does() {
        let group = |memory_max: serde_json::Value| {
            serde_json::json!({
                "memory_max": memory_max, "memory_high": "max", "swap_max": 0, "pids_max": 128, "cpu_max": 100,
                "cpu_weight": 100, "io_weight": null, "oom_group": false, "memory": 20 << 20, "memory_peak": 30 << 20,
                "processes": 9, "cpu_usec": 1, "throttled_usec": 0, "oom_kills": 0,
            })
        };
        let rlimits = serde_json::json!({
            "open_files": 256, "processes": 256, "cpu_seconds": 3600, "file_size": 0, "data": "max",
            "address_space": "max", "core": 1,
        });
        let child = serde_json::json!({
            "user": 42, "pid": 7, "uids": [73728, 73728, 73728, 73728], "gids": [73728, 73728, 73728, 73728],
            "threads": 9, "no_new_privs": true, "seccomp": 2, "capabilities": 0, "rlimits": rlimits,
            "user_cgroup": group((512 << 20).into()), "own_cgroup": group("max".into()),
        });
        let text = supervised(&serde_json::json!({"running": [child], "all": group((1 << 30).into())}));
        assert!(text.contains("all children together: memory 20 MiB of 1024 MiB, processes 9 of 128"), "{text}");
        let row = text.lines().last().expect("a row").split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(row, "42 7 73728 20 MiB of 512 MiB 9 of 128 100 % 30 MiB 256 yes yes 0");
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
    fn a_table_fits_the_terminal_and_keeps_what_is_asked_for_again() {
        let grant = GrantView {
            id: "0123456789abcdef0123456789abcdef".to_owned(),
            user: "somebody-with-a-rather-long-login".to_owned(),
            number: 1,
            client: "https://a-client.example.org/with/a/long/address.json".to_owned(),
            scopes: "forgejo:read forgejo:write".to_owned(),
            kind: GrantKind::Token,
            tools: Some(vec!["create_issue".to_owned(); 12]),
            networks: Some(vec!["192.0.2.0/24".to_owned()]),
            created_at: 0,
            expires_at: Some(1_800_000_000),
            last_used_at: Some(1_800_000_000),
            revoked_at: None,
        };
        let text = Table::new(Some(80)).part(&[grant]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("0123456789ab ") && text.contains('…') && text.contains("active"), "{text}");
        assert!(text.contains("2027-01-15  2027-01-15 08:00"), "{text}");
    }

    #[test]
    fn what_a_client_calls_itself_cannot_act_on_the_terminal() {
        assert_eq!(cut("a\u{1b}[2Jb", 20), "a?[2Jb");
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
