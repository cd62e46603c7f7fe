//! For load balancers and monitors: `/healthz` says that the process serves, `/readyz` that it can do its work.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::frontend::session::supervisor::SupervisorSpawner;
use crate::frontend::store::Store;

#[derive(Debug, Serialize)]
struct Readiness {
    store: bool,
    supervisor: bool,
}

/// The routes; they need no token and tell no more than yes and no.
pub(super) fn routes(store: Store, supervisor: SupervisorSpawner) -> Router {
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).with_state((store, supervisor))
}

async fn ready(State((store, supervisor)): State<(Store, SupervisorSpawner)>) -> (StatusCode, Json<Readiness>) {
    let readiness = Readiness { store: store.is_alive().await, supervisor: supervisor.status().await.is_ok() };
    let good = readiness.store && readiness.supervisor;
    (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(readiness))
}
