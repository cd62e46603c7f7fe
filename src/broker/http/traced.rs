//! The trace of a request around all that is done for it: its lines in the journal have one field in common.

use axum::extract::Request;
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tower_http::classify::{ServerErrorsAsFailures, SharedClassifier};
use tower_http::trace::TraceLayer;
use tracing::Span;

use crate::trace::Trace;

/// Begins the trace of a request, into its extensions; for [`axum::middleware::from_fn`], in front of [`lines`].
pub(crate) async fn begin(mut request: Request, next: Next) -> Response {
    let trace = Trace::begin(request.headers(), &mut rand::rng());
    if request.method() != Method::POST || request.uri().path() != "/mcp" {
        // There is no message that could say more.
        trace.settle(None);
    }
    request.extensions_mut().insert(trace);
    next.run(request).await
}

/// The layer of [`lines`]: a span, and no lines of its own.
pub(crate) type Lines = TraceLayer<SharedClassifier<ServerErrorsAsFailures>, SpanOf, (), (), (), (), ()>;
type SpanOf = fn(&Request) -> Span;

/// Puts the trace's field on every line about the request, to the end of its answer.
pub(crate) fn lines() -> Lines {
    let span: SpanOf =
        |request| request.extensions().get::<Trace>().map_or_else(Span::none, |trace| trace.span().clone());
    let layer = TraceLayer::new_for_http().make_span_with(span);
    layer.on_request(()).on_response(()).on_body_chunk(()).on_eos(()).on_failure(())
}
