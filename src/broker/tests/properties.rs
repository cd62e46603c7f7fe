//! For any message, any split of a pipe's bytes and any header: what need not be touched passes byte for byte, both
//! ways.
//!
//! Messages are made as text, because what must survive is the spelling: order, spaces, escapes, numbers, members that
//! nobody knows. Where the bridge puts something else, the text has a mark, and the same text with the marks filled in
//! differently is what must come out.

pub(crate) mod stateless;

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::child::activity::Activity;
use crate::child::calls::form::Form;
use crate::child::calls::{Calls, Event, InFlight, Mode, Route, Stateless};
use crate::child::lines::{Line, Lines};
use crate::jsonrpc::{Message, RawId};
use crate::mcp::headers::{Accept, Revision, is_json};

/// Stands for an id in a template.
pub(crate) const ID: &str = "\u{1}";
/// Stands for a progress token, or the id that a cancellation names.
pub(crate) const MARK: &str = "\u{2}";

/// What may stand between tokens on one line.
pub(crate) fn space() -> impl Strategy<Value = String> {
    "[ \t]{0,2}"
}

/// A JSON text's spelling of a string, quotes included.
pub(crate) fn string() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-zA-Z_$./ -]{1,8}".prop_map(String::from),
        select(vec![
            r#"\""#,
            r"\\",
            r"\/",
            r"\n",
            r"\u00e9",
            r"\uD83D\uDE00",
            r"\u0000",
            "é",
            "😀",
            "\u{2028}",
            "\u{7f}"
        ])
        .prop_map(str::to_owned),
        select(vec!["id", "jsonrpc", "progressToken", "_meta", "isError", "{", "}", "[", ":", ","])
            .prop_map(str::to_owned),
    ];
    vec(part, 0..4).prop_map(|parts| format!("\"{}\"", parts.concat()))
}

pub(crate) fn number() -> impl Strategy<Value = String> {
    "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,6})?([eE][+-]?[0-9]{1,3})?"
}

