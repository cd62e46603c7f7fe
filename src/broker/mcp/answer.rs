//! From what a child says to an HTTP answer: JSON where the answer comes first, an event stream where something
//! comes before it or the child is silent for long.
//!
//! The form is chosen as late as possible, because some clients read JSON of any size but refuse an event above
//! 1 MiB. Streams carry no event ids: nothing can be resumed here, and clients that see ids try to.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::child::bridge::{Bridge, Pending};
use crate::child::calls::Event;
use crate::jsonrpc;
use crate::jsonrpc::{RawId, Spliced, code};
use crate::mcp::headers::Accept;
use crate::mcp::tools::list::View;

/// Silence of a child after which an answer is committed to SSE instead of JSON, so that the client sees headers.
pub(crate) const SSE_AFTER_SILENCE: Duration = Duration::from_secs(10);

/// Silence on an SSE stream before a comment is sent, so that proxies keep it open and a dead peer is noticed.
pub(crate) const SSE_KEEPALIVE: Duration = Duration::from_secs(15);

/// A comment line, which every client skips.
const KEEPALIVE: Bytes = Bytes::from_static(b": keepalive\n\n");
const BEFORE: Bytes = Bytes::from_static(b"event: message\ndata: ");
const AFTER: Bytes = Bytes::from_static(b"\n\n");
/// Answers below this go out in one piece.
const JOIN_BELOW: usize = 64 * 1024;

/// A request in flight, and what is needed to answer its client whatever happens.
struct Waiting {
    bridge: Arc<Bridge>,
    pending: Pending,
    id: RawId,
    deadline: Instant,
    limit: Duration,
    view: Option<View>,
}

/// Answers one request, within `limit`; the answer to `tools/list` in the caller's `view`.
pub(crate) async fn respond(
    bridge: Arc<Bridge>,
    pending: Pending,
    id: RawId,
    accept: Accept,
    limit: Duration,
    view: Option<View>,
) -> Response {
    let now = Instant::now();
    let mut waiting = Waiting { bridge, pending, id, deadline: now + limit, limit, view };
    if !accept.json {
        return events(rest(waiting, None));
    }
    let commit = if accept.events { waiting.deadline.min(now + SSE_AFTER_SILENCE) } else { waiting.deadline };
    loop {
        match timeout_at(commit, waiting.pending.events.recv()).await {
            Ok(Some(Event::Answer(text))) => return json(waiting.seen(text)),
            Ok(Some(Event::Note(text))) if accept.events => return events(rest(waiting, Some(text))),
            // Without an event stream there is nowhere to put it.
            Ok(Some(Event::Note(_))) => {}
            Ok(Some(Event::Cancelled)) if accept.events => return events(stream::empty()),
            Ok(Some(Event::Cancelled)) => return json(waiting.error("Request cancelled")),
            Ok(None) => return json(waiting.lost()),
            Err(_) if Instant::now() >= waiting.deadline => return json(waiting.timed_out()),
            Err(_) => return events(rest(waiting, None)),
        }
    }
}

impl Waiting {
    /// The answer as its caller may see it.
    fn seen(&self, answer: Spliced) -> Spliced {
        match &self.view {
            Some(view) => Spliced::whole(view.apply(answer.to_bytes())),
            None => answer,
        }
    }

    fn error(&self, message: &str) -> Spliced {
        Spliced::whole(jsonrpc::error_text(Some(&self.id), code::INTERNAL_ERROR, message))
    }

    fn timed_out(&self) -> Spliced {
        self.bridge.abandon(self.pending.number, "timeout");
        let limit = humantime::format_duration(self.limit);
        self.error(&format!("the forgejo-mcp process did not answer within {limit}"))
    }

    fn lost(&self) -> Spliced {
        self.error("the answer was lost because the stream was read too slowly")
    }
}

/// The rest of an answer as a stream that ends with exactly one response, or with none after a cancellation.
fn rest(waiting: Waiting, first: Option<Spliced>) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    struct Rest {
        waiting: Waiting,
        queue: VecDeque<Bytes>,
        over: bool,
    }
    // A comment at once, so that the client and every proxy between see the stream begin.
    let mut queue = VecDeque::from([KEEPALIVE]);
    if let Some(first) = first {
        enqueue(&mut queue, first);
    }
    stream::unfold(Rest { waiting, queue, over: false }, |mut rest| async move {
        loop {
            if let Some(chunk) = rest.queue.pop_front() {
                return Some((Ok(chunk), rest));
            }
            if rest.over {
                return None;
            }
            let until = rest.waiting.deadline.min(Instant::now() + SSE_KEEPALIVE);
            let last = match timeout_at(until, rest.waiting.pending.events.recv()).await {
                Ok(Some(Event::Note(text))) => {
                    enqueue(&mut rest.queue, text);
                    continue;
                }
                Ok(Some(Event::Answer(text))) => Some(rest.waiting.seen(text)),
                Ok(Some(Event::Cancelled)) => None,
                Ok(None) => Some(rest.waiting.lost()),
                Err(_) if Instant::now() >= rest.waiting.deadline => Some(rest.waiting.timed_out()),
                Err(_) => {
                    rest.queue.push_back(KEEPALIVE);
                    continue;
                }
            };
            rest.over = true;
            if let Some(last) = last {
                enqueue(&mut rest.queue, last);
            }
        }
    })
}

/// The session's own stream, until the session ends or another stream replaces it.
pub(crate) fn listen(messages: mpsc::Receiver<Spliced>) -> Response {
    let queue = VecDeque::from([KEEPALIVE]);
    events(stream::unfold((messages, queue), |(mut messages, mut queue)| async move {
        loop {
            if let Some(chunk) = queue.pop_front() {
                return Some((Ok::<_, Infallible>(chunk), (messages, queue)));
            }
            match timeout(SSE_KEEPALIVE, messages.recv()).await {
                Ok(Some(message)) => enqueue(&mut queue, message),
                Ok(None) => return None,
                Err(_) => queue.push_back(KEEPALIVE),
            }
        }
    }))
}

/// One message as a stream of its own, for clients that take nothing else.
pub(crate) fn single_event(message: Spliced) -> Response {
    let mut queue = VecDeque::new();
    enqueue(&mut queue, message);
    events(stream::iter(queue.into_iter().map(Ok)))
}

fn enqueue(queue: &mut VecDeque<Bytes>, message: Spliced) {
    queue.push_back(BEFORE);
    queue.extend(message.into_parts());
    queue.push_back(AFTER);
}

fn events(stream: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A JSON answer; large ones go out in the pieces they consist of.
pub(crate) fn json(text: Spliced) -> Response {
    let length = text.len();
    let body = if length < JOIN_BELOW {
        Body::from(text.to_bytes())
    } else {
        Body::from_stream(stream::iter(text.into_parts().into_iter().map(Ok::<_, Infallible>)))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
