//! What a client says in headers, parsed once.

use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};

/// The header that carries a session's id.
pub(crate) const SESSION_ID: &str = "mcp-session-id";
/// The header that names the revision.
pub(crate) const VERSION: &str = "mcp-protocol-version";
/// What headers begin with that repeat arguments of a tool, whose names only the tools know (2026-07-28, streamable HTTP).
pub(crate) const PARAMETERS: &str = "mcp-param-";
/// Revisions whose sessions are spoken here, the oldest first.
pub(crate) const SESSION_ERA: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// From this revision on a terminated session must be answered with 404 (2025-03-26, basic/transports, section
/// Session Management), and clients of it re-initialize on nothing else.
const DEMANDS_404: &str = "2025-03-26";

/// The forms of an answer that a client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accept {
    /// `application/json`.
    pub(crate) json: bool,
    /// `text/event-stream`.
    pub(crate) events: bool,
}

impl Accept {
    /// Reads `Accept`; absent means anything. The specification wants both forms named, but hosted clients send one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut accept = Self { json: false, events: false };
        let mut seen = false;
        for value in headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()) {
            for range in value.split(',') {
                seen = true;
                // A weight of nothing means «not acceptable» (RFC 9110 section 12.4.2).
                if is_refused(range) {
                    continue;
                }
                match media_type(range).as_str() {
                    "*/*" => accept = Self { json: true, events: true },
                    "application/json" | "application/*" => accept.json = true,
                    "text/event-stream" | "text/*" => accept.events = true,
                    _ => {}
                }
            }
        }
        if seen { accept } else { Self { json: true, events: true } }
    }
}

/// Whether a media range has a weight of zero.
fn is_refused(range: &str) -> bool {
    let parameters = range.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let mut weights = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    weights.next().and_then(|(_, weight)| weight.trim().parse::<f32>().ok()).is_some_and(|weight| weight <= 0.0)
}

/// Whether the body is said to be JSON; parameters such as `charset` are allowed.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| media_type(value) == "application/json")
}

/// `type/subtype` in lower case, without parameters (RFC 9110 section 8.3.1).
fn media_type(value: &str) -> String {
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// `MCP-Protocol-Version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revision {
    /// No header: 2025-03-26 or older, whose clients send none.
    Absent,
    /// One whose sessions are spoken here.
    SessionEra(&'static str),
    /// A date, but none that is spoken here with a session.
    Other {
        /// Whether it is 2025-03-26 or later.
        demands_404: bool,
    },
    /// No date at all.
    Malformed,
}

impl Revision {
    /// Reads the header.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(VERSION) else { return Self::Absent };
        let value = value.to_str().unwrap_or_default();
        if let Some(known) = SESSION_ERA.into_iter().find(|known| *known == value) {
            return Self::SessionEra(known);
        }
        let date = value.len() == DEMANDS_404.len()
            && value.bytes().zip(DEMANDS_404.bytes()).all(|(b, model)| match model {
                b'-' => b == b'-',
                _ => b.is_ascii_digit(),
            });
        if date { Self::Other { demands_404: value >= DEMANDS_404 } } else { Self::Malformed }
    }

    /// Whether an unknown session must be answered with 404.
    pub(crate) fn demands_404(self) -> bool {
        match self {
            Self::SessionEra(revision) => revision >= DEMANDS_404,
            Self::Other { demands_404 } => demands_404,
            Self::Absent | Self::Malformed => false,
        }
    }

    /// Whether any session may go on under it.
    pub(crate) const fn is_spoken(self) -> bool {
        matches!(self, Self::Absent | Self::SessionEra(_))
    }
}

/// Whether the header names exactly this revision.
pub(crate) fn names_revision(headers: &HeaderMap, revision: &str) -> bool {
    headers.get(VERSION).is_some_and(|value| value.as_bytes() == revision.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a header"));
        headers
    }

    #[test]
    fn accept_takes_what_real_clients_send() {
        let of = |value: &str| {
            let accept = Accept::of(&with("accept", value));
            (accept.json, accept.events)
        };
        assert_eq!(of("application/json, text/event-stream"), (true, true));
        assert_eq!(of("Text/Event-Stream"), (false, true));
        assert_eq!(of("application/json;q=0.9"), (true, false));
        assert_eq!(of("*/*"), (true, true));
        assert_eq!(of("application/json;q=0, text/event-stream"), (false, true));
        assert_eq!(of("application/json; q=0.000 ,text/event-stream;q=0.1"), (false, true));
        assert_eq!(of("text/html"), (false, false));
        assert_eq!(Accept::of(&HeaderMap::new()), Accept { json: true, events: true });
    }

    #[test]
    fn only_json_is_json() {
        assert!(is_json(&with("content-type", "application/json; charset=utf-8")));
        assert!(is_json(&with("content-type", "Application/JSON")));
        assert!(!is_json(&with("content-type", "text/plain")));
        assert!(!is_json(&with("content-type", "application/jsonp")));
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn the_revisions_that_demand_404_are_known() {
        let demands = |value: &str| Revision::of(&with("mcp-protocol-version", value)).demands_404();
        assert!(!demands("2024-11-05"));
        assert!(demands("2025-03-26"));
        assert!(demands("2025-06-18"));
        assert!(demands("2025-11-25"));
        assert!(demands("2026-07-28"));
        assert!(!demands("latest"));
        assert!(!Revision::of(&HeaderMap::new()).demands_404());
    }
}
