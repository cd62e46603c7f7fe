//! Newline-delimited reading with a cap, for what a child writes.
//!
//! The bytes are a stranger's. A line is handed out as a slice of the read buffer, without a copy, and a buffer
//! that grew for one large line is given back after it. A line that is longer than the cap, or finds no memory, costs
//! whoever wrote it nothing else: its two ends are handed out, to tell whose it was, and the rest is dropped as it comes.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use crate::budget::{Budget, Held, OverBudget, counted};

/// Bytes in one line of a child's standard output. `forgejo-mcp` writes a file of 50 MB as one line of 50 MB, and one that
/// keeps it in base64 as one of 70 MB; both fit into what a user may have here at once.
pub(crate) const DEFAULT_MAX_LINE: usize = 80 << 20;

/// A first reservation, and what a buffer shrinks to again.
const CHUNK: usize = 8 * 1024;
/// A buffer above this is not kept once its line is out.
const MAX_KEPT_BUFFER: usize = 64 * 1024;
/// Bytes handed out of the beginning of a line that is not kept.
const MAX_HEAD: usize = 64 * 1024;
/// Bytes handed out of its end.
const MAX_TAIL: usize = 1024;
/// A line that goes on for so long has no end: whoever writes it is broken or hostile, and costs processor time.
const ENDLESS: u64 = 4 << 30;

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
    /// A line without an end.
    #[error("the child wrote {ENDLESS} bytes without a line feed")]
    Endless,
}

/// Why a line is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotKept {
    /// It has more bytes than this.
    TooLong(usize),
    /// What waits for the user's clients left no memory for it.
    NoRoom(OverBudget),
}

/// What is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line without its line end.
    Whole(Bytes),
    /// The first bytes of a line that is not kept, and why.
    Begun(Bytes, NotKept),
    /// The last bytes of that line, which is over.
    Ended(Bytes),
}

/// A line of which the beginning is out and nothing is kept.
#[derive(Debug, Default)]
struct Skipped {
    bytes: u64,
    tail: Vec<u8>,
}

impl Skipped {
    fn pass(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.tail.extend_from_slice(tail(bytes));
        self.tail.drain(..self.tail.len().saturating_sub(MAX_TAIL));
    }
}

/// Reads lines. Every method can be cancelled without losing bytes.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    from: R,
    buffer: BytesMut,
    /// Bytes at the front of `buffer` that are known to hold no line feed.
    scanned: usize,
    cap: usize,
    skipped: Option<Skipped>,
    budget: Option<Budget>,
    /// For `buffer`, once it has grown, and for `uncounted`.
    held: Option<Held>,
    /// A line that waits for its budget.
    uncounted: Option<Bytes>,
    /// The end of a line that found none.
    ended: Option<Bytes>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Lines of at most `cap` bytes; of longer ones the first 64 KiB, but not more than the cap, and the last KiB.
    pub(crate) fn new(from: R, cap: usize) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
            scanned: 0,
            cap,
            skipped: None,
            budget: None,
            held: None,
            uncounted: None,
            ended: None,
        }
    }

    /// Lines whose bytes are held against a user's budget for as long as anybody keeps a part of them.
    pub(crate) fn counted(from: R, cap: usize, budget: Budget) -> Self {
        Self { budget: Some(budget), ..Self::new(from, cap) }
    }

    /// What comes next; `None` at the end of the stream, where an unfinished line is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, LineError> {
        loop {
            if let Some(tail) = self.ended.take() {
                return Ok(Some(Line::Ended(tail)));
            }
            if self.uncounted.is_some() {
                return Ok(Some(self.count().await));
            }
            match self.buffered()? {
                Some(Line::Whole(line)) if self.budget.is_some() && line.len() >= COUNTED_FROM => {
                    // Kept here while it waits, so that a cancelled wait loses nothing.
                    self.uncounted = Some(line);
                    continue;
                }
                Some(line) => return Ok(Some(line)),
                None => {}
            }
            self.buffer.reserve(CHUNK);
            if let Err(over) = self.hold_buffer().await {
                return Ok(Some(self.skip(NotKept::NoRoom(over))));
            }
            if self.from.read_buf(&mut self.buffer).await.map_err(LineError::Read)? == 0 {
                return Ok(None);
            }
        }
    }

    /// Counts what has been read of a line that outgrew what is kept of a buffer, and not what the buffer could take: a
    /// page that nothing was written to is no memory. The child waits meanwhile: its pipe is not read.
    async fn hold_buffer(&mut self) -> Result<(), OverBudget> {
        let length = self.buffer.len();
        if length <= MAX_KEPT_BUFFER {
            self.held = None;
            return Ok(());
        }
        self.hold(length.saturating_add(CHUNK).next_multiple_of(MAX_KEPT_BUFFER)).await
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
    async fn count(&mut self) -> Line {
        let length = self.uncounted.as_ref().map_or(0, Bytes::len);
        let counts = self.hold(length).await;
        let line = self.uncounted.take().unwrap_or_default();
        let held = self.held.take();
        if let Err(over) = counts {
            self.ended = Some(Bytes::copy_from_slice(tail(&line)));
            return Line::Begun(head(&line, self.cap), NotKept::NoRoom(over));
        }
        Line::Whole(match held {
            Some(mut held) => {
                held.shrink_to(length);
                counted(line, held)
            }
            None => line,
        })
    }

    /// Hands out the beginning of the line in the buffer, and keeps nothing of the rest.
    fn skip(&mut self, why: NotKept) -> Line {
        let head = head(&self.buffer, self.cap);
        self.buffer.advance(head.len());
        self.scanned = 0;
        let mut skipped = Skipped::default();
        skipped.pass(&head);
        self.skipped = Some(skipped);
        Line::Begun(head, why)
    }

    /// What can be taken out of the buffer; `None` where more must be read.
    fn buffered(&mut self) -> Result<Option<Line>, LineError> {
        let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
        let Some(at) = memchr::memchr(b'\n', fresh) else { return self.without_end() };
        let end = self.scanned.saturating_add(at);
        let length = self.buffer.get(..end).map_or(0, |line| line.strip_suffix(b"\r").unwrap_or(line).len());
        if self.skipped.is_none() && length > self.cap {
            return Ok(Some(self.skip(NotKept::TooLong(self.cap))));
        }
        let mut line = self.buffer.split_to(end.saturating_add(1));
        self.scanned = 0;
        if self.buffer.capacity().max(line.len()) > MAX_KEPT_BUFFER {
            self.buffer = BytesMut::from(self.buffer.as_ref());
        }
        Ok(Some(if let Some(mut skipped) = self.skipped.take() {
            line.truncate(end);
            skipped.pass(&line);
            // Only now: it may have come before the line feed did.
            let _ = skipped.tail.pop_if(|last| *last == b'\r');
            Line::Ended(skipped.tail.into())
        } else {
            line.truncate(length);
            Line::Whole(line.freeze())
        }))
    }

    /// What becomes of a buffer that holds no line feed.
    fn without_end(&mut self) -> Result<Option<Line>, LineError> {
        if let Some(skipped) = &mut self.skipped {
            skipped.pass(&self.buffer);
            self.scanned = 0;
            if self.buffer.capacity() > MAX_KEPT_BUFFER {
                self.buffer = BytesMut::new();
            }
            self.buffer.clear();
            return if skipped.bytes > ENDLESS { Err(LineError::Endless) } else { Ok(None) };
        }
        self.scanned = self.buffer.len();
        // The last byte may turn out to belong to the line end.
        let length = self.buffer.strip_suffix(b"\r").unwrap_or(&self.buffer).len();
        Ok((length > self.cap).then(|| self.skip(NotKept::TooLong(self.cap))))
    }
}

