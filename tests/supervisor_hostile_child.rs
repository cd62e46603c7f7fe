//! A child that has fallen to an attacker, under the real supervisor with its defaults: each thing that it tries, and how
//! that ends. Needs root.
//!
//! `programs/hostile_child/outcomes.txt` has the rows. What is `done` there is open on purpose, and says why.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests fail the test, and say what is skipped"
)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use harness::supervised::{Client, Kid, Supervised, own_range, root_or_skip};

/// Each row: what is tried, a colon, and the ways in which it may end.
const OUTCOMES: &str = include_str!("programs/hostile_child/outcomes.txt");

/// A copy of the program with root's set-user-ID bit: nothing may come of that.
fn program(dir: &std::path::Path) -> std::path::PathBuf {
    let copy = dir.join("hostile-child");
    harness::copy_program(&harness::program("hostile-child"), &copy).expect("copied");
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o4755)).expect("chmod");
    copy
}

async fn rows(kid: &mut Kid) -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    loop {
        let line = kid.line().await;
        if line == "over" {
            return rows;
        }
        let (name, ended) = line.rsplit_once(": ").expect("a row");
        assert_eq!(rows.insert(name.to_owned(), ended.to_owned()), None, "{name} twice");
    }
}

fn expected() -> BTreeMap<&'static str, Vec<&'static str>> {
    let rows = OUTCOMES.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    rows.map(|row| row.rsplit_once(": ").expect("a row"))
        .map(|(name, ways)| (name, ways.split(" or ").collect()))
        .collect()
}

#[tokio::test]
async fn a_hostile_child_reaches_nothing_outside_its_session() {
    attack("a_hostile_child_reaches_nothing_outside_its_session", "deny-list").await;
}

#[tokio::test]
async fn nor_with_the_list_of_allowed_system_calls() {
    attack("nor_with_the_list_of_allowed_system_calls", "allow-list").await;
}

async fn attack(test: &str, list: &str) {
    if !root_or_skip(test) {
        return;
    }
    let roots = harness::roots_directory().expect("a directory");
    let forge = TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
    let program = program(roots.path());
    let first = own_range();
    let policy = format!(
        "[uids]\nfirst = {first}\ncount = 16\n[sandbox]\nseccomp = \"{list}\"\nconnect_ports = [{}]\n",
        port(&forge)
    );
    let supervised = Supervised::start_program_as_root(&program, &["attack"], &policy);
    // As tempting as it can be: everybody may write there, and connect.
    let open = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(open.path(), PermissionsExt::from_mode(0o777)).expect("chmod");
    std::fs::write(open.path().join("readable"), "x").expect("written");
    let admin = open.path().join("admin");
    let _admin = UnixListener::bind(&admin).expect("a socket");
    std::fs::set_permissions(&admin, PermissionsExt::from_mode(0o666)).expect("chmod");
    let free = TcpListener::bind("127.0.0.1:0").map(|listener| port(&listener)).expect("a port");

    let mut client = Client::connect(&supervised).await;
    let stranger = client.spawn(1).await;
    let sibling = client.spawn(2).await;
    let mut hostile = client.spawn(2).await;
    let targets = format!(
        "stranger={} sibling={} supervisor={} open_directory={} free_port={free} forge_port={} other_port={} \
         supervisor_socket={} admin_socket={}",
        stranger.pid,
        sibling.pid,
        supervised.pid(),
        open.path().display(),
        port(&forge),
        port(&other),
        supervised.socket().display(),
        admin.display()
    );
    let niceness = |kid: &Kid| kid.proc("stat").split_whitespace().nth(18).map(str::to_owned);
    let before = niceness(&stranger);
    hostile.tell(&targets).await;
    let mut rows = rows(&mut hostile).await;

    let uid = rows.remove("run a set-user-ID program: uid").expect("a row");
    assert_eq!(uid, hostile.uid.to_string(), "a set-user-ID program gives nothing");
    let landlock: u32 = rows.remove("landlock").and_then(|version| version.parse().ok()).unwrap_or(0);
    if std::env::var_os("SHOW_ROWS").is_some() {
        for (name, ended) in &rows {
            println!("{name}: {ended}");
        }
    }
    if landlock < 6 {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: this kernel's Landlock is too old");
        println!("SKIPPED: {test}: Landlock's version is {landlock}, and 6 is needed");
        return;
    }
    let mut expected = expected();
    if hostile.uid == sibling.uid {
        // Names of descriptors; opening one is refused all the same.
        expected.insert("sibling: list fd", vec!["done"]);
    }
    if list == "allow-list" {
        for row in ["make a device", "make a pipe with a name"] {
            expected.insert(row, vec!["EPERM"]);
        }
    }
    let wrong: Vec<_> = rows
        .iter()
        .filter(|(name, ended)| !expected.get(name.as_str()).is_some_and(|ways| ways.contains(&ended.as_str())))
        .map(|(name, ended)| format!("{name}: {ended}, and not {:?}", expected.get(name.as_str())))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    let missing: Vec<_> = expected.keys().filter(|name| !rows.contains_key(**name)).collect();
    assert!(missing.is_empty(), "not tried: {missing:?}");

    for objects in ["shm", "sem", "msg"] {
        let listed = std::fs::read_to_string(format!("/proc/sysvipc/{objects}")).expect("readable");
        let left = listed.lines().any(|line| line.split_whitespace().any(|word| word == hostile.uid.to_string()));
        assert!(!left, "{objects} of the child's are left: {listed}");
    }
    for kid in [&stranger, &sibling] {
        assert!(harness::supervised::runs(kid.pid), "what it attacked lives");
        assert_eq!(niceness(kid), before, "and is as fast as before");
    }
    assert!(!std::path::Path::new("/tmp/hostile-pipe").exists());
}
