//! The reaper: what has been idle for too long goes, children first, sessions much later.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::error;

use crate::chain::chain;
use crate::session::machine::{Effect, Event};
use crate::session::registry::{Registry, Session, lines};

impl Registry {
    /// One sweep. Requests in flight and running answers count as activity; an open stream of the session alone does
    /// not.
    pub(crate) async fn sweep(&self) {
        let (config, now) = (self.config(), self.0.clock.now());
        let idle_since = Instant::now().checked_sub(config.child_idle);
        let unused_since = now.minus(config.session_idle);
        for route in self.0.routes() {
            if let Some((number, bridge)) = route.child() {
                bridge.tick();
                if idle_since.is_some_and(|since| bridge.close_if_idle(since))
                    && let Effect::Stop(bridge) = route.step(Event::Stopped(number))
                {
                    lines::stopped(&route, &bridge, "child-idle");
                    bridge.stop();
                }
            }
        }
        let sessions: Vec<Arc<Session>> = self.0.sessions.lock().values().cloned().collect();
        for session in sessions.iter().filter(|session| session.is_unused_since(unused_since)) {
            self.end(session, "session-idle");
        }
        self.forget_cold_routes();
        self.save().await;
    }

    /// Writes what the store does not know yet: ends and moves that it did not take, and, each all at once, when sessions
    /// were last used and what their clients have set. What it does not take now waits for the next time.
    pub(crate) async fn save(&self) {
        self.store_changes_again().await;
        let sessions: Vec<Arc<Session>> = self.0.sessions.lock().values().cloned().collect();
        let used: Vec<_> = sessions.iter().filter_map(|session| Some((session, session.unsaved_use()?))).collect();
        if !used.is_empty() {
            let times: Vec<_> = used.iter().map(|(session, at)| (session.digest, *at)).collect();
            match self.0.records.touch(&times).await {
                Ok(()) => used.iter().for_each(|(session, at)| session.use_saved(*at)),
                Err(error) => {
                    error!(error = %error, "the last use of sessions could not be stored: {}", chain(&error));
                }
            }
        }
        let set = |session: &Arc<Session>| Some((session.digest, session.take_unsaved_settings()?));
        let settings: Vec<_> = sessions.iter().filter_map(set).collect();
        if !settings.is_empty()
            && let Err(error) = self.0.records.keep_settings(&settings).await
        {
            error!(error = %error, "the settings of sessions could not be stored: {}", chain(&error));
            let sessions = self.0.sessions.lock();
            settings
                .iter()
                .filter_map(|(digest, _)| sessions.get(digest))
                .for_each(|session| session.settings_not_saved());
        }
    }
}
