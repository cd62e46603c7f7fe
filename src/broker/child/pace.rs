//! How fast a child is read that says what nobody asked for.
//!
//! Each such message costs the broker's processors something, on which everybody's calls wait. One child that writes as
//! fast as a pipe takes it would have a processor for itself, so beyond a pace the child waits: it is not read. Answers
//! are free, since each was asked for; those behind what is not free wait with it.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::sleep;

/// Messages a second; progress and log lines of a tool that works are tens.
const PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);
/// At once, such as what a tool says of each of many steps.
const BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(1_999);
/// So many bytes count as another message: 16 MiB a second.
const BYTES: usize = 16 * 1024;

/// The pace of one child.
#[derive(Debug)]
pub(crate) struct Pace<C: Clock = DefaultClock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    /// What was said since the last turn.
    owed: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new(DefaultClock::default())
    }
}

impl<C: Clock> Pace<C> {
    fn new(clock: C) -> Self {
        let quota = Quota::per_second(PER_SECOND).allow_burst(BURST);
        Self { limiter: RateLimiter::direct_with_clock(quota, clock), owed: 0 }
    }

    /// Notes a message of so many bytes that was not asked for.
    pub(crate) fn note(&mut self, bytes: usize) {
        let cost = u32::try_from(bytes / BYTES).unwrap_or(u32::MAX).saturating_add(1);
        self.owed = self.owed.saturating_add(cost).min(BURST.get());
    }

    /// Waits until what was noted is within the pace. Cancel safe: what was not waited for is still owed.
    pub(crate) async fn turn(&mut self) {
        while let Some(early) = self.pay() {
            sleep(early).await;
        }
    }

    /// How long until what is owed can be paid; pays it where that is now.
    fn pay(&mut self) -> Option<Duration> {
        let owed = NonZeroU32::new(self.owed)?;
        if let Ok(Err(early)) = self.limiter.check_n(owed) {
            return Some(early.wait_time_from(self.limiter.clock().now()));
        }
        self.owed = 0;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    #[test]
    fn what_comes_at_once_passes_and_what_goes_on_is_held_to_its_pace() {
        let clock = FakeRelativeClock::default();
        let mut pace = Pace::new(clock.clone());
        for _ in 0..BURST.get() {
            pace.note(100);
            assert_eq!(pace.pay(), None);
        }
        for _ in 0..100 {
            pace.note(100);
            assert_eq!(pace.pay(), Some(Duration::from_millis(1)), "a thousand a second");
            clock.advance(Duration::from_millis(1));
            assert_eq!(pace.pay(), None);
        }
        clock.advance(Duration::from_secs(3600));
        pace.note(1 << 20);
        assert_eq!(pace.pay(), None, "it was silent");
    }

    #[test]
    fn a_long_message_costs_its_bytes_and_the_longest_no_more_than_can_ever_be_paid() {
        let clock = FakeRelativeClock::default();
        let mut pace = Pace::new(clock.clone());
        pace.note(usize::MAX);
        assert_eq!(pace.pay(), None);
        pace.note(BYTES * 63);
        assert_eq!(pace.pay(), Some(Duration::from_millis(64)));
    }
}
