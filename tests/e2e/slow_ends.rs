//! Ends that do not keep up: a client that reads a byte at a time, a child that reads nothing, a line beyond the cap, and
//! a client that is gone without a word. Nobody else notices.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::hostile_children::resident;
use crate::{skip, stand_in_deployment, token};
use harness::deployment::Deployment;
use harness::mcp_session::Session;

/// Far above what any of this takes when nothing is lost.
const IN_TIME: Duration = Duration::from_secs(30);
/// A silent peer is noticed by a comment on its stream (every 15 s) that nobody acknowledges for a minute.
const NOTICED: Duration = Duration::from_mins(3);
/// `[sessions] memory_per_user`, by default.
const BUDGET_MIB: u64 = 96;

fn call(tool: &str, arguments: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
        .to_string()
}

/// A request of a session, as bytes.
fn request(deployment: &Deployment, session: &Session, method: &str, body: &str) -> Vec<u8> {
    let host = deployment.url.trim_start_matches("http://");
    format!(
        "{method} /mcp HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {}\r\nmcp-session-id: {}\r\n\
         accept: application/json, text/event-stream\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        session.token(),
        session.id,
        body.len()
    )
    .into_bytes()
}

async fn is_served(session: &Session) {
    let echoed = timeout(IN_TIME, session.clone().text("echo", json!({"text": "on"}))).await;
    assert_eq!(echoed.expect("in time").expect("an answer"), "on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_a_byte_at_a_time_costs_its_users_budget_at_most_and_nobody_else_anything() {
    let deployment = stand_in_deployment("slow-reader", &[], |_| {});
    let alice = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let bob = Session::open(&deployment.url, &token(&deployment, "bob")).await.expect("a session");
    let before = resident(&deployment);
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut stream =
            tokio::net::TcpStream::connect(deployment.url.trim_start_matches("http://")).await.expect("up");
        let request = request(&deployment, &alice, "POST", &call("big", &json!({"bytes": 20 << 20})));
        stream.write_all(&request).await.expect("sent");
        readers.push(stream);
    }
    for n in 0..2000 {
        for reader in &mut readers {
            timeout(IN_TIME, reader.read_u8()).await.expect("in time").expect("a byte");
        }
        if n % 100 == 0 {
            is_served(&bob).await;
        }
    }
    let grown = resident(&deployment).saturating_sub(before);
    assert!(grown <= BUDGET_MIB + BUDGET_MIB / 4, "{grown} MiB more");
    drop(readers);
    is_served(&alice).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_reads_nothing_costs_its_client_the_deadline_and_nobody_else_anything() {
    let deployment = stand_in_deployment("deaf-child", &[], |config| {
        config.broker = "[http]\nrequest_timeout = \"5s\"\n".to_owned();
    });
    let alice = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let bob = Session::open(&deployment.url, &token(&deployment, "bob")).await.expect("a session");
    let ask = |tool: &'static str, arguments: Value| {
        let mut session = alice.clone();
        tokio::spawn(async move {
            timeout(IN_TIME, session.send("tools/call", json!({"name": tool, "arguments": arguments}))).await
        })
    };
    let mut asked = vec![ask("deaf", json!({}))];
    // More than a pipe holds, and still within the user's budget.
    asked.extend((0..12).map(|_| ask("echo", json!({"text": "x".repeat(1 << 20)}))));
    while !asked.iter().all(tokio::task::JoinHandle::is_finished) {
        is_served(&bob).await;
        harness::look_again().await;
    }
    for one in asked {
        // Those that the child read before it went deaf have an answer.
        let (_, answer) = one.await.expect("no panic").expect("within its deadline").expect("an answer");
        assert!(answer.get("error").is_some() || answer.get("result").is_some(), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_beyond_the_cap_is_an_error_of_its_call_alone_and_costs_no_memory() {
    let deployment = stand_in_deployment("long-line", &[], |_| {});
    let mut alice = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let bob = Session::open(&deployment.url, &token(&deployment, "bob")).await.expect("a session");
    let (before, child) = (resident(&deployment), deployment.children());
    let mut asleep = alice.clone();
    let asleep = tokio::spawn(async move { timeout(4 * IN_TIME, asleep.text("sleep", json!({"ms": 3000}))).await });
    // In the order of this child the id comes first.
    for _ in 0..2 {
        let said = timeout(4 * IN_TIME, alice.text("big", json!({"bytes": 90_000_000}))).await.expect("in time");
        let said = said.expect_err("beyond the default cap of 80 MiB").to_string();
        assert!(said.contains("80 MiB") && said.contains("max_line"), "{said}");
    }
    is_served(&bob).await;
    is_served(&alice).await;
    assert_eq!(asleep.await.expect("no panic").expect("in time").expect("its other call goes on"), "slept");
    assert_eq!(deployment.children().len(), child.len(), "the children are the same");
    let grown = resident(&deployment).saturating_sub(before);
    assert!(grown < BUDGET_MIB, "{grown} MiB more");
    assert!(deployment.output().contains("reason=\"line-too-long\""), "{}", deployment.output());
}

/// A network of its own that this machine reaches by one wire; gone with it.
struct Elsewhere(String);

impl Elsewhere {
    const HERE: &str = "10.213.77.1";

    fn new() -> Option<Self> {
        let pid = std::process::id();
        let (name, wire) = (format!("fmb-{pid}"), format!("fmb{pid}"));
        let elsewhere = Self(name.clone());
        let steps = [
            format!("netns add {name}"),
            format!("link add {wire} type veth peer name far netns {name}"),
            format!("address add {}/30 dev {wire}", Self::HERE),
            format!("link set {wire} up"),
            format!("-n {name} address add 10.213.77.2/30 dev far"),
            format!("-n {name} link set far up"),
        ];
        steps.iter().all(|step| ip(step)).then_some(elsewhere)
    }

    /// Connections from there, each with what it sends first.
    fn connect(&self, to: &str, first: Vec<Vec<u8>>) -> Vec<TcpStream> {
        use std::io::Write;
        let network = File::open(format!("/var/run/netns/{}", self.0)).expect("the network");
        let to = to.to_owned();
        let there = std::thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("inside");
            let connected = first.iter().map(|bytes| {
                let mut stream = TcpStream::connect(&to).expect("connected");
                stream.write_all(bytes).expect("sent");
                stream
            });
            connected.collect()
        });
        there.join().expect("no panic")
    }

    /// From now on not a packet passes, and nobody says so.
    fn vanish(&self) {
        assert!(ip(&format!("-n {} link set far down", self.0)));
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        ip(&format!("netns delete {}", self.0));
    }
}

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).status().is_ok_and(|status| status.success())
}

