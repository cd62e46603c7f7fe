//! Many users work while everything that can go wrong does, at once: both programs are killed and restarted, children die,
//! hang and do their worst, Forgejo fails, the disk fills up, connections run short. Every request gets exactly one answer
//! or a clear error in its own time, tokens rotate underneath, nobody loses a login or a session but with their child, what
//! was answered as done is in the store, memory stays within its budget, and at the end nothing is left over.
//!
//! `CHAOS_SECONDS` and `CHAOS_SESSIONS` say how long and with how many users; CI's run has all kinds of disturbance, at a
//! smaller size.

mod caller;
mod clerk;
pub(crate) mod disk;
mod hostile;
mod idle;
mod ledger;
mod leftovers;
mod strike;
mod user;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use tokio::task::JoinHandle;

use crate::login::{Client, user_agent};
use crate::{config, stand_in};
use caller::Caller;
use clerk::Clerk;
use disk::SmallDisk;
use harness::deployment::Deployment;
use harness::user_agent::Decision;
use ledger::{Ledger, REQUEST_TIMEOUT};
use leftovers::{Before, OwnCgroup, Watch};
use strike::{Striker, mode};
use user::{Login, User};

/// Who logs in with Forgejo, whose tokens rotate; everybody else has a token of the operator's.
const LOGGED_IN: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];
/// Uids that no other test uses, enough for all users.
const FIRST_UID: u32 = 82_000;
const UIDS: u32 = 400;
/// What the broker may hold in memory for a user (`memory_per_user`, the default), and what it has beside that: itself,
/// connections, sessions. In MiB.
const BUDGET: u64 = 96;
const BESIDE: u64 = 160;
/// How long the disk is full at a time; it is free for twice as long.
const DISK_FULL: Duration = Duration::from_secs(4);

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Caps are the defaults; only what would not pass within the run is shortened.
fn deployment(cgroup: Option<&OwnCgroup>) -> (Deployment, Option<Arc<SmallDisk>>) {
    let mut config = config("chaos", stand_in(&["--check-token"]));
    config.oauth = true;
    config.first_uid = FIRST_UID;
    config.broker = format!(
        "[forgejo]\nrefresh_lead = \"10s\"\n[http]\nrequest_timeout = \"{}s\"\ntrusted_proxies = [\"127.0.0.0/17\"]\n\
         [sessions]\nstart_timeout = \"10s\"\ndrain = \"2s\"\n[oauth]\naccess_token_ttl = \"15s\"\n",
        REQUEST_TIMEOUT.as_secs()
    );
    config.supervisor = format!("[uids]\ncount = {UIDS}\n[stop]\ndrain = \"2s\"\n");
    if let Some(cgroup) = cgroup {
        config.supervisor = format!("{}[cgroup]\nroot = \"{}\"\n", config.supervisor, cgroup.0.display());
    }
    let disk = SmallDisk::mount(&config.dir.join("broker"));
    (Deployment::set(config).expect("a deployment"), disk)
}

/// A user with a token of the operator's; the token, and the Forgejo token behind it.
fn personal(deployment: &Deployment, login: &str) -> (String, String) {
    let forgejo_token = deployment.forge_token(login).expect("a Forgejo token");
    (deployment.broker_token(login, &forgejo_token, &[]).expect("a token"), forgejo_token)
}

/// Everybody who takes part.
struct People {
    users: Vec<(String, Login)>,
    /// Logins of the users with a token of the operator's, by their Forgejo token.
    ordinary: HashMap<String, String>,
    /// Logins and tokens.
    hostile: Vec<(String, String)>,
    /// Logins and Forgejo tokens, for the clerk.
    clerks: Vec<(String, String)>,
}

