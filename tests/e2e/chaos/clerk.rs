//! The operator's clerk and a client that registers: what the broker says is done is looked up when everything is over.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::caller::Caller;
use super::ledger::{Answered, Outcome, Promise};

/// Between two rounds of work.
const PAUSE: Duration = Duration::from_millis(300);

/// Works for users of its own, whose Forgejo tokens it has.
pub(crate) struct Clerk {
    pub(crate) caller: Caller,
    pub(crate) admin: PathBuf,
    /// Logins, with a Forgejo token each.
    pub(crate) users: Vec<(String, String)>,
}

impl Clerk {
    pub(crate) async fn work(self, over: Arc<AtomicBool>) {
        for (number, (login, forgejo_token)) in self.users.iter().enumerate() {
            if over.load(Ordering::SeqCst) {
                return;
            }
            self.token(login, forgejo_token, number.is_multiple_of(2));
            self.register(number).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Makes a token, and revokes it again.
    fn token(&self, login: &str, forgejo_token: &str, revoke: bool) {
        let created = self.ctl(&["token", "create", "--user", login], forgejo_token);
        let Some(token) = created.map(|text| text.trim().to_owned()) else { return };
        self.caller.ledger.count("operator: token created");
        if !revoke {
            return self.caller.ledger.promise(Promise::Created { token });
        }
        let list = self.ctl(&["token", "list", "--user", login, "--json"], "");
        let list: Value = serde_json::from_str(&list.unwrap_or_default()).unwrap_or_default();
        let Some(id) = list.pointer("/0/id").and_then(Value::as_str) else { return };
        if self.ctl(&["token", "revoke", id], "").is_some() {
            self.caller.ledger.count("operator: token revoked");
            self.caller.ledger.promise(Promise::Revoked { token });
        }
    }

    async fn register(&self, number: usize) {
        let metadata = json!({"client_name": format!("Client {number}"),
            "redirect_uris": [format!("http://127.0.0.1:9/{number}")], "token_endpoint_auth_method": "none"});
        let Outcome::Answered(answer) = self.caller.json("/oauth/register", &metadata).await else { return };
        match (answer.status, answer.messages.first().and_then(|first| first.get("client_id")?.as_str())) {
            (201, Some(client)) => {
                self.caller.ledger.count("client registered");
                self.caller.ledger.promise(Promise::Registered { client: client.to_owned() });
            }
            (429 | 500..=503, _) => self.caller.ledger.count(&format!("registration refused: {}", answer.status)),
            _ => self.caller.ledger.broken(format!("register: {answer:?}")),
        }
    }

    /// What the operator's tool prints; none where it says that it could not.
    fn ctl(&self, arguments: &[&str], input: &str) -> Option<String> {
        let mut command = Command::new(harness::program("forgejo-mcp-brokerctl"));
        command.arg("--socket").arg(&self.admin).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (begun, input) = (Instant::now(), format!("{input}\n"));
        let output = tokio::task::block_in_place(|| -> std::io::Result<Output> {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that reads nothing has gone before.
                let _ = stdin.write_all(input.as_bytes());
            }
            child.wait_with_output()
        });
        let output = output.expect("it runs");
        if self.caller.ledger.late(begun) {
            self.caller.ledger.broken(format!("brokerctl {}: took {:?}", arguments.join(" "), begun.elapsed()));
        }
        if output.status.success() {
            return Some(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        self.caller.ledger.count("operator: refused");
        None
    }
}

/// Whether what was promised is so; what is wrong where it is not.
pub(crate) async fn kept(caller: &Caller, promise: &Promise) -> Result<(), String> {
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    let (outcome, right): (Outcome, &[u16]) = match promise {
        Promise::Ended { token, session } => (caller.ask(token, Some(session), &ping).await, &[404, 410, 401]),
        // A good token without a session, and a bad one.
        Promise::Created { token } => (caller.ask(token, None, &ping).await, &[400]),
        Promise::Revoked { token } => (caller.ask(token, None, &ping).await, &[401]),
        // An unknown client is 401 before anything else.
        Promise::Registered { client } => {
            (caller.form("/oauth/token", &[("client_id", client), ("grant_type", "none")]).await, &[400])
        }
    };
    match outcome {
        Outcome::Answered(Answered { status, .. }) if right.contains(&status) => Ok(()),
        other => Err(format!("{promise}, and is not: {other:?}")),
    }
}
