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

/// What the broker needs, with its database in the test's directory.
fn broker_file(dir: &Path, more: &str) -> std::path::PathBuf {
    let store = dir.join("broker.db");
    let text = format!(
        "public_url = \"https://mcp.example\"\nforgejo.url = \"https://git.example\"\nstore.path = \"{}\"\n{more}",
        store.display()
    );
    write(dir, "broker.toml", &text)
}

/// What the supervisor needs.
fn supervisor_file(dir: &Path, more: &str) -> std::path::PathBuf {
    let text = "forgejo.url = \"https://git.example\"\nchild.profile = \"custom\"\nchild.program = \"/bin/cat\"\n";
    let broker = if more.contains("broker_user") { "" } else { "broker_user = 12345\n" };
    write(dir, "supervisor.toml", &format!("{broker}{text}{more}"))
}

/// That each of these lines alone is refused with these words, and that without it all is good.
fn refused_one_by_one(program: &str, file: impl Fn(&Path, &str) -> std::path::PathBuf, cases: &[(&str, &str)]) {
    let more = if program == SUPERVISOR { unprivileged() } else { &[] };
    let dir = harness::roots_directory().expect("a directory");
    assert_eq!(check(program, &[&file(dir.path(), "")], more).0, 0, "the rest is good");
    for (line, words) in cases {
        let (code, said) = check(program, &[&file(dir.path(), line)], more);
        assert!(code == 78 && said.contains(words), "{line} is answered with {code}, and not with `{words}`:\n{said}");
        assert_eq!(said.lines().filter(|line| line.contains(".toml: ")).count(), 1, "{line}: only that\n{said}");
    }
}

#[test]
fn nonsense_in_the_brokers_file_is_refused_and_explained() {
    let cases = [
        ("listen = \":8080\"", "listen: must be an IP address and a port, such as \"127.0.0.1:8080\""),
        ("listen = \"localhost:8080\"", "listen: must be an IP address and a port"),
        ("audit.calls = \"reads\"", "audit.calls: must be \"off\", \"writes\" or \"all\""),
        ("metrics.listen = \":9464\"", "metrics.listen: must be an IP address and a port"),
        ("http.allowed_origins = [\"*\"]", "http.allowed_origins: `*` would let every web page in"),
        ("http.allowed_origins = [\"inspector.example\"]", "`inspector.example` is no origin"),
        ("http.allowed_origins = [\"https://a.example/\"]", "that would be \"https://a.example\""),
        ("http.allowed_origins = [\"https://A.example:443\"]", "that would be \"https://a.example\""),
        ("http.allowed_origins = [\"app://host/x\"]", "that would be \"app://host\""),
        ("http.hosts = [\"*\"]", "http.hosts: `*` would let in every name"),
        ("http.hosts = [\"https://a.example\"]", "http.hosts: `https://a.example` is no name as it stands in Host"),
        (
            "http.hosts = [\"a.example:8080\"]",
            "`a.example:8080` has a port; a name counts with every port: \"a.example\"",
        ),
        ("http.hosts = [\"fd00::7\"]", "`fd00::7` must be in brackets: \"[fd00::7]\""),
        (
            "oauth.access_token_ttl = \"2h\"\noauth.refresh_token_ttl = \"1h\"",
            "oauth.access_token_ttl: must not be above",
        ),
        ("sessions.child_idle = \"2h\"\nsessions.session_idle = \"1h\"", "sessions.child_idle: must not be above"),
        ("sessions.total = 5\nsessions.per_user = 6", "sessions.per_user: must not be above total, which is 5"),
        (
            "sessions.children_total = 5\nsessions.children_per_user = 6",
            "sessions.children_per_user: must not be above children_total, which is 5",
        ),
    ];
    refused_one_by_one(BROKER, broker_file, &cases);
}

