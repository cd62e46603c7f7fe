//! Wall-clock time as a value that is handed in. A leaf.
//!
//! Logic never asks the system for the time: it takes a [`UnixTime`] or a [`Clock`], so a test moves the clock
//! instead of sleeping. (Intervals and deadlines use tokio's timer, which tests pause.)

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01 00:00:00 UTC, as stored in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(i64);

impl UnixTime {
    /// From seconds since the epoch.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs)
    }

    /// Seconds since the epoch.
    pub const fn secs(self) -> i64 {
        self.0
    }

    /// This time plus `span`, in whole seconds, saturating.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_secs()).unwrap_or(i64::MAX)))
    }

    /// This time minus `span`, in whole seconds, saturating.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_secs()).unwrap_or(i64::MAX)))
    }

    /// How old what was made at `then` is; none where that lies ahead, because the clock went backwards.
    pub fn age_of(self, then: Self) -> Option<Duration> {
        u64::try_from(self.0.saturating_sub(then.0)).ok().map(Duration::from_secs)
    }

    /// How long after `earlier` this is; zero where the clock went backwards.
    pub fn since(self, earlier: Self) -> Duration {
        self.age_of(earlier).unwrap_or_default()
    }
}

/// To the second below; a time before the epoch is the epoch.
impl From<SystemTime> for UnixTime {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    }
}

/// Microseconds since 1970, for a log line, which says when it was written and decides nothing.
#[expect(clippy::disallowed_methods, reason = "the same place: lines are written where no clock is handed in")]
pub(crate) fn of_a_line() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros())
}

/// Where the time comes from: the system in production, a hand in tests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    /// With the latest time that it has told.
    System(Arc<AtomicI64>),
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The system's clock. Says in the log when it is set back.
    pub fn system() -> Self {
        Self(Source::System(Arc::new(AtomicI64::new(i64::MIN))))
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it; clones share the hand.
    pub fn manual(start: UnixTime) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(start.0))))
    }

    /// The time.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system for the time of day")]
    pub fn now(&self) -> UnixTime {
        match &self.0 {
            Source::System(latest) => {
                let now: UnixTime = SystemTime::now().into();
                let before = latest.swap(now.0, Ordering::Relaxed);
                // By a second alone two threads may overtake each other.
                if now.0 < before.saturating_sub(1) {
                    let seconds = before.saturating_sub(now.0);
                    tracing::warn!(
                        reason = "clock-step",
                        seconds,
                        "the system's clock was set back by {seconds} s: codes and used tokens from after it are over"
                    );
                }
                now
            }
            Source::Manual(hand) => UnixTime(hand.load(Ordering::SeqCst)),
        }
    }

    /// Sets a manual clock, also back; the system's clock is not ours to set.
    pub fn set(&self, now: UnixTime) {
        if let Source::Manual(hand) = &self.0 {
            hand.store(now.0, Ordering::SeqCst);
        }
    }

    /// Moves a manual clock; the system's clock is not ours to move, so there it does nothing.
    pub fn advance(&self, span: Duration) {
        if let Source::Manual(hand) = &self.0 {
            hand.fetch_add(i64::try_from(span.as_secs()).unwrap_or(0), Ordering::SeqCst);
        }
    }
}
