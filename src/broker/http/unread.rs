//! What becomes of a request's body that nobody read, because the request was refused by its head.
//!
//! hyper closes a connection whose request was not read to its end, and does not say so in the answer. A client that sends
//! head and body apart (Python's httpx does) finds its next request lost on a connection that it takes for good. So a small
//! body is read first, and where it is large or slow, the answer says that the connection ends (RFC 9112 section 9.6).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONNECTION, EXPECT};
use axum::http::{HeaderValue, Version};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Bytes that are read for nothing at most: what a client may have sent before it saw the answer.
const READ_BYTES: usize = 64 * 1024;
/// How long a refusal waits for them at most.
const READ_WITHIN: Duration = Duration::from_millis(500);

/// Reads what a refusal left unread, or says that the connection ends; for [`axum::middleware::from_fn`], outside of all
/// that may refuse.
pub(crate) async fn settle_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() || request.version() > Version::HTTP_11 {
        return next.run(request).await;
    }
    // To read the body of somebody who asks first is to tell them to send it (RFC 9110 section 10.1.1).
    let asks_first = request.headers().contains_key(EXPECT);
    let (returned, mut unread) = oneshot::channel();
    let request = request.map(|body| Body::new(Lent { body, returned: Some(returned) }));
    let mut response = next.run(request).await;
    // A body that was read to its end, or is being read still, does not come back.
    let Ok(body) = unread.try_recv() else { return response };
    if asks_first || !ends(body).await {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the rest of it was read within the bounds.
async fn ends(body: Body) -> bool {
    if usize::try_from(body.size_hint().lower()).map_or(true, |least| least > READ_BYTES) {
        return false;
    }
    let mut rest = Limited::new(body, READ_BYTES);
    let read = async {
        while let Some(frame) = rest.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    timeout(READ_WITHIN, read).await.unwrap_or(false)
}

/// A body that comes back when it is dropped before its end.
struct Lent {
    body: Body,
    returned: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(returned) = self.returned.take()
            && !self.body.is_end_stream()
        {
            // Who has answered already has no use for it.
            let _ = returned.send(std::mem::take(&mut self.body));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::middleware::from_fn;
    use axum::routing::post;
    use hyper::server::conn::http1;
    use hyper_util::rt::TokioIo;
    use hyper_util::service::TowerToHyperService;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    /// A connection to a server that refuses everything at `/` unread, and reads what comes to `/read`.
    fn connection() -> DuplexStream {
        let (client, server) = tokio::io::duplex(1 << 20);
        let router = Router::new()
            .route("/", post(async || "refused"))
            .route("/read", post(async |body: Bytes| body.len().to_string()))
            .layer(from_fn(settle_body));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(server), TowerToHyperService::new(router)));
        client
    }

    async fn answer(stream: &mut DuplexStream) -> String {
        let mut text = String::new();
        while !text.contains("\r\n\r\n") || !(text.ends_with("refused") || text.ends_with(|c: char| c.is_ascii_digit()))
        {
            let mut some = [0; 1024];
            let n = stream.read(&mut some).await.expect("read");
            assert!(n > 0, "closed after {text:?}");
            text.push_str(std::str::from_utf8(&some[..n]).expect("text"));
        }
        text.to_ascii_lowercase()
    }

    async fn send(stream: &mut DuplexStream, text: &str) {
        stream.write_all(text.as_bytes()).await.expect("sent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_request_whose_body_comes_after_its_head_leaves_the_connection_for_the_next() {
        let mut stream = connection();
        for _ in 0..3 {
            send(&mut stream, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n").await;
            tokio::task::yield_now().await;
            send(&mut stream, "hello").await;
            assert!(!answer(&mut stream).await.contains("connection: close"));
        }
        send(&mut stream, "POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await;
        assert!(answer(&mut stream).await.ends_with("\r\n\r\n5"));
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_body_is_large_or_slow_or_waits_to_be_asked_for_the_answer_says_that_the_connection_ends() {
        for head in ["content-length: 70000", "content-length: 5", "content-length: 5\r\nexpect: 100-continue"] {
            let mut stream = connection();
            send(&mut stream, &format!("POST / HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n")).await;
            let answer = answer(&mut stream).await;
            assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{head}: {answer}");
        }
        let mut stream = connection();
        send(&mut stream, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = "x".repeat(40_000);
        for _ in 0..2 {
            send(&mut stream, &format!("{:x}\r\n{chunk}\r\n", chunk.len())).await;
        }
        assert!(answer(&mut stream).await.contains("connection: close"), "more than is read for nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_read_passes_whole() {
        let mut stream = connection();
        let body = "y".repeat(100_000);
        send(&mut stream, &format!("POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
            .await;
        let answer = answer(&mut stream).await;
        assert!(answer.ends_with("100000") && !answer.contains("connection: close"), "{answer}");
    }
}