fn tail(line: &[u8]) -> &[u8] {
    line.last_chunk::<MAX_TAIL>().map_or(line, <[u8; MAX_TAIL]>::as_slice)
}

fn head(line: &[u8], cap: usize) -> Bytes {
    Bytes::copy_from_slice(line.get(..cap.min(MAX_HEAD)).unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(input: &[u8], cap: usize) -> Vec<Line> {
        let mut lines = Lines::new(input, cap);
        let mut out = Vec::new();
        while let Some(line) = lines.next().await.expect("readable") {
            out.push(line);
        }
        out
    }

    fn whole(line: &'static str) -> Line {
        Line::Whole(line.into())
    }

    #[tokio::test]
    async fn lines_are_split_at_line_feeds_and_an_unfinished_one_is_dropped() {
        assert_eq!(all(b"a\r\n\nbc\nd", 9).await, [whole("a"), whole(""), whole("bc")]);
    }

    #[tokio::test]
    async fn a_line_at_the_cap_is_whole_and_of_a_longer_one_only_its_two_ends_are_there() {
        assert_eq!(all(b"12345\r\n", 5).await, [whole("12345")]);
        let begun = |line: &'static str| Line::Begun(line.into(), NotKept::TooLong(5));
        let expected = [begun("12345"), Line::Ended("123456".into()), whole("next")];
        assert_eq!(all(b"123456\nnext\n", 5).await, expected);
        let mut input = vec![b'x'; 1 << 20];
        input.extend_from_slice(b"the end\nnext\n");
        let lines = all(&input, 5).await;
        assert_eq!((&lines[0], &lines[2], lines.len()), (&begun("xxxxx"), &whole("next"), 3));
        assert!(matches!(&lines[1], Line::Ended(tail) if tail.len() == MAX_TAIL && tail.ends_with(b"the end")));
    }

    #[tokio::test]
    async fn the_end_of_a_long_line_is_without_its_line_end_wherever_a_pipe_cuts_it() {
        for (first, second) in [("123456\r\r\n", ""), ("123456\r", "\r\n"), ("123456\r\r", "\n")] {
            let cut = AsyncReadExt::chain(first.as_bytes(), second.as_bytes());
            let mut lines = Lines::new(cut, 5);
            let _ = lines.next().await.expect("readable");
            assert_eq!(lines.next().await.expect("readable"), Some(Line::Ended("123456\r".into())), "{first:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_of_what_is_not_handed_out() {
        let input = vec![b'x'; 64 << 20];
        let mut lines = Lines::new(&*input, 1 << 20);
        let head = lines.next().await.expect("readable").expect("a line");
        assert!(matches!(head, Line::Begun(head, NotKept::TooLong(1_048_576)) if head.len() == MAX_HEAD));
        assert_eq!(lines.next().await.expect("readable"), None);
        assert!(lines.buffer.capacity() <= MAX_KEPT_BUFFER, "{}", lines.buffer.capacity());
    }
}
