//! Pauses after a refresh that failed, and what ends them ahead of their time.
//!
//! A pause grows with each failure in a row, so that not everybody asks a forge in trouble all the time. It must not outlive
//! the trouble: once the token endpoint has answered anybody, the pauses of all are over; and while it answers nobody, of
//! those who would be refused one at a time asks ahead of the end of its pause.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::backoff::Backoff;
use crate::forge::rotation::Word;
use wire::clock::UnixTime;

/// Between tries after a failure.
pub(super) const BACKOFF: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_mins(5));
/// One credential is tried again no earlier, whoever else was answered: the trouble may be its own.
const AT_LEAST: Duration = Duration::from_secs(5);
/// Ahead of their pauses' ends all credentials together are tried this often.
const ASK_AHEAD_EVERY: Duration = Duration::from_secs(1);

/// How a credential's last refreshes went.
#[derive(Debug, Default)]
pub(super) struct Pause {
    failures: u32,
    failed: Option<Failed>,
    until: Option<UnixTime>,
    /// Not before then is Forgejo asked again whose the token is: it was away.
    pub(super) look_at: Option<UnixTime>,
    pub(super) word: Word,
    /// The last look found the account barred, which the store may not have taken.
    pub(super) is_barred: bool,
    /// Forgejo is asked this time, however fresh its last word is.
    pub(super) asks_anew: bool,
}

/// The last failure.
#[derive(Debug, Clone, Copy)]
struct Failed {
    at: UnixTime,
    /// What [`Recovery::answers`] was when it was begun.
    answers: u64,
}

impl Failed {
    fn is_long_ago(self, now: UnixTime) -> bool {
        now.age_of(self.at).is_none_or(|age| age >= AT_LEAST)
    }
}

impl Pause {
    /// Whether a refresh must wait. Not after a failure since which somebody else was answered.
    pub(super) fn holds(&self, now: UnixTime, answers: u64) -> bool {
        let is_well_again = self.failed.is_some_and(|failed| failed.answers != answers && failed.is_long_ago(now));
        self.until.is_some_and(|until| until > now) && !is_well_again
    }

    /// Whether nothing is left of it that anybody must know.
    pub(super) fn is_over(&self, now: UnixTime, answers: u64) -> bool {
        !self.holds(now, answers) && self.look_at.is_none_or(|at| at <= now)
    }

    /// The refresh that began when there were so many `answers` has failed.
    pub(super) fn fail(&mut self, now: UnixTime, answers: u64) {
        self.failures = self.failures.saturating_add(1);
        self.failed = Some(Failed { at: now, answers });
        self.until = Some(now.plus(BACKOFF.after(self.failures)));
    }

    /// It has succeeded, and the next one is not due for `span`.
    pub(super) fn succeed(&mut self, now: UnixTime, span: Duration) {
        let Self { is_barred, asks_anew, .. } = *self;
        *self = Self { until: Some(now.plus(span)), is_barred, asks_anew, ..Self::default() };
    }
}

/// Whether Forgejo's token endpoint is well again, as far as anybody has seen.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    answers: AtomicU64,
    /// When somebody last asked ahead; held meanwhile.
    ahead: Mutex<Option<UnixTime>>,
}

impl Recovery {
    /// How often the token endpoint has answered, yes or no, since the start.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// It has answered.
    pub(super) fn note_answer(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Leave to ask ahead of the end of this pause, to be held meanwhile.
    pub(super) fn ask_ahead(&self, pause: &Pause, now: UnixTime) -> Option<MutexGuard<'_, Option<UnixTime>>> {
        if !pause.failed.is_some_and(|failed| failed.is_long_ago(now)) {
            return None;
        }
        let mut last = self.ahead.try_lock().ok()?;
        let is_due = last.and_then(|at| now.age_of(at)).is_none_or(|age| age >= ASK_AHEAD_EVERY);
        is_due.then(|| {
            *last = Some(now);
            last
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn after(secs: u64) -> UnixTime {
        NOW.plus(Duration::from_secs(secs))
    }

    #[test]
    fn a_pause_ends_with_anybodys_answer_but_no_earlier_than_five_seconds_after_its_failure() {
        let mut pause = Pause::default();
        (0..9).for_each(|_| pause.fail(NOW, 7));
        for (secs, answers, holds) in [(0, 7, true), (299, 7, true), (300, 7, false), (4, 8, true), (5, 8, false)] {
            assert_eq!(pause.holds(after(secs), answers), holds, "{answers} after {secs} s");
        }
        assert!(!pause.holds(NOW.minus(Duration::from_secs(1)), 8), "a clock that was set back keeps nobody out");
        pause.succeed(NOW, Duration::from_mins(30));
        assert!(pause.holds(after(1700), 99), "what is not due is not asked for, whoever was answered");
    }

    #[test]
    fn while_nobody_is_answered_one_at_a_time_asks_ahead_of_its_pause() {
        let recovery = Recovery::default();
        let mut pause = Pause::default();
        assert!(recovery.ask_ahead(&pause, NOW).is_none(), "nothing has failed");
        pause.fail(NOW, 0);
        assert!(recovery.ask_ahead(&pause, after(4)).is_none());
        let asking = recovery.ask_ahead(&pause, after(5)).expect("leave to ask");
        assert!(recovery.ask_ahead(&pause, after(60)).is_none(), "another is asking");
        drop(asking);
        assert!(recovery.ask_ahead(&pause, after(5)).is_none(), "another has just asked");
        assert!(recovery.ask_ahead(&pause, after(6)).is_some());
    }
}
