//! What goes wrong, one after the other: children, Forgejo, and both programs, killed and restarted.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use serde_json::{Value, json};

use super::disk::SmallDisk;
use super::ledger::{Ledger, Why};
use harness::deployment::{Deployment, Process};

/// Seconds that a Forgejo token lives: every user's is refreshed several times.
const TOKEN_LIFE: u64 = 20;
/// How long a broker may fail to start because its disk is full; a service manager tries as often.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// All kinds, in the order in which they come.
pub(crate) const KINDS: [Kind; 10] = [
    Kind::ChildKilled,
    Kind::ChildStopped,
    Kind::BrokerKilled,
    Kind::SupervisorKilled,
    Kind::ForgejoFails,
    Kind::ForgejoHangs,
    Kind::BrokerRestarted,
    Kind::SupervisorRestarted,
    Kind::BothKilled,
    Kind::BrokerRestartedOnFullDisk,
];

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    ChildKilled,
    ChildStopped,
    BrokerKilled,
    SupervisorKilled,
    ForgejoFails,
    ForgejoHangs,
    BrokerRestarted,
    SupervisorRestarted,
    BothKilled,
    BrokerRestartedOnFullDisk,
}

/// Strikes a deployment.
pub(crate) struct Striker<'a> {
    pub(crate) deployment: &'a mut Deployment,
    pub(crate) ledger: &'a Ledger,
    pub(crate) disk: Option<&'a SmallDisk>,
    /// Logins of ordinary users by their Forgejo token, which tells whose a child is.
    pub(crate) ordinary: &'a HashMap<String, String>,
}

impl Striker<'_> {
    /// The strike of this round.
    pub(crate) fn strike(&mut self, round: usize) {
        mode(self.deployment, &json!({}));
        let kind = KINDS.iter().cycle().nth(round).copied().expect("it never ends");
        match kind {
            Kind::ChildKilled => self.child(Signal::SIGKILL),
            Kind::ChildStopped => self.child(Signal::SIGSTOP),
            Kind::BrokerKilled => self.kill_broker(),
            Kind::SupervisorKilled => self.kill_supervisor(),
            Kind::ForgejoFails => mode(self.deployment, &json!({"fail": 500})),
            Kind::ForgejoHangs => mode(self.deployment, &json!({"hang": true})),
            Kind::BrokerRestarted => self.restart_broker(),
            // Its WAL is gone then and nothing takes its place: what comes is written on a disk that has no room.
            Kind::BrokerRestartedOnFullDisk => {
                self.disk.inspect(|disk| disk.wait_until_full());
                self.restart_broker();
            }
            Kind::SupervisorRestarted => {
                self.deployment.supervisor.as_mut().expect("runs").stop().expect("it ends");
                self.deployment.start_supervisor().expect("the supervisor starts again");
            }
            Kind::BothKilled => {
                self.kill_supervisor();
                self.kill_broker();
            }
        }
        self.ledger.count(&format!("strike: {kind:?}"));
    }

    /// A signal to a child of an ordinary user with one session.
    fn child(&self, signal: Signal) {
        let children = self.deployment.children();
        let whose = |child: &Process| self.ordinary.get(&token_of(child)?).cloned();
        let mut candidates: Vec<_> = children.iter().filter_map(|child| Some((child, whose(child)?))).collect();
        if candidates.is_empty() {
            return;
        }
        let chosen = usize::try_from(rand::rng().next_u32()).expect("fits") % candidates.len();
        let (child, login) = candidates.swap_remove(chosen);
        // Noted before: its client may hear of it at once.
        if signal == Signal::SIGKILL {
            self.ledger.killed(&login);
        }
        let _ = kill(Pid::from_raw(i32::try_from(child.pid).expect("a pid")), signal);
    }

    /// In order it loses no pair: it waits for what is on its way.
    fn restart_broker(&mut self) {
        let away = self.ledger.broker_away(Why::Restarted);
        self.deployment.broker.as_mut().expect("runs").stop().expect("it ends");
        self.start_broker();
        drop(away);
    }

    fn kill_broker(&mut self) {
        self.no_pair_on_its_way();
        let away = self.ledger.broker_away(Why::Killed);
        let broker = self.deployment.broker.as_mut().expect("runs");
        broker.signal(Signal::SIGKILL);
        broker.wait().expect("it ends");
        // The next one refreshes at once what is due, and is not to be refused for this test's own sake: it would pause
        // just until the next strike on Forgejo, and so on in step.
        mode(self.deployment, &json!({}));
        self.start_broker();
        drop(away);
    }

    fn kill_supervisor(&mut self) {
        let supervisor = self.deployment.supervisor.as_mut().expect("runs");
        supervisor.signal(Signal::SIGKILL);
        supervisor.wait().expect("it ends");
        self.deployment.start_supervisor().expect("the supervisor starts again");
    }

    /// As a service manager does: where it does not start on a full disk, again.
    fn start_broker(&mut self) {
        let begun = Instant::now();
        loop {
            let this_time = Instant::now();
            let Err(e) = self.deployment.start_broker() else { return };
            let full = self.disk.is_some_and(|disk| disk.was_full_since(this_time));
            assert!(full && begun.elapsed() < STARTS_WITHIN, "the broker does not start: {e}");
            self.ledger.count("broker not started: disk full");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the broker has stored every pair that Forgejo gave out, and has Forgejo give out no more. A broker that
    /// is killed with a pair in its hands has lost it, and its user must log in again: Forgejo has one refresh token a user
    /// and no way back. The broker uses a pair only when it is stored.
    fn no_pair_on_its_way(&self) {
        mode(self.deployment, &json!({"fail_tokens": true}));
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.deployment.stub_says("/stub/pairs").expect("the stub answers") != "0" {
            assert!(Instant::now() < deadline, "the broker stores what it is given");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Lets Forgejo work but for this.
pub(crate) fn mode(deployment: &Deployment, change: &Value) {
    let mut mode = json!({"access_ttl": TOKEN_LIFE, "hang": false, "lose_answer": false});
    if let (Some(mode), Some(change)) = (mode.as_object_mut(), change.as_object()) {
        mode.extend(change.clone());
    }
    deployment.stub("/stub/mode", &mode.to_string()).expect("the stub obeys");
}

/// The Forgejo token that a child was given.
fn token_of(child: &Process) -> Option<String> {
    let environment = child.file("environ");
    let token = environment.split(|&b| b == 0).find_map(|entry| entry.strip_prefix(b"FORGEJO_ACCESS_TOKEN="))?;
    Some(String::from_utf8_lossy(token).into_owned())
}
