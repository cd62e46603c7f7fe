//! The answers to a batch: on an event stream each as it comes, else all in one JSON array (2025-03-26, basic/transports,
//! section Sending Messages to the Server).

use std::pin::pin;

use axum::response::Response;
use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::stream::{Stream, StreamExt};
use tokio::time::timeout;

use super::{COMMIT_AFTER, Next, events, json, late};
use crate::jsonrpc::Spliced;
use crate::mcp::headers::Accept;

/// Answers a batch from what comes of its requests, each with its place in the batch. Every request has one answer, or none
/// where it was cancelled and the client takes a stream.
pub(crate) async fn several(messages: impl Stream<Item = (usize, Next)> + Send + 'static, accept: Accept) -> Response {
    if accept.events {
        return events::several(messages.map(|(_, next)| next));
    }
    let mut whole = array(messages).boxed();
    match timeout(COMMIT_AFTER, whole.as_mut()).await {
        Ok(answers) => json(answers),
        Err(_) => late(whole),
    }
}

/// The answers as one JSON array, in the order of the requests.
async fn array(messages: impl Stream<Item = (usize, Next)>) -> Spliced {
    let mut messages = pin!(messages);
    let mut answers: Vec<(usize, Spliced)> = Vec::new();
    while let Some((place, next)) = messages.next().await {
        match next {
            Next::Last(text) | Next::Cancelled(text) => answers.push((place, text)),
            // Without an event stream there is nowhere to put it.
            Next::Note(_) | Next::Silence => {}
        }
    }
    answers.sort_by_key(|(place, _)| *place);
    let mut parts = Vec::new();
    let mut before = Bytes::from_static(b"[");
    for (_, answer) in answers {
        parts.push(std::mem::replace(&mut before, Bytes::from_static(b",")));
        parts.extend(answer.into_parts());
    }
    parts.push(Bytes::from_static(b"]"));
    Spliced::of(parts)
}
