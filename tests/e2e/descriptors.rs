//! More connections than descriptors: whoever is connected is served, and so is the operator.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::time::timeout;

use crate::{stand_in_deployment, token};
use harness::mcp_session::{http, initialize, message, post};

/// Idle connections, of which the broker cannot hold all.
const IDLE: usize = 1500;
/// What services are given by default.
const LIMIT: u32 = 1024;
/// How long accepting them may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifteen_hundred_idle_connections_under_a_limit_of_1024_descriptors_cut_off_nobody_who_is_connected() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    if hard < 4096 {
        return crate::skip("descriptors", "the tests may not open so many descriptors themselves");
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    let deployment = stand_in_deployment("descriptors", &[], |config| {
        fs::create_dir_all(&config.dir).expect("a directory");
        let script = config.dir.join("limited-broker");
        let broker = harness::program("forgejo-mcp-broker");
        fs::write(&script, format!("#!/bin/sh\nulimit -n {LIMIT}\nexec {} \"$@\"\n", broker.display()))
            .expect("written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
        config.broker_program = Some(script);
        "[http]\nconnections_per_address = 5000\n".clone_into(&mut config.broker);
    });
    let (alice, bob) = (token(&deployment, "alice"), token(&deployment, "bob"));
    // One connection, which stays.
    http();
    let kept = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1).build().expect("a client");
    let response = post(&kept, &deployment.url, &alice, None, &initialize()).await.expect("an answer");
    let session = response.headers().get("mcp-session-id").expect("an id").to_str().expect("text").to_owned();
    message(response).await.expect("read to its end");

    let address: SocketAddr = deployment.url.trim_start_matches("http://").parse().expect("one");
    // Those that the broker leaves in the socket's queue, as far as that goes, count as connected.
    let idle: Vec<_> =
        (0..IDLE).map_while(|_| TcpStream::connect_timeout(&address, Duration::from_secs(4)).ok()).collect();
    assert!(idle.len() > 672, "only {} connections", idle.len());
    let pid = deployment.broker.as_ref().expect("runs").pid();
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).expect("readable").count();
    let accepted = async {
        while open() < 600 {
            harness::look_again().await;
        }
    };
    timeout(SOON, accepted).await.expect("many connections");
    assert!(open() < 900, "{} descriptors: many connections, and a reserve", open());

    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "echo", "arguments": {"text": "still here"}}});
    let response = post(&kept, &deployment.url, &alice, Some(&session), &call).await.expect("an answer");
    assert!(message(response).await.expect("a message").to_string().contains("still here"));
    let response = post(&kept, &deployment.url, &bob, None, &initialize()).await.expect("an answer");
    assert_eq!(response.status().as_u16(), 200, "there are descriptors left for a child's pipes");
    message(response).await.expect("read to its end");
    let ready = kept.get(format!("{}/readyz", deployment.url)).send().await.expect("an answer");
    assert_eq!(ready.status().as_u16(), 200, "and for what the broker asks others");
    let status = tokio::task::block_in_place(|| deployment.ctl().arg("status").output()).expect("it runs");
    assert!(status.status.success(), "and for the operator: {}", String::from_utf8_lossy(&status.stderr));

    drop(idle);
    let response = post(&http(), &deployment.url, &alice, Some(&session), &call).await.expect("an answer");
    assert!(message(response).await.expect("a message").to_string().contains("still here"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_opens_thousands_of_connections_shuts_out_nobody() {
    /// More than the broker has for everybody.
    const FLOOD: usize = 4226;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    if hard < 10_000 {
        return crate::skip("descriptors", "the tests may not open so many descriptors themselves");
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    for trusted in ["[]", "[\"127.0.0.1\"]"] {
        let deployment = stand_in_deployment("flood", &[], |config| {
            config.broker = format!("[http]\ntrusted_proxies = {trusted}\n");
        });
        let alice = token(&deployment, "alice");
        // One connection, which stays.
        http();
        let kept = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1).build().expect("a client");
        let response = post(&kept, &deployment.url, &alice, None, &initialize()).await.expect("an answer");
        message(response).await.expect("read to its end");
        let address: SocketAddr = deployment.url.trim_start_matches("http://").parse().expect("one");
        // A child comes from where it likes on this machine, and says half of what there is to say.
        let held: Vec<_> = (0..FLOOD)
            .map_while(|n| {
                let stream = TcpStream::connect_timeout(&address, Duration::from_secs(4)).ok()?;
                let half: &[u8] = if n % 2 == 0 { b"" } else { b"GET /healthz HTTP/1.1\r\nhost: " };
                // One that was closed meanwhile has made room.
                let _ = (&stream).write_all(half);
                Some(stream)
            })
            .collect();
        assert!(held.len() > FLOOD / 2, "only {} connections", held.len());
        for path in ["healthz", "readyz"] {
            let client = http();
            let asked = client.get(format!("{}/{path}", deployment.url)).timeout(Duration::from_secs(8)).send();
            assert_eq!(asked.await.expect("an answer").status().as_u16(), 200, "{path}, trusted {trusted}");
        }
        let asked = kept.get(format!("{}/healthz", deployment.url)).send().await.expect("an answer");
        assert_eq!(asked.status().as_u16(), 200);
        let pid = deployment.broker.as_ref().expect("runs").pid();
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("readable").count();
        let most = if trusted == "[]" { 256 } else { 4096 - 256 };
        assert!(open < most + 100, "{open} descriptors, trusted {trusted}");
        drop(held);
    }
}
