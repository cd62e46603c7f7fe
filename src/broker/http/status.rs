//! One line with live numbers for `systemctl status`.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::child::supervisor_client::{Contact, SupervisorSpawner};
use crate::session::registry::Registry;
use crate::store::Store;
use wire::lifecycle;

/// Pauses between two lines: the service manager need not hear of each session of a burst.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Where the numbers come from.
#[derive(Debug, Clone)]
pub(crate) struct StatusLine {
    registry: Registry,
    store: watch::Receiver<bool>,
    supervisor: watch::Receiver<Contact>,
}

impl StatusLine {
    /// Of these three.
    pub(crate) fn new(registry: &Registry, store: &Store, supervisor: &SupervisorSpawner) -> Self {
        Self { registry: registry.clone(), store: store.writes(), supervisor: supervisor.contact() }
    }

    /// The line as of now.
    pub(crate) fn text(&self) -> String {
        let (sessions, children) = self.registry.counts();
        let (users, most) = (self.registry.users(), self.registry.config().children.total);
        let store = if *self.store.borrow() { "ok" } else { "failing" };
        let supervisor = match *self.supervisor.borrow() {
            Contact::NotYet => "not asked yet",
            Contact::Connected => "connected",
            Contact::Away => "away",
        };
        format!(
            "{sessions} sessions of {users} users, {children} of at most {most} children; \
             store {store}, supervisor {supervisor}"
        )
    }

    /// Tells the service manager when the line changes, at most once in a [`STATUS_PAUSE`]. Ends never.
    pub(crate) async fn tell(mut self) {
        let mut told = String::new();
        loop {
            tokio::select! {
                () = self.registry.changed() => {}
                () = changed(&mut self.store) => {}
                () = changed(&mut self.supervisor) => {}
            }
            let line = self.text();
            if line != told {
                lifecycle::status(&line);
                told = line;
            }
            sleep(STATUS_PAUSE).await;
        }
    }
}

async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        pending::<()>().await;
    }
}