#[test]
fn a_default_gives_way_to_what_was_set() {
    let dir = harness::roots_directory().expect("a directory");
    let text =
        "sessions = { total = 5, children_total = 2, session_idle = \"1min\" }\noauth.refresh_token_ttl = \"60s\"";
    let (code, said) = check(BROKER, &[&broker_file(dir.path(), text)], &[]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = check(SUPERVISOR, &[&supervisor_file(dir.path(), "caps.children = 2")], unprivileged());
    assert_eq!(code, 0, "{said}");
}

#[test]
fn an_address_without_a_scheme_or_of_the_api_is_explained() {
    let dir = harness::roots_directory().expect("a directory");
    let with = |public: &str, forgejo: &str| {
        let store = dir.path().join("broker.db");
        let text = format!("public_url = {public:?}\nforgejo.url = {forgejo:?}\nstore.path = {store:?}\n");
        check(BROKER, &[&write(dir.path(), "broker.toml", &text)], &[])
    };
    for (public, forgejo, words) in [
        ("mcp.example", "https://git.example", "public_url: must begin with https://"),
        ("https://mcp.example", "git.example:3000", "forgejo.url: must begin with https:// or http://"),
        ("https://mcp.example", "https://git.example/api/v1", "forgejo.url: must be the address of Forgejo itself"),
        ("https://mcp.example", "https://git.example/forge/api/v1/", "without /api/v1"),
    ] {
        let (code, said) = with(public, forgejo);
        assert!(code == 78 && said.contains(words), "{public} {forgejo}: {said}");
    }
    assert_eq!(with("http://localhost:8080", "http://git.example:3000/forge/").0, 0);
}

#[test]
fn a_database_whose_directory_is_not_there_is_told_by_check_and_start_alike() {
    let dir = harness::roots_directory().expect("a directory");
    let text = "public_url = \"https://mcp.example\"\nforgejo.url = \"https://git.example\"\n\
                store.path = \"/nonexistent/broker.db\"\n";
    let file = write(dir.path(), "broker.toml", text);
    let (code, said) = check(BROKER, &[&file], &[]);
    assert!(code == 78 && said.contains("store.path: the directory /nonexistent is not there"), "{said}");
    let mut start = Command::new(harness::program(BROKER));
    let output = start.arg("--config").arg(&file).env("RUST_LOG", "off").output().expect("it runs");
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("store.path: the directory /nonexistent is not there"), "RUST_LOG hides it: {said}");
}

#[test]
fn nonsense_in_the_supervisors_file_is_refused_and_explained() {
    let cases = [
        ("limits.memory_max = 512", "limits.memory_max: must be 0 (none) or at least 8.0 MiB for this child"),
        ("limits.pids_max = 3", "limits.pids_max: must be 0 (none) or at least 16 for a child"),
        ("limits.total.memory_max = 4096", "limits.total.memory_max: must be 0 (none) or at least 8.0 MiB"),
        (
            "limits.users.42.environment.LD_PRELOAD = \"x\"",
            "limits.users.42.environment.LD_PRELOAD: `LD_PRELOAD` is the dynamic linker's",
        ),
        (
            "limits.users.42.environment.FORGEJO_ACCESS_TOKEN = \"x\"",
            "limits.users.42.environment.FORGEJO_ACCESS_TOKEN: is set by the supervisor itself",
        ),
        ("limits.users.42.memory_max = 512", "limits.users.42.memory_max: must be 0 (none) or at least"),
        (
            "limits.users.alice.memory_max = \"1GiB\"",
            "limits.users.alice: is no number: write the number that Forgejo gave",
        ),
        ("sandbox.read = [\"/nonexistent\"]", "sandbox.read: /nonexistent: No such file"),
        ("sandbox.seccomp = \"strict\"", "sandbox.seccomp: must be \"deny-list\", \"allow-list\" or \"off\""),
        ("sandbox.connect_ports = [443, 0]", "sandbox.connect_ports: must be a list of ports from 1 to 65535"),
        (
            "child.environment.HTTPS_PROXY = \"http://proxy:99999\"",
            "child.environment.HTTPS_PROXY: names a proxy with a port that is none",
        ),
        ("cgroup.root = \"/tmp\"", "cgroup.root: /tmp is no cgroup2 directory"),
        ("cgroup.root = \"/nonexistent\"", "cgroup.root: /nonexistent cannot be looked at"),
        ("caps.children = 5\ncaps.children_per_tenant = 6", "caps.children_per_tenant: one user cannot have 6 of 5"),
        (
            "stop.drain = \"60s\"\nstop.term_grace = \"60s\"",
            "stop.drain: and eof_grace and term_grace must not be above",
        ),
    ];
    refused_one_by_one(SUPERVISOR, supervisor_file, &cases);
}

