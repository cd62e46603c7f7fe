//! `cargo bench --bench store`: what 100,000 users, grants and sessions in the store cost everybody: refreshing a token,
//! `/account`, a start, memory, and the job that removes what is over. Read the ratios before the times; nothing here
//! passes or fails.
//!
//! A few users are real; the others are copies of what the broker wrote for them, under other names. `-- --users N` sets
//! how many.

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::process::Command;
use std::time::{Duration, Instant};

use harness::deployment::{Deployment, DeploymentConfig, Program, Result};
use harness::mcp_session::Session;
use harness::release;
use harness::times::{Times, ratio};
use harness::usage::resident;
use harness::user_agent::{Decision, UserAgent};
use serde_json::Value;
use url::Url;

/// Users who are real.
const PEOPLE: usize = 20;
/// Requests of each kind that each of them makes in a turn. A family of tokens is refreshed thirty times at once at most.
const REQUESTS: usize = 12;
const REDIRECT: &str = "https://client.example/callback";
const VERIFIER: &str = "a-verifier-of-forty-three-characters-or-more-0123";

/// Fills the database: argv is its path and the number of users. Names have no order, as the broker's own have none, and
/// neither have the times at which sessions were used. The last statement is what the tidy job finds.
const FILL: &str = r#"
import hashlib, sqlite3, sys
db, n = sqlite3.connect(sys.argv[1]), int(sys.argv[2])
db.create_function("name", 1, lambda i: hashlib.sha256(str(i).encode()).hexdigest()[:24], deterministic=True)
def copies(table, **other):
    names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(other.get(name, f"one.{name}") for name in names)
    db.execute(f"""WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {n})
        INSERT INTO {table} ({", ".join(names)}) SELECT {values} FROM c, (SELECT * FROM {table} LIMIT 1) one""")
copies("users", tenant="1000000 + i", login="'copy-' || i")
copies("upstream_credentials", id="name(i)", tenant="1000000 + i", access_expires_at="one.access_expires_at + 86400",
       checked_at="one.checked_at + 86400")
copies("grants", id="name(i)", tenant="1000000 + i", credential_id="name(i)", family_hash="randomblob(32)")
copies("sessions", session_hash="randomblob(32)", tenant="1000000 + i", grant_id="name(i)",
       last_used_at="one.last_used_at - abs(random()) % 3600")
copies("refresh_tokens", token_hash="randomblob(32)", grant_id="name(i)")
copies("access_tokens", token_hash="randomblob(32)", grant_id="name(i)", expires_at="1")
db.commit()
db.close()
"#;

/// Waits until the tidy job has found all of that: argv is the database's path.
const WAIT: &str = r#"
import sqlite3, sys, time
db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
while db.execute("SELECT EXISTS (SELECT 1 FROM access_tokens WHERE expires_at = 1)").fetchone()[0]:
    time.sleep(0.1)
"#;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut users = 100_000;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--users" => users = arguments.next().ok_or("--users needs a number")?.parse()?,
            // Cargo's own.
            "--bench" => {}
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let binaries = release::programs()?;
    let dir = binaries.parent().unwrap_or(&binaries).join("bench-store");
    let _ = std::fs::remove_dir_all(&dir);
    let child = binaries.join("stand-in-child");
    let mut config = DeploymentConfig::new(&binaries, &dir, Program::stand_in(&child, &["--fast"]));
    config.first_uid = 89_200;
    config.oauth = true;
    "[sessions]\ntotal = 1000000\n".clone_into(&mut config.broker);
    let mut deployment = Deployment::set(config)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(&mut deployment, users))
}

async fn measure(deployment: &mut Deployment, users: u32) -> Result<()> {
    let mut people = Vec::new();
    for n in 0..PEOPLE {
        people.push(Person::connect(deployment, &format!("user{n}")).await?);
    }
    let one = people.first().ok_or("nobody")?;
    // It is copied too, so it must not end.
    std::mem::forget(Session::open(&deployment.url, &one.access).await);
    let started = restart(deployment, None)?;
    let empty = Measured::of(&mut people, deployment).await?;
    let memory = resident(deployment.broker.as_ref());
    let loaded_start = restart(deployment, Some(users))?;
    // The job that removes what is over begins with the broker.
    let tidying = Measured::of(&mut people, deployment).await?;
    let tidied = python(deployment, WAIT, &[])?;
    let loaded = Measured::of(&mut people, deployment).await?;
    let loaded_memory = resident(deployment.broker.as_ref());
    let second_start = restart(deployment, None)?;
    println!("{users} users, grants, sessions and refresh tokens (x: against an empty store)");
    row("refresh", "empty", &empty.refresh, &empty.refresh);
    row("refresh", "full, while as many expired tokens are removed", &tidying.refresh, &empty.refresh);
    row("refresh", "full", &loaded.refresh, &empty.refresh);
    row("/account", "empty", &empty.account, &empty.account);
    row("/account", "full", &loaded.account, &empty.account);
    println!("  start: empty {started:.1?}, full {loaded_start:.1?}, and once more {second_start:.1?} (aim: 0.5 s)");
    let bytes = loaded_memory.saturating_sub(memory).saturating_mul(1024) / u64::from(users.max(1));
    println!("  the expired tokens were gone {tidied:.1?} after that");
    println!("  memory: empty {memory} KiB, full {loaded_memory} KiB: {bytes} bytes a stopped session");
    Ok(())
}

