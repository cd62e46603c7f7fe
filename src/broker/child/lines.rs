//! Newline-delimited reading with a cap, for what a child writes.
//!
//! The bytes are a stranger's. A line is handed out as a slice of the read buffer, without a copy, and a buffer
//! that grew for one large line is given back after it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use crate::budget::{Budget, Held, OverBudget, counted};

/// Bytes in one line of a child's standard output; `forgejo-mcp` writes a 50 MB file as one 50 MB line, and a
/// child that goes past the cap is stopped (facts: a 5 MB file came back as one 5.0 MB line).
pub(crate) const DEFAULT_MAX_LINE: usize = 32 * 1024 * 1024;

/// A first reservation, and what a buffer shrinks to again.
const CHUNK: usize = 8 * 1024;
/// A buffer above this is not kept once its line is out.
const MAX_KEPT_BUFFER: usize = 64 * 1024;

/// Lines below this are not counted: how many of them wait is bounded, and so is their sum.
const COUNTED_FROM: usize = 1024;
/// How long a child may be kept waiting, with a line half written, for its user's clients to read what waits for them.
const BUDGET_WAIT: Duration = Duration::from_mins(1);

/// Why there is no further line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The pipe broke.
    #[error("reading from the child failed")]
    Read(#[source] std::io::Error),
    /// More than the cap without a line feed.
    #[error("the child wrote a line of more than {0} bytes")]
    TooLong(usize),
    /// What waits for the user's clients leaves no memory for it.
    #[error("{0}")]
    OverBudget(#[from] OverBudget),
}

/// What to do with a line beyond the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlong {
    /// Fail: for messages, of which a part is worth nothing.
    Fail,
    /// Hand out the first bytes and skip the rest: for log lines.
    Cut,
}

/// What the buffer held.
enum Buffered {
    /// A line.
    Line(Bytes),
    /// The rest of a line of which the beginning is out.
    RestOfCut,
    /// No whole line: more must be read.
    Nothing,
}