#[test]
fn a_child_program_that_is_not_installed_is_a_problem_for_check_alone() {
    let dir = harness::roots_directory().expect("a directory");
    let text = "broker_user = 12345\nforgejo.url = \"https://git.example\"\nchild.program = \"/nonexistent/child\"\n";
    let file = write(dir.path(), "supervisor.toml", text);
    let (code, said) = check(SUPERVISOR, &[&file], unprivileged());
    assert!(code == 78 && said.contains("child.program: /nonexistent/child is not installed"), "{said}");
}

#[test]
fn who_may_connect_is_neither_root_nor_a_uid_of_the_children() {
    if !nix::unistd::geteuid().is_root() {
        // Without root the supervisor has neither children of other uids nor a broker of another.
        println!("SKIPPED: who_may_connect_is_neither_root_nor_a_uid_of_the_children: needs root");
        return;
    }
    let cases = [
        ("broker_user = 0", "broker_user: must not be root"),
        ("broker_user = \"root\"", "broker_user: must not be root"),
        ("broker_user = 80000", "broker_user: has uid 80000, which lies in the range of [uids] (73728 to 90111)"),
        ("broker_user = 90111", "broker_user: has uid 90111"),
        ("broker_user = \"no-such-user-here\"", "broker_user: there is no user `no-such-user-here`"),
        ("uids = { first = 12000, count = 1000 }", "broker_user: has uid 12345"),
    ];
    refused_one_by_one(SUPERVISOR, supervisor_file, &cases);
}

#[test]
fn a_range_that_a_user_of_the_machine_has_is_refused_by_check() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: a_range_that_a_user_of_the_machine_has_is_refused_by_check: needs root");
        return;
    }
    // A user of the machine, in mounts that end with the process.
    let dir = harness::roots_directory().expect("a directory");
    let users = write(dir.path(), "passwd", "root:x:0:0::/root:/bin/sh\nada:x:50000:50000::/:/bin/sh\n");
    for (first, taken) in [(49_998, false), (49_999, true), (50_000, true), (50_001, false)] {
        let config = supervisor_file(dir.path(), &format!("uids = {{ first = {first}, count = 2 }}"));
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$1\" /etc/passwd && shift && exec \"$@\"", "sh"]);
        command.arg(&users).arg(harness::program(SUPERVISOR)).args(["--check", "--config"]).arg(config);
        let output = command.output().expect("unshare(1)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(if taken { 78 } else { 0 }), "{first}: {said}");
        assert_eq!(said.contains("uids: the range is not free: ") && said.contains("ada"), taken, "{said}");
    }
}

#[test]
fn nothing_is_called_missing_because_a_file_is_no_toml() {
    let dir = harness::roots_directory().expect("a directory");
    let broken = write(dir.path(), "broken.toml", "public_url = https://mcp.example\n");
    for program in [BROKER, SUPERVISOR] {
        let (code, said) = check(program, &[&broken], &[]);
        assert!(code == 78 && said.contains("is not TOML"), "{said}");
        assert!(!said.contains("is missing"), "{said}");
    }
}

#[test]
fn a_good_file_is_good() {
    let dir = harness::roots_directory().expect("a directory");
    let broker = broker_file(dir.path(), "");
    assert_eq!(check(BROKER, &[&broker], &[]).0, 0);
    let text = "broker_user = 12345\n[forgejo]\nurl = \"https://git.example\"\n[child]\nprofile = \"custom\"\n\
                program = \"/bin/cat\"\ntoken_variables = [\"TOKEN\"]\n";
    let supervisor = write(dir.path(), "s", text);
    let (code, said) = check(SUPERVISOR, &[&supervisor], unprivileged());
    assert_eq!(code, 0, "{said}");
    assert!(said.lines().all(|hint| hint.contains("with mode 0711")), "{said}");
}

