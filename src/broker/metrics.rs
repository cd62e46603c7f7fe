//! What is counted and timed, for Prometheus. A leaf: the rooms tell it what happened, and it knows none of them.
//!
//! What every call costs here is a few atomic additions: its counters and histograms are looked up once, at the start.
//! Label values are fixed words of this program, never a user's, a tool's or an address's, so that the number of series
//! is bounded. What is a state rather than an event (sessions, queues, sizes) is read when somebody asks
//! (`src/broker/http/metrics_page.rs`). Names and units as Prometheus recommends: base units, counters end in `_total`
//! (<https://prometheus.io/docs/practices/naming/>).

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

/// What all names begin with.
pub(crate) const NAMESPACE: &str = "forgejo_mcp_broker";

/// Seconds from a request to its answer: Forgejo answers in tens of milliseconds, a big search takes minutes.
const CALL_BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
/// Seconds until a child has been through the handshake, waiting included.
const START_BUCKETS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];
/// Seconds of one exchange with Forgejo, which is waited for for at most 15.
const UPSTREAM_BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0];

/// A fixed set of words, for a label.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As a label's value and in the journal.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// What a client asks for.
    Method {
        /// A new session.
        Initialize = "initialize",
        /// A call of a tool.
        ToolsCall = "tools/call",
        /// The list of tools.
        ToolsList = "tools/list",
        /// Anything else.
        Other = "other",
    }
}

impl Method {
    /// Of a request's method.
    pub(crate) fn of(method: &str) -> Self {
        Self::ALL.iter().copied().find(|known| known.as_str() == method).unwrap_or(Self::Other)
    }
}

words! {
    /// What a request came to.
    CallOutcome {
        /// The child's result.
        Ok = "ok",
        /// The child's result, which says that the tool failed.
        ToolError = "tool-error",
        /// The child's JSON-RPC error.
        Error = "error",
        /// The child ended before it answered.
        ChildGone = "child-gone",
        /// Nobody answered within the request's time.
        TimedOut = "timed-out",
        /// The client took it back.
        Cancelled = "cancelled",
        /// The client read its stream too slowly.
        Lost = "lost",
        /// The broker did not carry it out.
        Refused = "refused",
        /// It was sent as a notification, so that nobody answers.
        Unanswered = "unanswered",
        /// The client hung up before.
        Abandoned = "abandoned",
    }
}

impl CallOutcome {
    /// Whether the child has answered, so that the time says something about it.
    const fn is_answer(self) -> bool {
        matches!(self, Self::Ok | Self::ToolError | Self::Error)
    }
}

words! {
    /// What Forgejo is asked.
    Upstream {
        /// Its API, with a user's token.
        Api = "api",
        /// For a fresh pair of tokens.
        Token = "token",
    }
}

/// The counters. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    /// By method, then by outcome.
    calls: Vec<Vec<IntCounter>>,
    /// By method.
    call_seconds: Vec<Histogram>,
    refusals: IntCounterVec,
    rate_limited: IntCounterVec,
    sessions_opened: IntCounter,
    sessions_ended: IntCounterVec,
    child_starts: IntCounterVec,
    child_start_seconds: Histogram,
    child_ends: IntCounterVec,
    token_refreshes: IntCounterVec,
    upstream: IntCounterVec,
    upstream_seconds: HistogramVec,
}

