//! The quickstart's second half, after `packaging/quickstart` has built everything: deploys the programs, runs a session for
//! each user, shows what runs as whom, and stays.

#![expect(clippy::print_stdout, reason = "this program talks to a person")]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use harness::deployment::{Deployment, DeploymentConfig, Program};
use harness::mcp_session::{Result, Session};

/// What `packaging/quickstart` hands on.
#[derive(Debug, Parser)]
struct Options {
    /// Where the programs were built.
    #[arg(long)]
    binaries: PathBuf,
    /// Where everything goes.
    #[arg(long)]
    dir: PathBuf,
    /// The child.
    #[arg(long)]
    child: PathBuf,
    /// An existing Forgejo.
    #[arg(long)]
    forgejo: Option<String>,
    /// Forgejo tokens, one a line.
    #[arg(long)]
    token_file: Option<PathBuf>,
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    #[arg(long, value_delimiter = ',', default_value = "alice,bob")]
    users: Vec<String>,
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    once: bool,
}

struct User {
    login: String,
    token: String,
    session: Session,
    pid: u32,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(options)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "quickstart: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<()> {
    let _ = fs::remove_dir_all(&options.dir);
    let mut config = DeploymentConfig::new(&options.binaries, &options.dir, Program::real(&options.child));
    config.listen.clone_from(&options.listen);
    config.forgejo = options.forgejo.as_ref().map(|url| url.trim_end_matches('/').to_owned());
    // With the demo forge people can log in; a real one must know the broker first (see README).
    config.oauth = config.forgejo.is_none();
    if let Some(file) = &options.config {
        (config.broker, config.supervisor) = split(file)?;
    }
    let elsewhere = within_reach(&mut config)?;
    if elsewhere.is_some() {
        println!(
            "   {} lies where others may not go, or may write: what runs under other uids is copied below /var/lib",
            options.dir.display()
        );
    }
    match &config.forgejo {
        Some(url) => println!("-- Forgejo: {url}"),
        None => {
            println!("-- Forgejo: a demo forge on this machine. It is the tests' stub of Forgejo's API, not Forgejo");
        }
    }
    println!("-- starting supervisor and broker");
    let privileged = config.privileged;
    let deployment = Deployment::set(config)?;
    if !privileged {
        println!("   NOT ISOLATED: without root all children run under your own uid and can read each other's tokens");
    }
    let mut users = Vec::new();
    for (login, forgejo_token) in forgejo_users(&deployment, &options).await? {
        let token = deployment.broker_token(&login, &forgejo_token, &["--client", "quickstart"])?;
        let before: Vec<u32> = deployment.children().iter().map(|child| child.pid).collect();
        let session = Session::open(&deployment.url, &token).await?;
        let pid = deployment.children().into_iter().map(|child| child.pid).find(|pid| !before.contains(pid));
        users.push(User { login, token, session, pid: pid.unwrap_or_default() });
    }
    println!("-- one session and one process a user; the same tools, each with its own user's answers");
    show_calls(&mut users).await?;
    println!("-- what runs");
    print!("{}", table(&deployment, &users));
    let env = options.dir.join("env");
    fs::create_dir_all(&options.dir)?;
    write_env(&env, &deployment, &users)?;
    if let Some(first) = users.first() {
        let url = &deployment.url;
        if options.forgejo.is_none() {
            users.iter().try_for_each(|user| deployment.user(&user.login))?;
            let logins: Vec<&str> = users.iter().map(|user| user.login.as_str()).collect();
            println!("-- connect an MCP client; it sends you to log in as {}", logins.join(" or "));
            println!("   each with the password `secret-of-LOGIN`, such as `secret-of-{}`", first.login);
            println!("   claude mcp add --transport http forgejo {url}/mcp");
            println!("   other clients: {url}/   connected clients: {url}/account");
        }
        println!("-- or without a login, with a token (all users' tokens: {})", env.display());
        println!(
            "   claude mcp add --transport http forgejo {url}/mcp --header \"Authorization: Bearer {}\"",
            first.token
        );
    }
    if options.once {
        println!("-- done (--once)");
    } else {
        // Before it is said, so that it holds.
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        println!("-- running; Ctrl-C ends it");
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        println!("\n-- stopping");
    }
    for user in &users {
        user.session.end().await?;
    }
    drop(deployment);
    drop(elsewhere);
    Ok(())
}

/// As root, moves what other uids must reach to a temporary directory if the checkout lies where they may not go, or where
/// others than root may write.
fn within_reach(config: &mut DeploymentConfig) -> Result<Option<tempfile::TempDir>> {
    let usable = |path: &Path| {
        use harness::deployment::{is_roots, others_may_enter};
        path.parent().is_some_and(|dir| others_may_enter(dir) && is_roots(dir))
    };
    if !config.privileged || (usable(&config.dir) && usable(&config.child.path)) {
        return Ok(None);
    }
    let elsewhere = tempfile::Builder::new().prefix("fmb").tempdir_in("/var/lib")?;
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o755))?;
    let copied = |from: &Path| -> Result<PathBuf> {
        let to = elsewhere.path().join(from.file_name().unwrap_or_default());
        fs::copy(from, &to)?;
        Ok(to)
    };
    config.child.path = copied(&config.child.path)?;
    config.broker_program = Some(copied(&config.binaries.join("forgejo-mcp-broker"))?);
    config.dir = elsewhere.path().join("run");
    Ok(Some(elsewhere))
}

