//! What the sandbox lets through, and what an operator can change about it, with real children. Needs root.

#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::supervised::{Client, Kid, Supervised, root_or_skip};
use nix::sys::signal::Signal;

/// What a child in each language does at least: a request answered, a thread, a name looked up, a connection to the forge.
/// The real child in Rust is tried in `e2e/isolation.rs`.
const PYTHON: &str = r#"
import json, socket, sys, threading
print("ready", flush=True)
request = json.loads(sys.stdin.readline())
worker = threading.Thread(target=lambda: socket.create_connection(("localhost", request["port"])).close())
worker.start()
worker.join()
print(json.dumps({"id": request["id"], "result": "connected"}), flush=True)
sys.stdin.readline()
"#;
const NODE: &str = r#"
const lines = require("readline").createInterface({ input: process.stdin });
console.log("ready");
lines.once("line", line => {
  const request = JSON.parse(line);
  // As its parsers of HTTP and of modules do it.
  [1, 1].map(pages => new WebAssembly.Memory({ initial: pages }));
  const socket = require("net").connect(request.port, "localhost", () => {
    console.log(JSON.stringify({ id: request.id, result: "connected" }));
    socket.end();
  });
});
"#;
const GO: &str = r#"package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
)

func main() {
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	lines.Scan()
	var request struct{ Id, Port int }
	json.Unmarshal(lines.Bytes(), &request)
	result := make(chan string)
	go func() {
		connection, err := net.Dial("tcp", fmt.Sprintf("localhost:%d", request.Port))
		if err != nil {
			result <- err.Error()
			return
		}
		connection.Close()
		runtime.GC()
		result <- "connected"
	}()
	fmt.Printf("{\"id\": %d, \"result\": \"%s\"}\n", request.Id, <-result)
	lines.Scan()
}
"#;

/// A program of the machine's that the children's uids can reach.
fn installed(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/local/bin"].map(|dir| Path::new(dir).join(name)).into_iter().find(|path| path.exists())
}

/// A static Go program, where there is a Go.
fn go_program(dir: &Path) -> Option<PathBuf> {
    let source = dir.join("main.go");
    std::fs::write(&source, GO).expect("written");
    let program = dir.join("go-child");
    let go = [Path::new("go"), Path::new("/usr/local/go/bin/go")];
    let built = go.into_iter().any(|go| {
        let mut command = Command::new(go);
        command.args(["build", "-o"]).arg(&program).arg(&source).env("CGO_ENABLED", "0").env("GO111MODULE", "off");
        command.env("GOCACHE", dir.join("cache")).status().is_ok_and(|status| status.success())
    });
    built.then_some(program)
}

async fn works(what: &str, program: &Path, arguments: &[&str], seccomp: &str) {
    let forge = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = forge.local_addr().expect("bound").port();
    let policy = format!("[sandbox]\nseccomp = \"{seccomp}\"\nconnect_ports = [{port}]\n");
    let supervised = Supervised::start_program_as_root(program, arguments, &policy);
    let mut client = Client::connect(&supervised).await;
    assert!(client.isolation.seccomp);
    let mut kid = client.spawn(1).await;
    kid.tell(&format!("{{\"id\": 1, \"port\": {port}}}")).await;
    let answer = kid.line().await.replace(' ', "");
    assert_eq!(answer, "{\"id\":1,\"result\":\"connected\"}", "{what} with {seccomp}");
}

#[tokio::test]
async fn children_in_go_node_and_python_work_with_either_list_of_system_calls() {
    let test = "children_in_go_node_and_python_work_with_either_list_of_system_calls";
    if !root_or_skip(test) {
        return;
    }
    let roots = harness::roots_directory().expect("a directory");
    let children: [(&str, Option<PathBuf>, &[&str]); 3] = [
        ("Go", go_program(roots.path()), &[]),
        ("Node", installed("node"), &["-e", NODE]),
        ("Python", installed("python3"), &["-c", PYTHON]),
    ];
    for (what, program, arguments) in children {
        let Some(program) = program else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: there is no {what}");
            println!("SKIPPED: {test}: there is no {what}");
            continue;
        };
        for list in ["deny-list", "allow-list"] {
            works(what, &program, arguments, list).await;
        }
    }
}

#[tokio::test]
async fn a_program_and_a_directory_that_are_replaced_can_be_used_by_the_next_child() {
    let test = "a_program_and_a_directory_that_are_replaced_can_be_used_by_the_next_child";
    if !root_or_skip(test) {
        return;
    }
    let roots = harness::roots_directory().expect("a directory");
    let (program, read) = (roots.path().join("sh"), roots.path().join("resolver"));
    let make = |text: &str| {
        std::fs::create_dir(&read).expect("made");
        std::fs::set_permissions(&read, PermissionsExt::from_mode(0o755)).expect("chmod");
        std::fs::write(read.join("resolv.conf"), text).expect("written");
    };
    harness::copy_program("/bin/sh".as_ref(), &program).expect("copied");
    make("old\n");
    let script = format!("echo ready; cat {}; cat", read.join("resolv.conf").display());
    let policy = format!("[sandbox]\nread = [\"{}\"]\n", read.display());
    let supervised = Supervised::start_program_as_root(&program, &["-c", &script], &policy);
    let mut client = Client::connect(&supervised).await;
    let mut before = client.spawn(1).await;
    assert_eq!(before.line().await, "old");

    // As package managers and daemons do it: another inode under the same name.
    let new = roots.path().join("new");
    harness::copy_program("/bin/sh".as_ref(), &new).expect("copied");
    std::fs::rename(&new, &program).expect("renamed");
    std::fs::remove_dir_all(&read).expect("removed");
    make("new\n");
    let mut after = client.spawn(2).await;
    assert_eq!(after.line().await, "new");
    assert!(supervised.logged().contains("the child program was replaced"), "{}", supervised.logged());
}

