//! Configuration problems are all reported at once, with file and key, and the exit code is 78 (`EX_CONFIG`).

#![expect(clippy::expect_used, reason = "tests fail by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const BROKER: &str = "forgejo-mcp-broker";
const SUPERVISOR: &str = "forgejo-mcp-supervisor";

/// Exit code and standard error of `--check` over these files.
fn check(program: &str, files: &[&Path], more: &[&str]) -> (i32, String) {
    let mut command = Command::new(harness::program(program));
    command.arg("--check").args(more);
    for file in files {
        command.arg("--config").arg(file);
    }
    let output = command.output().expect("it runs");
    (output.status.code().expect("an exit code"), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    path
}

/// The supervisor refuses `--unprivileged` for root, who is checked as what they are.
fn unprivileged() -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() { &[] } else { &["--unprivileged"] }
}

#[test]
fn a_good_file_is_good() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker =
        write(dir.path(), "b", "public_url = \"https://mcp.example\"\n[forgejo]\nurl = \"https://git.example\"\n");
    assert_eq!(check(BROKER, &[&broker], &[]).0, 0);
    let text = "broker_user = 12345\n[forgejo]\nurl = \"https://git.example\"\n[child]\nprofile = \"custom\"\n\
                program = \"/bin/cat\"\ntoken_variables = [\"TOKEN\"]\n";
    let supervisor = write(dir.path(), "s", text);
    let (code, said) = check(SUPERVISOR, &[&supervisor], unprivileged());
    assert_eq!((code, said.as_str()), (0, ""));
}

#[test]
fn the_broker_reports_every_problem_with_file_and_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "public_url = \"http://mcp.example/path\"\nlistn = \"127.0.0.1:1\"\n[forgejo]\nurl = 7\n\
                [sessions]\nper_user = 0\nchild_idle = \"soon\"\nunknown_session_status = 500\n[http]\nmax_body = \"1PiB\"\n";
    let file = write(dir.path(), "broker.toml", text);
    let (code, said) = check(BROKER, &[&file], &[]);
    assert_eq!(code, 78, "{said}");
    let keys = ["public_url", "listn", "forgejo.url", "sessions.per_user", "sessions.child_idle", "http.max_body"];
    for key in keys.into_iter().chain(["sessions.unknown_session_status"]) {
        assert!(said.contains(&format!("{}: {key}: ", file.display())), "{key} is not named:\n{said}");
    }
}

#[test]
fn everything_about_logging_in_is_checked_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "public_url = \"https://mcp.example\"\n[forgejo]\nurl = \"https://git.example\"\nscopes = [\"all\"]\n\
                client_id = \"x\"\n[access]\nallow = [\"alice\"]\ndeny = [\"org:acme\"]\n[oauth]\n\
                access_token_ttl = \"never\"\nredirect_schemes = [\"cursor\", \"JavaScript\"]\n[oauth.documents]\n\
                fetch = \"maybe\"\nca_file = \"/nonexistent\"\n[oauth.clients.a]\n\
                redirect_uris = [\"http://a.example/\"]\n[oauth.clients.b]\nredirect_uris = [\"https://b.example/\"]\n\
                secret_file = \"/nonexistent\"\n[rates]\nlogins = 0\n[http]\ntrusted_proxies = [\"proxy\"]\n[tools]\n\
                tables = [\"/nonexistent\"]\n";
    let file = write(dir.path(), "broker.toml", text);
    let (code, said) = check(BROKER, &[&file], &[]);
    assert_eq!(code, 78, "{said}");
    for key in [
        "forgejo.scopes: `all` is no scope",
        "forgejo.scopes: must hold read:user",
        "forgejo.scopes: must hold read:organization",
        "forgejo.client_id",
        "access.allow",
        "oauth.access_token_ttl",
        "oauth.redirect_schemes: `JavaScript`",
        "oauth.documents.ca_file",
        "oauth.documents.fetch",
        "oauth.clients.a.redirect_uris: `http://a.example/`: must be https",
        "oauth.clients.b.secret_file",
        "rates.logins",
        "http.trusted_proxies",
        "tools.tables",
    ] {
        assert!(said.contains(&format!("{}: {key}", file.display())), "{key} is not named:\n{said}");
    }
}

