//! The session's own stream: what a child sends that belongs to no request, for the client's GET.
//!
//! Outlives children. While nobody listens, the newest messages wait, up to a bound; a client that opens a second
//! stream replaces the first, because a half-open connection that nobody reads must not lock it out.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::frontend::jsonrpc::Spliced;
use crate::limits::MAX_STREAM_BACKLOG;

/// Messages kept while nobody listens; the oldest give way.
const MAX_WAITING: usize = 64;

/// One session's stream.
#[derive(Debug, Default)]
pub struct Listener(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    open: Option<mpsc::Sender<Spliced>>,
    waiting: VecDeque<Spliced>,
}

impl Listener {
    /// Opens the stream: what has waited comes first. An earlier stream ends.
    pub fn open(&self) -> mpsc::Receiver<Spliced> {
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
    pub fn close(&self) {
        let mut state = self.0.lock();
        state.open = None;
        state.waiting = VecDeque::new();
    }

    /// Whether a client listens now.
    pub fn is_open(&self) -> bool {
        self.0.lock().open.as_ref().is_some_and(|open| !open.is_closed())
    }

    /// Hands a message to the client that listens, or keeps it for the next. A client that reads too slowly loses
    /// its stream, never the child's time.
    pub fn send(&self, message: Spliced) {
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
        let listener = Listener::default();
        listener.send(message("1"));
        let mut stream = listener.open();
        listener.send(message("2"));
        assert_eq!(stream.recv().await, Some(message("1")));
        assert_eq!(stream.recv().await, Some(message("2")));
    }

    #[tokio::test]
    async fn a_second_stream_ends_the_first() {
        let listener = Listener::default();
        let mut first = listener.open();
        let mut second = listener.open();
        listener.send(message("1"));
        assert_eq!(first.recv().await, None);
        assert_eq!(second.recv().await, Some(message("1")));
    }

    #[test]
    fn what_waits_is_bounded_and_the_newest_stay() {
        let listener = Listener::default();
        for n in 0..=MAX_WAITING {
            listener.send(Spliced::whole(n.to_string().into()));
        }
        let mut stream = listener.open();
        assert_eq!(stream.try_recv().ok(), Some(message("1")));
    }
}
