//! `doctor`: a unit as systemd has loaded it, drop-ins included.

use std::collections::HashMap;

use super::finding;
use crate::surroundings::{ask, is_under_systemd};
use forgejo_mcp_broker::admin::api::{Finding, State};

/// A property of a unit (`systemctl show`) and the values that are as they should be; without one, any value will do.
type Wanted = (&'static str, &'static [&'static str]);

/// What `systemd/forgejo-mcp-broker.service` ships and a drop-in should not take away.
pub(super) const BROKERS: [Wanted; 12] = [
    ("User", &[]),
    ("NoNewPrivileges", &["yes"]),
    ("CapabilityBoundingSet", &[""]),
    ("ProtectSystem", &["strict"]),
    ("ProtectHome", &["yes"]),
    ("ProtectProc", &["invisible"]),
    ("PrivateDevices", &["yes"]),
    ("PrivateTmp", &["yes"]),
    ("PrivateUsers", &["yes"]),
    ("RestrictSUIDSGID", &["yes"]),
    ("MemoryDenyWriteExecute", &["yes"]),
    ("SystemCallFilter", &[]),
];
/// The same of `systemd/forgejo-mcp-supervisor.service`.
pub(super) const SUPERVISORS: [Wanted; 9] = [
    ("Delegate", &["yes"]),
    ("KillMode", &["mixed"]),
    ("NoNewPrivileges", &["yes"]),
    ("CapabilityBoundingSet", &["cap_kill cap_setgid cap_setuid", "cap_kill cap_setgid cap_setuid cap_sys_resource"]),
    ("ProtectSystem", &["strict"]),
    ("ProtectHome", &["yes"]),
    ("PrivateDevices", &["yes"]),
    ("RestrictNamespaces", &["yes"]),
    ("SystemCallFilter", &[]),
];

/// The unit of this program, where systemd runs it.
pub(super) async fn examine(name: &str, wanted: &[Wanted]) -> Vec<Finding> {
    let check = format!("unit: {name}");
    if !is_under_systemd() {
        return vec![finding(&check, State::Note, "systemd does not run this machine", None)];
    }
    let properties: Vec<&str> =
        wanted.iter().map(|(property, _)| *property).chain(["LoadState", "ActiveState", "WatchdogUSec"]).collect();
    match ask("systemctl", &["show", &format!("{name}.service"), "--property", &properties.join(",")]).await {
        Ok(output) => judge(name, wanted, &String::from_utf8_lossy(&output.stdout)),
        Err(why) => vec![finding(&check, State::Note, why, None)],
    }
}

/// By lines of `PROPERTY=VALUE`.
fn judge(name: &str, wanted: &[Wanted], shown: &str) -> Vec<Finding> {
    let (check, unit) = (format!("unit: {name}"), format!("{name}.service"));
    let values: HashMap<&str, &str> = shown.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |property: &str| values.get(property).copied().unwrap_or_default();
    if value("LoadState") != "loaded" {
        return vec![finding(&check, State::Note, "there is no such unit: it is run by something else", None)];
    }
    let mut all = Vec::new();
    match value("ActiveState") {
        "active" | "reloading" | "activating" => all.push(finding(&check, State::Ok, value("ActiveState"), None)),
        // Started by its socket when somebody comes.
        "inactive" => all.push(finding(&check, State::Note, "inactive", Some("`systemctl status` its socket unit"))),
        other => {
            let advice = format!("`journalctl -u {name} -n 20` says why; then `systemctl reset-failed {unit}`");
            all.push(finding(&check, State::Fail, other, Some(&advice)));
        }
    }
    let is_good = |(property, good): &&Wanted| match (value(property), *good) {
        (found, []) => !found.is_empty(),
        (found, good) => good.contains(&found),
    };
    let weak: Vec<String> = wanted
        .iter()
        .filter(|wanted| !is_good(wanted))
        .map(|(property, _)| format!("{property}={}", value(property)))
        .collect();
    let hardening = format!("hardening: {name}");
    if weak.is_empty() {
        all.push(finding(&hardening, State::Ok, "as the package ships it", None));
    } else {
        let advice = format!("`systemctl cat {unit}` shows which drop-in changes what the package ships");
        all.push(finding(&hardening, State::Warn, weak.join(" "), Some(&advice)));
    }
    if matches!(value("WatchdogUSec"), "" | "0" | "infinity") {
        let advice = "set WatchdogSec=, so that a program that hangs is started again";
        all.push(finding(&format!("watchdog: {name}"), State::Note, "off", Some(advice)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = "LoadState=loaded\nActiveState=active\nWatchdogUSec=30s\nDelegate=yes\nKillMode=mixed\n\
        NoNewPrivileges=yes\nCapabilityBoundingSet=cap_kill cap_setgid cap_setuid\nProtectSystem=strict\n\
        ProtectHome=yes\nPrivateDevices=yes\nRestrictNamespaces=yes\nSystemCallFilter=_llseek accept\n";

    fn judged(change: (&str, &str)) -> Vec<(String, State, String)> {
        let all = judge("forgejo-mcp-supervisor", &SUPERVISORS, &SHIPPED.replace(change.0, change.1));
        all.into_iter().map(|finding| (finding.check, finding.state, finding.found)).collect()
    }

    #[test]
    fn a_unit_as_it_is_shipped_is_good_and_what_a_drop_in_takes_away_is_named() {
        assert!(judged(("", "")).iter().all(|(_, state, _)| *state == State::Ok));
        let weak = "hardening: forgejo-mcp-supervisor".to_owned();
        for (shipped, changed) in [
            ("KillMode=mixed", "KillMode=process"),
            ("ProtectHome=yes", "ProtectHome=no"),
            ("SystemCallFilter=_llseek accept", "SystemCallFilter="),
            ("cap_kill cap_setgid cap_setuid", "cap_chown cap_kill"),
        ] {
            let found = judged((shipped, changed)).into_iter().find(|(check, ..)| *check == weak).expect("looked at");
            assert_eq!(found.1, State::Warn, "{changed}");
            assert!(changed.contains(found.2.split('=').next().expect("a name")) || changed.starts_with("cap"));
        }
    }

    #[test]
    fn a_unit_that_failed_is_off_or_is_not_there_is_told_apart() {
        for (shipped, changed, state) in [
            ("ActiveState=active", "ActiveState=failed", State::Fail),
            ("ActiveState=active", "ActiveState=inactive", State::Note),
            ("LoadState=loaded", "LoadState=not-found", State::Note),
        ] {
            let found = judged((shipped, changed));
            let unit = found.iter().find(|(check, ..)| check == "unit: forgejo-mcp-supervisor").expect("looked at");
            assert_eq!(unit.1, state, "{changed}");
        }
        let found = judged(("WatchdogUSec=30s", "WatchdogUSec=infinity"));
        assert!(found.iter().any(|(check, ..)| check == "watchdog: forgejo-mcp-supervisor"), "{found:?}");
    }
}