/// Reads lines. Every method can be cancelled without losing bytes.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    from: R,
    buffer: BytesMut,
    /// Bytes at the front of `buffer` that are known to hold no line feed.
    scanned: usize,
    cap: usize,
    overlong: Overlong,
    skipping: bool,
    budget: Option<Budget>,
    /// For `buffer`, once it has grown, and for `uncounted`.
    held: Option<Held>,
    /// A line that waits for its budget.
    uncounted: Option<Bytes>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Lines of at most `cap` bytes.
    pub(crate) fn new(from: R, cap: usize, overlong: Overlong) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
            scanned: 0,
            cap,
            overlong,
            skipping: false,
            budget: None,
            held: None,
            uncounted: None,
        }
    }

    /// Lines whose bytes are held against a user's budget for as long as anybody keeps a part of them.
    pub(crate) fn counted(from: R, cap: usize, overlong: Overlong, budget: Budget) -> Self {
        Self { budget: Some(budget), ..Self::new(from, cap, overlong) }
    }

    /// The next line without its line end; `None` at the end of the stream, where an unfinished line is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            if self.uncounted.is_some() {
                return self.count().await.map(Some);
            }
            match self.buffered()? {
                Buffered::Line(line) if self.budget.is_some() && line.len() >= COUNTED_FROM => {
                    // Kept here while it waits, so that a cancelled wait loses nothing.
                    self.uncounted = Some(line);
                    continue;
                }
                Buffered::Line(line) => return Ok(Some(line)),
                Buffered::RestOfCut => continue,
                Buffered::Nothing => {}
            }
            self.buffer.reserve(CHUNK);
            self.hold_buffer().await?;
            if self.from.read_buf(&mut self.buffer).await.map_err(LineError::Read)? == 0 {
                return Ok(None);
            }
        }
    }

    /// Counts a buffer that has grown beyond what is kept of one. The child waits meanwhile: its pipe is not read.
    async fn hold_buffer(&mut self) -> Result<(), OverBudget> {
        let capacity = self.buffer.capacity();
        if capacity <= MAX_KEPT_BUFFER {
            self.held = None;
            return Ok(());
        }
        self.hold(capacity).await
    }

    /// Sees to it that at least so many bytes are held.
    async fn hold(&mut self, bytes: usize) -> Result<(), OverBudget> {
        let Some(budget) = &self.budget else { return Ok(()) };
        let held = match &mut self.held {
            Some(held) => held,
            none => none.insert(budget.hold(0)?),
        };
        held.grow_by(bytes.saturating_sub(held.bytes()), Instant::now() + BUDGET_WAIT).await
    }

    /// The line that waits, with its count on it.
    async fn count(&mut self) -> Result<Bytes, LineError> {
        let length = self.uncounted.as_ref().map_or(0, Bytes::len);
        self.hold(length).await?;
        let line = self.uncounted.take().unwrap_or_default();
        Ok(match self.held.take() {
            Some(mut held) => {
                held.shrink_to(length);
                counted(line, held)
            }
            None => line,
        })
    }

    /// Takes one line out of the buffer.
    fn buffered(&mut self) -> Result<Buffered, LineError> {
        let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
        if let Some(at) = memchr::memchr(b'\n', fresh) {
            let end = self.scanned.saturating_add(at);
            let mut line = self.buffer.split_to(end.saturating_add(1));
            self.scanned = 0;
            if self.buffer.capacity().max(line.len()) > MAX_KEPT_BUFFER {
                self.buffer = BytesMut::from(self.buffer.as_ref());
            }
            line.truncate(end);
            if line.last() == Some(&b'\r') {
                line.truncate(line.len().saturating_sub(1));
            }
            if std::mem::take(&mut self.skipping) {
                return Ok(Buffered::RestOfCut);
            }
            return self.fitting(line).map(Buffered::Line);
        }
        self.scanned = self.buffer.len();
        if self.skipping {
            self.buffer.clear();
            self.scanned = 0;
        } else if self.buffer.len() > self.cap {
            let line = self.buffer.split();
            self.scanned = 0;
            self.skipping = true;
            return self.fitting(line).map(Buffered::Line);
        }
        Ok(Buffered::Nothing)
    }

    fn fitting(&self, mut line: BytesMut) -> Result<Bytes, LineError> {
        if line.len() > self.cap {
            match self.overlong {
                Overlong::Fail => return Err(LineError::TooLong(self.cap)),
                Overlong::Cut => line.truncate(self.cap),
            }
        }
        Ok(line.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(input: &[u8], cap: usize, overlong: Overlong) -> Result<Vec<Bytes>, LineError> {
        let mut lines = Lines::new(input, cap, overlong);
        let mut out = Vec::new();
        while let Some(line) = lines.next().await? {
            out.push(line);
        }
        Ok(out)
    }

    #[tokio::test]
    async fn lines_are_split_at_line_feeds_and_an_unfinished_one_is_dropped() {
        assert_eq!(all(b"a\r\n\nbc\nd", 9, Overlong::Fail).await.expect("lines"), ["a", "", "bc"]);
    }

    #[tokio::test]
    async fn a_message_beyond_the_cap_is_an_error_and_one_at_the_cap_is_not() {
        assert_eq!(all(b"12345\n", 5, Overlong::Fail).await.expect("at the cap"), ["12345"]);
        assert!(matches!(all(b"123456\n", 5, Overlong::Fail).await, Err(LineError::TooLong(5))));
        assert!(matches!(all(&vec![b'x'; 100_000], 5, Overlong::Fail).await, Err(LineError::TooLong(5))));
    }

    #[tokio::test]
    async fn a_log_line_beyond_the_cap_is_cut_and_the_next_one_is_whole() {
        let mut input = vec![b'x'; 100_000];
        input.extend_from_slice(b"\nnext\n");
        assert_eq!(all(&input, 5, Overlong::Cut).await.expect("lines"), ["xxxxx", "next"]);
    }
}
