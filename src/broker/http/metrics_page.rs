//! `/metrics`, and the health pages beside it, on a listener of their own.
//!
//! Whoever may connect there may read it: it names no user and no address, but it says how much is going on, so it is no
//! business of the public's. States are read when it is asked for, at most once in a [`LOOK_EVERY`].

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{CounterVec, IntGauge, IntGaugeVec, Opts, TextEncoder};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{error, warn};
use wire::message::{PROTOCOL, Status};

use crate::auth::rates::RateLimits;
use crate::chain::chain;
use crate::child::supervisor_client::SupervisorSpawner;
use crate::forge::vault::Vault;
use crate::metrics::{Metrics, MetricsError, NAMESPACE};
use crate::session::registry::Registry;
use crate::store::{Sizes, Store};

/// Several may ask; the supervisor is asked no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the supervisor may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// What is looked at.
#[derive(Debug)]
pub(crate) struct Sources {
    /// Holds what is counted.
    pub(crate) metrics: Metrics,
    /// Sessions, children, queues, memory.
    pub(crate) registry: Registry,
    /// What separates the children.
    pub(crate) supervisor: SupervisorSpawner,
    /// Its size.
    pub(crate) store: Store,
    /// Which key seals.
    pub(crate) vault: Arc<Vault>,
    /// How often strangers were refused.
    pub(crate) limits: Arc<RateLimits>,
}

/// The gauges.
#[derive(Debug)]
struct Gauges {
    sessions: IntGauge,
    sessions_max: IntGauge,
    children: IntGauge,
    children_max: IntGauge,
    starts: IntGauge,
    places_awaited: IntGauge,
    requests: IntGauge,
    memory: IntGauge,
    memory_max: IntGauge,
    store_file: IntGauge,
    store_wal: IntGauge,
    store_free: IntGauge,
    key: IntGaugeVec,
    supervisor_up: IntGauge,
    isolation: IntGaugeVec,
    supervisor_children: IntGauge,
    supervisor_children_max: IntGauge,
    users: IntGauge,
    uids_free: IntGauge,
    uids_unclean: IntGauge,
    /// Of all children together; without a line where the kernel does not count it.
    children_memory: IntGaugeVec,
    children_processes: IntGaugeVec,
    children_cpu: CounterVec,
}

impl Gauges {
    fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help).namespace(NAMESPACE), labels)?;
            metrics.registry().register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let gauge = |name: &str, help: &str| {
            Ok::<_, prometheus::Error>(gauges(name, help, &[])?.with_label_values::<&str>(&[]))
        };
        let of_cpu = Opts::new("children_cpu_seconds_total", "CPU time of all children since their cgroup was made");
        let children_cpu = CounterVec::new(of_cpu.namespace(NAMESPACE), &[])?;
        metrics.registry().register(Box::new(children_cpu.clone()))?;
        let build = gauges("build_info", "Always 1; which program this is", &["version", "protocol"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), &PROTOCOL.to_string()]).set(1);
        Ok(Self {
            sessions: gauge("sessions", "Open sessions")?,
            sessions_max: gauge("sessions_max", "The cap on open sessions")?,
            children: gauge("children", "Live children of the broker")?,
            children_max: gauge("children_max", "The broker's cap on live children")?,
            starts: gauge("child_starts_pending", "Starts of children that run or wait for their turn")?,
            places_awaited: gauge("child_places_awaited", "Starts that wait until another child is gone")?,
            requests: gauge("requests_in_flight", "Requests that children have not answered")?,
            memory: gauge("held_memory_bytes", "Memory held for users: bodies, answers, what waits for them")?,
            memory_max: gauge("held_memory_max_bytes", "The cap on memory held for users")?,
            store_file: gauge("store_file_bytes", "Size of the database's file")?,
            store_wal: gauge("store_wal_bytes", "Size of the database's write-ahead log")?,
            store_free: gauge("store_free_bytes", "Room that is left where the database is")?,
            key: gauges("sealing_key_info", "Always 1; the id of the key that seals Forgejo's tokens", &["key"])?,
            supervisor_up: gauge("supervisor_up", "Whether the supervisor answers")?,
            isolation: gauges("isolation", "Whether this separates the users' children (1) or not (0)", &["part"])?,
            supervisor_children: gauge("supervisor_children", "Children that run or are being stopped")?,
            supervisor_children_max: gauge("supervisor_children_max", "The supervisor's cap on children")?,
            users: gauge("supervisor_users", "Users that have children")?,
            uids_free: gauge("supervisor_uids_free", "Uids that can be leased")?,
            uids_unclean: gauge("supervisor_uids_unclean", "Uids that are not clean and not used")?,
            children_memory: gauges("children_memory_bytes", "Memory of all children, from their cgroup", &[])?,
            children_processes: gauges("children_processes", "Processes and threads of all children", &[])?,
            children_cpu,
        })
    }

    fn of_supervisor(&self, status: Option<&Status>) {
        self.supervisor_up.set(i64::from(status.is_some()));
        let Some(status) = status else { return };
        let isolation = status.isolation;
        let parts = [
            ("own_uid", isolation.own_uid),
            ("cgroup", isolation.cgroup),
            ("landlock", isolation.landlock),
            ("seccomp", isolation.seccomp),
        ];
        for (part, on) in parts {
            self.isolation.with_label_values(&[part]).set(i64::from(on));
        }
        self.supervisor_children.set(i64::from(status.children));
        self.supervisor_children_max.set(i64::from(status.max_children));
        self.users.set(i64::from(status.tenants));
        self.uids_free.set(i64::from(status.uids_free));
        self.uids_unclean.set(i64::from(status.uids_unclean));
        let all = status.all.as_ref();
        for (gauge, used) in [
            (&self.children_memory, all.and_then(|all| all.memory)),
            (&self.children_processes, all.and_then(|all| all.pids)),
        ] {
            gauge.reset();
            if let Some(used) = used {
                gauge.with_label_values::<&str>(&[]).set(i64::try_from(used).unwrap_or(i64::MAX));
            }
        }
        match all.and_then(|all| all.cpu_usec) {
            None => self.children_cpu.reset(),
            Some(used) => follow(&self.children_cpu, Duration::from_micros(used).as_secs_f64()),
        }
    }
}

