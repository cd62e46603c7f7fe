//! JSON-RPC 2.0 messages as MCP uses them: told apart, and rewritten without being rebuilt.
//!
//! Both sides of the bridge are strangers, so nothing is assumed beyond what was parsed. Only the members that
//! route a message are looked at; everything else stays the bytes that came in, so that members this code has
//! never heard of, the order of keys and the spelling of numbers survive. A rewrite replaces byte ranges
//! ([`Spliced`]); the rest is shared, not copied.

pub(crate) mod batch;
mod edit;
mod error;
pub(crate) mod members;
mod meta;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use serde_json::value::RawValue;

pub(crate) use edit::Edit;
pub(crate) use error::error_with;
use meta::Insertion;

/// Bytes in a client's request id; one is kept for each request in flight.
pub(crate) const MAX_ID: usize = 1024;

/// JSON-RPC error codes (JSON-RPC 2.0 section 5.1, and those that MCP implementations agree on).
pub(crate) mod code {
    /// Not JSON.
    pub(crate) const PARSE_ERROR: i32 = -32_700;
    /// JSON, but no message that is allowed here.
    pub(crate) const INVALID_REQUEST: i32 = -32_600;
    /// The broker or the child failed.
    pub(crate) const INTERNAL_ERROR: i32 = -32_603;
    /// The transport was used wrongly; what SDKs answer for a missing session id.
    pub(crate) const BAD_TRANSPORT: i32 = -32_000;
    /// No such session; what SDKs answer with 404.
    pub(crate) const SESSION_NOT_FOUND: i32 = -32_001;
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// Not UTF-8, or not JSON.
    #[error("Parse error: the body is not valid JSON")]
    NotJson,
    /// A batch, where one message belongs.
    #[error("Invalid Request: a batch; only sessions of revision 2025-03-26 have them")]
    Batch,
    /// JSON, but neither request, notification nor response.
    #[error("Invalid Request: not a JSON-RPC 2.0 request, notification or response")]
    NotAMessage,
    /// The id is neither a text nor a number, or longer than allowed.
    #[error("Invalid Request: the id must be a string or a number of at most {MAX_ID} bytes")]
    BadId,
}

impl MessageError {
    /// The JSON-RPC code for it.
    pub(crate) const fn code(self) -> i32 {
        match self {
            Self::NotJson => code::PARSE_ERROR,
            Self::Batch | Self::NotAMessage | Self::BadId => code::INVALID_REQUEST,
        }
    }
}

/// A request's id exactly as its sender spelled it, type included: `7`, `"7"` and `7.0` differ.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct RawId(Bytes);

impl RawId {
    /// The JSON text.
    pub(crate) fn json(&self) -> &Bytes {
        &self.0
    }

    /// An id as JSON text; `None` for what is none.
    pub(crate) fn parse(json: &[u8]) -> Option<Self> {
        Self::from_raw(serde_json::from_slice(json).ok()?).ok()
    }

    fn from_raw(raw: &RawValue) -> Result<Self, MessageError> {
        let text = raw.get();
        let spelled = text.starts_with(['"', '-']) || text.starts_with(|c: char| c.is_ascii_digit());
        if spelled && text.len() <= MAX_ID {
            Ok(Self(Bytes::copy_from_slice(text.as_bytes())))
        } else {
            Err(MessageError::BadId)
        }
    }
}

impl fmt::Debug for RawId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawId({})", String::from_utf8_lossy(&self.0))
    }
}

/// A message and where in its text the routing members stand.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    text: Bytes,
    kind: Kind,
    id_at: Option<Range<usize>>,
    params_at: Option<Range<usize>>,
    result_at: Option<Range<usize>>,
    insertion: Option<Insertion>,
}

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Wants an answer.
    Request {
        /// As its sender spelled it.
        id: RawId,
        /// The method's name, unescaped.
        method: String,
    },
    /// Wants none.
    Notification {
        /// The method's name, unescaped.
        method: String,
    },
    /// Answers a request of the other side.
    Response {
        /// Of that request.
        id: RawId,
        /// Whether it carries `error` instead of `result`.
        is_error: bool,
    },
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Text<'a>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

