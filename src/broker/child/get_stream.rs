//! The session's own stream: what a child sends that belongs to no request, for the client's GET.
//!
//! Outlives children. A message stays in the queue until the connection has taken all of it, whoever listens: a client
//! that opens a second stream replaces the first, because a half-open connection that nobody reads must not lock it out,
//! and goes on where that one stopped. While nobody listens, the newest messages wait, up to a bound; what a child asked
//! and nobody heard gets its error at its deadline, like any question without an answer.
//!
//! There are no event ids, so that nothing can be resumed (2025-11-25, basic/transports, section Resumability and
//! Redelivery: a server MAY). Where there are ids, the official SDKs come back with `Last-Event-ID` after every stream that
//! ends, answered ones too, and the event without data that has to come first is an error to older ones. It would buy
//! little: an answer is one event or JSON, and what was lost of it would have to be kept in memory for every call of
//! everybody. Without ids all of them reconnect or ask again.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::jsonrpc::Spliced;

/// Messages waiting for a client that reads its stream too slowly before that stream is dropped.
pub(crate) const MAX_STREAM_BACKLOG: usize = 256;

/// Messages kept while nobody listens; the oldest give way.
const MAX_WAITING: usize = 64;
/// Bytes of them. They may wait for as long as the session lives, so they are bounded far below the user's budget.
const MAX_WAITING_BYTES: usize = 1024 * 1024;

/// One session's stream.
#[derive(Debug, Default)]
pub(crate) struct GetStream {
    state: Mutex<State>,
    /// Rung when there is a message, or another listener, or none any more.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Spliced>,
    /// Of what is in the queue.
    bytes: usize,
    /// The one that listens now.
    listener: Option<u64>,
    /// How many listened so far.
    listeners: u64,
    /// The session is over.
    is_over: bool,
}

impl GetStream {
    /// Opens the stream: what has waited, or was not taken by an earlier one, comes first. An earlier stream ends.
    pub(crate) fn open(self: &Arc<Self>) -> Listener {
        let number = {
            let mut state = self.state.lock();
            state.listeners = state.listeners.wrapping_add(1);
            state.listener = Some(state.listeners);
            state.listeners
        };
        self.news.notify_waiters();
        Listener { get_stream: Arc::clone(self), number, is_taking: false }
    }

    /// Hands a message to the client that listens; of no use where none does.
    pub(crate) fn send_to_listener(&self, message: Spliced) {
        if self.is_listened_to() {
            self.send(message);
        }
    }

    /// Whether a client listens.
    pub(crate) fn is_listened_to(&self) -> bool {
        self.state.lock().listener.is_some()
    }

    /// The session is over: who listens takes what there is, and the stream ends.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        state.keep_in_bounds();
        drop(state);
        self.news.notify_waiters();
    }

    /// Keeps a message for the client that listens, or for the next. A client that reads too slowly loses its stream, never
    /// the child's time.
    pub(crate) fn send(&self, message: Spliced) {
        let mut state = self.state.lock();
        if state.is_over {
            return;
        }
        state.bytes = state.bytes.saturating_add(message.len());
        state.queue.push_back(message);
        if state.queue.len() > MAX_STREAM_BACKLOG {
            state.listener = None;
        }
        state.keep_in_bounds();
        drop(state);
        self.news.notify_waiters();
    }
}

impl State {
    /// While nobody listens, the oldest give way, and so does one that is beyond the bound by itself; after the session all.
    fn keep_in_bounds(&mut self) {
        if self.listener.is_some() {
            return;
        }
        if self.is_over {
            self.queue = VecDeque::new();
            self.bytes = 0;
        }
        while self.queue.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let first = self.queue.pop_front();
        self.bytes = self.bytes.saturating_sub(first.map_or(self.bytes, |first| first.len()));
    }
}

/// Who listens to a session's stream. Dropped, nobody does, unless another has taken over.
#[derive(Debug)]
pub(crate) struct Listener {
    get_stream: Arc<GetStream>,
    number: u64,
    /// Whether the first message of the queue is being handed over.
    is_taking: bool,
}

impl Listener {
    /// The message to hand over next; stays in the queue until that is done. `None` when the session is over or another
    /// listens.
    pub(crate) async fn next(&mut self) -> Option<Spliced> {
        let get_stream = Arc::clone(&self.get_stream);
        loop {
            // Made before the look, so that what comes in between wakes it.
            let news = get_stream.news.notified();
            {
                let state = get_stream.state.lock();
                if state.listener != Some(self.number) {
                    return None;
                }
                if let Some(first) = state.queue.front() {
                    self.is_taking = true;
                    return Some(first.clone());
                }
                if state.is_over {
                    return None;
                }
            }
            news.await;
        }
    }

