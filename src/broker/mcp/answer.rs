//! From what a child says to an HTTP answer: JSON where the answer comes first, an event stream where something
//! comes before it or the child is silent for long.
//!
//! The form is chosen as late as possible, because some clients read JSON of any size but refuse an event above
//! 1 MiB. Streams carry no event ids: nothing can be resumed here, and clients that see ids try to.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::budget::{Budget, counted};
use crate::child::bridge::Pending;
use crate::child::bridge::stateless::Listening;
use crate::child::calls::{Ending, Event};
use crate::child::listens::Heard;
use crate::jsonrpc;
use crate::jsonrpc::{RawId, Spliced, code};
use crate::mcp::doubt::Doubt;
use crate::mcp::headers::Accept;
use crate::mcp::observed::Observed;
use crate::mcp::refusal::Refusal;
use crate::mcp::tools::Effect;
use crate::mcp::tools::list::View;
use crate::metrics::CallOutcome;

/// How long a request may be on its way to a child before its answer is committed to SSE instead of JSON, so that the
/// client sees headers. (With the child, silence is told by the table of requests: one timer for all.)
const SSE_AFTER_SILENCE: Duration = Duration::from_secs(10);

/// Silence on an SSE stream before a comment is sent, so that proxies keep it open and a dead peer is noticed.
const SSE_KEEPALIVE: Duration = Duration::from_secs(15);

/// A comment line, which every client skips.
const KEEPALIVE: Bytes = Bytes::from_static(b": keepalive\n\n");
const BEFORE: Bytes = Bytes::from_static(b"event: message\ndata: ");
const AFTER: Bytes = Bytes::from_static(b"\n\n");
/// Answers below this go out in one piece.
const JOIN_BELOW: usize = 64 * 1024;

/// A request that a child has.
#[derive(Debug)]
pub(crate) struct Sent {
    /// What comes of it.
    pub(crate) pending: Pending,
    /// How the caller is to see the answer, where that is not as the child gives it.
    pub(crate) view: Option<View>,
    /// What the tool that is called does, as far as that is known and matters.
    pub(crate) effect: Option<Effect>,
}

/// What a request's client is told whatever happens.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The request's id.
    pub(crate) id: RawId,
    /// How long it may take in all, to name it where it took too long.
    pub(crate) limit: Duration,
    /// Of the caller.
    pub(crate) budget: Budget,
    /// Hears what the request comes to.
    pub(crate) observed: Option<Observed>,
    /// Looks into what a child says of its token.
    pub(crate) doubt: Option<Doubt>,
}

impl Asked {
    fn error(&self, message: &str) -> Spliced {
        Spliced::whole(jsonrpc::error_text(Some(&self.id), code::INTERNAL_ERROR, message))
    }

    fn timed_out(&self) -> Spliced {
        let limit = humantime::format_duration(self.limit);
        self.error(&format!("the forgejo-mcp process did not answer within {limit}"))
    }

    fn lost(&self) -> Spliced {
        self.error("the answer was lost because the stream was read too slowly")
    }

    fn came_to(&mut self, outcome: impl Into<CallOutcome>) {
        if let Some(observed) = &mut self.observed {
            observed.came_to(outcome.into());
        }
    }

    fn refused(&mut self, refusal: &Refusal) {
        if let Some(observed) = &mut self.observed {
            observed.refused(refusal);
        }
    }

    fn sent(&mut self, sent: &Sent) {
        if let Some(observed) = &mut self.observed {
            observed.does(sent.effect);
        }
    }

    /// Where a child says that its token is refused and that is so: the refusal in the place of its answer.
    async fn settled(&mut self, answer: &Spliced, ending: Ending) -> Option<Refusal> {
        let refusal = self.doubt.as_ref()?.settle(answer, ending).await?;
        self.refused(&refusal);
        Some(refusal)
    }

    /// The answer as its caller may see it. What is made anew is held against their budget, like what it was made of.
    fn seen(&self, answer: Spliced, view: Option<&View>) -> Spliced {
        let Some(view) = view else { return answer };
        let seen = view.apply(answer.to_bytes());
        match self.budget.hold(seen.len()) {
            Ok(held) => Spliced::whole(counted(seen, held)),
            Err(over) => self.error(&over.to_string()),
        }
    }
}

