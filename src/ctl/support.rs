//! `support`: one archive for a bug report, with names, addresses and secrets taken out.
//!
//! What is in it: the versions, `doctor` and `status` as JSON, both configurations, what the machine is, and the journal
//! of both units since yesterday without the audit. Every text goes through [`Redactor`], which knows all logins here.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tar::{Builder, Header};

use crate::client::{Client, CtlError};
use crate::commands::Files;
use crate::doctor;
use crate::redact::Redactor;
use crate::surroundings::{ask, is_under_systemd};
use forgejo_mcp_broker::admin::api::{PageQuery, UserView};
use wire::telemetry::message_id;

/// Lines of the journal of one unit at most.
const JOURNAL_LINES: &str = "5000";
/// Keys whose values never go out, whatever they look like.
const SECRET_KEYS: [&str; 4] = ["secret", "token", "password", "credential"];

/// Writes the archive into a new file of mode 0600.
pub(crate) async fn write(client: &Client, files: &Files, to: &Path) -> Result<(), CtlError> {
    let failed = |e| CtlError::Archive(to.to_owned(), e);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(failed)?;
    let parts = gather(client, files).await;
    let written = archive(file, &parts);
    if written.is_err() {
        let _ = std::fs::remove_file(to);
    }
    written.map_err(failed)
}

async fn gather(client: &Client, files: &Files) -> Vec<(&'static str, String)> {
    let mut redactor = Redactor::default();
    hide_users(client, &mut redactor).await;
    for (file, key, stand_in) in configured(files) {
        hide_host(&mut redactor, file, key, stand_in);
    }
    files.broker_config.iter().for_each(|file| hide_listed(&mut redactor, file));
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
    let status = match client.status().await {
        Ok(status) => serde_json::to_value(status).unwrap_or_default(),
        Err(e) => Value::String(e.to_string()),
    };
    let findings = serde_json::to_value(doctor::examine(client, files).await).unwrap_or_default();
    let mut parts = vec![
        ("versions.txt", versions().await),
        ("status.json", pretty(&status)),
        ("doctor.json", pretty(&findings)),
        ("broker.json", pretty(&configuration(&files.broker_config))),
        ("supervisor.json", pretty(&configuration(&files.supervisor_config))),
    ];
    if is_under_systemd() {
        parts.push(("journal-broker.txt", journal("forgejo-mcp-broker").await));
        parts.push(("journal-supervisor.txt", journal("forgejo-mcp-supervisor").await));
    }
    parts.into_iter().map(|(name, text)| (name, redactor.clean(&text))).collect()
}

/// All that were ever here, page by page. Where the broker does not answer, its names are not known, and the journal
/// tells them: it is left out then by whoever looks through the archive.
async fn hide_users(client: &Client, redactor: &mut Redactor) {
    let mut query = PageQuery::default();
    while let Ok(page) = client.page::<UserView>("/users", &query).await {
        for user in page.entries {
            redactor.hide(&user.login, format!("user-{}", user.number));
        }
        query.after = page.next;
        if query.after.is_none() {
            return;
        }
    }
}

fn configured(files: &Files) -> impl Iterator<Item = (&PathBuf, &'static [&'static str], &'static str)> {
    let keys: [(&'static [&'static str], &'static str); 2] =
        [(&["public_url"], "BROKER-HOST"), (&["forgejo", "url"], "FORGE-HOST")];
    let all = files.broker_config.iter().chain(&files.supervisor_config);
    all.flat_map(move |file| keys.into_iter().map(move |(key, stand_in)| (file, key, stand_in)))
}

/// Hides the host of an address in a configuration.
fn hide_host(redactor: &mut Redactor, file: &Path, key: &[&str], stand_in: &str) {
    let Some(table) = doctor::table(file) else { return };
    let mut value = Some(&toml::Value::Table(table)).cloned();
    for part in key {
        value = value.and_then(|value| value.get(part).cloned());
    }
    let address = value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    let authority = address.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    redactor.hide(host, stand_in.to_owned());
}

