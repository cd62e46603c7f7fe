//! Codings that a request may not have: its content is taken as it is, and `chunked` is the only transfer coding.
//!
//! A body whose coding was not looked at would be read as something that it is not. What is not framed at all (another
//! last coding than `chunked`, a transfer coding in HTTP/1.0) hyper has refused before, with 400.

use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::said;

/// Refuses a body in another coding; for [`axum::middleware::from_fn`].
pub(crate) async fn require_plain_body(request: Request, next: Next) -> Response {
    let headers = request.headers();
    if codings(headers, &TRANSFER_ENCODING).any(|coding| coding != "chunked") {
        // RFC 9112 section 6.1. Where the next request begins is a matter of opinion then.
        let mut response = said(StatusCode::NOT_IMPLEMENTED, "Not Implemented: the only Transfer-Encoding is chunked");
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let has_body = !request.body().is_end_stream();
    if has_body && codings(headers, &CONTENT_ENCODING).any(|coding| coding != "identity") {
        // RFC 9110 section 15.5.16: with what would have been taken.
        let text = "Unsupported Media Type: the body must have no Content-Encoding";
        let mut response = said(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
        response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        return response;
    }
    next.run(request).await
}

/// All that is named, in lower case; what cannot be read is no known coding.
fn codings<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = String> + use<'a> {
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    values.flat_map(|value| value.split(',')).map(|coding| coding.trim().to_ascii_lowercase()).filter(|c| !c.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn;
    use axum::routing::any;
    use tower::ServiceExt;

    async fn status(headers: &[(&'static str, &str)], body: &'static str) -> u16 {
        let mut request = Request::builder().method("POST").uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let router = Router::new().route("/", any(async || "here")).layer(from_fn(require_plain_body));
        let request = request.body(Body::from(body)).expect("a request");
        router.oneshot(request).await.expect("an answer").status().as_u16()
    }

    #[tokio::test]
    async fn a_body_comes_plain_or_in_chunks_and_in_no_other_coding() {
        for (headers, expected) in [
            (&[][..], 200),
            (&[("transfer-encoding", "chunked")], 200),
            (&[("transfer-encoding", "Chunked, ")], 200),
            (&[("transfer-encoding", "gzip, chunked")], 501),
            (&[("transfer-encoding", "x-own"), ("transfer-encoding", "chunked")], 501),
            (&[("content-encoding", "identity")], 200),
            (&[("content-encoding", "GZIP")], 415),
            (&[("content-encoding", "identity"), ("content-encoding", "br")], 415),
            (&[("content-encoding", "")], 200),
        ] {
            assert_eq!(status(headers, "{}").await, expected, "{headers:?}");
        }
        assert_eq!(status(&[("content-encoding", "gzip")], "").await, 200, "where there is no body");
    }
}
