//! Headers that repeat parts of the body, so that proxies can decide by them (2026-07-28, streamable HTTP, section Request
//! Metadata). Who reads both must refuse a request in which they differ: something in between may have believed the header.

use std::borrow::Cow;

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use crate::mcp::refusal::Refusal;
use crate::mcp::tools::mirrored::MirroredArgument;

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

/// Checks that headers repeat these arguments of a call as its parameters say them, and nothing that those do not say
/// (section Server Behavior for Custom Headers). Other headers of the kind say nothing here.
pub(super) fn check_arguments(headers: &HeaderMap, params: &str, mirrored: &[MirroredArgument]) -> Result<(), Refusal> {
    for argument in mirrored {
        let name = argument.header();
        let twice = |_| Refusal::header_mismatch(&format!("the argument of {name} is there twice"));
        let says = match argument.said(params).map_err(twice)? {
            Some(said) => says(&decoded(name, required(headers, name)?)?, said),
            None => !headers.contains_key(name),
        };
        if !says {
            return Err(differs(name));
        }
    }
    Ok(())
}

/// Whether a header's value says this argument (section Value Encoding). Numbers are compared as such, as far as every
/// reader of JSON tells them apart; what is no text, number or flag, no header can say.
fn says(value: &str, argument: &RawValue) -> bool {
    /// 2^53: from here on neighbours are one to some (RFC 8259 section 6).
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let json = argument.get();
    let number = |text: &str| serde_json::from_str::<f64>(text).ok().filter(|number| number.abs() < EXACT);
    match json.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<Cow<'_, str>>(json).is_ok_and(|text| text == value),
        Some(b'{' | b'[') | None => false,
        Some(_) => {
            value == json
                || number(value).is_some_and(|value| number(json).is_some_and(|json| value.total_cmp(&json).is_eq()))
        }
    }
}

fn required<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refusal> {
    value(headers, name)?.ok_or_else(|| Refusal::header_mismatch(&format!("{name} is required and missing")))
}

fn same(name: &str, value: &str, body: &str) -> Result<(), Refusal> {
    (value == body).then_some(()).ok_or_else(|| differs(name))
}

/// What the client has sent is not repeated: it may be long, and it knows.
fn differs(name: &str) -> Refusal {
    Refusal::header_mismatch(&format!("{name} does not say what the body says"))
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
    fn an_argument_is_said_by_its_header_whatever_its_type_or_the_call_is_refused() {
        /// Arguments, headers, and whether the two go together.
        type Row<'a> = (&'a str, &'a [(&'static str, &'a str)], bool);
        const TOOL: &str = r#"{"name":"t","inputSchema":{"type":"object","properties":{
            "a":{"type":"string","x-mcp-header":"A"},"o":{"properties":{"n":{"type":"integer","x-mcp-header":"N"}}}}}}"#;
        let mirrored = MirroredArgument::of(TOOL, &mut 9999).expect("two of them");
        let table: [Row<'_>; 22] = [
            (r#"{"a":"us"}"#, &[("mcp-param-a", "us")], true),
            (r#"{"a":"us"}"#, &[("mcp-param-a", "US")], false),
            (r#"{"a":"us"}"#, &[], false),
            (r#"{"a":"us"}"#, &[("mcp-param-a", "us"), ("mcp-param-a", "us")], false),
            (r#"{"a":"us"}"#, &[("mcp-param-a", "us"), ("mcp-param-b", "whatever")], true),
            (r#"{"a":"\u0075s"}"#, &[("mcp-param-a", "us")], true),
            (r#"{"a":""}"#, &[("mcp-param-a", "")], true),
            (r#"{"a":" x "}"#, &[("mcp-param-a", "=?base64?IHggz?=")], false),
            (r#"{"a":" x "}"#, &[("mcp-param-a", "=?base64?IHgg?=")], true),
            (r#"{"a":null}"#, &[], true),
            (r#"{"a":null}"#, &[("mcp-param-a", "us")], false),
            ("{}", &[], true),
            ("{}", &[("mcp-param-n", "1")], false),
            (r#"{"a":"us","A":"eu"}"#, &[("mcp-param-a", "us")], false),
            (r#"{"a":["us"]}"#, &[("mcp-param-a", "[\"us\"]")], false),
            (r#"{"a":true}"#, &[("mcp-param-a", "true")], true),
            (r#"{"o":{"n":42}}"#, &[("mcp-param-n", "42")], true),
            (r#"{"o":{"n":42}}"#, &[("mcp-param-n", "42.0")], true),
            (r#"{"o":{"n":42}}"#, &[("mcp-param-n", "4.2e1")], true),
            (r#"{"o":{"n":42}}"#, &[("mcp-param-n", "43")], false),
            (r#"{"o":{"n":9007199254740993}}"#, &[("mcp-param-n", "9007199254740992")], false),
            (r#"{"o":{"n":9007199254740993}}"#, &[("mcp-param-n", "9007199254740993")], true),
        ];
        for (arguments, given, good) in table {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(*name, HeaderValue::from_str(value).expect("a header"));
            }
            let params = format!(r#"{{"name":"t","arguments":{arguments}}}"#);
            assert_eq!(check_arguments(&headers, &params, &mirrored).is_ok(), good, "{arguments} {given:?}");
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
