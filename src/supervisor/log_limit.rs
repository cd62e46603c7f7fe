//! One log line a second for each class of what a peer can cause at will, with a count of those that were left out.
//!
//! The broker is assumed hostile: it can make the supervisor refuse tens of thousands of requests a second. A line for
//! each would fill the disk, and the journal's own limit (`RateLimitBurst=`, journald.conf(5)) would swallow the lines that
//! matter. No I/O; the time is a parameter.
//!
//! A class is a code of this program's and never a text of the peer's, so there are a few dozen of them at most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two lines of one class.
const PAUSE: Duration = Duration::from_secs(1);

/// When each class was last told, and what was left out since.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(BTreeMap<&'static str, Told>);

#[derive(Debug)]
struct Told {
    at: Instant,
    left_out: u64,
}

/// A line may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// How many of its class were left out before it; `None` for none.
    pub(crate) left_out: Option<u64>,
}

impl LogLimit {
    /// Whether a line of this class may be written now; one that may not is counted.
    pub(crate) fn admit(&mut self, class: &'static str, now: Instant) -> Option<Line> {
        let Some(told) = self.0.get_mut(class) else {
            self.0.insert(class, Told { at: now, left_out: 0 });
            return Some(Line { left_out: None });
        };
        if now.saturating_duration_since(told.at) < PAUSE {
            told.left_out = told.left_out.saturating_add(1);
            return None;
        }
        told.at = now;
        Some(Line { left_out: take(&mut told.left_out) })
    }

    /// The classes whose pause is over with something left out, and how much: it is told even if nothing follows.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(&'static str, u64)> {
        let over = |told: &Told| now.saturating_duration_since(told.at) >= PAUSE;
        let due = self.0.iter_mut().filter(|(_, told)| over(told));
        let tell = |(class, told): (&&'static str, &mut Told)| {
            let left_out = take(&mut told.left_out)?;
            told.at = now;
            Some((*class, left_out))
        };
        due.filter_map(tell).collect()
    }
}

fn take(count: &mut u64) -> Option<u64> {
    Some(std::mem::take(count)).filter(|&count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_one_line_a_second_and_nothing_goes_uncounted() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        let line = |left_out| Some(Line { left_out });
        for (ms, class, expected) in [
            (0, "a", line(None)),
            (0, "a", None),
            (10, "b", line(None)),
            (999, "a", None),
            (1000, "a", line(Some(2))),
            (1001, "a", None),
            (5000, "a", line(Some(1))),
            (9000, "a", line(None)),
        ] {
            assert_eq!(limit.admit(class, start + Duration::from_millis(ms)), expected, "{class} at {ms}");
        }
    }

    #[test]
    fn what_was_left_out_last_is_told_once_without_another_event() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        for _ in 0..8 {
            limit.admit("a", after(0));
            limit.admit("b", after(500));
        }
        assert_eq!(limit.due(after(999)), []);
        assert_eq!(limit.due(after(1000)), [("a", 7)]);
        assert_eq!(limit.admit("a", after(1500)), None, "that was a line, too");
        assert_eq!(limit.due(after(1500)), [("b", 7)]);
        assert_eq!(limit.due(after(2000)), [("a", 1)]);
        assert_eq!(limit.due(after(9000)), []);
    }
}
