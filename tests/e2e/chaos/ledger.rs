//! What was asked, what was answered, and what was promised: the one place that says what a broken promise is.
//!
//! A request has its answer in its own time, whatever is going on, except that a broker that is being stopped or killed
//! may close a connection, and that nobody is answered while there is none. A session that opened goes on unless its child
//! was killed. What was answered as done is in the store.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;

/// The broker's `request_timeout`.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// What a request may take beyond it: the look at its token, a place among the connections, a busy machine.
const SLACK: Duration = Duration::from_secs(15);

/// Bodies above this do not fit into a connection's buffers.
const LARGE: usize = 64 << 10;

/// Something of the broker's that must outlast everything.
#[derive(Clone)]
pub(crate) enum Promise {
    /// The session with this id was ended under this token, and stays so; the token may end too.
    Ended { token: String, session: String },
    /// The operator was given this token.
    Created { token: String },
    /// The operator has revoked this token.
    Revoked { token: String },
    /// The client has been registered with this id.
    Registered { client: String },
}

impl std::fmt::Display for Promise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ended { .. } => "a session was ended",
            Self::Created { .. } => "a token was created",
            Self::Revoked { .. } => "a token was revoked",
            Self::Registered { .. } => "a client was registered",
        })
    }
}

/// What one request came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// With its status, its body as messages, and the headers that matter.
    Answered(Answered),
    /// The connection was lost, and may have been.
    Lost,
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) messages: Vec<Value>,
    pub(crate) session: Option<String>,
    pub(crate) says_when_to_come_back: bool,
}

impl Answered {
    /// The error's text, if the answer is one.
    pub(crate) fn error(&self) -> Option<&str> {
        self.messages.iter().find_map(|message| message.pointer("/error/message").and_then(Value::as_str))
    }
}

/// Why there is no broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Killed,
    Restarted,
}

/// When there was no broker, or an end of one.
#[derive(Debug, Clone, Copy)]
struct Away {
    why: Why,
    from: Instant,
    until: Option<Instant>,
}

#[derive(Default)]
struct Entries {
    counts: BTreeMap<String, u64>,
    broken: Vec<String>,
    away: Vec<Away>,
    /// Children that were killed, by the login of their user.
    killed: HashMap<String, u64>,
    promises: Vec<Promise>,
    slowest: Duration,
}

/// The ledger of one run.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Entries>);

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger")
    }
}

/// No broker, until dropped.
#[derive(Debug)]
pub(crate) struct BrokerAway<'a>(&'a Ledger, usize);

impl Drop for BrokerAway<'_> {
    fn drop(&mut self) {
        if let Some(away) = self.0.0.lock().away.get_mut(self.1) {
            away.until = Some(Instant::now());
        }
    }
}

impl Ledger {
    pub(crate) fn count(&self, what: &str) {
        *self.0.lock().counts.entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn counted(&self, what: &str) -> u64 {
        self.0.lock().counts.get(what).copied().unwrap_or_default()
    }

    /// An error by its kind: its words without what differs from case to case.
    pub(crate) fn count_error(&self, text: &str) {
        let words: String = text.chars().filter(|c| !c.is_ascii_digit()).take(72).collect();
        self.count(&format!("error: {words}"));
    }

    /// Notes that a promise did not hold.
    pub(crate) fn broken(&self, what: String) {
        self.0.lock().broken.push(what);
    }

    pub(crate) fn promise(&self, promise: Promise) {
        self.0.lock().promises.push(promise);
    }

    pub(crate) fn promises(&self) -> Vec<Promise> {
        self.0.lock().promises.clone()
    }

    /// From before the broker is told to go until the next one is ready.
    pub(crate) fn broker_away(&self, why: Why) -> BrokerAway<'_> {
        let mut entries = self.0.lock();
        entries.away.push(Away { why, from: Instant::now(), until: None });
        BrokerAway(self, entries.away.len() - 1)
    }

    /// How long there was no broker since `begun`.
    fn away_since(&self, begun: Instant) -> Duration {
        let now = Instant::now();
        let overlap = |away: &Away| away.until.unwrap_or(now).saturating_duration_since(away.from.max(begun));
        self.0.lock().away.iter().map(overlap).sum()
    }

    /// By when a request that began then is late.
    pub(crate) fn late(&self, begun: Instant) -> bool {
        begun.elapsed() > REQUEST_TIMEOUT + SLACK + self.away_since(begun)
    }

    /// Notes how a request ended that began then.
    pub(crate) fn over(&self, begun: Instant, what: &str, outcome: &Outcome, bytes: usize) {
        if matches!(outcome, Outcome::Lost) {
            let since = |away: &Away| away.until.is_none_or(|until| until >= begun);
            let why: Vec<Why> = self.0.lock().away.iter().filter(|away| since(away)).map(|away| away.why).collect();
            match why.first() {
                Some(Why::Killed) => self.count("connection lost with a killed broker"),
                Some(Why::Restarted) => self.count("connection lost with a restarted broker"),
                // Refused before it was read: the connection is closed on the rest, and may take the refusal along
                // (RFC 9112 section 9.6).
                None if bytes > LARGE => self.count("connection lost with a large body"),
                None => self.broken(format!(
                    "{what}: the connection was lost, and no broker was stopped, begun {:?} ago",
                    begun.elapsed()
                )),
            }
        }
        let mut entries = self.0.lock();
        entries.slowest = entries.slowest.max(begun.elapsed());
    }

    /// A child of the user with this login was killed.
    pub(crate) fn killed(&self, login: &str) {
        *self.0.lock().killed.entry(login.to_owned()).or_default() += 1;
    }

    /// A session of the user with this login is gone: that is right only as often as a child of theirs was killed.
    pub(crate) fn lost_session(&self, login: &str, status: u16) {
        self.count("session lost with its child");
        let mut entries = self.0.lock();
        match entries.killed.get_mut(login) {
            Some(killed) if *killed > 0 => *killed -= 1,
            _ => entries.broken.push(format!("{login}: a session is lost ({status}), and no child was killed")),
        }
    }

    /// All of it, for a person, and what did not hold.
    pub(crate) fn report(&self) -> (String, Vec<String>) {
        let entries = self.0.lock();
        let lines = entries.counts.iter().map(|(what, number)| format!("chaos: {number:>7} {what}\n"));
        let text: String = lines.chain([format!("chaos: the slowest answer took {:?}", entries.slowest)]).collect();
        (text, entries.broken.clone())
    }
}

#[test]
fn a_session_that_is_lost_without_a_killed_child_and_a_connection_lost_without_a_stop_are_broken_promises() {
    let ledger = Ledger::default();
    ledger.killed("alice");
    ledger.lost_session("alice", 404);
    let begun = Instant::now();
    drop(ledger.broker_away(Why::Restarted));
    ledger.over(begun, "a call", &Outcome::Lost, 0);
    assert_eq!(ledger.report().1, Vec::<String>::new());
    ledger.lost_session("alice", 404);
    ledger.over(Instant::now(), "a call", &Outcome::Lost, 0);
    assert_eq!(ledger.report().1.len(), 2);
}
