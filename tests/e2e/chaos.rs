//! Twenty sessions of five users call for a minute while everything that can die dies. Every request gets exactly one
//! answer or a clear error, tokens rotate underneath, nobody loses a login, and at the end nothing is left over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use parking_lot::Mutex;
use rand::Rng;
use serde_json::{Value, json};

use crate::login::{Client, user_agent};
use crate::{config, stand_in};
use harness::deployment::{Deployment, processes};
use harness::mcp_session::{http, initialize, post};
use harness::user_agent::Decision;

const USERS: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];
const SESSIONS: usize = 20;
/// Seconds that a Forgejo token lives: every user's is refreshed several times.
const TOKEN_LIFE: u64 = 20;

type Counts = Arc<Mutex<BTreeMap<&'static str, u64>>>;

fn count(counts: &Counts, what: &'static str) {
    *counts.lock().entry(what).or_default() += 1;
}

/// What a client has got from a login.
#[derive(Debug, Clone)]
struct Login {
    client_id: String,
    access: String,
    refresh: String,
}

/// The next pair of tokens. A try whose answer is lost is made again with the same refresh token, as clients do; the
/// broker's grace is there for that.
async fn refreshed(http: &reqwest::Client, url: &str, login: &mut Login, counts: &Counts) {
    loop {
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", login.client_id.as_str()),
            ("refresh_token", login.refresh.as_str()),
        ];
        let Ok(response) = http.post(format!("{url}/oauth/token")).form(&form).send().await else {
            count(counts, "connection lost");
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let status = response.status().as_u16();
        let Ok(tokens) = response.json::<Value>().await else { continue };
        if status == 429 || status == 503 {
            count(counts, "refused with Retry-After");
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        assert_eq!(status, 200, "no client loses its login: {tokens}");
        let text = |name: &str| tokens.get(name).and_then(Value::as_str).expect("a token").to_owned();
        (login.access, login.refresh) = (text("access_token"), text("refresh_token"));
        count(counts, "client refreshed");
        return;
    }
}

/// One client: opens sessions as it needs them and calls until the time is over.
async fn client(url: String, mut login: Login, number: usize, until: Instant, counts: Counts) {
    let http = http();
    let mut session: Option<String> = None;
    let mut round = 0_u64;
    while Instant::now() < until {
        round += 1;
        let text = format!("{number}-{round}");
        let message = match &session {
            None => initialize(),
            Some(_) => json!({"jsonrpc": "2.0", "id": text, "method": "tools/call",
                "params": {"name": "echo", "arguments": {"text": text}}}),
        };
        let Ok(response) = post(&http, &url, &login.access, session.as_deref(), &message).await else {
            // The broker is away, or died with the request: the connection says so.
            count(&counts, "connection lost");
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let status = response.status().as_u16();
        let minted = response.headers().get("mcp-session-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let retry = response.headers().contains_key("retry-after");
        let is_stream = response.headers().get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"text/event"));
        let Ok(body) = response.text().await else {
            count(&counts, "connection lost");
            continue;
        };
        let answers: Vec<&str> = if is_stream {
            body.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
        } else {
            vec![&*body]
        };
        match status {
            200 => {
                if is_stream && answers.is_empty() {
                    count(&counts, "connection lost");
                    continue;
                }
                assert_eq!(answers.len(), 1, "exactly one answer: {body}");
                let answer: Value = serde_json::from_str(answers.first().expect("one")).expect("json");
                assert_eq!(answer.get("id"), message.get("id"), "the request's own id: {body}");
                if answer.get("error").is_some() {
                    count(&counts, "error with its id");
                } else if session.is_none() {
                    session = minted;
                    count(&counts, "session opened");
                } else {
                    let echoed = answer.pointer("/result/content/0/text").and_then(Value::as_str);
                    assert_eq!(echoed, Some(&*text), "nobody else's answer");
                    count(&counts, "answered");
                }
            }
            401 => refreshed(&http, &url, &mut login, &counts).await,
            404 | 410 => {
                session = None;
                count(&counts, "session ended with its child");
            }
            429 | 503 => {
                assert!(retry, "a refusal says when to come back: {status} {body}");
                count(&counts, "refused with Retry-After");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => assert_eq!(other, 200, "no clear answer: {body}"),
        }
    }
    if let Some(id) = session {
        refreshed(&http, &url, &mut login, &counts).await;
        let _ = http.delete(format!("{url}/mcp")).bearer_auth(&login.access).header("mcp-session-id", id).send().await;
    }
}

/// One thing goes wrong.
fn strike(deployment: &mut Deployment, round: u32, counts: &Counts) {
    let children = deployment.children();
    let mut rng = rand::rng();
    let child =
        (!children.is_empty()).then(|| children.get(usize::try_from(rng.next_u32()).expect("fits") % children.len()));
    let signal = |signal: Signal| {
        if let Some(Some(child)) = child {
            let _ = kill(Pid::from_raw(i32::try_from(child.pid).expect("a pid")), signal);
        }
    };
    match round % 8 {
        0 => {
            signal(Signal::SIGKILL);
            count(counts, "strike: child killed");
        }
        1 => {
            signal(Signal::SIGSTOP);
            count(counts, "strike: child stopped");
        }
        2 => {
            no_pair_on_its_way(deployment);
            let broker = deployment.broker.as_mut().expect("runs");
            broker.signal(Signal::SIGKILL);
            broker.wait().expect("it ends");
            // The next one refreshes at once what is due, and is not to be refused for this test's own sake: it would
            // pause just until the next strike on Forgejo, and so on in step.
            mode(deployment, &json!({}));
            deployment.start_broker().expect("the broker starts again");
            count(counts, "strike: broker killed");
        }
        3 => {
            let supervisor = deployment.supervisor.as_mut().expect("runs");
            supervisor.signal(Signal::SIGKILL);
            supervisor.wait().expect("it ends");
            deployment.start_supervisor().expect("the supervisor starts again");
            count(counts, "strike: supervisor killed");
        }
        4 => {
            mode(deployment, &json!({"fail": 500}));
            count(counts, "strike: Forgejo fails");
        }
        5 => {
            mode(deployment, &json!({"hang": true}));
            count(counts, "strike: Forgejo hangs");
        }
        6 => {
            // In order it loses no pair: it waits for what is on its way.
            deployment.broker.as_mut().expect("runs").stop().expect("it ends");
            deployment.start_broker().expect("the broker starts again");
            count(counts, "strike: broker restarted");
        }
        _ => {
            deployment.supervisor.as_mut().expect("runs").stop().expect("it ends");
            deployment.start_supervisor().expect("the supervisor starts again");
            count(counts, "strike: supervisor restarted");
        }
    }
}

fn mode(deployment: &Deployment, change: &Value) {
    let mut mode = json!({"access_ttl": TOKEN_LIFE, "hang": false, "lose_answer": false});
    if let (Some(mode), Some(change)) = (mode.as_object_mut(), change.as_object()) {
        mode.extend(change.clone());
    }
    deployment.stub("/stub/mode", &mode.to_string()).expect("the stub obeys");
}

/// Waits until the broker has stored every pair that Forgejo gave out, and has Forgejo give out no more. A broker that
/// is killed with a pair in its hands has lost it, and its user must log in again: Forgejo has one refresh token a user
/// and no way back. The broker uses a pair only when it is stored.
fn no_pair_on_its_way(deployment: &Deployment) {
    mode(deployment, &json!({"fail_tokens": true}));
    let deadline = Instant::now() + Duration::from_secs(20);
    while deployment.stub_says("/stub/pairs").expect("the stub answers") != "0" {
        assert!(Instant::now() < deadline, "the broker stores what it is given");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until broker and supervisor say themselves that nothing is left: the supervisor looks at a uid once more after
/// its last process has gone.
async fn settled(deployment: &Deployment) {
    let leases = if geteuid().is_root() { [0, 15] } else { [0, 0] };
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = deployment.ctl().args(["status", "--json"]).output().expect("brokerctl runs");
        let status: Value = serde_json::from_slice(&status.stdout).expect("json");
        let number = |path: &str| status.pointer(path).and_then(Value::as_u64).expect("a number");
        let left = ["/sessions", "/children", "/supervisor/children"].map(number);
        if left == [0, 0, 0] && ["/supervisor/uids_unclean", "/supervisor/uids_free"].map(number) == leases {
            return;
        }
        assert!(Instant::now() < deadline, "something is left: {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn resident(pid: u32) -> u64 {
    let process = processes().into_iter().find(|process| process.pid == pid).expect("it runs");
    process.field("VmRSS").split(' ').next().and_then(|kib| kib.parse().ok()).expect("KiB")
}

/// How many a process holds. The supervisor hides that from its own uid (it leaves no core file either), so only root can
/// look.
fn descriptors(pid: u32) -> usize {
    match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries.count(),
        Err(e) if geteuid().is_root() => panic!("the descriptors of {pid} cannot be counted: {e}"),
        Err(_) => 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_answered_once_and_nothing_is_left_over() {
    let seconds = std::env::var("CHAOS_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let mut config = config("chaos", stand_in(&["--check-token"]));
    config.oauth = true;
    "[forgejo]\nrefresh_lead = \"10s\"\n[http]\nrequest_timeout = \"3s\"\n\
     [sessions]\nstart_timeout = \"3s\"\ndrain = \"1s\"\nchildren_per_user = 6\n[oauth]\naccess_token_ttl = \"15s\"\n"
        .clone_into(&mut config.broker);
    config.supervisor =
        "[caps]\nspawns_per_second = 200\nspawn_burst = 400\n[stop]\neof_grace = \"100ms\"\nterm_grace = \"100ms\"\n"
            .to_owned();
    let mut deployment = Deployment::set(config).expect("a deployment");
    mode(&deployment, &json!({}));
    let mut logins = Vec::new();
    for login in USERS {
        deployment.user(login).expect("a user");
        let client = Client::register(&deployment).await;
        let (access, refresh) = client.connect(&mut user_agent(login), Decision::Allow).await;
        logins.push(Login { client_id: client.id, access, refresh });
    }

    let counts = Counts::default();
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    let supervisor_before = resident(deployment.supervisor.as_ref().expect("runs").pid());
    let clients: Vec<_> = (0..SESSIONS)
        .map(|n| {
            let login = logins.get(n % USERS.len()).expect("a login").clone();
            tokio::spawn(client(deployment.url.clone(), login, n, until, Arc::clone(&counts)))
        })
        .collect();
    let mut round = 0;
    while Instant::now() + Duration::from_secs(5) < until {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        tokio::task::block_in_place(|| {
            mode(&deployment, &json!({}));
            strike(&mut deployment, round, &counts);
            round += 1;
        });
    }
    mode(&deployment, &json!({}));
    for client in clients {
        if let Err(e) = client.await {
            let log = deployment.broker.as_ref().expect("runs").output();
            let reasons: Vec<&str> = log.lines().filter(|line| line.contains("reason=")).collect();
            panic!("a client saw an unclear answer: {e}\n{}", reasons.join("\n"));
        }
    }

    // The sessions are ended; what they used must go.
    let gone = async {
        while !deployment.children().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("no child is left");
    settled(&deployment).await;
    let (broker, supervisor) =
        (deployment.broker.as_ref().expect("runs").pid(), deployment.supervisor.as_ref().expect("runs").pid());
    assert!(descriptors(broker) < 40, "the broker holds {} descriptors", descriptors(broker));
    assert!(descriptors(supervisor) < 25, "the supervisor holds {} descriptors", descriptors(supervisor));
    let (broker_after, supervisor_after) = (resident(broker), resident(supervisor));
    let rotated: u64 = {
        let log = deployment.broker.as_ref().expect("runs").output();
        u64::try_from(log.matches("token refreshed").count()).expect("fits")
    };
    println!("chaos: {seconds} s, {} strikes and answers:", counts.lock().len());
    for (what, number) in counts.lock().iter() {
        println!("chaos: {number:>7} {what}");
    }
    println!("chaos: {rotated:>7} tokens of Forgejo's refreshed");
    println!(
        "chaos: broker {broker_after} KiB, {} descriptors; supervisor {supervisor_before} KiB before, {supervisor_after} KiB after",
        descriptors(broker)
    );
    assert!(supervisor_after < supervisor_before + 2048, "the supervisor grew");
    assert!(counts.lock().get("answered").copied().unwrap_or_default() > 100, "most of it is work");
    assert!(rotated > 0, "Forgejo's tokens rotated underneath");
    assert!(counts.lock().get("client refreshed").is_some(), "and the clients' own");
}
