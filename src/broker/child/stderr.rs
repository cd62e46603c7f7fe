//! A child's standard error: always drained, redacted, cut, and logged within a budget.
//!
//! A child that writes without end must neither block (it would hang with the pipe full) nor push the other lines of
//! the broker out of the journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::info;
use wire::telemetry::CHILD;

use crate::child::bridge::Shared;
use crate::child::lines::{Line, Lines};
use crate::child::spawner::ReadEnd;

/// Bytes of standard error kept to explain a child that died before it answered `initialize`.
pub(crate) const STDERR_TAIL: usize = 2 * 1024;

/// Bytes of one line of a child's standard error that reach the log; the rest of the line is cut.
pub(crate) const MAX_STDERR_LINE: usize = 4 * 1024;

/// Lines that reach the log within [`WINDOW`]; Go's panics have about 40.
const LINES_PER_WINDOW: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

/// The last of what was written, to explain a child that died.
#[derive(Debug, Default)]
pub(crate) struct Tail(Mutex<VecDeque<String>>);

impl Tail {
    fn push(&self, line: String) {
        let mut lines = self.0.lock();
        lines.push_back(line);
        while lines.len() > 1 && lines.iter().map(String::len).sum::<usize>() > STDERR_TAIL {
            lines.pop_front();
        }
    }

    /// At most [`STDERR_TAIL`] bytes, or one line.
    pub(crate) fn text(&self) -> String {
        let lines: Vec<String> = self.0.lock().iter().cloned().collect();
        lines.join("\n")
    }
}

/// Reads until the child closes its standard error.
pub(crate) async fn drain(stderr: ReadEnd, shared: Arc<Shared>) {
    let mut lines = Lines::new(stderr, MAX_STDERR_LINE);
    let mut budget = Budget { since: Instant::now(), left: LINES_PER_WINDOW, unsaid: 0 };
    while let Ok(Some(line)) = lines.next().await {
        let text = printable(&match line {
            Line::Whole(line) => shared.redactor.clean(line),
            Line::Begun(head, _) => shared.redactor.clean_cut(head),
            Line::Ended(_) => continue,
        });
        if budget.spend(Instant::now()) {
            info!(target: CHILD, "{text}");
        }
        shared.tail.push(text);
    }
    budget.report();
}

struct Budget {
    since: Instant,
    left: u32,
    unsaid: u64,
}

impl Budget {
    fn spend(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) > WINDOW {
            self.report();
            *self = Self { since: now, left: LINES_PER_WINDOW, unsaid: 0 };
        }
        let within = self.left > 0;
        self.left = self.left.saturating_sub(1);
        self.unsaid += u64::from(!within);
        within
    }

    fn report(&self) {
        if self.unsaid > 0 {
            info!(target: CHILD, lines = self.unsaid, "({} more lines are not logged)", self.unsaid);
        }
    }
}

/// The text without colours and other control characters, which could forge lines on an operator's terminal.
fn printable(line: &[u8]) -> String {
    let mut out = String::with_capacity(line.len());
    let text = String::from_utf8_lossy(line);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            // CSI: ESC [ parameters, ended by a letter (ECMA-48 section 5.4).
            '\x1b' => {
                if chars.next() == Some('[') {
                    chars.by_ref().find(|c| ('\x40'..='\x7e').contains(c));
                }
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_control_characters_are_gone() {
        assert_eq!(printable(b"\x1b[31mERROR\x1b[0m a\tb\x07\xff"), "ERROR a b\u{fffd}");
    }

    #[test]
    fn the_tail_is_bounded_and_holds_the_end() {
        let tail = Tail::default();
        for n in 0..10_000 {
            tail.push(format!("line {n}"));
        }
        assert!(tail.text().len() <= STDERR_TAIL + 512);
        assert!(tail.text().ends_with("line 9999"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_instead_of_logged() {
        let mut budget = Budget { since: Instant::now(), left: LINES_PER_WINDOW, unsaid: 0 };
        let said = (0..1000).filter(|_| budget.spend(Instant::now())).count();
        assert_eq!((said, budget.unsaid), (100, 900));
        tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
        assert!(budget.spend(Instant::now()));
    }
}
