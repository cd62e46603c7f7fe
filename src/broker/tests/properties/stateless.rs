//! The same without a session: a relayed request and what comes of it, a listen, and an answer that is put into the words of
//! the stateless revision.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use tokio::time::Instant;

use super::{ID, MARK, extras, filled, id, message, object, parsed, quoted, request, response, string, value};
use super::{entered_as, naming, note, table_of};
use crate::child::calls::{Mode, Route, Stateless};
use crate::child::listens::Heard;
use crate::child::stamp::{Caching, Stamp};
use crate::jsonrpc::Spliced;
use crate::jsonrpc::members::each_member;

/// What a child says of a listen: with `MARK` where its number stands.
fn tagged(method: &'static str) -> impl Strategy<Value = String> {
    let meta = object(extras().prop_map(|mut members| {
        members.push((quoted("io.modelcontextprotocol/subscriptionId"), MARK.to_owned()));
        members
    }));
    let params = object((extras(), meta).prop_map(|(mut members, meta)| {
        members.push((quoted("_meta"), meta));
        members
    }));
    message(params.prop_map(move |params| vec![(quoted("method"), quoted(method)), (quoted("params"), params)]))
}

/// An object's members, names and values as they are spelled, in order.
pub(crate) fn members(object: &str) -> Vec<(&str, &str)> {
    let mut members = Vec::new();
    let read = each_member(object, |member| members.push((member.key, member.value.get())));
    read.unwrap_or_else(|error| panic!("{error}: {object}"));
    members
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_relayed_request_and_its_answer_pass_with_nothing_but_the_id_and_the_token_changed(
        request in request(), response in response(), progress in naming("notifications/progress", "progressToken"),
        id in id(), token in id(), in_texts in any::<bool>(),
    ) {
        let mut calls = table_of(Mode::Relay);
        let stateless = Some(Box::default());
        let (number, sent, mut events) = entered_as(&mut calls, &parsed(&filled(&request, &id, &token)), stateless);
        let number = number.to_string();
        prop_assert_eq!(sent, filled(&request, &number, &number));
        // As some children say it.
        let said = if in_texts { quoted(&number) } else { number };
        if request.contains(MARK) {
            let route = calls.route(filled(&progress, "", &said).into(), Instant::now());
            prop_assert_eq!(route, Route::Delivered);
            prop_assert_eq!(note(&mut events), filled(&progress, "", &token));
        }
        let route = calls.route(filled(&response, &said, "").into(), Instant::now());
        prop_assert_eq!(route, Route::Answered);
        prop_assert_eq!(note(&mut events), filled(&response, &id, ""));
    }

    #[test]
    fn a_relayed_listen_is_heard_under_its_own_id_with_nothing_else_changed(
        request in request(), told in tagged("notifications/tools/list_changed"), response in response(), id in id(),
    ) {
        let mut calls = table_of(Mode::Relay);
        let listening = parsed(&filled(&request, &id, "1"));
        let own = listening.id().expect("an id").clone();
        let (number, mut heard, lines) = calls.listen(&listening, own, None).expect("room");
        let number = number.to_string();
        let lines: Vec<Bytes> = lines.iter().map(Spliced::to_bytes).collect();
        prop_assert_eq!(lines, [filled(&request, &number, "1")]);
        prop_assert_eq!(calls.route(filled(&told, "", &number).into(), Instant::now()), Route::Delivered);
        let Ok(Heard::Note(text)) = heard.try_recv() else { return Err(TestCaseError::fail("no note")) };
        prop_assert_eq!(text.to_bytes(), filled(&told, "", &id));
        prop_assert_eq!(calls.route(filled(&response, &number, "").into(), Instant::now()), Route::Answered);
        let Ok(Heard::Last(text, _)) = heard.try_recv() else { return Err(TestCaseError::fail("no end")) };
        prop_assert_eq!(text.to_bytes(), filled(&response, &id, ""));
    }

    #[test]
    fn a_translated_answer_has_what_it_lacked_and_all_that_it_had_as_it_was_spelled(
        known in subsequence(vec![
            ("resultType", "\"input_required\""), ("ttlMs", "1.0"), ("cacheScope", "\"public\""), ("content", "[ 1.50 ]"),
        ], 0..=4),
        more in extras(), meta in proptest::option::of(prop_oneof![object(extras()), value()]), turn in any::<u8>(),
        id in id(), method in select(vec!["tools/list", "tools/call", "resources/read"]),
    ) {
        let known = known.into_iter().map(|(name, value)| (quoted(name), value.to_owned()));
        let mut given: Vec<(String, String)> = known.chain(more).collect();
        given.extend(meta.map(|meta| (quoted("_meta"), meta)));
        let turn = usize::from(turn) % given.len().max(1);
        given.rotate_left(turn);
        let spelled: Vec<String> = given.iter().map(|(name, value)| format!(" {name} :{value} ")).collect();
        let answer = format!(r#"{{"jsonrpc":"2.0", "result":{{{}}},"id":{ID} }}"#, spelled.join(","));
        let server = r#"{"name":"s"}"#;
        let stamp = Stamp::Translated { caching: Caching::of(method), server: server.into() };
        let mut calls = table_of(Mode::Translation);
        let call = parsed(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}"}}"#));
        let stateless = Stateless { stamp: Some(stamp), ..Stateless::default() };
        let (number, _, mut events) = entered_as(&mut calls, &call, Some(Box::new(stateless)));
        calls.route(answer.replace(ID, &number.to_string()).into(), Instant::now());
        let out = note(&mut events);
        let out = parsed(std::str::from_utf8(&out)?);
        prop_assert_eq!(out.id().map(|id| id.json().clone()), Some(Bytes::from(id)));
        let seen = members(out.result().expect("a result"));
        // All that it had, in order, behind what it lacked; `_meta` has the server's name in front, if it is an object.
        let (added, of_child) = seen.split_at(seen.len() - given.len());
        for ((name, was), (now_name, now)) in given.iter().zip(of_child) {
            prop_assert_eq!(name, now_name);
            if *name == quoted("_meta") && was.starts_with('{') {
                let (was, now) = (members(was), members(now));
                prop_assert_eq!(now.first(), Some(&(r#""io.modelcontextprotocol/serverInfo""#, server)));
                prop_assert_eq!(now.get(1..), Some(was.as_slice()));
            } else {
                prop_assert_eq!(was, now);
            }
        }
        let had = |name: &str| given.iter().any(|(known, _)| *known == quoted(name));
        let mut lacked = Vec::new();
        if !had("resultType") {
            lacked.push("\"resultType\"");
        }
        if method != "tools/call" && !had("ttlMs") && !had("cacheScope") {
            lacked.extend(["\"ttlMs\"", "\"cacheScope\""]);
        }
        if !had("_meta") {
            lacked.push("\"_meta\"");
        }
        prop_assert_eq!(added.iter().map(|(name, _)| *name).collect::<Vec<_>>(), lacked);
    }

    #[test]
    fn a_translated_error_passes_with_nothing_but_the_id_changed(
        data in value(), code in -32_001_i32..-31_000, text in string(), id in id(),
    ) {
        let said =
            |id: &str| format!(r#"{{"error":{{"data":{data}, "code":{code},"message":{text}}},"id":{id},"jsonrpc":"2.0"}}"#);
        let stamp = Stamp::Translated { caching: Caching::Unsaid, server: "null".into() };
        let out = stamp.apply(&parsed(&said("7")), id.clone().into());
        prop_assert_eq!(out.to_bytes(), said(&id));
    }
}
