//! Which web pages may call `/mcp`: `Origin`, and what browsers are told about it (CORS).
//!
//! In front of the bearer layer: a page that may not call learns nothing, a token or not (revision 2025-11-25,
//! basic/transports, section Security Warning: MUST be 403).

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{ACCESS_CONTROL_REQUEST_HEADERS, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::http::host::Host;
use crate::http::names::{Gate, Names};
use crate::http::said;
use crate::live::Live;
use crate::mcp::headers::PARAMETERS;

/// What a page may send beside [`PARAMETERS`], in lower case. A wildcard would not reach `authorization` (Fetch, section 4.9).
const REQUEST_HEADERS: [&str; 10] = [
    "authorization",
    "content-type",
    "accept",
    "mcp-session-id",
    "mcp-protocol-version",
    "mcp-method",
    "mcp-name",
    "last-event-id",
    "traceparent",
    "tracestate",
];
/// Names that one question of a browser is answered for.
const MAX_ASKED: usize = 64;
/// What a page may read.
const RESPONSE_HEADERS: [&str; 4] = ["www-authenticate", "mcp-session-id", "mcp-protocol-version", "retry-after"];
/// How long a browser may remember what it was told: Chromium's own bound. An origin that the operator takes away is
/// refused at once all the same.
pub(crate) const REMEMBERED: Duration = Duration::from_hours(2);

/// Refuses pages that may not call; for [`axum::middleware::from_fn_with_state`]. Wants the [`Host`] in the extensions.
pub(crate) async fn require_known_origin(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (names, asked) = (gate.names.get(), request.extensions().get::<Host>());
    let may = |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| names.lets_in(origin, asked));
    if request.headers().get_all(ORIGIN).iter().all(may) {
        return next.run(request).await;
    }
    gate.metrics.refused("origin");
    said(StatusCode::FORBIDDEN, "Forbidden: pages of this Origin may not use the endpoint")
}

/// Tells browsers that pages of the operator's origins may call; the question beforehand has no token. For others nothing
/// is said, which to a browser means no.
pub(crate) fn cors(names: Live<Names>) -> CorsLayer {
    let exposed: Vec<_> = RESPONSE_HEADERS.into_iter().map(HeaderName::from_static).collect();
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, _| names.get().names_origin(origin.as_bytes())))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
        .max_age(REMEMBERED)
}

/// Strikes what a page may not send from what its browser asks for, because [`cors`] gives back what it finds. For
/// [`axum::middleware::from_fn`], in front of it.
pub(crate) async fn ask_for_known_headers(mut request: Request, next: Next) -> Response {
    if request.method() == Method::OPTIONS {
        let known = known_headers(request.headers());
        request.headers_mut().remove(ACCESS_CONTROL_REQUEST_HEADERS);
        if let Some(known) = known {
            request.headers_mut().insert(ACCESS_CONTROL_REQUEST_HEADERS, known);
        }
    }
    next.run(request).await
}

fn known_headers(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter().filter_map(|value| value.to_str().ok());
    let names = asked.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase());
    let is_parameter = |name: &str| {
        let rest = name.strip_prefix(PARAMETERS).filter(|rest| !rest.is_empty());
        rest.is_some() && HeaderName::try_from(name).is_ok()
    };
    let known = names.filter(|name| REQUEST_HEADERS.contains(&name.as_str()) || is_parameter(name));
    let known: Vec<_> = known.take(MAX_ASKED).collect();
    if known.is_empty() { None } else { HeaderValue::try_from(known.join(",")).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_send_what_clients_send_and_any_parameter_of_a_tool_and_nothing_else() {
        let known = |asked: &[&str]| {
            let mut headers = HeaderMap::new();
            for asked in asked {
                headers.append(ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_str(asked).expect("a value"));
            }
            known_headers(&headers).map(|value| value.to_str().expect("text").to_owned())
        };
        let all = "authorization,mcp-param-owner,traceparent,tracestate";
        assert_eq!(known(&["Authorization, Mcp-Param-Owner,x-evil", "traceparent ,tracestate"]).as_deref(), Some(all));
        assert_eq!(known(&["x-evil, cookie, mcp-param-, mcp-param-a b, *"]), None);
        assert_eq!(known(&[]), None);
        let many = vec!["mcp-param-x"; 1000].join(",");
        assert_eq!(known(&[&many]).map(|known| known.split(',').count()), Some(MAX_ASKED));
    }
}
