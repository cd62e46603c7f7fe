//! Cgroups for tests: a directory of the machine's cgroup2, and where that has no controllers, a kernel that has them.
//!
//! Debian's package `user-mode-linux` is a kernel that runs as a program, without any right on the machine. It boots the
//! machine's own file system, read-only, in about two seconds (`tests/uml/init`), and runs one test in it. Slow at system
//! calls: fit to see what happens, and not how long it takes.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::supervised::root_or_skip;
use crate::workspace;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// For the boot and one test, of which the longest takes a minute on a quiet machine; more means that it hangs.
const BOOT_AND_TEST: Duration = Duration::from_secs(600);
/// Of the kernel: enough for a test that fills 64 MiB and for the programs.
const MEMORY: &str = "mem=512M";

/// A cgroup of this test's own; removed at the end with what is below it.
#[derive(Debug)]
pub struct OwnCgroup(pub PathBuf);

impl OwnCgroup {
    /// Where the machine has a cgroup2 at all that may be written.
    pub fn new(name: &str) -> Option<Self> {
        let root = cgroup2()?;
        let dir = root.join(format!("fmb-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        Some(Self(dir))
    }

    /// The part of a supervisor's policy that names it.
    pub fn policy(&self) -> String {
        format!("[cgroup]\nroot = \"{}\"\n", self.0.display())
    }

    /// A file somewhere below it.
    pub fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap_or_default().trim().to_owned()
    }

    /// The same, of names and numbers.
    pub fn event(&self, file: &str, name: &str) -> u64 {
        let text = self.read(file);
        let number = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in {file}: {text}"))
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        for below in ["children", ""] {
            let _ = std::fs::remove_dir(self.0.join(below));
        }
    }
}

fn cgroup2() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let root =
        roots.into_iter().find(|root| root.join("cgroup.procs").exists() && root.join("cgroup.controllers").exists());
    root.map(Path::to_owned)
}

/// Switches controllers on for what is below the machine's root; whether all are.
fn controllers(root: &Path) -> bool {
    let wanted = ["memory", "pids", "cpu", "io"];
    for name in wanted {
        let _ = std::fs::write(root.join("cgroup.subtree_control"), format!("+{name}"));
    }
    let on = std::fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    wanted.iter().all(|name| on.split_whitespace().any(|have| have == *name))
}

/// A cgroup whose limits hold, for the test of this name to go on with. `None`: it was run in another kernel, and
/// passed, or was skipped.
pub fn limits_hold(test: &str) -> Option<OwnCgroup> {
    if !root_or_skip(test) {
        return None;
    }
    if cgroup2().is_some_and(|root| controllers(&root)) {
        return Some(OwnCgroup::new(test.get(..20).unwrap_or(test)).expect("a cgroup of the test's own"));
    }
    assert!(std::env::var_os("INSIDE_UML").is_none(), "this kernel has no controllers either");
    run_in_uml(test);
    None
}

/// Runs the test of this name in a kernel of its own, which is nobody's machine; passes if it passes there. Skipped
/// where there is no such kernel.
pub fn run_in_uml(test: &str) {
    if !root_or_skip(test) {
        return;
    }
    if let Some((passed, console)) = run_elsewhere(test) {
        assert!(passed, "in user-mode-linux:\n{console}");
        return;
    }
    let in_ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(!in_ci, "{test} needs user-mode-linux, and is not skipped in CI");
    println!("SKIPPED: {test}: needs Debian's package user-mode-linux");
}

/// Runs the test of this name, of this program, in a kernel of its own; whether it passed, and all that was said. `None`
/// where there is no such kernel.
fn run_elsewhere(test: &str) -> Option<(bool, String)> {
    let kernel = std::env::var_os("UML").map_or_else(|| PathBuf::from("/usr/bin/linux.uml"), PathBuf::from);
    if !kernel.exists() {
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let own = std::env::current_exe().expect("the path of this program");
    let mut command = Command::new(kernel);
    command.args([
        MEMORY,
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        "quiet",
        "con0=null,fd:1",
        "con=null",
    ]);
    command.arg(format!("umid=fmb-{}-{}", std::process::id(), test.get(..20).unwrap_or(test)));
    command.arg(format!("uml_dir={}/", dir.path().display()));
    command.arg(format!("init={}", workspace().join("tests/uml/init").display()));
    command.arg(format!("test_program={}", own.display())).arg(format!("test_name={test}"));
    let scratch = workspace().join("target/tmp");
    std::fs::create_dir_all(&scratch).expect("made");
    command.arg(format!("test_scratch={}", scratch.display()));
    // The memory of the kernel is a file.
    command.env("HOME", dir.path()).env("TMPDIR", "/dev/shm");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut running = command.spawn().expect("a kernel");
    let mut stdout = running.stdout.take().expect("piped");
    let group = Pid::from_raw(running.id().cast_signed());
    let (said, hear) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut console = Vec::new();
        let _ = stdout.read_to_end(&mut console);
        let _ = said.send(String::from_utf8_lossy(&console).into_owned());
    });
    let console = hear.recv_timeout(BOOT_AND_TEST);
    // It has helpers, which end with it; here they are those of one that hangs.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = running.wait();
    let console = console.or_else(|_| hear.recv()).unwrap_or_default();
    let passed = console.lines().any(|line| line.trim() == "uml: exit status 0") && console.contains("1 passed");
    Some((passed, console))
}