#[test]
fn the_broker_reports_every_problem_with_file_and_key() {
    let dir = harness::roots_directory().expect("a directory");
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
    let dir = harness::roots_directory().expect("a directory");
    let text = "public_url = \"https://mcp.example\"\n[forgejo]\nurl = \"https://git.example\"\nscopes = [\"all\"]\n\
                client_id = \"x\"\n[access]\nallow = [\"alice\", \"id:0\"]\ndeny = [\"org:acme\"]\nforgejo_tokens = 1\n[oauth]\n\
                access_token_ttl = \"never\"\nredirect_schemes = [\"cursor\", \"JavaScript\"]\n[oauth.documents]\n\
                fetch = \"maybe\"\nca_file = \"/nonexistent\"\n[oauth.clients.a]\n\
                redirect_uris = [\"http://a.example/\"]\n[oauth.clients.b]\nredirect_uris = [\"https://b.example/\"]\n\
                secret_file = \"/nonexistent\"\n[rates]\nlogins = 0\n[http]\ntrusted_proxies = [\"proxy\"]\n[tools]\n\
                tables = [\"/nonexistent\"]\n[page]\nname = \"\"\ncontact = \"javascript:x\"\nlogo_file = \"/nonexistent\"\n";
    let file = write(dir.path(), "broker.toml", text);
    let (code, said) = check(BROKER, &[&file], &[]);
    assert_eq!(code, 78, "{said}");
    for key in [
        "forgejo.scopes: `all` is no scope",
        "forgejo.scopes: must hold read:user",
        "forgejo.scopes: must hold read:organization",
        "forgejo.client_id",
        "access.allow: `alice` must be id:NUMBER, user:LOGIN",
        "access.allow: `id:0` must be",
        "access.forgejo_tokens",
        "oauth.access_token_ttl",
        "oauth.redirect_schemes: `JavaScript`",
        "oauth.documents.ca_file",
        "oauth.documents.fetch",
        "oauth.clients.a.redirect_uris: `http://a.example/`: must be https",
        "oauth.clients.b.secret_file",
        "rates.logins",
        "http.trusted_proxies",
        "tools.tables",
        "page.name: must be a line",
        "page.contact: must be an address of mail",
        "page.logo_file: /nonexistent: No such file",
    ] {
        assert!(said.contains(&format!("{}: {key}", file.display())), "{key} is not named:\n{said}");
    }
}

#[test]
fn the_example_in_readme_is_good_with_every_line_uncommented() {
    let dir = harness::roots_directory().expect("a directory");
    let secret = write(dir.path(), "secret", "a-secret-of-at-least-thirty-two-characters");
    let logo = write(dir.path(), "logo", "<svg/>");
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
            Some((key @ "logo_file", _)) => format!("{key} = {:?}", logo.display()),
            _ => line,
        };
        text.extend([line.as_str(), "\n"]);
    }
    let database = dir.path().join("broker.db").display().to_string();
    text.extend(["[store]\npath = \"", &database, "\"\n"]);
    assert!(text.contains("correct_hints = true") && text.contains("[oauth.clients.our-bot]"), "{text}");
    let file = write(dir.path(), "broker.toml", &text);
    let (code, said) = check(BROKER, &[&file], &[]);
    assert_eq!(code, 0, "{said}\n{text}");
}

#[test]
fn a_list_of_hosts_that_lets_nobody_in_is_a_mistake() {
    let dir = harness::roots_directory().expect("a directory");
    let text = "public_url = \"https://mcp.example\"\n[forgejo]\nurl = \"https://git.example\"\n\
                [oauth.documents]\nfetch = \"allowlist\"\n";
    let file = write(dir.path(), "broker.toml", text);
    let (code, said) = check(BROKER, &[&file], &[]);
    assert!(code == 78 && said.contains("oauth.documents.hosts: must name the hosts"), "{said}");
}

#[test]
fn an_empty_list_of_scopes_which_forgejo_takes_for_all_is_refused() {
    let dir = harness::roots_directory().expect("a directory");
    let text = "public_url = \"https://mcp.example\"\n[forgejo]\nurl = \"https://git.example\"\nscopes = []\n";
    let file = write(dir.path(), "broker.toml", text);
    assert_eq!(check(BROKER, &[&file], &[]).0, 78);
}

