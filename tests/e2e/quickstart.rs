//! `packaging/quickstart`, as a newcomer runs it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::deployment::processes;
use harness::mcp_session::Session;
use harness::user_agent::UserAgent;

/// Ends with the test, however that ends: what stays would hold the test runner's own output open.
struct Running(Child);

impl Running {
    fn interrupt(&self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).expect("a pid")), Signal::SIGINT).expect("sent");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.interrupt();
            let _ = self.0.wait();
        }
    }
}

#[tokio::test]
async fn it_shows_two_users_with_different_answers_and_ctrl_c_leaves_nothing_behind() {
    let Some(child) = crate::real_child() else {
        return crate::skip("quickstart", "no forgejo-mcp: run tests/run, or set FORGEJO_MCP");
    };
    // The programs are built already; the script's second half is what runs here, with the script's own arguments.
    let dir = crate::scratch("quickstart");
    let mut command = Command::new(harness::program("quickstart"));
    command.arg("--binaries").arg(crate::binaries()).arg("--dir").arg(&dir).arg("--child").arg(&child.path);
    command.args(["--listen", "127.0.0.1:0", "--users", "carol,dave"]);
    let (config, first) = (crate::scratch("quickstart.toml"), crate::uids());
    fs::write(&config, format!("[supervisor.uids]\nfirst = {first}\n[broker.sessions]\nper_user = 7\n"))
        .expect("written");
    command.arg("--config").arg(&config);
    let mut running = Running(command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("it starts"));
    let mut shown = String::new();
    let mut lines = BufReader::new(running.0.stdout.take().expect("piped")).lines();
    while !shown.contains("Ctrl-C ends it") {
        let line = lines.next().unwrap_or_else(|| panic!("it ended early:\n{shown}")).expect("readable");
        shown.push_str(&line);
        shown.push('\n');
    }
    assert!(shown.contains("carol/carol-garden") && shown.contains("dave/dave-garden"), "{shown}");
    assert!(shown.contains("stub of Forgejo's API, not Forgejo"), "{shown}");
    assert!(shown.contains("claude mcp add --transport http forgejo http://127.0.0.1:"), "{shown}");
    let root = nix::unistd::geteuid().is_root();
    assert_eq!(
        shown.contains(&first.to_string()) && shown.contains(&(first + 1).to_string()),
        root,
        "two uids as root:\n{shown}"
    );
    assert_eq!(shown.contains("NOT ISOLATED"), !root, "{shown}");
    let env = dir.join("env");
    assert_eq!(fs::metadata(&env).expect("written").permissions().mode() & 0o777, 0o600);
    let env = fs::read_to_string(&env).expect("readable");
    let value =
        |key: &str| env.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).expect("a value").to_owned();
    let url = value("URL").trim_end_matches("/mcp").to_owned();
    let mut session = Session::open(&url, &value("TOKEN_CAROL")).await.expect("the written token works");
    assert!(crate::who(&mut session).await.contains("carol"));
    assert!(shown.contains("log in as carol or dave"), "{shown}");
    let page = UserAgent::new("dave", "secret-of-dave").account(&url, &value("FORGEJO_URL")).await;
    assert!(page.text.contains("dave"), "every user's password is as it says: {}", page.text);
    running.interrupt();
    assert!(running.0.wait().expect("it ends").success());
    let here = dir.display().to_string();
    let left =
        processes().into_iter().filter(|process| String::from_utf8_lossy(&process.file("cmdline")).contains(&here));
    assert_eq!(left.count(), 0, "no process is left");
    for socket in ["supervisor.sock", "admin/admin.sock"] {
        assert!(!dir.join(socket).exists(), "{socket} is left");
    }
}

#[test]
fn the_script_says_in_one_line_what_is_missing() {
    let script = harness::workspace().join("packaging/quickstart");
    let run = |path: &str, arguments: &[&str]| {
        let mut command = Command::new("/bin/bash");
        command.arg(&script).args(arguments).env("PATH", path);
        let output = command.output().expect("bash runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (good, said) = run("/nonexistent-but-for-dirname", &["--child", "/bin/true"]);
    assert!(!good, "{said}");
    let empty = crate::scratch("only_coreutils");
    fs::create_dir_all(&empty).expect("a directory");
    for tool in ["dirname", "realpath"] {
        std::os::unix::fs::symlink(format!("/usr/bin/{tool}"), empty.join(tool)).expect("a link");
    }
    let (good, said) = run(&empty.display().to_string(), &[]);
    assert!(!good && said.contains("Rust is missing") && said.lines().count() == 1, "{said}");
    let (good, said) = run("/usr/bin:/bin", &["--wrong"]);
    assert!(!good && said.contains("unknown option: --wrong"), "{said}");
}