fn row(what: &str, when: &str, times: &Times, unit: &Times) {
    println!(
        "  {what:<9} {when:<48} p50 {:>8.1?}  p99 {:>8.1?}  max {:>8.1?}  x {:.2}",
        times.median(),
        times.at(99),
        times.at(100),
        ratio(times.median(), unit.median())
    );
}

/// Starts the broker anew, with copies of its user in the store where that is asked for; how long the start took.
fn restart(deployment: &mut Deployment, copies: Option<u32>) -> Result<Duration> {
    if let Some(mut broker) = deployment.broker.take() {
        broker.stop()?;
    }
    if let Some(users) = copies {
        python(deployment, FILL, &[&users.to_string()])?;
    }
    let began = Instant::now();
    deployment.start_broker()?;
    Ok(began.elapsed())
}

/// Runs a program over the database; how long it took.
fn python(deployment: &Deployment, program: &str, arguments: &[&str]) -> Result<Duration> {
    let database = deployment.config.dir.join("broker/broker.db");
    let began = Instant::now();
    let status = Command::new("python3").args(["-c", program]).arg(database).args(arguments).status()?;
    if status.success() { Ok(began.elapsed()) } else { Err("a program over the database failed".into()) }
}

#[derive(Default)]
struct Measured {
    refresh: Times,
    account: Times,
}

/// Who is real.
struct Person {
    http: reqwest::Client,
    user_agent: UserAgent,
    client: String,
    access: String,
    refresh: String,
}

impl Person {
    async fn connect(deployment: &Deployment, login: &str) -> Result<Self> {
        deployment.user(login)?;
        let http = harness::mcp_session::http();
        let metadata = serde_json::json!({"client_name": "Bench", "redirect_uris": [REDIRECT],
            "token_endpoint_auth_method": "none"});
        let answer = http.post(format!("{}/oauth/register", deployment.url)).json(&metadata).send().await?;
        let answer: Value = answer.json().await?;
        let client = answer.get("client_id").and_then(Value::as_str).ok_or("no client")?.to_owned();
        let mut user_agent = UserAgent::new(login, &format!("secret-of-{login}"));
        let query = [
            ("response_type", "code"),
            ("client_id", client.as_str()),
            ("redirect_uri", REDIRECT),
            ("code_challenge_method", "S256"),
            ("code_challenge", "oroLTuavjsSokHw90r4c-vQlAuGTf32wNsPC1UFaIZc"),
        ];
        let address = Url::parse_with_params(&format!("{}/oauth/authorize", deployment.url), query)?;
        let known = [deployment.url.as_str(), deployment.forgejo.as_str()];
        let page = user_agent.go(address.as_str(), &known, Decision::Allow).await;
        let to = page.location().ok_or("no redirect")?;
        let code = to.query_pairs().find(|(name, _)| name == "code").ok_or("no code")?.1.into_owned();
        let mut person = Self { http, user_agent, client, access: String::new(), refresh: String::new() };
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", &person.client),
            ("redirect_uri", REDIRECT),
            ("code", &code),
            ("code_verifier", VERIFIER),
        ];
        let tokens = person.tokens(deployment, &form).await?;
        (person.access, person.refresh) = tokens;
        Ok(person)
    }

    async fn tokens(&self, deployment: &Deployment, form: &[(&str, &str)]) -> Result<(String, String)> {
        let request = self.http.post(format!("{}/oauth/token", deployment.url)).form(form);
        let tokens: Value = request.send().await?.json().await?;
        let text = |name: &str| tokens.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
        Ok(text("access_token").zip(text("refresh_token")).ok_or_else(|| format!("no tokens: {tokens}"))?)
    }

    /// How long a refresh takes, and then the account page.
    async fn ask(&mut self, deployment: &Deployment) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        let form =
            [("grant_type", "refresh_token"), ("client_id", self.client.as_str()), ("refresh_token", &self.refresh)];
        let tokens = self.tokens(deployment, &form).await?;
        let refreshed = began.elapsed();
        (self.access, self.refresh) = tokens;
        let began = Instant::now();
        let page = self.user_agent.open(format!("{}/account", deployment.url)).await;
        let shown = began.elapsed();
        if !page.text.contains("Your connected clients") {
            return Err(format!("no account page: {} {}", page.status, page.text).into());
        }
        Ok((refreshed, shown))
    }
}

impl Measured {
    async fn of(people: &mut [Person], deployment: &Deployment) -> Result<Self> {
        let mut measured = Self::default();
        for _ in 0..REQUESTS {
            for person in &mut *people {
                let (refreshed, shown) = person.ask(deployment).await?;
                measured.refresh.0.push(refreshed);
                measured.account.0.push(shown);
            }
        }
        Ok(measured)
    }
}
