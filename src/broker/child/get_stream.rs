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

/// One session's stream.
#[derive(Debug, Default)]
pub(crate) struct GetStream(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    open: Option<mpsc::Sender<Spliced>>,
    waiting: VecDeque<Spliced>,
}

impl GetStream {
    /// Opens the stream: what has waited comes first. An earlier stream ends.
    pub(crate) fn open(&self) -> mpsc::Receiver<Spliced> {
        let (send, receive) = mpsc::channel(MAX_STREAM_BACKLOG);
        let mut state = self.0.lock();
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
        if state.waiting.len() >= MAX_WAITING {
            state.waiting.pop_front();
        }
        state.waiting.push_back(message);
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
}
