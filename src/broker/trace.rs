//! The trace that a request belongs to (W3C Trace Context), as its client names it or else made here: in every line of the
//! journal about the request, and on to the child.
//!
//! A stranger's header: what is not exactly as the recommendation has it counts as absent. The broker makes no spans of its
//! own, so it passes a trace on as it came.

use std::fmt;
use std::sync::{Arc, OnceLock};

use axum::http::{Extensions, HeaderMap};
use rand::Rng;
use tracing::{Span, error_span, field};

use crate::hex;

/// The header, and the name in `_meta` (MCP revision 2026-07-28, basic, section `_meta`).
pub(crate) const TRACEPARENT: &str = "traceparent";
/// What vendors add to it.
pub(crate) const TRACESTATE: &str = "tracestate";

/// Characters of `traceparent` in version 00.
const LENGTH: usize = 55;
/// Bytes of `tracestate` that must be passed on (section 3.3.1.5); what is longer may be left out, and is.
const MAX_STATE: usize = 512;
/// Its members, at most (section 3.3.1.1).
const MAX_MEMBERS: usize = 32;

/// A `traceparent`: trace, parent and flags, in version 00.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct TraceParent(Box<str>);

impl TraceParent {
    /// Reads one (section 3.2.2); of a later version what version 00 has, and nothing else of it (section 4.3).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (known, rest) = text.split_at_checked(LENGTH)?;
        let [version, trace, parent, flags] = <[&str; 4]>::try_from(known.split('-').collect::<Vec<_>>()).ok()?;
        let is_hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let is_name = |text: &str, length| is_hex(text, length) && text.bytes().any(|b| b != b'0');
        if !(is_hex(version, 2) && is_name(trace, 32) && is_name(parent, 16) && is_hex(flags, 2)) {
            return None;
        }
        match version {
            "ff" => None,
            "00" => rest.is_empty().then(|| Self(known.into())),
            _ if !rest.is_empty() && !rest.starts_with('-') => None,
            _ => {
                // What further flags mean is unknown: whether it is sampled is the last bit.
                let sampled = flags.ends_with(['1', '3', '5', '7', '9', 'b', 'd', 'f']);
                Some(Self(format!("00-{trace}-{parent}-0{}", u8::from(sampled)).into()))
            }
        }
    }

    /// The trace's id: 32 digits.
    pub(crate) fn trace_id(&self) -> &str {
        self.0.get(3..35).unwrap_or_default()
    }

    /// As it is sent.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A `tracestate`: at most 32 members, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceState(Box<str>);

impl TraceState {
    /// Reads all lines of it as one (section 3.3.1); one bad member, or a key that is there twice, spoils it.
    fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Self> {
        let members = lines.flat_map(|line| line.split(',')).map(|member| member.trim_matches([' ', '\t']));
        let members: Vec<&str> = members.filter(|member| !member.is_empty()).collect();
        let mut keys: Vec<&str> = members.iter().filter_map(|member| Some(member.split_once('=')?.0)).collect();
        let text = members.join(",");
        let good = !members.is_empty() && members.len() <= MAX_MEMBERS && text.len() <= MAX_STATE;
        keys.sort_unstable();
        let are_apart = keys.windows(2).all(|pair| pair.first() != pair.last());
        (good && are_apart && members.into_iter().all(is_member)).then(|| Self(text.into()))
    }

    /// As it is sent.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_member(text: &str) -> bool {
    let Some((key, value)) = text.split_once('=') else { return false };
    let of_a_key = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(&b);
    let begins = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let good_key = key.bytes().all(of_a_key) && key.as_bytes().first().is_some_and(begins) && key.len() <= 256;
    let of_a_value = |b: u8| (b' '..=b'~').contains(&b) && b != b'=';
    good_key && !value.is_empty() && value.len() <= 256 && value.bytes().all(of_a_value)
}

/// What a client says in headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Where in which trace it asks.
    pub(crate) parent: TraceParent,
    /// What belongs to it.
    pub(crate) state: Option<TraceState>,
}

impl Carried {
    /// Reads the headers; `None` without exactly one good `traceparent`.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
        let parent = TraceParent::parse(parent.to_str().ok()?)?;
        let states = headers.get_all(TRACESTATE).iter().map(|line| line.to_str().unwrap_or("?"));
        Some(Self { parent, state: TraceState::parse(states) })
    }
}

/// The trace of one request. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Trace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    carried: Option<Carried>,
    request_id: String,
    id: OnceLock<String>,
    span: Span,
}

