//! `doctor`: what only the operator's own rights can see, and then what the broker sees itself.

mod unit;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::client::Client;
use crate::commands::Files;
use crate::surroundings::{ask, sibling};
use forgejo_mcp_broker::admin::api::{Finding, State};

const BROKER: &str = "forgejo-mcp-broker";
const SUPERVISOR: &str = "forgejo-mcp-supervisor";

fn finding(check: &str, state: State, found: impl Into<String>, advice: Option<&str>) -> Finding {
    Finding { check: check.to_owned(), state, found: found.into(), advice: advice.map(str::to_owned) }
}

/// Looks at everything; also where the broker does not run.
pub(crate) async fn examine(client: &Client, files: &Files) -> Vec<Finding> {
    let mut all = vec![
        configuration(BROKER, "/usr/bin/forgejo-mcp-broker", &files.broker_config).await,
        configuration(SUPERVISOR, "/usr/bin/forgejo-mcp-supervisor", &files.supervisor_config).await,
        program(&files.supervisor_config),
    ];
    all.extend(unit::examine(BROKER, &unit::BROKERS).await);
    all.extend(unit::examine(SUPERVISOR, &unit::SUPERVISORS).await);
    match client.doctor().await {
        Ok(findings) => {
            all.push(finding("broker", State::Ok, "it answers the operator", None));
            all.extend(findings);
        }
        Err(e) => {
            let advice = e.hint().unwrap_or("`journalctl -u forgejo-mcp-broker -n 20` says why");
            all.push(finding("broker", State::Fail, e.to_string(), Some(advice)));
        }
    }
    all
}

/// What the program itself says of its files, as at a start.
async fn configuration(name: &str, installed: &str, files: &[PathBuf]) -> Finding {
    let check = format!("configuration: {name}");
    let mut arguments = vec![std::ffi::OsString::from("--check")];
    for file in files {
        arguments.extend(["--config".into(), file.into()]);
    }
    match ask(sibling(name, installed), &arguments).await {
        Ok(output) if output.status.success() => finding(&check, State::Ok, "good", None),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            finding(&check, State::Fail, said, Some("mend what is named; nothing else of it is in force"))
        }
        Err(why) => finding(&check, State::Warn, why, Some("is the package installed completely?")),
    }
}

/// The child program: there, root's alone, executable.
fn program(files: &[PathBuf]) -> Finding {
    const CHECK: &str = "child program";
    let Some(path) = program_of(files) else {
        return finding(CHECK, State::Warn, "the supervisor's configuration does not say which it is", None);
    };
    let shown = path.display();
    let install = format!("install forgejo-mcp there: `install -o root -g root -m 0711 forgejo-mcp {shown}`");
    let meta = match std::fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) => return finding(CHECK, State::Fail, format!("{shown}: {e}"), Some(&install)),
    };
    let mode = meta.mode() & 0o7777;
    let found = format!("{shown}, of uid {}, mode {mode:04o}", meta.uid());
    if !meta.is_file() || mode & 0o111 == 0 {
        finding(CHECK, State::Fail, found, Some(&install))
    } else if meta.uid() != 0 || mode & 0o022 != 0 {
        let advice = format!("`chown root:root {shown} && chmod 0711 {shown}`: whoever can change it has every token");
        finding(CHECK, State::Fail, found, Some(&advice))
    } else {
        finding(CHECK, State::Ok, found, None)
    }
}

/// What the last file that says it names, else the preset's.
fn program_of(files: &[PathBuf]) -> Option<PathBuf> {
    let tables = files.iter().filter_map(|file| table(file));
    let (mut program, mut profile) = (None, "forgejo-mcp".to_owned());
    for table in tables {
        let child = table.get("child").and_then(toml::Value::as_table);
        let text = |key: &str| child.and_then(|child| child.get(key)?.as_str().map(str::to_owned));
        program = text("program").or(program);
        profile = text("profile").unwrap_or(profile);
    }
    let preset = || (profile != "custom").then(|| PathBuf::from(format!("/usr/bin/{profile}")));
    program.map(PathBuf::from).or_else(preset)
}

/// A configuration file as it stands; `None` where it cannot be read, which the program itself says better.
pub(crate) fn table(file: &Path) -> Option<toml::Table> {
    std::fs::read_to_string(file).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_program_is_the_one_of_the_last_file_else_the_presets() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let rs = file("a", "[child]\nprofile = \"forgejo-mcp-rs\"\n");
        assert_eq!(program_of(&[]), Some("/usr/bin/forgejo-mcp".into()));
        assert_eq!(program_of(std::slice::from_ref(&rs)), Some("/usr/bin/forgejo-mcp-rs".into()));
        let over = file("b", "[child]\nprogram = \"/opt/x\"\n");
        assert_eq!(program_of(&[rs, over]), Some("/opt/x".into()));
        assert_eq!(program_of(&[file("c", "[child]\nprofile = \"custom\"\n")]), None);
    }

    #[test]
    fn a_program_that_is_missing_or_not_roots_alone_is_told_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let program_at = dir.path().join("forgejo-mcp");
        let config = dir.path().join("supervisor.toml");
        std::fs::write(&config, format!("[child]\nprogram = \"{}\"\n", program_at.display())).expect("written");
        let missing = program(std::slice::from_ref(&config));
        assert_eq!(missing.state, State::Fail);
        assert!(missing.advice.expect("advice").contains("install -o root -g root -m 0711"));
        std::fs::write(&program_at, "").expect("written");
        std::fs::set_permissions(&program_at, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
        let open = program(std::slice::from_ref(&config));
        assert!(open.state == State::Fail && open.found.contains("0777"), "{open:?}");
        assert!(open.advice.expect("advice").contains("chmod 0711"));
    }
}
