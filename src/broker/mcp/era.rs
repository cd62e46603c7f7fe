//! Which era a request belongs to: decided once, where it comes in.
//!
//! One endpoint serves both (revision 2026-07-28, basic/versioning, section Backward Compatibility): a request that says in
//! its own `_meta` what it speaks is answered for itself, `initialize` opens a session, and the rest belongs to a session.

use axum::http::HeaderMap;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::child::era::STATELESS;
use crate::jsonrpc::Message;
use crate::mcp::headers::{SESSION_ID, VERSION};

/// An era of MCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Era {
    /// Revisions up to 2025-11-25.
    Session,
    /// 2026-07-28.
    Stateless,
}

impl Era {
    /// Of a message that was posted. Without a session's id the header alone makes it stateless: what lacks its `_meta` then
    /// is refused in the words of that era.
    pub(crate) fn of(headers: &HeaderMap, message: &Message) -> Self {
        if Self::of_headers(headers) == Self::Stateless && message.method() != Some("initialize") {
            return Self::Stateless;
        }
        if says_version(message) { Self::Stateless } else { Self::Session }
    }

    /// Of a request without a message.
    pub(crate) fn of_headers(headers: &HeaderMap) -> Self {
        let named = headers.get(VERSION).is_some_and(|value| value == STATELESS);
        if named && !headers.contains_key(SESSION_ID) { Self::Stateless } else { Self::Session }
    }
}

/// Whether `params._meta` has a protocol version, of whatever type.
fn says_version(message: &Message) -> bool {
    #[derive(Deserialize)]
    struct Params {
        #[serde(rename = "_meta")]
        meta: Meta,
    }
    #[derive(Deserialize)]
    struct Meta {
        #[serde(rename = "io.modelcontextprotocol/protocolVersion")]
        version: Option<IgnoredAny>,
    }
    // Nearly no request of a session has the word, and a look for it is cheaper than a parse. Slashes may be escaped.
    let Some(params) = message.params() else { return false };
    memchr::memmem::find(params.as_bytes(), b"protocolVersion").is_some()
        && serde_json::from_str::<Params>(params).is_ok_and(|params| params.meta.version.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_request_says_itself_which_era_it_is_of() {
        let meta = r#"{"_meta":{"io.modelcontextprotocol\/protocolVersion":"2026-07-28"}}"#;
        let table = [
            // method, params, version header, session id, stateless
            ("tools/list", "{}", None, None, false),
            ("tools/list", "{}", Some("2025-11-25"), Some("s"), false),
            ("tools/list", meta, None, None, true),
            ("tools/list", meta, Some("2026-07-28"), Some("s"), true),
            ("initialize", meta, None, None, true),
            ("initialize", r#"{"protocolVersion":"2026-07-28"}"#, Some("2026-07-28"), None, false),
            ("ping", "{}", Some("2026-07-28"), None, true),
            ("ping", "{}", Some("2026-07-28"), Some("s"), false),
            ("tools/list", r#"{"_meta":{"protocolVersion":"2026-07-28"}}"#, Some("2025-11-25"), Some("s"), false),
        ];
        for (method, params, version, session, is_stateless) in table {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
            let message = Message::parse(text.clone().into()).expect("a request");
            let mut headers = HeaderMap::new();
            for (name, value) in [(VERSION, version), (SESSION_ID, session)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
            assert_eq!(Era::of(&headers, &message) == Era::Stateless, is_stateless, "{text} {headers:?}");
        }
    }
}