/// Answers one request. `sending` brings it to a child, by the request's deadline; what it refuses is refused with an HTTP
/// status as long as no stream has begun, and as a JSON-RPC error on the stream after that.
pub(crate) async fn respond<S>(sending: S, mut asked: Asked, accept: Accept) -> Result<Response, Refusal>
where
    S: Future<Output = Result<Sent, Refusal>> + Send + 'static,
{
    let mut sending: Sending = Box::pin(sending);
    let sent = if accept.events {
        match timeout(SSE_AFTER_SILENCE, sending.as_mut()).await {
            Ok(sent) => sent,
            Err(_) => return Ok(events(rest(Phase::Sending(sending), asked, None))),
        }
    } else {
        sending.await
    };
    let sent = sent.inspect_err(|refusal| asked.refused(refusal))?;
    asked.sent(&sent);
    if !accept.json {
        return Ok(events(rest(Phase::Sent(sent), asked, None)));
    }
    let mut sent = sent;
    loop {
        match sent.pending.next().await {
            Some(Event::Answer(text, ending)) => {
                if let Some(refusal) = asked.settled(&text, ending).await {
                    return Err(refusal);
                }
                asked.came_to(ending);
                let mut response = json(asked.seen(text, sent.view.as_ref()));
                // What it is, for who gives it another status.
                response.extensions_mut().insert(ending);
                return Ok(response);
            }
            Some(Event::Gone(error)) => {
                asked.came_to(CallOutcome::ChildGone);
                return Ok(json(error));
            }
            Some(Event::Note(text)) if accept.events => return Ok(events(rest(Phase::Sent(sent), asked, Some(text)))),
            Some(Event::Silence) if accept.events => return Ok(events(rest(Phase::Sent(sent), asked, None))),
            // Without an event stream there is nowhere to put it.
            Some(Event::Note(_) | Event::Ask(_) | Event::Silence) => {}
            Some(Event::Cancelled) => {
                asked.came_to(CallOutcome::Cancelled);
                return Ok(if accept.events {
                    events(stream::empty())
                } else {
                    json(asked.error("Request cancelled"))
                });
            }
            Some(Event::TimedOut) => {
                asked.came_to(CallOutcome::TimedOut);
                return Ok(json(asked.timed_out()));
            }
            None => {
                asked.came_to(CallOutcome::Lost);
                return Ok(json(asked.lost()));
            }
        }
    }
}

type Sending = Pin<Box<dyn Future<Output = Result<Sent, Refusal>> + Send>>;

/// Where a request is whose answer is a stream.
enum Phase {
    /// On its way to a child.
    Sending(Sending),
    /// With a child.
    Sent(Sent),
    /// Answered.
    Over,
}

/// What comes next on a stream.
enum Next {
    Note(Spliced),
    Last(Spliced),
    Silence,
    Sent(Sent),
    Nothing,
}

impl Phase {
    async fn next(&mut self, asked: &mut Asked) -> Next {
        match self {
            Self::Sending(sending) => match timeout(SSE_KEEPALIVE, sending).await {
                Ok(Ok(sent)) => {
                    asked.sent(&sent);
                    Next::Sent(sent)
                }
                Ok(Err(refusal)) => {
                    asked.refused(&refusal);
                    Next::Last(Spliced::whole(refusal.of(Some(&asked.id)).into_text()))
                }
                Err(_) => Next::Silence,
            },
            Self::Sent(sent) => match sent.pending.next().await {
                Some(Event::Note(text)) => Next::Note(text),
                Some(Event::Answer(text, ending)) => {
                    // The status is sent already: what it came to shows with the client's next request.
                    let _ = asked.settled(&text, ending).await;
                    asked.came_to(ending);
                    Next::Last(asked.seen(text, sent.view.as_ref()))
                }
                Some(Event::Gone(error)) => {
                    asked.came_to(CallOutcome::ChildGone);
                    Next::Last(error)
                }
                Some(Event::Silence | Event::Ask(_)) => Next::Silence,
                Some(Event::Cancelled) => {
                    asked.came_to(CallOutcome::Cancelled);
                    Next::Nothing
                }
                Some(Event::TimedOut) => {
                    asked.came_to(CallOutcome::TimedOut);
                    Next::Last(asked.timed_out())
                }
                None => {
                    asked.came_to(CallOutcome::Lost);
                    Next::Last(asked.lost())
                }
            },
            Self::Over => Next::Nothing,
        }
    }
}

/// The rest of an answer as a stream that ends with exactly one response, or with none after a cancellation.
fn rest(
    phase: Phase,
    asked: Asked,
    first: Option<Spliced>,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    // A comment at once, so that the client and every proxy between see the stream begin.
    let mut queue = VecDeque::from([KEEPALIVE]);
    if let Some(first) = first {
        enqueue(&mut queue, first);
    }
    stream::unfold((phase, asked, queue), |(mut phase, mut asked, mut queue)| async move {
        loop {
            if let Some(chunk) = queue.pop_front() {
                return Some((Ok(chunk), (phase, asked, queue)));
            }
            match phase.next(&mut asked).await {
                Next::Note(text) => enqueue(&mut queue, text),
                Next::Silence => queue.push_back(KEEPALIVE),
                Next::Sent(sent) => phase = Phase::Sent(sent),
                Next::Last(text) => {
                    enqueue(&mut queue, text);
                    phase = Phase::Over;
                }
                Next::Nothing => return None,
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

/// A subscription's stream, until it ends or its client hangs up. `first` is its first message.
pub(crate) fn listening(first: Heard, listening: Listening) -> Response {
    let mut queue = VecDeque::new();
    let (Heard::Note(text) | Heard::Last(text, _)) = first;
    enqueue(&mut queue, text);
    events(stream::unfold((Some(listening), queue), |(mut listening, mut queue)| async move {
        loop {
            if let Some(chunk) = queue.pop_front() {
                return Some((Ok::<_, Infallible>(chunk), (listening, queue)));
            }
            match timeout(SSE_KEEPALIVE, listening.as_mut()?.next()).await {
                Ok(Some(Heard::Note(text))) => enqueue(&mut queue, text),
                Ok(Some(Heard::Last(text, _))) => {
                    enqueue(&mut queue, text);
                    listening = None;
                }
                Ok(None) => return None,
                Err(_) => queue.push_back(KEEPALIVE),
            }
        }
    }))
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
