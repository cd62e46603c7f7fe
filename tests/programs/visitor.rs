//! Users and their clients, for tests in a booted container: logs in as a browser would, opens sessions and uses them, and
//! says in JSON what became of every call.
//!
//! ```text
//! visitor login  --broker URL --forgejo URL --users 25           one access token a user, one a line
//! visitor load   --broker URL --sessions 150 --until FILE < TOKENS   calls until FILE is there
//! visitor call   --broker URL --tool NAME [--arguments JSON] < TOKEN
//! ```

#![expect(clippy::print_stdout, reason = "this program talks to a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use parking_lot::Mutex;
use serde_json::{Value, json};
use url::Url;

use harness::mcp_session::{Result, Session, http};
use harness::user_agent::{Decision, UserAgent};

const REDIRECT: &str = "http://127.0.0.1:9/callback";
const VERIFIER: &str = "a-verifier-of-forty-three-characters-or-more-0123";
const CHALLENGE: &str = "oroLTuavjsSokHw90r4c-vQlAuGTf32wNsPC1UFaIZc";
/// A restart of either program, with what waits for it.
const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// Between two calls of one session, as of somebody who reads answers.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Parser)]
struct Options {
    #[arg(long, default_value = "http://127.0.0.1:8080", global = true)]
    broker: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Registers a client and logs so many users in, `u0`, `u1`, …
    Login {
        #[arg(long)]
        forgejo: String,
        #[arg(long, default_value_t = 1)]
        users: u32,
    },
    /// Opens sessions, round-robin over the tokens, and calls in each until a file appears.
    Load {
        #[arg(long, default_value_t = 1)]
        sessions: usize,
        #[arg(long)]
        until: PathBuf,
        /// Appears when all sessions are open.
        #[arg(long)]
        open: PathBuf,
        /// A call in each session that takes so long, in milliseconds, instead of a short one.
        #[arg(long, default_value_t = 0)]
        sleep: u64,
        /// One further session has a call that never ends.
        #[arg(long)]
        endless: bool,
    },
    /// Opens a session and calls one tool.
    Call {
        #[arg(long)]
        tool: String,
        #[arg(long, default_value = "{}")]
        arguments: String,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let url = options.broker.trim_end_matches('/').to_owned();
    match options.command {
        Command::Login { forgejo, users } => login(&url, &forgejo, users).await,
        Command::Load { sessions, until, open, sleep, endless } => {
            let load = Load { url, until, sleep, tally: Arc::default() };
            load.run(&tokens()?, sessions, &open, endless).await
        }
        Command::Call { tool, arguments } => {
            let token = tokens()?.into_iter().next().ok_or("no token")?;
            let mut session = Session::open(&url, &token).await?;
            let said = session.text(&tool, serde_json::from_str(&arguments)?).await;
            session.end().await?;
            println!("{}", said?);
            Ok(())
        }
    }
}

fn tokens() -> Result<Vec<String>> {
    let text = std::io::read_to_string(std::io::stdin())?;
    Ok(text.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect())
}

async fn login(url: &str, forgejo: &str, users: u32) -> Result<()> {
    let metadata = json!({"client_name": "Visitor", "redirect_uris": [REDIRECT], "token_endpoint_auth_method": "none"});
    let http = http();
    let registered = http.post(format!("{url}/oauth/register")).json(&metadata).send().await?;
    let registered: Value = registered.json().await?;
    let client = registered.get("client_id").and_then(Value::as_str).ok_or_else(|| registered.to_string())?;
    for user in 0..users {
        let name = format!("u{user}");
        let password = format!("secret-of-{name}");
        let account = json!({"login": name, "password": password});
        http.post(format!("{forgejo}/stub/users")).json(&account).send().await?.error_for_status()?;
        let query = [
            ("response_type", "code"),
            ("client_id", client),
            ("redirect_uri", REDIRECT),
            ("code_challenge_method", "S256"),
            ("code_challenge", CHALLENGE),
        ];
        let start = Url::parse_with_params(&format!("{url}/oauth/authorize"), query)?;
        let mut browser = UserAgent::new(&name, &password);
        let page = browser.go(start.as_str(), &[url, forgejo], Decision::Allow).await;
        let back = page.location().ok_or_else(|| format!("{}: {}", page.status, page.text))?;
        let code = back.query_pairs().find(|(name, _)| name == "code").ok_or_else(|| back.to_string())?.1.into_owned();
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", client),
            ("redirect_uri", REDIRECT),
            ("code", &code),
            ("code_verifier", VERIFIER),
        ];
        let tokens: Value = http.post(format!("{url}/oauth/token")).form(&form).send().await?.json().await?;
        println!("{}", tokens.get("access_token").and_then(Value::as_str).ok_or_else(|| tokens.to_string())?);
    }
    Ok(())
}

