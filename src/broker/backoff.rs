//! Pauses between tries. A leaf.

use std::time::Duration;

/// Pauses that double with each failure in a row, up to a bound.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
}

impl Backoff {
    /// `first` after the first failure, never more than `max`.
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max }
    }

    /// The pause after so many failures in a row; none after none.
    pub(crate) fn after(self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound_however_many_failures_there_are() {
        let backoff = Backoff::new(Duration::from_secs(5), Duration::from_mins(5));
        let pauses: Vec<_> = (0..=8).map(|failures| backoff.after(failures).as_secs()).collect();
        assert_eq!(pauses, [0, 5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.after(u32::MAX), Duration::from_mins(5));
    }
}
