//! What a bridge looks for in a message's `_meta`: the progress token, and the trace, which it also puts there where a
//! client has named one in its headers only.
//!
//! What a client has written stays byte for byte. A child need not read names as we do (Go's `encoding/json` takes them in
//! any case, the last of two), so nothing is put beside a name that it could take for the same.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::members::each_member;
use super::{Message, MessageError, place};
use crate::trace::{Carried, TRACEPARENT, TRACESTATE, TraceParent, TraceState};

const META: &str = "_meta";

/// What goes into a message's text when it is written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Insertion {
    at: usize,
    text: Bytes,
    /// Where it came from: in another text it has another place and form.
    of: Carried,
}

impl Insertion {
    /// As an edit of nothing.
    pub(super) fn edit(&self) -> (Range<usize>, Bytes) {
        (self.at..self.at, self.text.clone())
    }
}

/// The members of an object, in order, two of one name included.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    fn of(object: &'a str) -> Option<Self> {
        let mut members = Vec::new();
        each_member(object, |member| members.push((member.name, member.value))).ok()?;
        Some(Self(members))
    }

    /// The one member of that name; `Err` where a reader could take another for it.
    fn one(&self, name: &str) -> Result<Option<&'a RawValue>, ()> {
        let mut found = self.0.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some((known, raw)), None) if known == name => Ok(Some(*raw)),
            _ => Err(()),
        }
    }
}

impl Message {
    /// `params._meta.progressToken` of a request, as spelled.
    ///
    /// Most requests have none, and a look for the name is cheaper than a parse. A client that escapes the name in its
    /// own request only keeps its own progress from finding the way back.
    pub(crate) fn asked_progress_token(&self) -> Option<Bytes> {
        memchr::memmem::find(&self.text, b"progressToken")?;
        let raw = self.params_members().meta?.progress_token?;
        Some(self.text.slice_ref(raw.get().as_bytes()))
    }