impl People {
    async fn gather(deployment: &Deployment, sessions: usize, hostile: usize, clerks: u64) -> Self {
        let mut users = Vec::new();
        for login in LOGGED_IN {
            deployment.user(login).expect("a user");
            let client = Client::register(deployment).await;
            let (access, refresh) = client.connect(&mut user_agent(login), Decision::Allow).await;
            users.push((login.to_owned(), Login::Pair { client_id: client.id, access, refresh }));
        }
        tokio::task::block_in_place(|| {
            let mut ordinary = HashMap::new();
            for login in (users.len()..sessions).map(|n| format!("user{n}")) {
                let (token, forgejo_token) = personal(deployment, &login);
                users.push((login.clone(), Login::Personal(token)));
                ordinary.insert(forgejo_token, login);
            }
            let hostile = (0..hostile).map(|n| format!("hostile{n}"));
            let hostile = hostile.map(|login| (login.clone(), personal(deployment, &login).0)).collect();
            let clerks = (0..clerks).map(|n| format!("clerk{n}"));
            let forgejo_token = |login: &str| deployment.forge_token(login).expect("a Forgejo token");
            let clerks = clerks.map(|login| (login.clone(), forgejo_token(&login))).collect();
            Self { users, ordinary, hostile, clerks }
        })
    }

    fn logins(&self) -> impl Iterator<Item = &String> {
        self.users.iter().map(|(login, _)| login).chain(self.hostile.iter().map(|(login, _)| login))
    }
}

/// Those who work and those who disturb, until each has come to an end.
struct Working {
    /// Nothing disturbs any more.
    calm: Arc<AtomicBool>,
    /// Nobody works any more.
    over: Arc<AtomicBool>,
    watch: Arc<Watch>,
    tasks: Vec<JoinHandle<()>>,
}

impl Working {
    fn begin(
        deployment: &Deployment,
        people: &People,
        disk: Option<&Arc<SmallDisk>>,
        pause: Duration,
        ledger: &Arc<Ledger>,
    ) -> Self {
        let (over, calm) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let caller = |login: &str, number| Caller::new(&deployment.url, login, number, ledger);
        let mut tasks = Vec::new();
        for ((n, (login, pair)), round) in people.users.iter().enumerate().zip(0..) {
            let user = User::new(caller(login, n), pair.clone(), round, pause);
            tasks.push(tokio::spawn(user.work(Arc::clone(&over))));
        }
        for (n, (login, token)) in people.hostile.iter().enumerate() {
            tasks.push(tokio::spawn(hostile::play(caller(login, 500 + n), token.clone(), n, Arc::clone(&calm))));
        }
        let clerk = Clerk { caller: caller("the clerk", 600), admin: deployment.admin(), users: people.clerks.clone() };
        tasks.push(tokio::spawn(clerk.work(Arc::clone(&calm))));
        let (url, addresses) = (deployment.url.clone(), idle::addresses());
        tasks.push(tokio::spawn(idle::hold(url, addresses, Arc::clone(ledger), Arc::clone(&calm))));
        tasks.extend(disk.map(|disk| {
            tokio::spawn(Arc::clone(disk).fill_and_free(DISK_FULL, Arc::clone(ledger), Arc::clone(&calm)))
        }));
        let watch = Arc::new(Watch::default());
        watch.follow(deployment);
        tasks.push(tokio::spawn(Arc::clone(&watch).look(Arc::clone(&over))));
        Self { calm, over, watch, tasks }
    }
}

