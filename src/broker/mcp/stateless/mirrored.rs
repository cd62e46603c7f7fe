//! Headers that repeat parts of the body, so that proxies can decide by them (2026-07-28, streamable HTTP, section Request
//! Metadata). Who reads both must refuse a request in which they differ: something in between may have believed the header.

use std::borrow::Cow;

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::mcp::refusal::Refusal;

/// What begins and ends a value that is encoded because a header could not carry it (section Value Encoding).
const ENCODED: (&str, &str) = ("=?base64?", "?=");

/// A header's one value. White space around it is not part of it (RFC 9110 section 5.5).
fn value<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let (Some(first), more) = (values.next(), values.next()) else { return Ok(None) };
    if more.is_some() {
        return Err(Refusal::header_mismatch(&format!("{name} is there twice")));
    }
    let text =
        first.to_str().map_err(|_| Refusal::header_mismatch(&format!("{name} has characters that none may have")))?;
    Ok(Some(text.trim_matches([' ', '\t'])))
}

/// A value as its sender meant it.
fn decoded<'a>(name: &str, value: &'a str) -> Result<Cow<'a, str>, Refusal> {
    let inner = value.strip_prefix(ENCODED.0).and_then(|rest| rest.strip_suffix(ENCODED.1));
    let Some(inner) = inner else { return Ok(Cow::Borrowed(value)) };
    let bad = || Refusal::header_mismatch(&format!("{name} is no Base64 of a text"));
    let bytes = STANDARD.decode(inner).map_err(|_| bad())?;
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| bad())
}

/// Checks that a required header says what the body says. Values have a case, names have none (section Case Sensitivity).
pub(super) fn check(headers: &HeaderMap, name: &str, body: &str) -> Result<(), Refusal> {
    same(name, required(headers, name)?, body)
}

/// The same for a header whose value may be encoded, which only those of names and parameters may.
pub(super) fn check_decoded(headers: &HeaderMap, name: &str, body: &str) -> Result<(), Refusal> {
    same(name, &decoded(name, required(headers, name)?)?, body)
}

fn required<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refusal> {
    value(headers, name)?.ok_or_else(|| Refusal::header_mismatch(&format!("{name} is required and missing")))
}

fn same(name: &str, value: &str, body: &str) -> Result<(), Refusal> {
    // What the client has sent is not repeated: it may be long, and it knows.
    let differs = || Refusal::header_mismatch(&format!("{name} does not say what the body says"));
    (value == body).then_some(()).ok_or_else(differs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn says(value: &[u8], body: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert("mcp-name", HeaderValue::from_bytes(value).expect("a header"));
        check_decoded(&headers, "mcp-name", body).is_ok()
    }

    #[test]
    fn a_method_and_a_version_are_said_as_they_are() {
        let mut headers = HeaderMap::new();
        headers.insert("mcp-method", HeaderValue::from_static("=?base64?dG9vbHMvbGlzdA==?="));
        assert!(check(&headers, "mcp-method", "tools/list").is_err(), "who routes by it sees no tools/list");
        assert!(check_decoded(&headers, "mcp-method", "tools/list").is_ok());
    }

    #[test]
    fn a_header_says_what_the_body_says_plain_or_encoded() {
        let table: [(&[u8], &str, bool); 12] = [
            (b"get_weather", "get_weather", true),
            (b"  get_weather\t", "get_weather", true),
            (b"Get_Weather", "get_weather", false),
            (b"=?base64?SGVsbG8sIOS4lueVjA==?=", "Hello, \u{4e16}\u{754c}", true),
            (b"=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?=", "=?base64?literal?=", true),
            (b"=?base64?SGVsbG8?=", "Hello", false),
            (b"=?base64?SGVs!!!bG8=?=", "Hello", false),
            (b"=?BASE64?SGVsbG8=?=", "Hello", false),
            (b"SGVsbG8=", "SGVsbG8=", true),
            (b"=?base64?/w==?=", "\u{ff}", false),
            (b"caf\xc3\xa9", "caf\u{e9}", false),
            (b"", "", true),
        ];
        for (value, body, same) in table {
            assert_eq!(says(value, body), same, "{} {body}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn a_header_that_is_missing_or_there_twice_says_nothing() {
        let mut headers = HeaderMap::new();
        assert!(check(&headers, "mcp-method", "tools/list").is_err());
        for _ in 0..2 {
            headers.append("mcp-method", HeaderValue::from_static("tools/list"));
        }
        assert!(check(&headers, "mcp-method", "tools/list").is_err());
    }
}
