//! For load balancers and monitors: `/healthz` says that the process serves, `/readyz` that it can do its work.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::child::supervisor_client::SupervisorSpawner;
use crate::forge::api::Forgejo;
use crate::store::Store;

/// Strangers may ask as often as they like; Forgejo is asked no more often than this.
const PROBE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct Readiness {
    store: bool,
    supervisor: bool,
    /// Without it nobody can log in, but what is connected goes on as far as it can.
    forgejo: bool,
}

/// The routes; they need no token and tell no more than yes and no.
pub(crate) fn routes(store: Store, supervisor: SupervisorSpawner, forgejo: Forgejo) -> Router {
    let health = Arc::new(Health { store, supervisor, forgejo, forge_probe: Mutex::default() });
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).with_state(health)
}

#[derive(Debug)]
struct Health {
    store: Store,
    supervisor: SupervisorSpawner,
    forgejo: Forgejo,
    /// When Forgejo was last looked at, and whether it answered. Held over the look, so that many who ask are one look.
    forge_probe: Mutex<Option<(Instant, bool)>>,
}

impl Health {
    async fn forgejo(&self) -> bool {
        let mut forge_probe = self.forge_probe.lock().await;
        match *forge_probe {
            Some((at, answered)) if at.elapsed() < PROBE_EVERY => answered,
            _ => {
                let answered = self.forgejo.answers().await;
                *forge_probe = Some((Instant::now(), answered));
                answered
            }
        }
    }
}

async fn ready(State(health): State<Arc<Health>>) -> (StatusCode, Json<Readiness>) {
    let readiness = Readiness {
        store: health.store.is_alive().await,
        supervisor: health.supervisor.status().await.is_ok(),
        forgejo: health.forgejo().await,
    };
    let good = readiness.store && readiness.supervisor && readiness.forgejo;
    (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(readiness))
}
