//! The session's own stream: what a child sends that belongs to no request, for the client's GET.
//!
//! Outlives children. While nobody listens, the newest messages wait, up to a bound; a client that opens a second
//! stream replaces the first, because a half-open connection that nobody reads must not lock it out.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::jsonrpc::Spliced;

/// Messages waiting for a client that reads its stream too slowly before that stream is dropped.
pub(crate) const MAX_STREAM_BACKLOG: usize = 256;

/// Messages kept while nobody listens; the oldest give way.
const MAX_WAITING: usize = 64;
/// Bytes of them. They may wait for as long as the session lives, so they are bounded far below the user's budget.
const MAX_WAITING_BYTES: usize = 1024 * 1024;

/// One session's stream.
#[derive(Debug, Default)]
pub(crate) struct GetStream(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    open: Option<mpsc::Sender<Spliced>>,
    waiting: VecDeque<Spliced>,
    waiting_bytes: usize,
}

impl GetStream {
    /// Opens the stream: what has waited comes first. An earlier stream ends.
    pub(crate) fn open(&self) -> mpsc::Receiver<Spliced> {
        let (send, receive) = mpsc::channel(MAX_STREAM_BACKLOG);
        let mut state = self.0.lock();
        state.waiting_bytes = 0;
        for message in std::mem::take(&mut state.waiting) {
            // The channel is larger than the queue, so this cannot be full.
            let _ = send.try_send(message);
        }
        state.open = Some(send);
        receive
    }

    /// Ends the stream and forgets what waits: the session is over.
    pub(crate) fn close(&self) {
        let mut state = self.0.lock();
        state.open = None;
        state.waiting = VecDeque::new();
        state.waiting_bytes = 0;
    }

    /// Hands a message to the client that listens, or keeps it for the next. A client that reads too slowly loses
    /// its stream, never the child's time.
    pub(crate) fn send(&self, message: Spliced) {
        let mut state = self.0.lock();
        let message = match &state.open {
            Some(open) => match open.try_send(message) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(message) | mpsc::error::TrySendError::Closed(message)) => message,
            },
            None => message,
        };
        state.open = None;
        state.wait(message);
    }
}

impl State {
    /// Keeps a message for the next stream; the oldest give way, and so does one that is beyond the bound by itself.
    fn wait(&mut self, message: Spliced) {
        self.waiting_bytes = self.waiting_bytes.saturating_add(message.len());
        self.waiting.push_back(message);
        while self.waiting.len() > MAX_WAITING || self.waiting_bytes > MAX_WAITING_BYTES {
            let Some(oldest) = self.waiting.pop_front() else { return };
            self.waiting_bytes = self.waiting_bytes.saturating_sub(oldest.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &'static str) -> Spliced {
        Spliced::whole(text.into())
    }

    #[tokio::test]
    async fn what_was_sent_while_nobody_listened_comes_first() {
        let get_stream = GetStream::default();
        get_stream.send(message("1"));
        let mut stream = get_stream.open();
        get_stream.send(message("2"));
        assert_eq!(stream.recv().await, Some(message("1")));
        assert_eq!(stream.recv().await, Some(message("2")));
    }

    #[tokio::test]
    async fn a_second_stream_ends_the_first() {
        let get_stream = GetStream::default();
        let mut first = get_stream.open();
        let mut second = get_stream.open();
        get_stream.send(message("1"));
        assert_eq!(first.recv().await, None);
        assert_eq!(second.recv().await, Some(message("1")));
    }

    #[test]
    fn what_waits_is_bounded_and_the_newest_stay() {
        let get_stream = GetStream::default();
        for n in 0..=MAX_WAITING {
            get_stream.send(Spliced::whole(n.to_string().into()));
        }
        let mut stream = get_stream.open();
        assert_eq!(stream.try_recv().ok(), Some(message("1")));
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_too() {
        let get_stream = GetStream::default();
        get_stream.send(message("small"));
        for _ in 0..3 {
            get_stream.send(Spliced::whole(vec![b'x'; MAX_WAITING_BYTES / 2].into()));
        }
        assert_eq!(get_stream.0.lock().waiting_bytes, MAX_WAITING_BYTES);
        get_stream.send(Spliced::whole(vec![b'x'; MAX_WAITING_BYTES + 1].into()));
        get_stream.send(message("last"));
        let mut stream = get_stream.open();
        assert_eq!(stream.try_recv().ok(), Some(message("last")), "one that is too large by itself does not stay");
        assert_eq!(get_stream.0.lock().waiting_bytes, 0);
    }
}
