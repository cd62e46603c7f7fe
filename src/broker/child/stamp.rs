//! What a child's answer needs to be one of the stateless revision (2026-07-28).
//!
//! A child of the session era gives results without `resultType`, without a word on caching and without its name, and one
//! error code that the revision forbids (basic/index, sections Result Responses, Error Codes; server/utilities/caching).
//! Everything else in its answer stays byte for byte.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::jsonrpc::members::{Member, each_member};
use crate::jsonrpc::{Message, Spliced};

/// For how long a client may keep a list of a child that says nothing about it, in milliseconds. Tools change with the
/// program, which is rare; a call of one that is gone tells as well.
const LIST_TTL: u32 = 60_000;

/// The key under which a server names itself.
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// What is done to an answer.
#[derive(Debug, Clone)]
pub(crate) enum Stamp {
    /// It comes from a child of the session era.
    Translated {
        /// What is said about caching.
        caching: Caching,
        /// `serverInfo`, as JSON.
        server: Arc<str>,
    },
    /// Its caller sees less than the child has said, so that nobody else may be shown it.
    Private,
}

/// What may be kept of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caching {
    /// The method's results carry no word on it.
    Unsaid,
    /// For a while, by its caller alone.
    List,
    /// Not at all: it is what a program reads from somewhere else.
    Stale,
}

impl Caching {
    /// Of the results of a method (server/utilities/caching, section Cacheable Results).
    pub(crate) fn of(method: &str) -> Self {
        match method {
            "server/discover" | "tools/list" | "prompts/list" | "resources/templates/list" => Self::List,
            "resources/list" | "resources/read" => Self::Stale,
            _ => Self::Unsaid,
        }
    }