#[test]
fn the_example_in_readme_is_good_with_every_line_uncommented() {
    let dir = tempfile::tempdir().expect("a directory");
    let secret = write(dir.path(), "secret", "a-secret-of-at-least-thirty-two-characters");
    let readme = std::fs::read_to_string(harness::workspace().join("README.md")).expect("README");
    let example = readme.lines().skip_while(|line| !line.starts_with("    public_url")).map_while(|line| {
        let line = line.strip_prefix("    ").or(line.is_empty().then_some(""))?;
        Some(line.trim_start_matches("# ").to_owned())
    });
    let mut text = String::new();
    for line in example {
        // The files are not there.
        let line = match line.split_once(" = ") {
            Some((key @ ("client_secret_file" | "secret_file" | "ca_file"), _)) => {
                format!("{key} = {:?}", secret.display())
            }
            _ => line,
        };
        text.extend([line.as_str(), "\n"]);
    }
    assert!(text.contains("correct_hints = true") && text.contains("[oauth.clients.our-bot]"), "{text}");
    let file = write(dir.path(), "broker.toml", &text);
    let (code, said) = check(BROKER, &[&file], &[]);
    assert_eq!(code, 0, "{said}\n{text}");
}

#[test]
fn a_list_of_hosts_that_lets_nobody_in_is_a_mistake() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "public_url = \"https://mcp.example\"\n[forgejo]\nurl = \"https://git.example\"\n\
                [oauth.documents]\nfetch = \"allowlist\"\n";
    let file = write(dir.path(), "broker.toml", text);
    let (code, said) = check(BROKER, &[&file], &[]);
    assert!(code == 78 && said.contains("oauth.documents.hosts: must name the hosts"), "{said}");
}

#[test]
fn an_empty_list_of_scopes_which_forgejo_takes_for_all_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "public_url = \"https://mcp.example\"\n[forgejo]\nurl = \"https://git.example\"\nscopes = []\n";
    let file = write(dir.path(), "broker.toml", text);
    assert_eq!(check(BROKER, &[&file], &[]).0, 78);
}

#[test]
fn the_supervisor_reports_every_problem_with_file_and_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "broker_user = \"no-such-user-here\"\n[forgejo]\nurl = \"git.example\"\n[child]\nprofile = \"custom\"\n\
                program = \"cat\"\n[caps]\nchildren = -1\n[limits]\nopen_files = \"many\"\n[nonsense]\nx = 1\n";
    let file = write(dir.path(), "supervisor.toml", text);
    let (code, said) = check(SUPERVISOR, &[&file], unprivileged());
    assert_eq!(code, 78, "{said}");
    for key in ["broker_user", "forgejo.url", "child.program", "caps.children", "limits.open_files", "nonsense"] {
        assert!(said.contains(&format!("{}: {key}", file.display())), "{key} is not named:\n{said}");
    }
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("missing.toml");
    let broken = write(dir.path(), "broken.toml", "= =");
    for program in [BROKER, SUPERVISOR] {
        for file in [&missing, &broken] {
            let (code, said) = check(program, &[file], &[]);
            assert_eq!(code, 78, "{said}");
            assert!(said.contains(&file.display().to_string()), "{said}");
            assert!(!said.contains("\n: "), "a problem without a file:\n{said}");
        }
    }
}

#[test]
fn a_later_file_is_laid_over_an_earlier_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = write(
        dir.path(),
        "1",
        "public_url = \"https://a.example\"\n[sessions]\nper_user = 0\n[forgejo]\nurl = \"https://git.example\"\n",
    );
    let second = write(dir.path(), "2", "[sessions]\nper_user = 3\n");
    assert_eq!(check(BROKER, &[&first], &[]).0, 78);
    assert_eq!(check(BROKER, &[&first, &second], &[]).0, 0);
}

#[test]
fn as_root_a_configuration_that_others_can_write_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root in CI");
        eprintln!("SKIPPED: as_root_a_configuration_that_others_can_write_is_refused: needs root");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let text = "broker_user = 12345\n[forgejo]\nurl = \"https://git.example\"\n[child]\nprofile = \"custom\"\n\
                program = \"/bin/cat\"\ntoken_variables = [\"TOKEN\"]\n";
    let file = write(dir.path(), "supervisor.toml", text);
    assert_eq!(check(SUPERVISOR, &[&file], &[]).0, 0);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    let (code, said) = check(SUPERVISOR, &[&file], &[]);
    assert_eq!(code, 78);
    assert!(said.contains(&file.display().to_string()), "{said}");
}
