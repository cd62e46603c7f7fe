//! For load balancers and monitors: `/healthz` says that the process serves, `/readyz` that it can do its work.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::child::supervisor_client::SupervisorSpawner;
use crate::forge::api::{Forgejo, UpstreamLook};
use crate::store::Store;
use wire::telemetry::message_id;

/// Strangers may ask as often as they like; the disk is written, the supervisor and Forgejo are asked, no more often
/// than this.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long one part may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// What is said in the words of `doctor`.
const SHIELDED: &str = "something in front of Forgejo answers";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Readiness {
    store: bool,
    supervisor: bool,
    /// Without it nobody can log in, but what is connected goes on as far as it can.
    forgejo: bool,
    /// Why not, where what answers is not Forgejo: nothing that a look at its address would not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<&'static str>,
}

/// The routes; they need no token and tell hardly more than yes and no.
pub(crate) fn routes(store: Store, supervisor: SupervisorSpawner, forgejo: Forgejo) -> Router {
    let health = Arc::new(Health { store, supervisor, forgejo, seen: Cached::default() });
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).with_state(health)
}

#[derive(Debug)]
struct Health {
    store: Store,
    supervisor: SupervisorSpawner,
    forgejo: Forgejo,
    seen: Cached,
}

async fn ready(State(health): State<Arc<Health>>) -> (StatusCode, Json<Readiness>) {
    // In a task of its own: whoever asked and goes away does not take the look along that others wait for.
    let look = tokio::spawn(async move { health.seen.get(async || look(&health).await).await });
    let nothing = Readiness { store: false, supervisor: false, forgejo: false, because: None };
    answer(look.await.unwrap_or(nothing))
}

fn answer(readiness: Readiness) -> (StatusCode, Json<Readiness>) {
    let good = readiness.store && readiness.supervisor && readiness.forgejo;
    (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(readiness))
}

/// Asks all three at once.
async fn look(health: &Health) -> Readiness {
    let store = async {
        let probed = timeout(ANSWERS_WITHIN, health.store.probe()).await;
        match probed {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
                warn!(
                    MESSAGE_ID = message_id::STORE_FAILS, error = %error, cause = error.source().map(tracing::field::display),
                    "the store is not ready: {error}{cause}"
                );
                false
            }
            Err(_) => {
                warn!(MESSAGE_ID = message_id::STORE_FAILS, "the store is not ready: it did not answer in time");
                false
            }
        }
    };
    let supervisor =
        async { timeout(ANSWERS_WITHIN, health.supervisor.status()).await.is_ok_and(|status| status.is_ok()) };
    let forgejo = async { timeout(ANSWERS_WITHIN, is_there(&health.forgejo)).await.unwrap_or(Err(None)) };
    let (store, supervisor, forgejo) = tokio::join!(store, supervisor, forgejo);
    Readiness { store, supervisor, forgejo: forgejo.is_ok(), because: forgejo.err().flatten() }
}

/// Whether it is Forgejo that answers. A shield against crawlers, or a page of a proxy, would be taken for it otherwise.
async fn is_there(forgejo: &Forgejo) -> Result<(), Option<&'static str>> {
    match forgejo.look().await.0 {
        UpstreamLook::Forgejo(_) | UpstreamLook::SignIn => Ok(()),
        // Its proxy's word for it, or its own.
        UpstreamLook::Other { status, what } if status >= 500 => {
            warn!(
                reason = "upstream-failing",
                status, "Forgejo, or its proxy, answers with status {status} and {what}"
            );
            Err(None)
        }
        UpstreamLook::Other { status, what } => {
            warn!(
                reason = "upstream-shielded",
                status, "{SHIELDED}, with status {status} and {what}: let the broker through"
            );
            Err(Some(SHIELDED))
        }
        UpstreamLook::Unreachable(why) => {
            warn!(reason = "upstream-unreachable", "Forgejo cannot be reached: {why}");
            Err(None)
        }
    }
}

/// What was last seen, and when. Held over the look, so that many who ask are one look.
#[derive(Debug, Default)]
struct Cached(Mutex<Option<(Instant, Readiness)>>);

impl Cached {
    async fn get(&self, look: impl AsyncFnOnce() -> Readiness) -> Readiness {
        let mut seen = self.0.lock().await;
        match *seen {
            Some((at, readiness)) if at.elapsed() < LOOK_EVERY => readiness,
            _ => {
                let readiness = look().await;
                *seen = Some((Instant::now(), readiness));
                readiness
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const FINE: Readiness = Readiness { store: true, supervisor: true, forgejo: true, because: None };

    #[tokio::test(start_paused = true)]
    async fn a_hundred_who_ask_at_once_are_one_look_and_the_next_is_five_seconds_later() {
        let (cached, looks) = (Cached::default(), AtomicUsize::new(0));
        let ask = async || {
            let look = async || {
                looks.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                FINE
            };
            cached.get(look).await
        };
        let all = futures_util::future::join_all((0..100).map(|_| ask())).await;
        assert!(all.iter().all(|seen| *seen == FINE));
        assert_eq!(looks.load(Ordering::SeqCst), 1);
        tokio::time::advance(LOOK_EVERY).await;
        ask().await;
        assert_eq!(looks.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_shield_in_front_of_forgejo_is_not_taken_for_it() {
        for (status, body, is_it) in [
            (200, r#"{"version":"15.0.1"}"#, true),
            (403, r#"{"message":"Only signed in user is allowed to call APIs."}"#, true),
            (200, "<p>Making sure you are not a bot", false),
            (403, "<h1>Forbidden", false),
            (502, "<h1>Bad Gateway", false),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
            let forgejo = Forgejo::new(&format!("http://{}", listener.local_addr().expect("an address")));
            let answer = (StatusCode::from_u16(status).expect("a status"), body);
            tokio::spawn(async move { axum::serve(listener, Router::new().fallback(async move || answer)).await });
            let seen = is_there(&forgejo.expect("a client")).await;
            let shown = Readiness { forgejo: seen.is_ok(), because: seen.err().flatten(), ..FINE };
            let shown = serde_json::to_string(&shown).expect("JSON");
            let says = shown.contains(r#""forgejo":false,"because":"something in front of Forgejo answers""#);
            // A gateway's word is about Forgejo, and no shield's.
            assert!(seen.is_ok() == is_it && says == (!is_it && status < 500), "{status} {body}: {shown}");
        }
    }

    #[test]
    fn one_part_that_is_not_ready_is_503() {
        assert_eq!(answer(FINE).0, StatusCode::OK);
        for bad in [
            Readiness { store: false, ..FINE },
            Readiness { supervisor: false, ..FINE },
            Readiness { forgejo: false, ..FINE },
        ] {
            assert_eq!(answer(bad).0, StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}
