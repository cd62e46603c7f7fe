//! How often a session's child has ended on its own, for operators who want it started again (`on_child_exit =
//! "respawn"`): a growing pause between starts, and an end to it.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// Failures in a row after which the session ends.
const MAX_FAILURES: u32 = 5;
/// A child that ran for so long starts a new row.
const RESET_AFTER: Duration = Duration::from_mins(10);
/// Between starts.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(8));

/// One session's failures in a row, and when the next start is due.
#[derive(Debug, Default)]
pub(crate) struct RestartBackoff {
    failures: u32,
    last: Option<Instant>,
    not_before: Option<Instant>,
}

impl RestartBackoff {
    /// Notes a failure; `false` when it was one too many.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        let forgiven = self.last.is_none_or(|last| now.saturating_duration_since(last) >= RESET_AFTER);
        self.failures = if forgiven { 1 } else { self.failures.saturating_add(1) };
        self.last = Some(now);
        self.not_before = now.checked_add(BACKOFF.after(self.failures));
        self.failures <= MAX_FAILURES
    }

    /// When the next start is due, if it must wait.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_the_sixth_fall_in_a_row_is_one_too_many() {
        let mut restart_backoff = RestartBackoff::default();
        let mut pauses = Vec::new();
        for _ in 0..MAX_FAILURES {
            assert!(restart_backoff.failed(Instant::now()));
            pauses.push(restart_backoff.not_before().expect("a pause") - Instant::now());
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000].map(Duration::from_millis));
        assert!(!restart_backoff.failed(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_ran_for_long_starts_a_new_row() {
        let mut restart_backoff = RestartBackoff::default();
        for _ in 0..20 {
            assert!(restart_backoff.failed(Instant::now()));
            tokio::time::advance(RESET_AFTER).await;
        }
    }
}