/// The metrics cannot be set up: two have one name, or a name is none.
#[derive(Debug, thiserror::Error)]
#[error("the metrics cannot be set up")]
pub(crate) struct MetricsError(#[from] prometheus::Error);

impl Metrics {
    /// With nothing counted.
    pub(crate) fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help).namespace(NAMESPACE), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let seconds = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let opts = HistogramOpts::new(name, help).namespace(NAMESPACE).buckets(buckets.to_vec());
            let histogram = HistogramVec::new(opts, labels)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let calls = counters("requests_total", "Requests of clients, by what they came to", &["method", "outcome"])?;
        let of_method = |method: &Method| -> Vec<IntCounter> {
            let counter = |outcome: &CallOutcome| calls.with_label_values(&[method.as_str(), outcome.as_str()]);
            CallOutcome::ALL.iter().map(counter).collect()
        };
        let call_seconds = seconds(
            "request_duration_seconds",
            "Time from a client's request to the answer of its child",
            &CALL_BUCKETS,
            &["method"],
        )?;
        let start_seconds = seconds(
            "child_start_duration_seconds",
            "Time until a child has been through the handshake, waiting for its turn included",
            &START_BUCKETS,
            &[],
        )?;
        let inner = Inner {
            calls: Method::ALL.iter().map(of_method).collect(),
            call_seconds: Method::ALL.iter().map(|method| call_seconds.with_label_values(&[method.as_str()])).collect(),
            refusals: counters("refusals_total", "Requests to /mcp that were not carried out, by reason", &["reason"])?,
            rate_limited: counters("rate_limited_total", "Requests of strangers above their rate", &["what"])?,
            sessions_opened: counters("sessions_opened_total", "Sessions that were opened", &[])?
                .with_label_values::<&str>(&[]),
            sessions_ended: counters("sessions_ended_total", "Sessions that ended, by reason", &["reason"])?,
            child_starts: counters("child_starts_total", "Starts of children, by what they came to", &["outcome"])?,
            child_start_seconds: start_seconds.with_label_values::<&str>(&[]),
            child_ends: counters("child_ends_total", "Children that ended, by reason", &["reason"])?,
            token_refreshes: counters("token_refreshes_total", "Refreshes of Forgejo's tokens", &["outcome"])?,
            upstream: counters("upstream_requests_total", "Requests to Forgejo", &["endpoint", "outcome"])?,
            upstream_seconds: seconds(
                "upstream_request_duration_seconds",
                "Time until Forgejo has answered",
                &UPSTREAM_BUCKETS,
                &["endpoint"],
            )?,
            registry,
        };
        // There from the beginning, so that a rate over them has a first value.
        for outcome in ["ok", "refused", "misconfigured", "not-now"] {
            inner.token_refreshes.with_label_values(&[outcome]);
        }
        for endpoint in Upstream::ALL {
            for outcome in ["ok", "error"] {
                inner.upstream.with_label_values(&[endpoint.as_str(), outcome]);
            }
        }
        inner.child_starts.with_label_values(&["ok"]);
        Ok(Self(Arc::new(inner)))
    }

    /// For whoever adds metrics of its own, and for the page.
    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// A request of a client has come to its end.
    pub(crate) fn call_ended(&self, method: Method, outcome: CallOutcome, took: Duration) {
        let by_outcome = self.0.calls.get(place(Method::ALL, method));
        if let Some(counter) = by_outcome.and_then(|all| all.get(place(CallOutcome::ALL, outcome))) {
            counter.inc();
        }
        if outcome.is_answer()
            && let Some(histogram) = self.0.call_seconds.get(place(Method::ALL, method))
        {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// A request to `/mcp` is not carried out.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.0.refusals.with_label_values(&[reason]).inc();
    }

    /// So often was a stranger told to come back later, in all.
    pub(crate) fn rate_limited(&self, what: &'static str, total: u64) {
        let counter = self.0.rate_limited.with_label_values(&[what]);
        counter.inc_by(total.saturating_sub(counter.get()));
    }

    /// A session was opened.
    pub(crate) fn session_opened(&self) {
        self.0.sessions_opened.inc();
    }

    /// A session has ended.
    pub(crate) fn session_ended(&self, reason: &'static str) {
        self.0.sessions_ended.with_label_values(&[reason]).inc();
    }

    /// A child has been through the handshake.
    pub(crate) fn child_started(&self, took: Duration) {
        self.0.child_starts.with_label_values(&["ok"]).inc();
        self.0.child_start_seconds.observe(took.as_secs_f64());
    }

    /// A child could not be had.
    pub(crate) fn child_not_started(&self, reason: &'static str) {
        self.0.child_starts.with_label_values(&[reason]).inc();
    }

    /// A child is gone.
    pub(crate) fn child_ended(&self, reason: &'static str) {
        self.0.child_ends.with_label_values(&[reason]).inc();
    }

    /// A refresh of a Forgejo token has come to its end.
    pub(crate) fn token_refreshed(&self, outcome: &'static str) {
        self.0.token_refreshes.with_label_values(&[outcome]).inc();
    }

    /// Forgejo has answered, or not.
    pub(crate) fn upstream_answered(&self, endpoint: Upstream, good: bool, took: Duration) {
        let outcome = if good { "ok" } else { "error" };
        self.0.upstream.with_label_values(&[endpoint.as_str(), outcome]).inc();
        self.0.upstream_seconds.with_label_values(&[endpoint.as_str()]).observe(took.as_secs_f64());
    }
}

fn place<T: PartialEq + Copy>(all: &[T], one: T) -> usize {
    all.iter().position(|known| *known == one).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        prometheus::TextEncoder::new().encode_to_string(&metrics.registry().gather()).expect("text")
    }

    #[test]
    fn a_call_is_counted_by_what_it_came_to_and_timed_where_a_child_answered() {
        let metrics = Metrics::new().expect("metrics");
        metrics.call_ended(Method::ToolsCall, CallOutcome::Ok, Duration::from_millis(20));
        metrics.call_ended(Method::ToolsCall, CallOutcome::Refused, Duration::from_secs(9));
        let text = text(&metrics);
        let has = |line: &str| assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        has(r#"forgejo_mcp_broker_requests_total{method="tools/call",outcome="ok"} 1"#);
        has(r#"forgejo_mcp_broker_requests_total{method="tools/call",outcome="refused"} 1"#);
        has(r#"forgejo_mcp_broker_requests_total{method="other",outcome="ok"} 0"#);
        has(r#"forgejo_mcp_broker_request_duration_seconds_count{method="tools/call"} 1"#);
        has(r#"forgejo_mcp_broker_request_duration_seconds_bucket{method="tools/call",le="0.01"} 0"#);
        has(r#"forgejo_mcp_broker_request_duration_seconds_bucket{method="tools/call",le="0.025"} 1"#);
    }

    #[test]
    fn a_method_that_no_protocol_names_makes_no_series_of_its_own() {
        assert_eq!(Method::of("tools/call"), Method::ToolsCall);
        assert_eq!(Method::of("something/new"), Method::Other);
    }
}