/// The members of `params` that a bridge must rewrite.
#[derive(Deserialize, Default)]
struct Params<'a> {
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<Meta<'a>>,
    #[serde(borrow, default, rename = "progressToken", deserialize_with = "present")]
    progress_token: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "requestId", deserialize_with = "present")]
    request_id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "progressToken", deserialize_with = "present")]
    progress_token: Option<&'a RawValue>,
}

/// Keeps `null` apart from an absent member.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A text that is borrowed unless it holds an escape.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrow)
    }
}

impl Message {
    /// Reads one message. Line breaks, which JSON allows between tokens only, become spaces: the text must stay one
    /// line on a pipe and in an SSE `data:` field.
    ///
    /// Errors name what is wrong in JSON-RPC's terms; see [`MessageError::code`].
    pub(crate) fn parse(text: Bytes) -> Result<Self, MessageError> {
        let message = Self::parse_as_is(text)?;
        if memchr::memchr2(b'\n', b'\r', &message.text).is_none() {
            return Ok(message);
        }
        let flat = message.text.iter().map(|&b| if b == b'\n' || b == b'\r' { b' ' } else { b });
        Self::parse_as_is(flat.collect::<Vec<u8>>().into())
    }

    fn parse_as_is(text: Bytes) -> Result<Self, MessageError> {
        let json = std::str::from_utf8(&text).map_err(|_| MessageError::NotJson)?;
        // serde would take an array for the members in their order.
        if is_array(json) {
            return Err(if is_json(json) { MessageError::Batch } else { MessageError::NotJson });
        }
        let envelope: Envelope<'_> = serde_json::from_str(json).map_err(|e| why_not(json, &e))?;
        if envelope.jsonrpc.0 != "2.0" {
            return Err(MessageError::NotAMessage);
        }
        let id = envelope.id.map(RawId::from_raw).transpose()?;
        let kind = match (id, envelope.method, envelope.result.is_some(), envelope.error.is_some()) {
            (Some(id), Some(method), false, false) => Kind::Request { id, method: method.0.into_owned() },
            (None, Some(method), false, false) => Kind::Notification { method: method.0.into_owned() },
            (Some(id), None, true, false) => Kind::Response { id, is_error: false },
            (Some(id), None, false, true) => Kind::Response { id, is_error: true },
            _ => return Err(MessageError::NotAMessage),
        };
        let id_at = envelope.id.map(|raw| place(json, raw.get()));
        let params_at = envelope.params.map(|raw| place(json, raw.get()));
        let result_at = envelope.result.map(|raw| place(json, raw.get()));
        Ok(Self { text, kind, id_at, params_at, result_at, insertion: None })
    }

    /// What it is.
    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The method, for requests and notifications.
    pub(crate) fn method(&self) -> Option<&str> {
        match &self.kind {
            Kind::Request { method, .. } | Kind::Notification { method } => Some(method),
            Kind::Response { .. } => None,
        }
    }

    /// The id, for requests and responses.
    pub(crate) fn id(&self) -> Option<&RawId> {
        match &self.kind {
            Kind::Request { id, .. } | Kind::Response { id, .. } => Some(id),
            Kind::Notification { .. } => None,
        }
    }

    /// The text of `params`.
    pub(crate) fn params(&self) -> Option<&str> {
        self.slice(self.params_at.as_ref()?)
    }

    /// The text of `result`.
    pub(crate) fn result(&self) -> Option<&str> {
        self.slice(self.result_at.as_ref()?)
    }