/// Hides the logins that the lists name: they may never have been here.
fn hide_listed(redactor: &mut Redactor, file: &Path) {
    let table = doctor::table(file).unwrap_or_default();
    let access = table.get("access").and_then(toml::Value::as_table);
    let lists = access.into_iter().flat_map(|access| ["allow", "deny"].map(|list| access.get(list)));
    let entries = lists.flatten().filter_map(toml::Value::as_array).flatten().filter_map(toml::Value::as_str);
    for (n, login) in entries.filter_map(|entry| entry.split_once(':').map(|(_, name)| name)).enumerate() {
        redactor.hide_unless_known(login, format!("listed-{n}"));
    }
}

async fn versions() -> String {
    let mut text = format!("forgejo-mcp-brokerctl {}\n", env!("CARGO_PKG_VERSION"));
    for (program, arguments) in [("uname", &["-srm"][..]), ("systemctl", &["--version"][..])] {
        if let Ok(output) = ask(program, arguments).await {
            let first = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{program}: {first}");
        }
    }
    for file in ["/etc/os-release", "/proc/loadavg", "/proc/meminfo"] {
        let content = std::fs::read_to_string(file).unwrap_or_default();
        let kept: Vec<&str> = content.lines().take(5).collect();
        let _ = writeln!(text, "{file}:\n{}", kept.join("\n"));
    }
    text
}

/// The files as they are laid over each other, without what their keys say is secret, and without who may log in.
fn configuration(files: &[PathBuf]) -> Value {
    let all = files.iter().map(|file| match doctor::table(file) {
        Some(table) => without_secrets(serde_json::to_value(table).unwrap_or_default()),
        None => Value::String(format!("{} cannot be read", file.display())),
    });
    Value::Array(all.collect())
}

fn without_secrets(value: Value) -> Value {
    let Value::Object(members) = value else { return value };
    let members = members.into_iter().map(|(key, value)| {
        let is_secret = SECRET_KEYS.iter().any(|secret| key.contains(secret)) && !key.ends_with("_file");
        let value = match value {
            _ if is_secret => Value::String("SECRET".to_owned()),
            Value::Array(entries) if key == "allow" || key == "deny" => {
                Value::String(format!("{} entries", entries.len()))
            }
            value => without_secrets(value),
        };
        (key, value)
    });
    Value::Object(members.collect())
}

/// Since yesterday, without the lines that say who called what.
async fn journal(unit: &str) -> String {
    let since = ["--unit", unit, "--since", "-24h", "--lines", JOURNAL_LINES, "--output", "json", "--no-pager"];
    let output = match ask("journalctl", &since).await {
        Ok(output) => output,
        Err(why) => return why,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let audited = Value::String(message_id::TOOL_CALLED.to_owned());
    let told = lines.filter(|line| line.get("MESSAGE_ID") != Some(&audited)).map(|line| {
        let field = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
        let fields =
            ["__REALTIME_TIMESTAMP", "PRIORITY", "MESSAGE", "REASON", "SESSION", "CHILD_PID", "ERROR", "CAUSE"];
        fields.map(field).join(" | ")
    });
    told.collect::<Vec<_>>().join("\n")
}

fn archive(file: File, parts: &[(&str, String)]) -> std::io::Result<()> {
    let mut builder = Builder::new(file);
    for (name, text) in parts {
        let mut header = Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or_default());
        header.set_mode(0o600);
        header.set_cksum();
        builder.append_data(&mut header, format!("forgejo-mcp-support/{name}"), text.as_bytes())?;
    }
    let mut file = builder.into_inner()?;
    file.flush()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_goes_out_without_secrets_and_without_who_may_log_in() {
        let table: toml::Table =
            "[forgejo]\nclient_secret = \"s\"\nclient_secret_file = \"/etc/x\"\n[access]\nallow = [\"user:alice\"]"
                .parse()
                .expect("TOML");
        let clean = without_secrets(serde_json::to_value(table).expect("JSON")).to_string();
        assert!(!clean.contains("alice") && clean.contains("\"client_secret\":\"SECRET\""), "{clean}");
        assert!(clean.contains("/etc/x") && clean.contains("1 entries"), "{clean}");
    }
}