/// `[broker]` and `[supervisor]` of one file, for each program its own.
fn split(file: &Path) -> Result<(String, String)> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut table: toml::Table = text.parse().map_err(|e| format!("{}: {e}", file.display()))?;
    let mut take = |key: &str| match table.remove(key) {
        Some(toml::Value::Table(inner)) => inner,
        _ => toml::Table::new(),
    };
    let (broker, supervisor) = (take("broker"), take("supervisor"));
    if let Some(key) = table.keys().next() {
        return Err(format!("{}: {key}: must be below [broker] or [supervisor]", file.display()).into());
    }
    Ok((toml_text(&broker), toml_text(&supervisor)))
}

/// A table as TOML: plain values first, then tables.
fn toml_text(table: &toml::Table) -> String {
    fn write(out: &mut String, path: &str, table: &toml::Table) {
        for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
            let _ = writeln!(out, "{key:?} = {value}");
        }
        for (key, value) in table {
            if let toml::Value::Table(inner) = value {
                let path = if path.is_empty() { format!("{key:?}") } else { format!("{path}.{key:?}") };
                let _ = writeln!(out, "[{path}]");
                write(out, &path, inner);
            }
        }
    }
    let mut out = String::new();
    write(&mut out, "", table);
    out
}

/// Logins and Forgejo tokens: of the demo forge, or of the file, whose tokens say whose they are.
async fn forgejo_users(deployment: &Deployment, options: &Options) -> Result<Vec<(String, String)>> {
    if options.forgejo.is_none() {
        return options.users.iter().map(|login| Ok((login.clone(), deployment.forge_token(login)?))).collect();
    }
    let file = options.token_file.as_ref().ok_or("--forgejo needs --token-file FILE with one Forgejo token a line")?;
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut users = Vec::new();
    for token in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let answer = harness::mcp_session::http()
            .get(format!("{}/api/v1/user", deployment.forgejo))
            .bearer_auth(token)
            .send()
            .await?;
        if !answer.status().is_success() {
            return Err(format!("{}: Forgejo does not accept a token: {}", file.display(), answer.status()).into());
        }
        let user: Value = serde_json::from_str(&answer.text().await?)?;
        let login = user.get("login").and_then(Value::as_str).ok_or("Forgejo's answer is no user")?;
        users.push((login.to_owned(), token.to_owned()));
    }
    if users.is_empty() { Err(format!("{}: holds no token", file.display()).into()) } else { Ok(users) }
}

/// Calls real tools for each user. Which ones there are depends on the child.
async fn show_calls(users: &mut [User]) -> Result<()> {
    let mut answers: Vec<String> = Vec::new();
    for user in users.iter_mut() {
        let tools = user.session.tools().await?;
        println!("   {}: {} tools", user.login, tools.len());
        let mut answered = String::new();
        for tool in ["whoami", "get_my_user_info", "list_my_repos"] {
            if tools.iter().any(|name| name == tool) {
                let text = user.session.text(tool, json!({})).await?;
                println!("   {}: {tool} -> {}", user.login, shortened(&text, &user.login));
                answered.push_str(&text);
            }
        }
        if !answered.contains(&user.login) {
            return Err(format!("the answers for {} do not name them: {answered}", user.login).into());
        }
        if answers.contains(&answered) {
            return Err("two users got the same answers".into());
        }
        answers.push(answered);
    }
    Ok(())
}

/// An answer in one line, from the user's first repository on where it lists them: some children answer whole records, whose
/// beginnings look alike.
fn shortened(text: &str, login: &str) -> String {
    const SHOWN: usize = 150;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (before, from) = match line.find(&format!("{login}/")) {
        Some(at) if line.chars().count() > SHOWN => ("…", line.split_at(at).1),
        _ => ("", line.as_str()),
    };
    let after = if from.chars().count() > SHOWN { "…" } else { "" };
    format!("{before}{}{after}", from.chars().take(SHOWN).collect::<String>())
}

fn table(deployment: &Deployment, users: &[User]) -> String {
    let mut out = String::new();
    let row = |out: &mut String, cells: [&str; 8]| {
        let [pid, uid, what, user, files, procs, data, cage] = cells;
        let _ = writeln!(out, "   {pid:>8} {uid:>6} {what:<12} {user:<12} {files:>6} {procs:>6} {data:>11} {cage}");
    };
    row(&mut out, ["PID", "UID", "PROCESS", "USER", "FILES", "PROCS", "DATA", "CAGE"]);
    let programs = [&deployment.supervisor, &deployment.broker];
    let all = harness::deployment::processes();
    for running in programs.into_iter().flatten() {
        if let Some(process) = all.iter().find(|process| process.pid == running.pid()) {
            let (pid, uid) = (process.pid.to_string(), process.uid().to_string());
            row(&mut out, [&pid, &uid, running.name, "-", "", "", "", ""]);
        }
    }
    for child in deployment.children() {
        let login = users.iter().find(|user| user.pid == child.pid).map_or("?", |user| user.login.as_str());
        let limit = |name: &str| child.limit(name).1;
        let (pid, uid) = (child.pid.to_string(), child.uid().to_string());
        let (files, procs, data) = (limit("Max open files"), limit("Max processes"), limit("Max data size"));
        let cage = format!("no_new_privs={} seccomp={}", child.field("NoNewPrivs"), child.field("Seccomp"));
        row(&mut out, [&pid, &uid, "forgejo-mcp", login, &files, &procs, &data, &cage]);
    }
    out
}

fn write_env(file: &Path, deployment: &Deployment, users: &[User]) -> Result<()> {
    let mut text = format!("URL={}/mcp\nFORGEJO_URL={}\n", deployment.url, deployment.forgejo);
    for user in users {
        let name: String =
            user.login.to_ascii_uppercase().chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        let _ = writeln!(text, "TOKEN_{name}={}", user.token);
    }
    let mut open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    Ok(open.write_all(text.as_bytes())?)
}
