//! An ordinary user: opens a session, calls, gets their own answers and nobody else's, loses nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::caller::{Caller, Opened, call};
use super::ledger::{Answered, Outcome};

/// After everything is over, how long a user may take to be served again: two deadlines, one for what is still under way.
const SERVED_AGAIN: Duration = Duration::from_secs(60);

/// What a user's client has to show.
#[derive(Debug, Clone)]
pub(crate) enum Login {
    /// A token that the operator made.
    Personal(String),
    /// A pair from logging in.
    Pair { client_id: String, access: String, refresh: String },
}

impl Login {
    pub(crate) fn token(&self) -> String {
        match self {
            Self::Personal(token) => token.clone(),
            Self::Pair { access, .. } => access.clone(),
        }
    }
}

/// One user and the session that they have.
pub(crate) struct User {
    caller: Caller,
    login: Login,
    session: Option<String>,
    round: u64,
    /// Between two requests.
    pause: Duration,
}

impl User {
    /// Begins with the round of this number, so that not all do the same at the same time.
    pub(crate) fn new(caller: Caller, login: Login, round: u64, pause: Duration) -> Self {
        Self { caller, login, session: None, round, pause }
    }

    /// Calls until it is over, then until once more an answer came, and ends the session.
    pub(crate) async fn work(mut self, over: Arc<AtomicBool>) {
        while !over.load(Ordering::SeqCst) {
            self.one_request().await;
            tokio::time::sleep(self.pause).await;
        }
        let since = Instant::now();
        while !self.one_request().await {
            if since.elapsed() > SERVED_AGAIN {
                self.caller.ledger.broken(format!("{} is not served again", self.caller.login));
                break;
            }
            tokio::time::sleep(self.pause).await;
        }
        self.end().await;
    }

    async fn end(&mut self) {
        let Some(id) = self.session.take() else { return };
        // As long as the end itself is not answered, it is asked for again.
        let since = Instant::now();
        while since.elapsed() < SERVED_AGAIN {
            match self.caller.end(&self.login.token(), &id).await {
                Outcome::Answered(Answered { status: 401, .. }) => self.refresh().await,
                Outcome::Answered(Answered { status: 204 | 404 | 410, .. }) => return,
                Outcome::Answered(Answered { status: 503, .. }) | Outcome::Lost => {
                    tokio::time::sleep(self.pause).await;
                }
                Outcome::Answered(other) => {
                    return self.caller.ledger.broken(format!("{}: DELETE: {other:?}", self.caller.login));
                }
            }
        }
        self.caller.ledger.broken(format!("{}: DELETE is not answered", self.caller.login));
    }

    /// One request of those that a user makes; whether the child answered it.
    async fn one_request(&mut self) -> bool {
        let ledger = Arc::clone(&self.caller.ledger);
        let token = self.login.token();
        let Some(session) = self.session.clone() else {
            match self.caller.open(&token).await {
                Opened::Session(id) => {
                    ledger.count("session opened");
                    self.session = Some(id);
                }
                Opened::Refused(401) => self.refresh().await,
                Opened::Refused(_) => {}
            }
            return false;
        };
        self.round += 1;
        let text = format!("{}-{}", self.caller.login, self.round);
        if self.round.is_multiple_of(16) {
            self.cancelled_call(&token, &session, &text).await;
            return false;
        }
        let message = call(text.clone(), "echo", &json!({"text": text}));
        let Outcome::Answered(answer) = self.caller.ask(&token, Some(&session), &message).await else { return false };
        match answer.status {
            200 => return self.answered(&text, &answer).await,
            401 => self.refresh().await,
            404 | 410 => {
                self.session = None;
                ledger.lost_session(&self.caller.login, answer.status);
            }
            429 | 503 => self.refused(&answer),
            _ => ledger.broken(format!("{text}: no clear answer: {answer:?}")),
        }
        false
    }

    async fn answered(&mut self, text: &str, answer: &Answered) -> bool {
        let ledger = Arc::clone(&self.caller.ledger);
        let own = |message: &&Value| message.get("id").and_then(Value::as_str) == Some(text);
        if answer.messages.len() != 1 || answer.messages.iter().filter(own).count() != 1 {
            ledger.broken(format!("{text}: not exactly one answer: {answer:?}"));
            return false;
        }
        if let Some(error) = answer.error() {
            ledger.count_error(error);
            if error.contains("did not answer within") {
                // Its child hangs. Nothing but another child helps, and a session has one.
                self.end().await;
            }
            return false;
        }
        let echoed = answer.messages.first().and_then(|first| first.pointer("/result/content/0/text"));
        if echoed.and_then(Value::as_str) != Some(text) {
            ledger.broken(format!("{text}: somebody else's answer: {answer:?}"));
        }
        ledger.count("answered");
        true
    }

    fn refused(&self, answer: &Answered) {
        self.caller.ledger.count(&format!("refused: {} {}", answer.status, answer.error().unwrap_or_default()));
        if !answer.says_when_to_come_back {
            self.caller.ledger.broken(format!("{}: a refusal without Retry-After: {answer:?}", self.caller.login));
        }
    }

    /// A call that would never end and is cancelled: it ends without an answer, or with whatever else ended it.
    async fn cancelled_call(&self, token: &str, session: &str, id: &str) {
        let endless = call(id, "block", &json!({}));
        let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
        let calling = self.caller.ask(token, Some(session), &endless);
        let cancelling = async {
            tokio::time::sleep(self.pause).await;
            self.caller.ask(token, Some(session), &cancel).await
        };
        if let (Outcome::Answered(answer), _) = tokio::join!(calling, cancelling) {
            match answer.messages.as_slice() {
                [] => self.caller.ledger.count("cancelled"),
                _ => self.caller.ledger.count_error(answer.error().unwrap_or("an answer to what was cancelled")),
            }
        }
    }

    /// The next pair of tokens. A try whose answer is lost is made again with the same refresh token, as clients do; the
    /// broker's grace is there for that.
    async fn refresh(&mut self) {
        let Login::Pair { client_id, access, refresh } = &mut self.login else {
            return self.caller.ledger.broken(format!("{}: a good token is refused", self.caller.login));
        };
        let form =
            [("grant_type", "refresh_token"), ("client_id", client_id.as_str()), ("refresh_token", refresh.as_str())];
        let Outcome::Answered(answer) = self.caller.form("/oauth/token", &form).await else { return };
        let tokens = answer.messages.first().cloned().unwrap_or_default();
        let text = |name: &str| tokens.get(name).and_then(Value::as_str).map(str::to_owned);
        match (answer.status, text("access_token"), text("refresh_token")) {
            (200, Some(new_access), Some(new_refresh)) => {
                (*access, *refresh) = (new_access, new_refresh);
                self.caller.ledger.count("client refreshed");
            }
            (429 | 503, ..) => self.caller.ledger.count(&format!("refresh refused: {}", answer.status)),
            _ => self.caller.ledger.broken(format!("{} loses their login: {answer:?}", self.caller.login)),
        }
    }
}
