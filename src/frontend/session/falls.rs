//! How often a session's child has ended on its own, for operators who want it started again (`on_child_exit =
//! "respawn"`): a growing pause between starts, and an end to it.

use std::time::Duration;

use tokio::time::Instant;

/// Falls in a row after which the session ends.
const MOST: u32 = 5;
/// A child that ran for so long starts a new row.
const FORGIVEN_AFTER: Duration = Duration::from_mins(10);
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// One session's row of falls.
#[derive(Debug, Default)]
pub(super) struct Falls {
    row: u32,
    last: Option<Instant>,
    not_before: Option<Instant>,
}

impl Falls {
    /// Notes a fall; `false` when it was one too many.
    pub(super) fn fell(&mut self, now: Instant) -> bool {
        let forgiven = self.last.is_none_or(|last| now.saturating_duration_since(last) >= FORGIVEN_AFTER);
        self.row = if forgiven { 1 } else { self.row.saturating_add(1) };
        self.last = Some(now);
        let doublings = self.row.saturating_sub(1).min(MOST);
        self.not_before = now.checked_add(FIRST_PAUSE.saturating_mul(1 << doublings));
        self.row <= MOST
    }

    /// When the next start is due, if it must wait.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_the_sixth_fall_in_a_row_is_one_too_many() {
        let mut falls = Falls::default();
        let mut pauses = Vec::new();
        for _ in 0..MOST {
            assert!(falls.fell(Instant::now()));
            pauses.push(falls.not_before().expect("a pause") - Instant::now());
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000].map(Duration::from_millis));
        assert!(!falls.fell(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_ran_for_long_starts_a_new_row() {
        let mut falls = Falls::default();
        for _ in 0..20 {
            assert!(falls.fell(Instant::now()));
            tokio::time::advance(FORGIVEN_AFTER).await;
        }
    }
}
