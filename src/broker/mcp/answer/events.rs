//! Event streams (SSE; HTML, section 9.2): how messages become chunks of one, and what keeps it open.
//!
//! Streams carry no event ids; [`get_stream`](crate::child::get_stream) says why.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use tokio::time::timeout;

use super::answering::{Answering, Next};
use crate::child::bridge::stateless::Listening;
use crate::child::get_stream::Listener;
use crate::child::listens::Heard;
use crate::jsonrpc::Spliced;

/// Silence on a stream before a comment is sent, so that proxies keep it open and a dead peer is noticed.
pub(super) const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
/// A comment line, which every client skips.
const KEEPALIVE: Bytes = Bytes::from_static(b": keepalive\n\n");
const BEFORE: Bytes = Bytes::from_static(b"event: message\ndata: ");
const AFTER: Bytes = Bytes::from_static(b"\n\n");

/// The rest of an answer as a stream that ends with exactly one response, or with none after a cancellation.
pub(super) fn rest(answering: Answering, first: Option<Spliced>) -> Response {
    // A comment at once, so that the client and every proxy between see the stream begin.
    let mut queue = VecDeque::from([KEEPALIVE]);
    if let Some(first) = first {
        enqueue(&mut queue, first);
    }
    respond(stream::unfold((answering, queue), |(mut answering, mut queue)| async move {
        loop {
            if let Some(chunk) = queue.pop_front() {
                return Some((Ok(chunk), (answering, queue)));
            }
            match answering.next().await? {
                Next::Note(text) | Next::Last(text) => enqueue(&mut queue, text),
                Next::Silence => queue.push_back(KEEPALIVE),
                Next::Cancelled(_) => {}
            }
        }
    }))
}

/// The messages of several requests, as they come.
pub(super) fn several(messages: impl Stream<Item = Next> + Send + 'static) -> Response {
    let messages = messages.filter_map(async |next| match next {
        Next::Note(text) | Next::Last(text) => Some(text),
        Next::Silence | Next::Cancelled(_) => None,
    });
    respond(kept_alive(VecDeque::from([KEEPALIVE]), messages))
}

/// The session's own stream, until the session ends or another stream replaces it.
pub(crate) fn listen(listener: Listener) -> Response {
    let queue = VecDeque::from([KEEPALIVE]);
    respond(stream::unfold((listener, queue), |(mut listener, mut queue)| async move {
        loop {
            if let Some(chunk) = queue.pop_front() {
                // What another stream takes over ends without its end here, so that no client takes it for a message.
                return listener.may_hand_over(queue.is_empty()).then_some((Ok(chunk), (listener, queue)));
            }
            match timeout(KEEPALIVE_AFTER, listener.next()).await {
                Ok(Some(message)) => enqueue(&mut queue, message),
                Ok(None) => return None,
                Err(_) => queue.push_back(KEEPALIVE),
            }
        }
    }))
}

/// A subscription's stream, until it ends or its client hangs up. `first` is its first message.
pub(crate) fn listening(first: Heard, listening: Listening) -> Response {
    let mut queue = VecDeque::new();
    let (Heard::Note(text) | Heard::Last(text, _)) = first;
    enqueue(&mut queue, text);
    let messages = stream::unfold(Some(listening), async |listening| {
        let mut listening = listening?;
        match listening.next().await? {
            Heard::Note(text) => Some((text, Some(listening))),
            Heard::Last(text, _) => Some((text, None)),
        }
    });
    respond(kept_alive(queue, messages))
}

/// One message as a stream of its own, for clients that take nothing else.
pub(crate) fn single_event(message: Spliced) -> Response {
    whole_stream(vec![message])
}

/// Messages as a stream that is over with them.
pub(crate) fn whole_stream(messages: Vec<Spliced>) -> Response {
    let mut queue = VecDeque::new();
    for message in messages {
        enqueue(&mut queue, message);
    }
    respond(stream::iter(queue.into_iter().map(Ok)))
}

/// What is in the queue, then the messages as they come, with comments where none comes for long.
fn kept_alive(
    queue: VecDeque<Bytes>,
    messages: impl Stream<Item = Spliced> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    stream::unfold((messages.boxed(), queue), |(mut messages, mut queue)| async move {
        loop {
            if let Some(chunk) = queue.pop_front() {
                return Some((Ok(chunk), (messages, queue)));
            }
            match timeout(KEEPALIVE_AFTER, messages.next()).await {
                Ok(Some(message)) => enqueue(&mut queue, message),
                Ok(None) => return None,
                Err(_) => queue.push_back(KEEPALIVE),
            }
        }
    })
}

fn enqueue(queue: &mut VecDeque<Bytes>, message: Spliced) {
    queue.push_back(BEFORE);
    queue.extend(message.into_parts());
    queue.push_back(AFTER);
}

fn respond(stream: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
