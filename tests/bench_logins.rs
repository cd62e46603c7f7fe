//! `cargo bench --bench logins`: how many people can log in at once while each answer of the forge takes 300 ms, and what
//! an account about which it does not answer costs the others.
//!
//! The real broker and the stub of the forge run; what is timed is the way from the browser's return from Forgejo to the
//! client's code. Read the ratios before the times. Nothing here passes or fails.

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::deployment::{Deployment, DeploymentConfig, Program, Result};
use harness::release;
use harness::user_agent::{Decision, UserAgent};
use serde_json::Value;
use url::Url;

/// People who log in at once: several times as many as may ask Forgejo at once, so that the queue is measured and not the
/// one login.
const PEOPLE: usize = 200;
/// Logins one after the other.
const ALONE: usize = 5;
/// What an answer of the forge takes, in milliseconds.
const ANSWER: u64 = 300;
const REDIRECT: &str = "https://client.example/callback";

fn main() -> Result<()> {
    let binaries = release::programs()?;
    let dir = binaries.parent().unwrap_or(&binaries).join("bench-logins");
    let _ = std::fs::remove_dir_all(&dir);
    let child = binaries.join("stand-in-child");
    let mut config = DeploymentConfig::new(&binaries, &dir, Program::stand_in(&child, &["--fast"]));
    config.first_uid = 89_100;
    config.oauth = true;
    "[rates]\nlogins = 100000\nregistrations = 100000\n[http]\nconnections_per_address = 2000\n"
        .clone_into(&mut config.broker);
    let deployment = Deployment::set(config)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(&deployment))
}

async fn measure(deployment: &Deployment) -> Result<()> {
    let client = register(deployment).await?;
    let mut at_the_door = Vec::new();
    for n in 0..ALONE + 2 * PEOPLE {
        let login = format!("user{n}");
        deployment.user(&login)?;
        at_the_door.push(arrive(deployment, &client, &login).await?);
    }
    let (hanging, together) = (at_the_door.split_off(ALONE + PEOPLE), at_the_door.split_off(ALONE));
    let slow = |more: &str| deployment.stub("/stub/mode", &format!(r#"{{"slow":{ANSWER}{more}}}"#));
    slow("")?;
    let mut one = Vec::new();
    for person in at_the_door {
        one.push(enter(person).await?);
    }
    one.sort_unstable();
    let one = one.get(ALONE / 2).copied().unwrap_or_default();
    println!("logins while each answer of the forge takes {ANSWER} ms");
    println!("  one alone: {one:.2?}");
    report("at once", one, together).await?;
    // Nobody learns whose the first of these logins is.
    let answer = deployment.stub("/stub/users", &format!(r#"{{"login":"user{}"}}"#, ALONE + PEOPLE))?;
    let id = serde_json::from_str::<Value>(&answer)?.get("id").and_then(Value::as_i64).ok_or("no number")?;
    slow(&format!(r#","hang_api_of":{id}"#))?;
    let mut people = hanging.into_iter();
    let stuck = tokio::spawn(enter(people.next().ok_or("nobody")?));
    report("at once, beside one that hangs", one, people.collect()).await?;
    println!("  the one that hangs is {}", if stuck.is_finished() { "through" } else { "still waiting" });
    slow("")?;
    println!("  and through after {:.2?}, when the forge answers", stuck.await??);
    Ok(())
}

async fn report(what: &str, one: Duration, people: Vec<(UserAgent, Url)>) -> Result<()> {
    let (count, began) = (people.len(), Instant::now());
    for login in join_all(people.into_iter().map(|person| tokio::spawn(enter(person)))).await {
        login??;
    }
    let all = began.elapsed();
    println!(
        "  {count} {what}: {all:.2?}, x {:.1} of one; {:.0} a second (aim: 50)",
        all.as_secs_f64() / one.as_secs_f64(),
        f64::from(u32::try_from(count)?) / all.as_secs_f64()
    );
    Ok(())
}

/// From Forgejo's redirect to the client's code.
async fn enter((mut user_agent, to): (UserAgent, Url)) -> Result<Duration> {
    let began = Instant::now();
    let page = user_agent.open(&to).await;
    match page.location() {
        Some(to) if to.as_str().starts_with(REDIRECT) => Ok(began.elapsed()),
        _ => Err(format!("not logged in: {} {}", page.status, page.text).into()),
    }
}

/// A browser that Forgejo has just sent back.
async fn arrive(deployment: &Deployment, client: &str, login: &str) -> Result<(UserAgent, Url)> {
    let mut user_agent = UserAgent::new(login, &format!("secret-of-{login}"));
    let query = [
        ("response_type", "code"),
        ("client_id", client),
        ("redirect_uri", REDIRECT),
        ("state", "x"),
        ("code_challenge_method", "S256"),
        ("code_challenge", "oroLTuavjsSokHw90r4c-vQlAuGTf32wNsPC1UFaIZc"),
    ];
    let address = Url::parse_with_params(&format!("{}/oauth/authorize", deployment.url), query)?;
    let to = user_agent.go_up_to("/oauth/callback", address.as_str(), Decision::Allow).await;
    Ok((user_agent, to))
}

async fn register(deployment: &Deployment) -> Result<String> {
    let metadata = serde_json::json!({"client_name": "Bench", "redirect_uris": [REDIRECT],
        "token_endpoint_auth_method": "none"});
    let request = harness::mcp_session::http().post(format!("{}/oauth/register", deployment.url)).json(&metadata);
    let answer: Value = request.send().await?.json().await?;
    Ok(answer.get("client_id").and_then(Value::as_str).ok_or("no client")?.to_owned())
}