    /// Whether this is a result that says that the tool failed (`isError`; MCP, tools, error handling). Read in full only
    /// where the words are there at all, which JSON text inside of a text never has unescaped.
    pub(crate) fn says_tool_failed(&self) -> bool {
        #[derive(Deserialize)]
        struct Outcome {
            #[serde(rename = "isError", default)]
            is_error: bool,
        }
        let Some(result) = self.result() else { return false };
        let mut found = memchr::memmem::find_iter(result.as_bytes(), br#""isError""#);
        let is_true = |at: usize| {
            let after = result.get(at.saturating_add(9)..).unwrap_or_default().trim_start();
            after.strip_prefix(':').is_some_and(|value| value.trim_start().starts_with("true"))
        };
        found.any(is_true) && serde_json::from_str::<Outcome>(result).is_ok_and(|outcome| outcome.is_error)
    }

    /// The whole text.
    pub(crate) fn text(&self) -> &Bytes {
        &self.text
    }

    fn slice(&self, at: &Range<usize>) -> Option<&str> {
        std::str::from_utf8(self.text.get(at.clone())?).ok()
    }

    /// The rewritable members of `params`; none where `params` is no object or has other types there.
    fn params_members(&self) -> Params<'_> {
        let object = self.params().filter(|text| text.starts_with('{'));
        object.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// `params.progressToken` of `notifications/progress`, as spelled.
    pub(crate) fn progress_token(&self) -> Option<Bytes> {
        let raw = self.params_members().progress_token?;
        Some(self.text.slice_ref(raw.get().as_bytes()))
    }

    /// `params.requestId` of `notifications/cancelled`, as spelled.
    pub(crate) fn cancelled_id(&self) -> Option<Bytes> {
        let raw = self.params_members().request_id?;
        Some(self.text.slice_ref(raw.get().as_bytes()))
    }

    /// The message with its id and, where `part` is given (a slice that one of the methods above returned), that
    /// part replaced.
    pub(crate) fn rewritten(&self, id: Option<Bytes>, part: Option<(&Bytes, Bytes)>) -> Spliced {
        let inserted = self.insertion.as_ref().map(Insertion::edit);
        let mut edits: [Option<(Range<usize>, Bytes)>; 3] = [None, None, inserted];
        if let (Some(at), Some(id)) = (self.id_at.clone(), id) {
            edits[0] = Some((at, id));
        }
        if let Some((old, new)) = part {
            let start = old.as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
            edits[1] = Some((start..start.saturating_add(old.len()), new));
        }
        edits.sort_by_key(|edit| edit.as_ref().map(|(at, _)| at.start));
        let mut parts = Vec::with_capacity(7);
        let mut from = 0;
        for (at, new) in edits.into_iter().flatten() {
            parts.push(self.text.slice(from..at.start));
            parts.push(new);
            from = at.end;
        }
        parts.push(self.text.slice(from..));
        Spliced { parts }
    }
}

/// Why serde refused: not JSON at all, or a shape that is no message.
fn why_not(json: &str, error: &serde_json::Error) -> MessageError {
    if error.is_data() && is_json(json) { MessageError::NotAMessage } else { MessageError::NotJson }
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn is_array(text: &str) -> bool {
    text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('[')
}

/// Where `part`, a slice of `whole`, stands in it.
fn place(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    start..start.saturating_add(part.len())
}

/// A text in pieces, most of them shared with the message it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spliced {
    parts: Vec<Bytes>,
}

impl Spliced {
    /// One piece.
    pub(crate) fn whole(text: Bytes) -> Self {
        Self { parts: vec![text] }
    }

    /// The pieces, in order.
    pub(crate) fn into_parts(self) -> Vec<Bytes> {
        self.parts
    }

