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
        self.save_uses().await;
    }

    /// Writes when sessions were last used and what their clients have set, each all at once.
    pub(crate) async fn save_uses(&self) {
        let sessions: Vec<Arc<Session>> = self.0.sessions.lock().values().cloned().collect();
        let uses: Vec<_> =
            sessions.iter().filter_map(|session| Some((session.digest, session.unsaved_use()?))).collect();
        if !uses.is_empty()
            && let Err(error) = self.0.records.touch(&uses).await
        {
            error!(error = %error, "the last use of sessions could not be stored: {}", chain(&error));
        }
        let changed = |session: &Arc<Session>| Some((session.digest, session.unsaved_settings()?));
        let settings: Vec<_> = sessions.iter().filter_map(changed).collect();
        if !settings.is_empty()
            && let Err(error) = self.0.records.keep_settings(&settings).await
        {
            error!(error = %error, "the settings of sessions could not be stored: {}", chain(&error));
        }
    }
}