/// Connections with what is elsewhere, as the kernel lists them; the address is in the order of the machine.
fn connections() -> usize {
    let address = format!("{:08X}:", u32::from_ne_bytes([10, 213, 77, 2]));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("readable");
    table
        .lines()
        .filter(|line| line.split_whitespace().nth(2).is_some_and(|remote| remote.starts_with(&address)))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_held_that_is_gone_without_a_word_is_given_back_and_its_session_goes_on() {
    let Some(elsewhere) = nix::unistd::geteuid().is_root().then(Elsewhere::new).flatten() else {
        return skip("vanished-client", "a network of its own needs root, ip(8) and veth");
    };
    let deployment = stand_in_deployment("vanished-client", &[], |config| {
        config.listen = format!("{}:0", Elsewhere::HERE);
        config.broker = format!("public_url = \"https://{}\"\n", Elsewhere::HERE);
    });
    let session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let first = vec![
        request(&deployment, &session, "GET", ""),
        request(&deployment, &session, "POST", &call("block", &json!({}))),
    ];
    let held = elsewhere.connect(deployment.url.trim_start_matches("http://"), first);
    assert_eq!(connections(), 2);
    // Both are being served, not only accepted: the tool's call is with the child.
    is_served(&session).await;
    elsewhere.vanish();
    let noticed = async {
        while connections() > 0 {
            harness::look_again().await;
        }
    };
    assert!(timeout(NOTICED, noticed).await.is_ok(), "{} connections are still held", connections());
    drop(held);
    is_served(&session).await;
}