    /// Bytes in all pieces.
    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// The text in one piece.
    pub(crate) fn to_bytes(&self) -> Bytes {
        match self.parts.as_slice() {
            [one] => one.clone(),
            parts => {
                let mut joined = Vec::with_capacity(self.len());
                for part in parts {
                    joined.extend_from_slice(part);
                }
                joined.into()
            }
        }
    }
}

/// A JSON-RPC error as text; `id` is `null` where the request's could not be read.
pub(crate) fn error_text(id: Option<&RawId>, code: i32, message: &str) -> Bytes {
    error_with(id, code, message, None)
}

/// A JSON-RPC answer with an empty result, as `ping` wants it.
pub(crate) fn empty_result(id: &RawId) -> Bytes {
    let mut text = Vec::with_capacity(40 + id.0.len());
    text.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    text.extend_from_slice(&id.0);
    text.extend_from_slice(br#","result":{}}"#);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Message, MessageError> {
        Message::parse(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn requests_notifications_and_responses_are_told_apart() {
        let kind = |text: &str| parse(text).expect(text).kind().clone();
        assert!(matches!(kind(r#"{"jsonrpc":"2.0","id":0,"method":"m"}"#), Kind::Request { .. }));
        assert!(matches!(kind(r#"{"jsonrpc":"2.0","method":"m","params":null}"#), Kind::Notification { .. }));
        assert!(matches!(kind(r#"{"jsonrpc":"2.0","id":"a","result":null}"#), Kind::Response { is_error: false, .. }));
        assert!(matches!(kind(r#"{"jsonrpc":"2.0","id":1,"error":{}}"#), Kind::Response { is_error: true, .. }));
    }

    #[test]
    fn what_is_no_message_says_why() {
        let table = [
            ("", MessageError::NotJson),
            ("{", MessageError::NotJson),
            (r#"{"jsonrpc":"2.0","id":1,"method":"m"} x"#, MessageError::NotJson),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\",\"params\":{\"a\":\"b\nc\"}}", MessageError::NotJson),
            ("[]", MessageError::Batch),
            (r#"["2.0",1,"tools/call",{}]"#, MessageError::Batch),
            ("[", MessageError::NotJson),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"m"}]"#, MessageError::Batch),
            ("7", MessageError::NotAMessage),
            ("{}", MessageError::NotAMessage),
            (r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, MessageError::NotAMessage),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"m"}"#, MessageError::NotAMessage),
            (r#"{"jsonrpc":"2.0","id":1}"#, MessageError::NotAMessage),
            (r#"{"jsonrpc":"2.0","id":1,"result":1,"error":{}}"#, MessageError::NotAMessage),
            (r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#, MessageError::BadId),
            (r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, MessageError::BadId),
            (r#"{"jsonrpc":"2.0","id":true,"method":"m"}"#, MessageError::BadId),
        ];
        for (text, why) in table {
            assert_eq!(parse(text).expect_err(text), why, "{text}");
        }
        assert_eq!(
            Message::parse(Bytes::from_static(b"{\"a\":\"\xff\"}")).expect_err("not UTF-8"),
            MessageError::NotJson
        );
    }

    #[test]
    fn a_rewrite_leaves_every_other_byte_alone() {
        let text = r#" { "x":1.50, "id" : "a\u0062" ,"method":"tools/call","params":{"_meta":{"progressToken":"t"},"n":1e400},"jsonrpc":"2.0"}"#;
        let message = parse(text).expect("a request");
        let token = message.asked_progress_token().expect("a token");
        assert_eq!(token, r#""t""#);
        let out = message.rewritten(Some("17".into()), Some((&token, "17".into()))).to_bytes();
        let expected = text.replace(r#""a\u0062""#, "17").replace(r#""t""#, "17");
        assert_eq!(out, expected.as_bytes());
    }

    #[test]
    fn a_rewrite_works_whichever_part_stands_first() {
        let text = r#"{"params":{"_meta":{"progressToken":5}},"jsonrpc":"2.0","method":"m","id":6}"#;
        let message = parse(text).expect("a request");
        let token = message.asked_progress_token().expect("a token");
        let out = message.rewritten(Some("100".into()), Some((&token, "200".into()))).to_bytes();
        assert_eq!(out, &br#"{"params":{"_meta":{"progressToken":200}},"jsonrpc":"2.0","method":"m","id":100}"#[..]);
    }

    #[test]
    fn ids_keep_their_type() {
        for id in ["7", "\"7\"", "7.0", "-1", "\"\"", "12345678901234567890123"] {
            let message = parse(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#)).expect(id);
            assert_eq!(message.id().expect("an id").json(), id.as_bytes());
        }
    }

    #[test]
    fn an_error_is_json_whatever_the_message_holds() {
        let text = error_text(None, code::INTERNAL_ERROR, "a \"quoted\"\nline");
        let value: serde_json::Value = serde_json::from_slice(&text).expect("json");
        assert_eq!(value["error"]["message"], "a \"quoted\"\nline");
        assert_eq!(value["id"], serde_json::Value::Null);
    }

    #[test]
    fn line_breaks_between_tokens_become_spaces() {
        let message = parse("{\n\"jsonrpc\":\r\n\"2.0\",\"method\":\"m\"}").expect("a notification");
        assert_eq!(message.text(), &br#"{ "jsonrpc":  "2.0","method":"m"}"#[..]);
    }
}
