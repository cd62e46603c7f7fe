//! JSON whose head goes out long before its text: white space in front, which JSON allows (RFC 8259 section 2), keeps the
//! connection open meanwhile. All official SDKs read it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::stream;
use tokio::time::timeout;

use super::events::KEEPALIVE_AFTER;
use crate::jsonrpc::Spliced;

const SPACE: Bytes = Bytes::from_static(b" ");

/// The answer, whenever it comes.
pub(super) fn late(answer: impl Future<Output = Spliced> + Send + 'static) -> Response {
    // A byte at once, so that every proxy between passes the head on.
    let begun = (Some(answer.boxed()), VecDeque::from([SPACE]));
    let chunks = stream::unfold(begun, |(mut answer, mut queue)| async move {
        loop {
            if let Some(chunk) = queue.pop_front() {
                return Some((Ok::<_, Infallible>(chunk), (answer, queue)));
            }
            match timeout(KEEPALIVE_AFTER, answer.as_mut()?).await {
                Ok(text) => {
                    queue.extend(text.into_parts());
                    answer = None;
                }
                Err(_) => queue.push_back(SPACE),
            }
        }
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