impl Trace {
    /// Of a request with these headers. Without a trace in them it waits for [`Self::settle`].
    pub(crate) fn begin(headers: &HeaderMap, rng: &mut impl Rng) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        // At every level that is logged at all, because it carries the field for those of errors too.
        let span = error_span!("request", trace_id = field::Empty);
        let carried = Carried::of(headers);
        let trace = Self(Arc::new(Inner { carried, request_id: hex::encode(&bytes), id: OnceLock::new(), span }));
        if let Some(carried) = &trace.0.carried {
            trace.set(carried.parent.trace_id());
        }
        trace
    }

    /// The request's own, or, where no layer has begun one, a new one.
    pub(crate) fn of(extensions: &Extensions, headers: &HeaderMap) -> Self {
        extensions.get().cloned().unwrap_or_else(|| Self::begin(headers, &mut rand::rng()))
    }

    /// Nothing more is to be known of the request than what its message says (`_meta`), or than its headers, where there is
    /// no message. The headers go first: a proxy in front knows nothing else.
    pub(crate) fn settle(&self, meta: Option<&TraceParent>) {
        self.set(meta.map_or(&self.0.request_id, TraceParent::trace_id));
    }

    fn set(&self, id: &str) {
        if self.0.id.set(id.to_owned()).is_ok() {
            self.0.span.record("trace_id", id);
        }
    }

    /// The trace's id: 32 digits. Until it is settled the request's own.
    pub(crate) fn id(&self) -> &str {
        self.0.id.get().unwrap_or(&self.0.request_id)
    }

    /// Names this one request: 32 digits.
    pub(crate) fn request_id(&self) -> &str {
        &self.0.request_id
    }

    /// What the client said in headers.
    pub(crate) fn carried(&self) -> Option<&Carried> {
        self.0.carried.as_ref()
    }

    /// For the lines of the log.
    pub(crate) fn span(&self) -> &Span {
        &self.0.span
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_as_the_recommendation_has_it_or_none() {
        let parent = TraceParent::parse(GOOD).expect("good");
        assert_eq!((parent.as_str(), parent.trace_id()), (GOOD, "0af7651916cd43dd8448eb211c80319c"));
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
            "00-0af7651916cd43dd8448eb211c80319cb-7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0-00af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319\n-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::parse(text), None, "{text}");
        }
    }

    #[test]
    fn of_a_later_version_what_is_known_is_passed_on() {
        let later = |flags: &str, rest: &str| {
            let text = format!("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}{rest}");
            TraceParent::parse(&text).expect("good").as_str().to_owned()
        };
        assert_eq!(later("01", ""), GOOD);
        assert_eq!(later("ff", "-what\"the-future-brings"), GOOD);
        assert!(later("02", "-").ends_with("-00"));
    }

    #[test]
    fn a_tracestate_is_good_as_a_whole_or_left_out() {
        let state = |lines: &[&str]| TraceState::parse(lines.iter().copied()).map(|state| state.as_str().to_owned());
        assert_eq!(
            state(&["rojo=00f067,congo=t61 r", " a@b=\"\\ ,,"]).as_deref(),
            Some("rojo=00f067,congo=t61 r,a@b=\"\\")
        );
        for bad in ["", "a", "=b", "a=", "A=b", "-a=b", "a=b=c", "a=é", "a=1,a=2", "a=1,b"] {
            assert_eq!(state(&[bad]), None, "{bad}");
        }
        let many = (0..33).map(|n| format!("a{n}=1")).collect::<Vec<_>>().join(",");
        assert_eq!(state(&[&many]), None);
        assert_eq!(state(&[&format!("a={}", "x".repeat(250)), &format!("b={}", "x".repeat(250)), "c=123456789"]), None);
    }

    #[test]
    fn one_good_header_names_the_trace_and_a_message_does_where_none_does() {
        let trace = |parents: &[&str]| {
            let mut headers = HeaderMap::new();
            for parent in parents {
                headers.append(TRACEPARENT, HeaderValue::from_str(parent).expect("a value"));
            }
            headers.append(TRACESTATE, HeaderValue::from_static("a=1"));
            Trace::begin(&headers, &mut rand::rng())
        };
        let meta = TraceParent::parse("00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-b7ad6b7169203331-01").expect("good");
        let by_header = trace(&[GOOD]);
        by_header.settle(Some(&meta));
        assert_eq!(by_header.id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(by_header.carried().and_then(|carried| carried.state.as_ref()).map(TraceState::as_str), Some("a=1"));
        for parents in [&[][..], &["junk"], &[GOOD, GOOD]] {
            let (by_message, by_none) = (trace(parents), trace(parents));
            by_message.settle(Some(&meta));
            by_none.settle(None);
            assert_eq!(by_message.id(), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
            assert_eq!((by_none.id(), by_none.id().len()), (by_none.request_id(), 32));
            assert!(by_none.carried().is_none());
        }
    }
}
