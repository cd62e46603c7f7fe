//! Off and on again: a user is renamed, another takes the login, that one is deleted and made again. Who is who Forgejo's
//! numbers say. The forge is the stub, or a real one.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::timeout;

use crate::login::{Client, login_deployment, user_agent};
use crate::stand_in;
use harness::deployment::Deployment;
use harness::mcp_session::{Session, http, post};
use harness::user_agent::{Decision, UserAgent};

/// Longer than the broker's own round of looks takes.
const PATIENCE: Duration = Duration::from_mins(3);

fn listed(deployment: &Deployment, arguments: &[&str]) -> Value {
    let output = deployment.ctl().arg("--json").args(arguments).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("json")
}

fn members<'a>(list: &'a Value, name: &str) -> Vec<&'a Value> {
    list.as_array().expect("a list").iter().map(|one| &one[name]).collect()
}

/// Has Forgejo asked about everybody anew, as a reload does, until the operator's list of users says this.
async fn until_users_are(deployment: &Deployment, logins: &[&str]) {
    deployment.broker.as_ref().expect("runs").signal(Signal::SIGHUP);
    let shown = async {
        loop {
            let users = listed(deployment, &["users"]);
            let found = members(&users, "login");
            if logins.iter().all(|login| found.contains(&&Value::from(*login))) {
                break;
            }
            harness::look_again().await;
        }
    };
    timeout(PATIENCE, shown).await.unwrap_or_else(|_| panic!("{:?}: {}", logins, deployment.output()));
}

fn number(deployment: &Deployment, login: &str) -> u64 {
    let users = listed(deployment, &["users"]);
    let user = users.as_array().expect("a list").iter().find(|user| user["login"] == login).expect("a user");
    user["number"].as_u64().expect("a number")
}

async fn account(deployment: &Deployment, user: &mut UserAgent) -> String {
    user.open(format!("{}/account", deployment.url)).await.text
}

#[tokio::test]
async fn a_user_is_a_number_whoever_has_their_login() {
    let deployment = login_deployment("off-and-on-again", stand_in(&[]), "");
    let stamp = wire::clock::Clock::system().now().secs();
    let (old, new) = (format!("ann-{stamp}"), format!("annie-{stamp}"));
    deployment.user(&old).expect("a user");
    let client = Client::register(&deployment).await;

    // Connected, and renamed: the session, the login at the page and the client's tokens go on.
    let mut ann = user_agent(&old);
    let (access, refresh) = client.connect(&mut ann, Decision::Allow).await;
    let mut hers = Session::open(&deployment.url, &access).await.expect("a session");
    assert!(crate::who(&mut hers).await.contains(&old));
    let first = number(&deployment, &old);
    deployment.rename(&old, &new).expect("renamed");
    until_users_are(&deployment, &[&new]).await;
    assert_eq!(number(&deployment, &new), first);
    assert!(crate::who(&mut hers).await.contains(&new), "the same session, by the new login");
    assert!(account(&deployment, &mut ann).await.contains(&new));
    let form = [("grant_type", "refresh_token"), ("client_id", client.id.as_str()), ("refresh_token", &refresh)];
    let (second, _) = client.tokens(&form).await;
    hers.change_token(&second);
    assert!(crate::who(&mut hers).await.contains(&new));
    assert_eq!(members(&listed(&deployment, &["sessions", "--user", &new]), "number"), [&Value::from(first)]);

    // Another takes the login: nothing of hers is theirs.
    deployment.user(&old).expect("another user");
    let mut other = user_agent(&old);
    let (theirs, _) = client.connect(&mut other, Decision::Allow).await;
    let another = number(&deployment, &old);
    assert_ne!(another, first);
    let mut stolen = hers.clone();
    stolen.change_token(&theirs);
    assert_eq!(stolen.send("tools/list", serde_json::json!({})).await.expect("an answer").0, 403);
    let page = account(&deployment, &mut other).await;
    assert!(page.contains(&old) && !page.contains(&new) && page.contains("0 open sessions"), "{page}");
    assert_eq!(members(&listed(&deployment, &["grants", "--user", &old]), "number"), [&Value::from(another)]);
    let by_number = listed(&deployment, &["grants", "--user", &format!("id:{first}")]);
    assert_eq!(members(&by_number, "user"), [&Value::from(new.as_str())]);
    assert!(crate::who(&mut hers).await.contains(&new), "and she goes on");
    let mut session = Session::open(&deployment.url, &theirs).await.expect("a session");
    assert!(crate::who(&mut session).await.contains(&old));

    // Deleted and made again: what was is over, and the new account begins with nothing.
    deployment.purge(&old).expect("deleted");
    deployment.user(&old).expect("a third user");
    deployment.broker.as_ref().expect("runs").signal(Signal::SIGHUP);
    let over = async {
        // Without a session: it is the login that is asked about.
        let ping = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
        while post(&http(), &deployment.url, &theirs, None, &ping).await.expect("an answer").status() != 401 {
            harness::look_again().await;
        }
    };
    timeout(PATIENCE, over).await.expect("the deleted account's login is over");
    let mut third = user_agent(&old);
    let (again, _) = client.connect(&mut third, Decision::Allow).await;
    assert!(number(&deployment, &old) > another);
    let mut stolen = session.clone();
    stolen.change_token(&again);
    let (status, _) = stolen.send("tools/list", serde_json::json!({})).await.expect("an answer");
    assert!([403, 404, 410].contains(&status.as_u16()), "{status}");
    assert_eq!(members(&listed(&deployment, &["grants", "--user", &old]), "revoked_at"), [&Value::Null]);
    let page = account(&deployment, &mut third).await;
    assert!(page.contains(&old) && page.contains("0 open sessions"), "{page}");
    assert!(crate::who(&mut hers).await.contains(&new), "nobody else has noticed");
}