/// What was said to be done is looked up twice: after a restart everything is read from the store.
async fn look_back(deployment: &mut Deployment, ledger: &Arc<Ledger>) {
    let looking = Caller::new(&deployment.url, "the look back", 700, ledger);
    for _ in 0..2 {
        for promise in ledger.promises() {
            if let Err(what) = clerk::kept(&looking, &promise).await {
                ledger.broken(what);
            }
        }
        tokio::task::block_in_place(|| {
            deployment.broker.as_mut().expect("runs").stop().expect("it ends");
            deployment.start_broker().expect("the broker starts again");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_answered_once_nothing_is_lost_and_nothing_is_left_over() {
    const NAME: &str = "chaos::every_request_is_answered_once_nothing_is_lost_and_nothing_is_left_over";
    if !geteuid().is_root() {
        crate::skip("the full disk of the chaos run", "only root can mount a small file system");
    } else if !tokio::task::block_in_place(|| disk::in_mounts_of_its_own(NAME)) {
        return;
    }
    let seconds = from_environment("CHAOS_SECONDS", 60);
    let sessions = u32::try_from(from_environment("CHAOS_SESSIONS", 30)).expect("fits");
    let hostile = if sessions < 100 { 4 } else { 8 };
    let cgroup = OwnCgroup::new();
    let (mut deployment, disk) = tokio::task::block_in_place(|| deployment(cgroup.as_ref()));
    mode(&deployment, &serde_json::json!({}));
    let before = Before::look(&deployment);
    let ledger = Arc::new(Ledger::default());
    let people = People::gather(&deployment, usize::try_from(sessions).expect("fits"), hostile, 2 * seconds).await;

    let pause = Duration::from_millis(5) * sessions;
    let Working { calm, over, watch, tasks } = Working::begin(&deployment, &people, disk.as_ref(), pause, &ledger);
    let between = Duration::from_secs(1) + Duration::from_millis(20) * sessions;
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut round = 0;
    // On a slow machine longer, so that nothing is left out.
    while round < strike::KINDS.len() || Instant::now() + REQUEST_TIMEOUT / 2 < until {
        tokio::time::sleep(between).await;
        tokio::task::block_in_place(|| {
            let (ledger, ordinary, disk) = (&*ledger, &people.ordinary, disk.as_deref());
            Striker { deployment: &mut deployment, ledger, disk, ordinary }.strike(round);
            round += 1;
            watch.follow(&deployment);
        });
    }
    // Nothing goes wrong any more: everybody is served again.
    mode(&deployment, &serde_json::json!({}));
    calm.store(true, Ordering::SeqCst);
    tokio::time::sleep(until.saturating_duration_since(Instant::now())).await;
    over.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.expect("no panic");
    }

    // Sessions are left only where a client never heard of its own, or did not wait until it was ended, or where a full disk
    // took no end and the broker was gone before it did.
    let left = leftovers::number(&leftovers::status(&deployment), "/sessions");
    let explained = ledger.counted("initialize without an answer") + ledger.counted("hostile: session left behind");
    let output = deployment.broker.as_ref().expect("runs").output();
    let not_stored = output.matches("what became of a session could not be stored").count();
    if left > explained + u64::try_from(not_stored).expect("fits") {
        ledger.broken(format!("{left} sessions are left"));
    }
    look_back(&mut deployment, &ledger).await;
    let (report, broken) = ledger.report();
    let highest = watch.highest_kib.load(Ordering::SeqCst) / 1024;
    let rotated = output.matches("token refreshed").count();
    let supervisor = deployment.supervisor.as_ref().expect("runs").pid();
    let supervisor_after = leftovers::resident(supervisor).expect("it runs");
    println!(
        "chaos: {seconds} s, {sessions} users, {hostile} hostile ones, {round} strikes\n{report}\n\
         chaos: {rotated:>7} tokens of Forgejo's refreshed, {left} unknown sessions, {} promises looked up\n\
         chaos: broker at most {highest} MiB; supervisor {} KiB before, {supervisor_after} KiB after",
        ledger.promises().len(),
        before.supervisor_resident
    );
    assert!(broken.is_empty(), "{} promises are broken:\n{}", broken.len(), broken.join("\n"));
    for login in people.logins() {
        let ended = deployment.ctl().args(["user", "end", login]).output().expect("brokerctl runs");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let range = FIRST_UID..FIRST_UID + UIDS;
    leftovers::nothing(&deployment, &before, range, cgroup.as_ref().map(|cgroup| &*cgroup.0)).await;

    assert!(highest < BUDGET * u64::try_from(hostile).expect("fits") + BESIDE, "the broker had {highest} MiB");
    assert!(supervisor_after < before.supervisor_resident + 2048, "the supervisor grew to {supervisor_after} KiB");
    assert!(ledger.counted("answered") > 10 * u64::from(sessions), "most of it is work");
    let refused = ["broker not started: disk full", "registration refused: 503", "refresh refused: 503"];
    let refused: u64 = refused.map(|what| ledger.counted(what)).into_iter().sum();
    assert!(disk.is_none() || refused > 0, "the full disk was felt");
    assert!(rotated > 0 && ledger.counted("client refreshed") > 0, "tokens rotated underneath");
}