/// Lets a counter follow one of the kernel's, which begins anew with another cgroup.
fn follow(counter: &CounterVec, now: f64) {
    if now < counter.with_label_values::<&str>(&[]).get() {
        counter.reset();
    }
    let counter = counter.with_label_values::<&str>(&[]);
    counter.inc_by(now - counter.get());
}

#[derive(Debug)]
struct Page {
    sources: Sources,
    gauges: Gauges,
    /// Held over a look, so that many who ask are one look.
    looked: Mutex<Option<Instant>>,
}

/// The route.
pub(crate) fn routes(sources: Sources) -> Result<Router, MetricsError> {
    let gauges = Gauges::new(&sources.metrics)?;
    let page = Arc::new(Page { sources, gauges, looked: Mutex::default() });
    Ok(Router::new().route("/metrics", get(show)).with_state(page))
}

async fn show(State(page): State<Arc<Page>>) -> Response {
    page.look().await;
    match TextEncoder::new().encode_to_string(&page.sources.metrics.registry().gather()) {
        // Prometheus, exposition formats, text-based format.
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(e) => {
            error!(error = %e, "the metrics cannot be written down: {}", chain(&e));
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

impl Page {
    async fn look(&self) {
        let mut looked = self.looked.lock().await;
        if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        let Sources { metrics, registry, supervisor, store, vault, limits } = &self.sources;
        let (gauges, load) = (&self.gauges, registry.load_now());
        let counts = [
            (&gauges.sessions, load.sessions),
            (&gauges.sessions_max, load.sessions_max),
            (&gauges.children, load.children),
            (&gauges.children_max, load.children_max),
            (&gauges.starts, load.starts_waiting),
            (&gauges.places_awaited, load.children_awaited),
            (&gauges.requests, load.requests),
            (&gauges.memory, load.memory),
            (&gauges.memory_max, load.memory_max),
        ];
        for (gauge, count) in counts {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        match store.sizes() {
            Ok(Sizes { file, wal, free }) => {
                for (gauge, bytes) in [(&gauges.store_file, file), (&gauges.store_wal, wal), (&gauges.store_free, free)]
                {
                    gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
                }
            }
            Err(e) => {
                // What is not known must not look like room.
                gauges.store_free.set(0);
                warn!(error = %e, "the database's size cannot be told: {}", chain(&e));
            }
        }
        gauges.key.reset();
        gauges.key.with_label_values(&[vault.key_id()]).set(1);
        for (what, refused) in limits.refused() {
            metrics.rate_limited(what, refused);
        }
        let status = timeout(ANSWERS_WITHIN, supervisor.status()).await.ok().and_then(Result::ok);
        gauges.of_supervisor(status.as_ref());
        *looked = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_follows_the_kernels_and_begins_anew_with_it() {
        let counter = CounterVec::new(Opts::new("cpu", "x"), &[]).expect("a counter");
        for (kernel, expected) in [(1.5, 1.5), (1.5, 1.5), (4.0, 4.0), (0.25, 0.25), (0.5, 0.5)] {
            follow(&counter, kernel);
            let shown = counter.with_label_values::<&str>(&[]).get();
            assert!((shown - expected).abs() < f64::EPSILON, "{shown} is not {expected}");
        }
    }
}