#[test]
fn the_supervisor_reports_every_problem_with_file_and_key() {
    let dir = harness::roots_directory().expect("a directory");
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
    let dir = harness::roots_directory().expect("a directory");
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
    let dir = harness::roots_directory().expect("a directory");
    let first = broker_file(dir.path(), "[sessions]\nper_user = 0\n");
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
    let dir = harness::roots_directory().expect("a directory");
    let text = "broker_user = 12345\n[forgejo]\nurl = \"https://git.example\"\n[child]\nprofile = \"custom\"\n\
                program = \"/bin/cat\"\ntoken_variables = [\"TOKEN\"]\n";
    let file = write(dir.path(), "supervisor.toml", text);
    assert_eq!(check(SUPERVISOR, &[&file], &[]).0, 0);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    let (code, said) = check(SUPERVISOR, &[&file], &[]);
    assert_eq!(code, 78);
    assert!(said.contains(&file.display().to_string()), "{said}");
}

/// A packaged file with every line in force, and these values for what only an installation has.
fn packaged(dir: &Path, name: &str, own: &[(&str, &str)]) -> std::path::PathBuf {
    let text = std::fs::read_to_string(harness::workspace().join("packaging/config").join(name)).expect("text");
    let mut all = String::new();
    for line in text.lines() {
        // A key stands right behind the #, prose does not.
        let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty()).unwrap_or(line);
        let key = line.split_once(" = ").map_or("", |(key, _)| key);
        match own.iter().find(|(own, _)| *own == key) {
            Some((key, value)) => all.extend([key, " = ", value, "\n"]),
            None => all.extend([line, "\n"]),
        }
    }
    assert!(all.lines().filter(|line| line.contains(" = ")).count() > 10, "{all}");
    write(dir, name, &all)
}

#[test]
fn the_packaged_files_are_good_with_every_line_uncommented() {
    let dir = harness::roots_directory().expect("a directory");
    let database = format!("{:?}", dir.path().join("broker.db"));
    let (code, said) = check(BROKER, &[&packaged(dir.path(), "broker.toml", &[("path", &database)])], &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("forgejo.client_secret_file names a credential of the systemd unit"), "{said}");
    let own = [("broker_user", "12345"), ("program", "\"/bin/cat\"")];
    let (code, said) = check(SUPERVISOR, &[&packaged(dir.path(), "supervisor.toml", &own)], unprivileged());
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_credential_is_read_where_systemd_puts_it_and_missed_where_it_does_not() {
    let dir = harness::roots_directory().expect("a directory");
    let file = broker_file(dir.path(), "[forgejo]\nclient_id = \"x\"\nclient_secret_file = \"client-secret\"\n");
    let text = std::fs::read_to_string(&file).expect("text").replace("forgejo.url = \"https://git.example\"\n", "");
    let file = write(dir.path(), "broker.toml", &text.replace("[forgejo]", "[forgejo]\nurl = \"https://git.example\""));
    let run = |check: bool, credentials: Option<&Path>| {
        let mut command = Command::new(harness::program(BROKER));
        command.args(check.then_some("--check")).arg("--config").arg(&file).env_remove("CREDENTIALS_DIRECTORY");
        command.envs(credentials.map(|dir| ("CREDENTIALS_DIRECTORY", dir)));
        let output = command.output().expect("it runs");
        (output.status.code().expect("an exit code"), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(true, Some(dir.path()));
    assert!(code == 78 && said.contains("forgejo.client_secret_file: "), "it is not there: {said}");
    write(dir.path(), "client-secret", "gto_0123456789abcdef0123456789abcdef\n");
    let (code, said) = run(true, Some(dir.path()));
    assert!(code == 0 && !said.contains("cannot be looked at"), "{said}");
    let (code, said) = run(false, None);
    assert!(code == 78 && said.contains("`client-secret` is a credential's name, and there is no"), "{said}");
    assert!(!said.contains("needed together"), "it is there, and wrong: {said}");
}
