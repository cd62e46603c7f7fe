//! The reaper: what has been idle for too long goes, children first, sessions much later.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::error;

use crate::session::registry::{Registry, Session};

impl Registry {
    /// One sweep. Requests in flight and running answers count as activity; an open stream of the session alone does
    /// not. Late requests are given up here too, so that an abandoned one does not keep a child alive for ever.
    pub(crate) async fn sweep(&self) {
        let (config, now) = (&self.0.config, self.0.clock.now());
        let sessions: Vec<Arc<Session>> = self.0.sessions.lock().values().cloned().collect();
        for session in &sessions {
            if let Some(bridge) = session.live() {
                bridge.expire(config.request_timeout);
                let idle = bridge.idle_since().map(|since| Instant::now().saturating_duration_since(since));
                if idle.is_some_and(|idle| idle >= config.child_idle) {
                    Self::stop_child(session, &bridge, "child-idle");
                }
            }
            if !session.is_busy() && now.since(session.last_used()) >= config.session_idle {
                self.end(session, "session-idle");
            }
        }
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
            error!(error = %error, "the last use of sessions could not be stored");
        }
        let changed = |session: &Arc<Session>| Some((session.digest, session.settings.lock().take_unsaved()?));
        let settings: Vec<_> = sessions.iter().filter_map(changed).collect();
        if !settings.is_empty()
            && let Err(error) = self.0.records.keep_settings(&settings).await
        {
            error!(error = %error, "the settings of sessions could not be stored");
        }
    }
}