    /// Asks whether a part of what came last may be handed over: not if another listens, who gets the whole. With its last
    /// part the message is gone from the queue.
    pub(crate) fn may_hand_over(&mut self, is_last: bool) -> bool {
        let mut state = self.get_stream.state.lock();
        let listens = state.listener == Some(self.number);
        if listens && is_last && std::mem::take(&mut self.is_taking) {
            state.forget_first();
        }
        listens
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.get_stream.state.lock();
        if state.listener == Some(self.number) {
            state.listener = None;
            state.keep_in_bounds();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn message(text: &'static str) -> Spliced {
        Spliced::whole(text.into())
    }

    /// What is there, without a wait, and handed over as a whole.
    fn now(listener: &mut Listener) -> Option<Spliced> {
        let message = listener.next().now_or_never().flatten();
        message.filter(|_| listener.may_hand_over(true))
    }

    #[test]
    fn what_was_sent_while_nobody_listened_comes_first() {
        let get_stream = Arc::new(GetStream::default());
        get_stream.send(message("1"));
        let mut stream = get_stream.open();
        get_stream.send(message("2"));
        assert_eq!([now(&mut stream), now(&mut stream)], [Some(message("1")), Some(message("2"))]);
        assert_eq!(now(&mut stream), None);
        assert_eq!(get_stream.state.lock().bytes, 0);
    }

    #[tokio::test]
    async fn a_second_stream_ends_the_first_and_goes_on_where_that_one_stopped() {
        let get_stream = Arc::new(GetStream::default());
        let mut first = get_stream.open();
        for text in ["taken", "in the middle", "not yet"] {
            get_stream.send(message(text));
        }
        assert_eq!(now(&mut first), Some(message("taken")));
        assert_eq!(first.next().await, Some(message("in the middle")));
        assert!(first.may_hand_over(false));
        let mut second = get_stream.open();
        assert!(!first.may_hand_over(true), "its end is not sent twice");
        assert_eq!(first.next().await, None);
        drop(first);
        get_stream.send(message("live"));
        for text in ["in the middle", "not yet", "live"] {
            assert_eq!(now(&mut second), Some(message(text)));
        }
        assert_eq!(now(&mut second), None);
    }

    #[tokio::test]
    async fn a_listener_that_waits_is_woken_by_a_message_by_the_next_and_by_the_end() {
        let get_stream = Arc::new(GetStream::default());
        let mut first = get_stream.open();
        let waiting = tokio::spawn(async move {
            let came = first.next().await;
            (came, first.may_hand_over(true), first.next().await)
        });
        tokio::task::yield_now().await;
        get_stream.send(message("1"));
        tokio::task::yield_now().await;
        let mut second = get_stream.open();
        assert_eq!(waiting.await.expect("no panic"), (Some(message("1")), true, None));
        let waiting = tokio::spawn(async move { second.next().await });
        tokio::task::yield_now().await;
        get_stream.close();
        assert_eq!(waiting.await.expect("no panic"), None);
    }

    #[test]
    fn the_end_of_the_session_takes_nothing_from_who_listens_and_keeps_nothing_for_others() {
        let get_stream = Arc::new(GetStream::default());
        let mut stream = get_stream.open();
        get_stream.send(message("last words"));
        get_stream.close();
        get_stream.send(message("too late"));
        assert_eq!(now(&mut stream), Some(message("last words")));
        assert_eq!(stream.next().now_or_never(), Some(None));
        get_stream.send(message("too late"));
        drop(stream);
        assert_eq!(get_stream.open().next().now_or_never(), Some(None));
    }

    #[test]
    fn a_client_that_hangs_up_leaves_what_it_did_not_take() {
        let get_stream = Arc::new(GetStream::default());
        let mut first = get_stream.open();
        get_stream.send(message("1"));
        assert_eq!(first.next().now_or_never(), Some(Some(message("1"))));
        drop(first);
        get_stream.send(message("2"));
        let mut second = get_stream.open();
        assert_eq!([now(&mut second), now(&mut second)], [Some(message("1")), Some(message("2"))]);
    }

    #[test]
    fn a_client_that_reads_too_slowly_loses_its_stream_and_finds_the_newest() {
        let get_stream = Arc::new(GetStream::default());
        let mut slow = get_stream.open();
        for n in 0..=MAX_STREAM_BACKLOG {
            get_stream.send(Spliced::whole(n.to_string().into()));
        }
        assert_eq!(slow.next().now_or_never(), Some(None), "it ends");
        let newest = Spliced::whole((MAX_STREAM_BACKLOG + 1 - MAX_WAITING).to_string().into());
        assert_eq!(now(&mut get_stream.open()), Some(newest));
    }

    #[test]
    fn what_waits_is_bounded_and_the_newest_stay() {
        let get_stream = Arc::new(GetStream::default());
        for n in 0..=MAX_WAITING {
            get_stream.send(Spliced::whole(n.to_string().into()));
        }
        assert_eq!(now(&mut get_stream.open()), Some(message("1")));
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_too() {
        let get_stream = Arc::new(GetStream::default());
        get_stream.send(message("small"));
        for _ in 0..3 {
            get_stream.send(Spliced::whole(vec![b'x'; MAX_WAITING_BYTES / 2].into()));
        }
        assert_eq!(get_stream.state.lock().bytes, MAX_WAITING_BYTES);
        get_stream.send(Spliced::whole(vec![b'x'; MAX_WAITING_BYTES + 1].into()));
        get_stream.send(message("last"));
        let mut stream = get_stream.open();
        assert_eq!(now(&mut stream), Some(message("last")), "one that is too large by itself does not stay");
        assert_eq!(now(&mut stream), None);
        assert_eq!(get_stream.state.lock().bytes, 0);
    }
}
