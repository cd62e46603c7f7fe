//! From what a child says to an HTTP answer: an event stream where something comes before the answer, else JSON, whose head
//! goes out ahead of its text where the answer is long in coming.
//!
//! Some clients read JSON of any size but refuse an event above 1 MiB. The [`form`] is settled here while a request is on
//! its way, and by the table of requests from then on. [`answering`] is a request until its answer, [`events`] makes streams,
//! [`late`] is JSON with its head ahead, [`several`] answers a batch, [`asked`] is what is known of a request meanwhile.

mod answering;
mod asked;
mod events;
mod form;
mod late;
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
use crate::child::calls::form::Form;
use crate::jsonrpc::Spliced;
use crate::mcp::refusal::Refusal;
use crate::metrics::CallOutcome;

pub(crate) use answering::{Answering, Next};
pub(crate) use asked::{Asked, Sent};
pub(crate) use events::{listen, listening, single_event, whole_stream};
pub(crate) use form::AnswerForm;
pub(crate) use several::several;

use late::late;

/// How long nothing may come for a client before the head of its answer goes out. (With the child, silence is told by the
/// table of requests: one timer for all.)
const COMMIT_AFTER: Duration = Duration::from_secs(10);

/// Answers below this go out in one piece.
const JOIN_BELOW: usize = 64 * 1024;

/// Answers one request. `sending` brings it to a child, by the request's deadline; what it refuses is refused with an HTTP
/// status as long as no head has gone out, and as a JSON-RPC error after that.
pub(crate) async fn respond<S>(sending: S, mut asked: Asked) -> Result<Response, Refusal>
where
    S: Future<Output = Result<Sent, Refusal>> + Send + 'static,
{
    let mut sending: answering::Sending = Box::pin(sending);
    let Ok(sent) = timeout(COMMIT_AFTER, sending.as_mut()).await else {
        let form = asked.form.commit();
        return Ok(committed(Answering::sending(sending, asked), form));
    };
    let mut sent = sent.inspect_err(|refusal| asked.refused(refusal))?;
    asked.sent(&sent);
    let form = asked.form.get();
    if form == Form::Events {
        return Ok(events::rest(Answering::sent(sent, asked), None));
    }
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
            Some(Event::Note(text)) if form.takes_notes() => {
                return Ok(events::rest(Answering::sent(sent, asked), Some(text)));
            }
            Some(Event::Silence(form)) => return Ok(committed(Answering::sent(sent, asked), form)),
            // Without an event stream there is nowhere to put it.
            Some(Event::Note(_) | Event::Ask(_)) => {}
            Some(Event::Cancelled) => {
                asked.came_to(CallOutcome::Cancelled);
                return Ok(if form.takes_notes() { events::whole_stream(Vec::new()) } else { json(asked.cancelled()) });
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

/// The head of an answer in this form, and the rest as it comes.
fn committed(answering: Answering, form: Form) -> Response {
    if form == Form::Json { late(answering.last()) } else { events::rest(answering, None) }
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