/// What every session does, and what came of it.
#[derive(Clone)]
struct Load {
    url: String,
    until: PathBuf,
    sleep: u64,
    tally: Arc<Mutex<Tally>>,
}

#[derive(Default)]
struct Tally {
    /// Calls with a result.
    answered: u64,
    /// Calls with an error that has the call's id, or a refusal that says when to come back.
    clear_errors: u64,
    /// Connections that nobody accepted.
    refused: u64,
    /// Answers that broke off, or never came.
    broken: u64,
    /// Sessions that did not go on.
    lost: u64,
    slowest: Duration,
    /// A few of what was not a result.
    examples: BTreeMap<String, u64>,
}

impl Load {
    async fn run(self, tokens: &[String], sessions: usize, open: &Path, endless: bool) -> Result<()> {
        let mut all = Vec::new();
        for (n, token) in tokens.iter().cycle().take(sessions + usize::from(endless)).enumerate() {
            let session = Session::open(&self.url, token).await.map_err(|e| format!("session {n}: {e}"))?;
            all.push(session);
        }
        let endless = endless.then(|| all.pop()).flatten();
        let endless = endless.map(|mut session| {
            tokio::spawn(
                async move { session.send("tools/call", json!({"name": "block", "arguments": {}})).await.is_ok() },
            )
        });
        let working: Vec<_> = all.into_iter().map(|session| tokio::spawn(self.clone().work(session))).collect();
        std::fs::write(open, "")?;
        for one in working {
            one.await?;
        }
        if let Some(endless) = endless {
            endless.abort();
        }
        let tally = self.tally.lock();
        println!(
            "{}",
            json!({"sessions": sessions, "answered": tally.answered, "clear_errors": tally.clear_errors,
                   "refused": tally.refused, "broken": tally.broken, "lost": tally.lost,
                   "slowest_ms": tally.slowest.as_millis(), "examples": tally.examples})
        );
        Ok(())
    }

    /// One call after another until the file is there; then one more that must have a result, or the session is lost.
    async fn work(self, mut session: Session) {
        let (tool, arguments) = match self.sleep {
            0 => ("echo", json!({"text": "x"})),
            ms => ("sleep", json!({"ms": ms})),
        };
        while !self.until.exists() {
            self.once(&mut session, tool, &arguments).await;
            tokio::time::sleep(PAUSE).await;
        }
        let begun = Instant::now();
        while !self.once(&mut session, "echo", &json!({"text": "x"})).await {
            if begun.elapsed() > HEALED_WITHIN {
                self.tally.lock().lost += 1;
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether it had a result.
    async fn once(&self, session: &mut Session, tool: &str, arguments: &Value) -> bool {
        let begun = Instant::now();
        let outcome = session.send("tools/call", json!({"name": tool, "arguments": arguments})).await;
        let mut tally = self.tally.lock();
        tally.slowest = tally.slowest.max(begun.elapsed());
        let said = match outcome {
            Ok((_, answer)) if answer.get("result").is_some() => {
                tally.answered += 1;
                return true;
            }
            Ok((status, answer)) => {
                match status.as_u16() {
                    401 | 403 | 404 | 410 => tally.lost += 1,
                    _ => tally.clear_errors += 1,
                }
                format!("{status} {}", answer.pointer("/error/message").unwrap_or(&answer))
            }
            Err(error) => {
                let refused = error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect);
                if refused {
                    tally.refused += 1;
                } else {
                    tally.broken += 1;
                }
                let mut said = error.to_string();
                let mut cause = error.source();
                while let Some(error) = cause {
                    said = format!("{said}: {error}");
                    cause = error.source();
                }
                said
            }
        };
        if tally.examples.len() < 10 || tally.examples.contains_key(&said) {
            *tally.examples.entry(said).or_default() += 1;
        }
        false
    }
}
