//! From what a child says to an HTTP answer: JSON where the answer comes first, an event stream where something
//! comes before it or the child is silent for long.
//!
//! The form is chosen as late as possible, because some clients read JSON of any size but refuse an event above
//! 1 MiB. [`answering`] is a request until its answer, [`events`] makes streams, [`several`] answers a batch, [`asked`] is
//! what is known of a request meanwhile.

mod answering;
mod asked;
mod events;
mod several;

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::Response;
use futures_util::stream;
use tokio::time::timeout;

use crate::child::calls::Event;
use crate::jsonrpc::Spliced;
use crate::mcp::headers::Accept;
use crate::mcp::refusal::Refusal;
use crate::metrics::CallOutcome;

pub(crate) use answering::{Answering, Next};
pub(crate) use asked::{Asked, Sent};
pub(crate) use events::{listen, listening, single_event, whole_stream};
pub(crate) use several::several;

/// How long a request may be on its way to a child before its answer is committed to SSE instead of JSON, so that the
/// client sees headers. (With the child, silence is told by the table of requests: one timer for all.)
const SSE_AFTER_SILENCE: Duration = Duration::from_secs(10);

/// Answers below this go out in one piece.
const JOIN_BELOW: usize = 64 * 1024;

/// Answers one request. `sending` brings it to a child, by the request's deadline; what it refuses is refused with an HTTP
/// status as long as no stream has begun, and as a JSON-RPC error on the stream after that.
pub(crate) async fn respond<S>(sending: S, mut asked: Asked, accept: Accept) -> Result<Response, Refusal>
where
    S: Future<Output = Result<Sent, Refusal>> + Send + 'static,
{
    let mut sending: answering::Sending = Box::pin(sending);
    let sent = if accept.events {
        match timeout(SSE_AFTER_SILENCE, sending.as_mut()).await {
            Ok(sent) => sent,
            Err(_) => return Ok(events::rest(Answering::sending(sending, asked), None)),
        }
    } else {
        sending.await
    };
    let sent = sent.inspect_err(|refusal| asked.refused(refusal))?;
    asked.sent(&sent);
    if !accept.json {
        return Ok(events::rest(Answering::sent(sent, asked), None));
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
            Some(Event::Note(text)) if accept.events => {
                return Ok(events::rest(Answering::sent(sent, asked), Some(text)));
            }
            Some(Event::Silence) if accept.events => return Ok(events::rest(Answering::sent(sent, asked), None)),
            // Without an event stream there is nowhere to put it.
            Some(Event::Note(_) | Event::Ask(_) | Event::Silence) => {}
            Some(Event::Cancelled) => {
                asked.came_to(CallOutcome::Cancelled);
                return Ok(if accept.events { events::whole_stream(Vec::new()) } else { json(asked.cancelled()) });
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