/// `{name: value, …}` of members, with spaces all over.
pub(crate) fn object(members: impl Strategy<Value = Vec<(String, String)>>) -> impl Strategy<Value = String> {
    (members, space(), space()).prop_map(|(members, before, after)| {
        let members: Vec<String> =
            members.iter().map(|(name, value)| format!("{before}{name}{after}:{before}{value}{after}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

pub(crate) fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![number(), string(), select(vec!["null", "true", "false"]).prop_map(str::to_owned)];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let array = (vec(inner.clone(), 0..4), space());
        prop_oneof![
            array.prop_map(|(items, space)| format!("[{space}{}]", items.join(&format!("{space},")))),
            object(vec((string(), inner), 0..4)),
        ]
    })
}

/// Members whose names mean nothing to the bridge.
pub(crate) fn extras() -> impl Strategy<Value = Vec<(String, String)>> {
    vec(("\"x-[a-z]{1,6}\"", value()), 0..3)
}

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

/// A message: the given members among others that nobody knows, in any order.
pub(crate) fn message(known: impl Strategy<Value = Vec<(String, String)>>) -> impl Strategy<Value = String> {
    let members = (known, extras()).prop_map(|(mut known, extras)| {
        known.push((quoted("jsonrpc"), quoted("2.0")));
        known.extend(extras);
        known
    });
    (object(members.prop_shuffle()), space()).prop_map(|(text, space)| format!("{space}{text}{space}"))
}

pub(crate) fn id() -> impl Strategy<Value = String> {
    prop_oneof![number(), string()]
}

pub(crate) fn method() -> impl Strategy<Value = String> {
    select(vec![r#""tools/call""#, r#""resources/read""#, r#""x/y""#, r#""tools\/call""#]).prop_map(str::to_owned)
}

/// A client's request; with `MARK` where it asks for progress.
pub(crate) fn request() -> impl Strategy<Value = String> {
    let meta = (extras(), any::<bool>()).prop_map(|(mut members, asks)| {
        if asks {
            members.push((quoted("progressToken"), MARK.to_owned()));
        }
        members
    });
    let meta = object(meta.prop_shuffle());
    let params = (extras(), proptest::option::of(meta)).prop_map(|(mut members, meta)| {
        members.extend(meta.map(|meta| (quoted("_meta"), meta)));
        members
    });
    let params = proptest::option::of(object(params.prop_shuffle()));
    message((method(), params).prop_map(|(method, params)| {
        let mut members = vec![(quoted("id"), ID.to_owned()), (quoted("method"), method)];
        members.extend(params.map(|params| (quoted("params"), params)));
        members
    }))
}

/// A response; `isError` is no name that the strings above make by chance at the place that counts.
pub(crate) fn response() -> impl Strategy<Value = String> {
    message(
        (select(vec!["result", "error"]), value())
            .prop_map(|(name, value)| vec![(quoted("id"), ID.to_owned()), (quoted(name), value)]),
    )
}

/// A notification that carries something that the bridge translates.
fn naming(method: &'static str, member: &'static str) -> impl Strategy<Value = String> {
    let params = extras().prop_map(move |mut members| {
        members.push((quoted(member), MARK.to_owned()));
        members
    });
    message(
        object(params.prop_shuffle())
            .prop_map(move |params| vec![(quoted("method"), quoted(method)), (quoted("params"), params)]),
    )
}

pub(crate) fn filled(template: &str, id: &str, mark: &str) -> String {
    template.replace(ID, id).replace(MARK, mark)
}

pub(crate) fn parsed(text: &str) -> Message {
    Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn table() -> Calls {
    table_of(Mode::Session)
}

fn table_of(mode: Mode) -> Calls {
    Calls::new(0, mode, Duration::from_mins(1), Arc::new(Activity::default()), Instant::now())
}

fn entered(calls: &mut Calls, request: &Message) -> (u64, Bytes, mpsc::Receiver<Event>) {
    entered_as(calls, request, None)
}

fn entered_as(
    calls: &mut Calls,
    request: &Message,
    stateless: Option<Box<Stateless>>,
) -> (u64, Bytes, mpsc::Receiver<Event>) {
    let (to, events) = mpsc::channel(8);
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a permit");
    let entry =
        InFlight { to, form: Form::Events, stateless, permit, deadline: Instant::now() + Duration::from_mins(1) };
    let id: RawId = request.id().expect("an id").clone();
    let (number, out) = calls.enter(request, id, entry, Instant::now()).expect("open");
    (number, out.to_bytes(), events)
}

fn note(events: &mut mpsc::Receiver<Event>) -> Bytes {
    match events.try_recv() {
        Ok(Event::Note(text) | Event::Answer(text, _)) => text.to_bytes(),
        other => panic!("{other:?}"),
    }
}

/// Hands out what is read in the given pieces.
fn in_pieces(pieces: &[Vec<u8>]) -> Box<dyn AsyncRead + Unpin> {
    let none: Box<dyn AsyncRead + Unpin> = Box::new(Cursor::new(Vec::new()));
    pieces.iter().fold(none, |before, piece| Box::new(before.chain(Cursor::new(piece.clone()))))
}

/// The lines of `bytes`, each with whether it is within the cap.
fn lines_of(bytes: &[u8], cap: usize) -> Vec<(Vec<u8>, bool)> {
    let mut lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    lines.pop();
    let stripped = lines.iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec());
    stripped.map(|line| (line.len() <= cap, line)).map(|(fits, line)| (line, fits)).collect()
}

proptest! {
    // What fails is printed; a file of it would stay in the checkout.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_reaches_the_child_and_its_answer_the_client_with_nothing_but_the_id_and_the_token_changed(
        request in request(), response in response(), progress in naming("notifications/progress", "progressToken"),
        id in id(), token in id(),
    ) {
        let mut calls = table();
        let (number, sent, mut events) = entered(&mut calls, &parsed(&filled(&request, &id, &token)));
        let number = number.to_string();
        prop_assert_eq!(sent, filled(&request, &number, &number));
        if request.contains(MARK) {
            let route = calls.route(filled(&progress, "", &number).into(), Instant::now());
            prop_assert_eq!(route, Route::Delivered);
            prop_assert_eq!(note(&mut events), filled(&progress, "", &token));
        }
        let route = calls.route(filled(&response, &number, "").into(), Instant::now());
        prop_assert_eq!(route, Route::Answered);
        prop_assert_eq!(note(&mut events), filled(&response, &id, ""));
    }

    #[test]
    fn a_childs_request_reaches_the_client_and_its_answer_the_child_with_nothing_but_the_id_changed(
        request in request(), response in response(), id in id(),
    ) {
        let mut calls = table();
        // What is no token to the bridge here stays as it is.
        let Route::GetStream(out) = calls.route(filled(&request, &id, "7").into(), Instant::now()) else {
            return Err(TestCaseError::fail("no stream"));
        };
        let seen = out.to_bytes();
        let number = parsed(std::str::from_utf8(&seen)?).id().expect("an id").clone();
        let number = std::str::from_utf8(number.json())?.to_owned();
        prop_assert_eq!(seen, filled(&request, &number, "7"));
        let back = calls.answer(&parsed(&filled(&response, &number, ""))).expect("it was asked");
        prop_assert_eq!(back.to_bytes(), filled(&response, &id, ""));
    }

    #[test]
    fn a_cancellation_changes_nothing_but_the_id_that_it_names(
        request in request(), cancel in naming("notifications/cancelled", "requestId"), id in id(),
    ) {
        let mut calls = table();
        let (number, ..) = {
            let (number, sent, events) = entered(&mut calls, &parsed(&filled(&request, &id, "1")));
            // Kept, or nobody waits for the request any more.
            let told = calls.cancel(&parsed(&filled(&cancel, "", &id)), Instant::now());
            prop_assert_eq!(told.map(|told| told.to_bytes()), Some(filled(&cancel, "", &number.to_string()).into()));
            (number, sent, events)
        };
        let late = format!(r#"{{"jsonrpc":"2.0","id":{number},"result":{{}}}}"#);
        prop_assert_eq!(calls.route(late.into(), Instant::now()), Route::Dropped("an answer to nothing in flight"));
    }

    #[test]
    fn what_a_child_tells_nobody_in_particular_passes_whole(known in naming("notifications/x", "y")) {
        let text = filled(&known, "", "1.50");
        let Route::GetStream(out) = table().route(text.clone().into(), Instant::now()) else {
            return Err(TestCaseError::fail("no stream"));
        };
        prop_assert_eq!(out.to_bytes(), text);
    }

    #[test]
    fn no_bytes_make_the_parser_anything_but_right_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
        let valid = serde_json::from_slice::<serde_json::Value>(&bytes).is_ok();
        prop_assert!(Message::parse(bytes.into()).is_err() || valid);
    }

    #[test]
    fn lines_come_out_whole_however_a_pipe_cuts_them(
        pieces in vec(prop_oneof![
            vec(select(b"\r\nab{}\xff".to_vec()), 0..20),
            vec(any::<u8>(), 0..40),
        ], 0..12),
        cap in 0_usize..60,
    ) {
        let all = pieces.concat();
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let seen = runtime.block_on(async {
            let mut lines = Lines::new(in_pieces(&pieces), cap);
            let mut seen = Vec::new();
            while let Some(line) = lines.next().await.expect("readable") {
                seen.push(line);
            }
            seen
        });
        let mut seen = seen.into_iter();
        for (line, fits) in lines_of(&all, cap) {
            if fits {
                prop_assert_eq!(seen.next(), Some(Line::Whole(line.into())));
                continue;
            }
            let Some(Line::Begun(head, _)) = seen.next() else { return Err(TestCaseError::fail("no beginning")) };
            prop_assert_eq!(&head[..], &line[..cap]);
            let Some(Line::Ended(tail)) = seen.next() else { return Err(TestCaseError::fail("no end")) };
            prop_assert_eq!(&tail[..], &line[..]);
        }
        // A last line without its end is known for too long as soon as it is.
        prop_assert!(matches!(seen.next(), None | Some(Line::Begun(..))));
        prop_assert!(seen.next().is_none());
    }

    #[test]
    fn accept_is_read_alike_in_any_case_order_and_with_any_parameters(
        mut ranges in vec((select(vec!["application/json", "text/event-stream", "text/html", "image/*"]),
            select(vec!["", ";q=0.5", "; charset=utf-8", ";q=0", "; Q=0.000"]), any::<bool>()), 1..6),
    ) {
        let refused = |parameter: &str| matches!(parameter, ";q=0" | "; Q=0.000");
        let named = |kind: &str| ranges.iter().any(|(range, parameter, _)| *range == kind && !refused(parameter));
        let expected = (named("application/json"), named("text/event-stream"));
        let read = |ranges: &[(&str, &str, bool)]| {
            let spelled: Vec<String> = ranges.iter().map(|(range, parameter, upper)| {
                format!("{}{parameter}", if *upper { range.to_uppercase() } else { (*range).to_owned() })
            }).collect();
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_str(&spelled.join(" , ")).expect("a header"));
            let accept = Accept::of(&headers);
            (accept.json, accept.events)
        };
        prop_assert_eq!(read(&ranges), expected);
        ranges.reverse();
        prop_assert_eq!(read(&ranges), expected);
    }

    #[test]
    fn no_header_value_is_taken_for_more_than_it_says(bytes in vec(any::<u8>(), 0..30)) {
        let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
        let mut headers = HeaderMap::new();
        for name in ["mcp-protocol-version", ACCEPT.as_str(), CONTENT_TYPE.as_str()] {
            headers.insert(axum::http::HeaderName::try_from(name)?, value.clone());
        }
        let known = |text: &str| ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"].contains(&text);
        prop_assert_eq!(matches!(Revision::of(&headers), Revision::SessionEra(_)), value.to_str().is_ok_and(known));
        let says = |kind: &str| value.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains(kind));
        prop_assert!(!is_json(&headers) || says("application/json"));
        let accept = Accept::of(&headers);
        let (any, stream) = (says("*/*"), says("text/"));
        prop_assert!((!accept.json || says("application/") || any || value.to_str().is_err()) &&
            (!accept.events || stream || any || value.to_str().is_err()));
    }
}