    /// The good `traceparent` in `params._meta`, where there is one.
    ///
    /// Most requests have none, and a look for the name is cheaper than a parse. A client that escapes the name only keeps
    /// its trace out of the journal.
    pub(crate) fn traceparent(&self) -> Option<TraceParent> {
        memchr::memmem::find(&self.text, TRACEPARENT.as_bytes())?;
        let meta = Members::of(self.params()?)?.one(META).ok()??;
        let raw = Members::of(meta.get())?.one(TRACEPARENT).ok()??;
        TraceParent::parse(&serde_json::from_str::<Cow<'_, str>>(raw.get()).ok()?)
    }

    /// With the trace in `params._meta` when it is written out, unless `_meta` names one already, be it a bad one, or has no
    /// place for it. [`Self::text`] stays as it came.
    #[must_use]
    pub(crate) fn carrying(mut self, carried: &Carried) -> Self {
        let insertion = self.insertion_of(carried);
        self.insertion = insertion.map(|(at, text)| Insertion { at, text: text.into(), of: carried.clone() });
        self
    }

    /// The same message in other words: what it takes along, it takes along in these.
    pub(crate) fn reworded(&self, text: Bytes) -> Result<Self, MessageError> {
        let message = Self::parse(text)?;
        Ok(match &self.insertion {
            Some(insertion) => message.carrying(&insertion.of),
            None => message,
        })
    }

    fn insertion_of(&self, carried: &Carried) -> Option<(usize, String)> {
        let text = std::str::from_utf8(&self.text).ok()?;
        let Some(params) = self.params() else {
            // Behind the last member: a message has at least two.
            let at = text.rfind('}')?;
            let members = members_of(carried, true)?;
            return Some((at, format!(",\"params\":{{\"{META}\":{{{members}}}}}")));
        };
        let known = Members::of(params)?;
        let Some(meta) = known.one(META).ok()? else {
            let comma = if known.0.is_empty() { "" } else { "," };
            let new = format!("\"{META}\":{{{}}}{comma}", members_of(carried, true)?);
            return Some((place(text, params).start.saturating_add(1), new));
        };
        let known = Members::of(meta.get())?;
        if !matches!(known.one(TRACEPARENT), Ok(None)) {
            return None;
        }
        let comma = if known.0.is_empty() { "" } else { "," };
        let new = format!("{}{comma}", members_of(carried, matches!(known.one(TRACESTATE), Ok(None)))?);
        Some((place(text, meta.get()).start.saturating_add(1), new))
    }
}

/// As members of an object.
fn members_of(carried: &Carried, with_state: bool) -> Option<String> {
    #[derive(Serialize)]
    struct Named<'a> {
        traceparent: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        tracestate: Option<&'a str>,
    }
    let state = carried.state.as_ref().filter(|_| with_state);
    let named = Named { traceparent: carried.parent.as_str(), tracestate: state.map(TraceState::as_str) };
    let object = serde_json::to_string(&named).ok()?;
    Some(object.strip_prefix('{')?.strip_suffix('}')?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;
    use axum::http::{HeaderMap, HeaderValue};

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn written(text: &str, state: Option<&'static str>) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(PARENT));
        if let Some(state) = state {
            headers.insert(TRACESTATE, HeaderValue::from_static(state));
        }
        let trace = Trace::begin(&headers, &mut rand::rng());
        let message = Message::parse(text.to_owned().into()).expect("a message");
        let message = message.carrying(trace.carried().expect("a trace"));
        assert_eq!(message.text(), text.as_bytes(), "what came in is what it is");
        let token = message.asked_progress_token();
        let out = message.rewritten(Some("7".into()), token.as_ref().map(|token| (token, "7".into())));
        String::from_utf8(out.to_bytes().to_vec()).expect("text")
    }

    #[test]
    fn a_trace_of_the_headers_goes_into_meta_and_all_else_stays_as_it_came() {
        let named = format!("\"traceparent\":\"{PARENT}\"");
        for (text, expected) in [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/list" } "#,
                r#"{"jsonrpc":"2.0","id":7,"method":"tools/list" ,"params":{"_meta":{NAMED}}} "#,
            ),
            (
                r#"{"jsonrpc":"2.0","params":{ },"id":1,"method":"m"}"#,
                r#"{"jsonrpc":"2.0","params":{"_meta":{NAMED} },"id":7,"method":"m"}"#,
            ),
            (
                r#"{"id":1,"jsonrpc":"2.0","method":"m","params":{"x":1.50,"a":{"_meta":{"traceparent":"no"}}}}"#,
                r#"{"id":7,"jsonrpc":"2.0","method":"m","params":{"_meta":{NAMED},"x":1.50,"a":{"_meta":{"traceparent":"no"}}}}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","method":"m","params":{"_meta":{}},"id":1}"#,
                r#"{"jsonrpc":"2.0","method":"m","params":{"_meta":{NAMED}},"id":7}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","method":"m","params":{"b":2,"_meta":{"progressToken":"t","k":1}},"id":1}"#,
                r#"{"jsonrpc":"2.0","method":"m","params":{"b":2,"_meta":{NAMED,"progressToken":7,"k":1}},"id":7}"#,
            ),
        ] {
            assert_eq!(written(text, None), expected.replace("NAMED", &named));
            let with_state = format!("{named},\"tracestate\":\"a=\\\"\"");
            assert_eq!(written(text, Some("a=\"")), expected.replace("NAMED", &with_state));
        }
        let text = r#"{"jsonrpc":"2.0","method":"m","params":{"_meta":{"tracestate":"c=2"}},"id":1}"#;
        let expected = r#"{"jsonrpc":"2.0","method":"m","params":{"_meta":{NAMED,"tracestate":"c=2"}},"id":7}"#;
        assert_eq!(written(text, Some("a=1")), expected.replace("NAMED", &named), "what the client says itself stays");
    }

    #[test]
    fn nothing_is_put_where_a_trace_or_no_place_is() {
        for params in [
            r#"{"_meta":{"traceparent":"00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-b7ad6b7169203331-01"}}"#,
            r#"{"_meta":{"traceparent":"junk"}}"#,
            r#"{"_meta":{"traceparent":null}}"#,
            r#"{"_meta":{"trace\u0070arent":"x"}}"#,
            r#"{"_meta":{"TraceParent":"x"}}"#,
            r#"{"_meta":null}"#,
            r#"{"_meta":[]}"#,
            r#"{"_Meta":{}}"#,
            r#"{"_meta":{},"_meta":{}}"#,
            r#"{"_meta":{},"_META":{}}"#,
            "[1]",
            "null",
        ] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":7,"method":"m","params":{params}}}"#);
            assert_eq!(written(&text, Some("a=1")), text);
        }
    }

    #[test]
    fn a_good_traceparent_of_meta_is_found_and_a_bad_one_is_none() {
        let found = |params: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","id":7,"method":"m","params":{params}}}"#);
            Message::parse(text.into()).expect("a message").traceparent().is_some()
        };
        assert!(found(&format!(r#"{{"_meta":{{"traceparent":"{PARENT}"}}}}"#)));
        for params in [
            format!(r#"{{"traceparent":"{PARENT}"}}"#),
            format!(r#"{{"_meta":{{"traceparent":["{PARENT}"]}}}}"#),
            format!(r#"{{"_meta":{{"traceparent":"{PARENT}","traceparent":"{PARENT}"}}}}"#),
            format!(r#"{{"_meta":{{"traceparent":"{PARENT} "}}}}"#),
        ] {
            assert!(!found(&params), "{params}");
        }
    }
}