    /// The members, each with a comma behind it.
    pub(crate) fn members(self) -> String {
        match self {
            Self::Unsaid => String::new(),
            Self::List => format!(r#""ttlMs":{LIST_TTL},"cacheScope":"private","#),
            Self::Stale => r#""ttlMs":0,"cacheScope":"private","#.to_owned(),
        }
    }
}

impl Stamp {
    /// The answer with this id, as a stateless client may have it.
    pub(crate) fn apply(&self, answer: &Message, id: Bytes) -> Spliced {
        match (self, answer.result()) {
            (Self::Translated { caching, server }, Some(result)) => translated(answer, result, id, *caching, server),
            (Self::Translated { .. }, None) => with_known_code(answer, id),
            (Self::Private, Some(result)) => {
                // Each of them, should there be two: a reader takes the one or the other.
                let scopes = Members::of(result).unwrap_or_default().scopes;
                let private = |scope| answer.replace(scope, &br#""private""#[..]);
                answer.edited(Some(id), scopes.into_iter().map(private).collect())
            }
            (Self::Private, None) => answer.edited(Some(id), Vec::new()),
        }
    }
}

fn translated(answer: &Message, result: &str, id: Bytes, caching: Caching, server: &str) -> Spliced {
    // What is no object is none of MCP's results, whatever is done to it.
    let Some(known) = Members::of(result) else { return answer.edited(Some(id), Vec::new()) };
    let mut new = String::new();
    if !known.result_type {
        new.push_str(r#""resultType":"complete","#);
    }
    if !known.caching {
        new.push_str(&caching.members());
    }
    let named = format!(r#""{SERVER_INFO}":{server}"#);
    let mut edits = Vec::with_capacity(2);
    match known.meta {
        _ if server == "null" => {}
        Some(meta) if lacks_a_name(meta) => {
            let comma = if is_empty(meta) { "" } else { "," };
            edits.push(answer.insert(meta, 1, format!("{named}{comma}")));
        }
        Some(_) => {}
        None => new.extend([r#""_meta":{"#, &named, "},"]),
    }
    if is_empty(result) {
        new.pop();
    }
    edits.push(answer.insert(result, 1, new));
    answer.edited(Some(id), edits)
}

/// Whether it is an object that does not name the server.
fn lacks_a_name(meta: &str) -> bool {
    #[derive(Deserialize)]
    struct Meta {
        #[serde(rename = "io.modelcontextprotocol/serverInfo")]
        info: Option<IgnoredAny>,
    }
    meta.starts_with('{') && serde_json::from_str::<Meta>(meta).is_ok_and(|meta| meta.info.is_none())
}

/// Whether an object has no members.
fn is_empty(object: &str) -> bool {
    object.get(1..).is_some_and(|rest| rest.trim_start().starts_with('}'))
}

/// -32002 was «resource not found»; the revision demands -32602 for it.
fn with_known_code(answer: &Message, id: Bytes) -> Spliced {
    #[derive(Deserialize)]
    struct Refused<'a> {
        #[serde(borrow)]
        error: Code<'a>,
    }
    #[derive(Deserialize)]
    struct Code<'a> {
        #[serde(borrow)]
        code: &'a RawValue,
    }
    let text = std::str::from_utf8(answer.text()).unwrap_or_default();
    let code = serde_json::from_str::<Refused<'_>>(text).ok().map(|refused| refused.error.code.get());
    let edits = code.filter(|code| *code == "-32002").map(|code| vec![answer.replace(code, &b"-32602"[..])]);
    answer.edited(Some(id), edits.unwrap_or_default())
}

/// Which of the members there are already.
#[derive(Default)]
struct Members<'a> {
    result_type: bool,
    caching: bool,
    scopes: Vec<&'a str>,
    meta: Option<&'a str>,
}

impl<'a> Members<'a> {
    /// `None` for what is no object.
    fn of(result: &'a str) -> Option<Self> {
        let mut members = Self::default();
        let look = |member: Member<'a>| match &*member.name {
            "_meta" => members.meta = Some(member.value.get()),
            "cacheScope" => {
                members.caching = true;
                members.scopes.push(member.value.get());
            }
            "ttlMs" => members.caching = true,
            "resultType" => members.result_type = true,
            _ => {}
        };
        each_member(result, look).ok()?;
        Some(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(method: &str, rest: &str) -> String {
        let message = Message::parse(format!(r#"{{"jsonrpc":"2.0","id":1,{rest}}}"#).into()).expect(rest);
        let stamp = Stamp::Translated { caching: Caching::of(method), server: r#"{"name":"s","version":"1"}"#.into() };
        let out = stamp.apply(&message, Bytes::from_static(b"1"));
        let text = String::from_utf8(out.to_bytes().to_vec()).expect("text");
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        text.replace(r#"{"jsonrpc":"2.0","id":1,"#, "").trim_end_matches('}').to_owned() + "}"
    }

    #[test]
    fn a_result_gets_what_it_lacks_and_keeps_what_it_has() {
        let info = r#""io.modelcontextprotocol/serverInfo":{"name":"s","version":"1"}"#;
        let table = [
            ("tools/call", r#""result":{}"#, format!(r#""result":{{"resultType":"complete","_meta":{{{info}}}"#)),
            (
                "tools/call",
                r#""result":{"content":[ 1.50 ],"_meta":{ }}"#,
                format!(r#""result":{{"resultType":"complete","content":[ 1.50 ],"_meta":{{{info} "#),
            ),
            (
                "tools/list",
                r#""result":{"_meta":{"a":1},"tools":[]}"#,
                format!(
                    r#""result":{{"resultType":"complete","ttlMs":60000,"cacheScope":"private","_meta":{{{info},"a":1}},"tools":[]"#
                ),
            ),
            (
                "resources/read",
                r#""result":{"resultType":"complete","ttlMs":5,"_meta":null}"#,
                r#""result":{"resultType":"complete","ttlMs":5,"_meta":null"#.to_owned(),
            ),
        ];
        for (method, given, expected) in table {
            assert_eq!(stamped(method, given).trim_end_matches('}'), expected.trim_end_matches('}'), "{given}");
        }
    }

    #[test]
    fn resource_not_found_has_the_code_of_the_revision_and_no_other_error_changes() {
        let not_found = stamped("resources/read", r#""error":{"code":-32002,"message":"-32002","data":{"uri":"x:"}}"#);
        assert!(
            not_found.starts_with(r#""error":{"code":-32602,"message":"-32002","data":{"uri":"x:""#),
            "{not_found}"
        );
        let other = r#""error":{"code":-32603,"message":"no"}"#;
        assert!(stamped("tools/call", other).starts_with(other.trim_end_matches('}')));
    }

    #[test]
    fn what_was_filtered_for_its_caller_is_theirs_alone() {
        let given =
            r#"{"jsonrpc":"2.0","id":1,"result":{"cacheScope": "public","tools":[],"cache\u0053cope":"public"}}"#;
        let message = Message::parse(given.into()).expect("a response");
        let out = Stamp::Private.apply(&message, Bytes::from_static(b"9")).to_bytes();
        let expected =
            r#"{"jsonrpc":"2.0","id":9,"result":{"cacheScope": "private","tools":[],"cache\u0053cope":"private"}}"#;
        assert_eq!(out, expected.as_bytes());
    }
}