#[tokio::test]
async fn what_children_cannot_read_is_said_once_at_start_and_at_each_reload() {
    let test = "what_children_cannot_read_is_said_once_at_start_and_at_each_reload";
    if !root_or_skip(test) {
        return;
    }
    let roots = harness::roots_directory().expect("a directory");
    let (outside, closed) = (roots.path().join("ca.pem"), roots.path().join("closed.pem"));
    for (file, mode) in [(&outside, 0o644), (&closed, 0o640)] {
        std::fs::write(file, "x").expect("written");
        std::fs::set_permissions(file, PermissionsExt::from_mode(mode)).expect("chmod");
    }
    let policy =
        format!("[child.environment]\nSSL_CERT_FILE = \"{}\"\nEXTRA = \"{}\"\n", outside.display(), closed.display());
    let supervised = Supervised::start("echo ready; exec cat", &policy);
    let logged = supervised.logged();
    let lines: Vec<_> = logged.lines().filter(|line| line.contains("children cannot read")).collect();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(line.contains(&format!("{} is not in [sandbox] read", outside.display())), "{line}");
    assert!(line.contains(&format!("{} has a mode that keeps others out", closed.display())), "{line}");

    let read = format!("{policy}[sandbox]\nread = [\"{}\"]\n", outside.display());
    let whole = std::fs::read_to_string(supervised.policy()).expect("read");
    std::fs::write(supervised.policy(), whole.replace(&policy, &read)).expect("written");
    supervised.signal(Signal::SIGHUP);
    let mut client = Client::connect(&supervised).await;
    while !supervised.logged().contains("the policy was read again") {
        client.status().await;
    }
    let logged = supervised.logged();
    let last = logged.lines().rfind(|line| line.contains("children cannot read")).expect("a line");
    assert!(!last.contains(&*outside.display().to_string()), "{last}");
}

#[tokio::test]
async fn unix_sockets_are_an_operators_choice_and_modes_and_scopes_still_hold() {
    let test = "unix_sockets_are_an_operators_choice_and_modes_and_scopes_still_hold";
    if !root_or_skip(test) {
        return;
    }
    let Some(python) = installed("python3") else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: there is no python3");
        println!("SKIPPED: {test}: there is no python3");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let sockets = [("open", 0o666), ("closed", 0o600)].map(|(name, mode)| {
        let path = dir.path().join(name);
        let listener = UnixListener::bind(&path).expect("a socket");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
        (path, listener)
    });
    let name = format!("hostile-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _abstract = UnixListener::bind_addr(&address).expect("a socket");
    let [open, closed] = sockets.each_ref().map(|(path, _)| path.display());
    let script = format!(
        r#"
import errno, socket
print("ready", flush=True)
for address in ["{open}", "{closed}", "\0{name}"]:
    try:
        socket.socket(socket.AF_UNIX).connect(address)
        print("done", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
input()
"#
    );
    for (allowed, expected) in [(false, ["EPERM", "EPERM", "EPERM"]), (true, ["done", "EACCES", "EPERM"])] {
        let policy = format!("[sandbox]\nunix_sockets = {allowed}\n");
        let supervised = Supervised::start_program_as_root(&python, &["-c", &script], &policy);
        let mut client = Client::connect(&supervised).await;
        let mut kid: Kid = client.spawn(1).await;
        for (what, expected) in ["everybody's", "root's", "abstract"].into_iter().zip(expected) {
            assert_eq!(kid.line().await, expected, "{what}, unix_sockets = {allowed}");
        }
    }
}

#[tokio::test]
async fn without_a_cgroup_for_memory_each_process_has_an_address_space_limit() {
    let test = "without_a_cgroup_for_memory_each_process_has_an_address_space_limit";
    if !root_or_skip(test) {
        return;
    }
    let supervised = Supervised::start("echo ready; exec cat", "[limits.users.2]\naddress_space = \"8GiB\"\n");
    if !supervised.logged().contains("memory is not limited") {
        println!("SKIPPED: {test}: a cgroup bounds memory here");
        return;
    }
    let mut client = Client::connect(&supervised).await;
    for (tenant, gib) in [(1, 32_u64), (2, 8)] {
        let kid = client.spawn(tenant).await;
        let limits = kid.proc("limits");
        let line = limits.lines().find(|line| line.starts_with("Max address space")).expect("the limit");
        assert!(line.contains(&(gib << 30).to_string()), "{line}");
    }
}

#[tokio::test]
async fn no_core_of_child_or_supervisor_goes_to_a_handler_behind_a_pipe() {
    let test = "no_core_of_child_or_supervisor_goes_to_a_handler_behind_a_pipe";
    if !root_or_skip(test) {
        return;
    }
    let supervised = Supervised::start("echo ready; exec cat", "");
    let mut client = Client::connect(&supervised).await;
    let kid = client.spawn(1).await;
    for pid in [kid.pid, supervised.pid()] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("readable");
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit");
        // core(5): with 0 a handler is started all the same.
        assert_eq!(line.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["1", "1"], "{line}");
    }
}
