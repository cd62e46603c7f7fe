//! For any name, any spelling of it in JSON and any way to say it in a header: what is the same passes, what differs does
//! not. And for any parameters: what is not of the revision alone passes byte for byte through the translation.

use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use wire::message::TenantId;

use super::mirrored::{check, check_decoded};
use super::request::StatelessRequest;
use super::translation;
use crate::budget::{Budget, BudgetCaps, Budgets};
use crate::tests::properties::stateless::members;
use crate::tests::properties::{extras, id, object, parsed, quoted, string};

/// A name, or a text like those that a header carries in another form.
fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-zA-Z0-9_./-]{1,6}",
        select(vec!["é", "😀", "\u{0}", "\n", "\"", "\\", " ", "\t", "=?base64?", "?=", "\u{7f}", "%41", "SGVsbG8="])
            .prop_map(str::to_owned),
    ];
    vec(part, 0..4).prop_map(|parts| parts.concat())
}

/// A spelling of a text in JSON: each of its characters as it is, or escaped in one of the ways that there are.
fn spelled(text: &str, ways: &[u8]) -> String {
    let mut out = String::from("\"");
    for (character, way) in text.chars().zip(ways.iter().cycle()) {
        let short = match character {
            '"' | '\\' | '/' => Some(character),
            '\n' => Some('n'),
            '\t' => Some('t'),
            _ => None,
        };
        let plain = character == '/' || (short.is_none() && character >= ' ');
        match (way % 3, short) {
            (0, _) if plain => out.push(character),
            (1, Some(short)) => out.extend(['\\', short]),
            _ => out.extend(character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04X}"))),
        }
    }
    out.push('"');
    out
}

fn encoded(text: &str) -> String {
    format!("=?base64?{}?=", STANDARD.encode(text))
}

/// The header values that say a text: encoded, and as it is where a header can carry it so.
fn said(text: &str) -> Vec<String> {
    let is_plain =
        text.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) && text.trim_matches([' ', '\t']) == text;
    let seems_encoded = text.strip_prefix("=?base64?").is_some_and(|rest| rest.ends_with("?="));
    let plain = (is_plain && !seems_encoded).then(|| vec![text.to_owned(), format!(" \t{text} ")]);
    [encoded(text)].into_iter().chain(plain.into_iter().flatten()).collect()
}

fn headers(name: Option<&str>, method: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("mcp-protocol-version", HeaderValue::from_static("2026-07-28"));
    headers.insert("mcp-method", HeaderValue::from_str(method).expect("a method"));
    if let Some(name) = name {
        headers.insert("mcp-name", HeaderValue::from_str(name).expect("a header"));
    }
    headers
}

fn budget() -> Budget {
    Budgets::new(BudgetCaps { total: 1 << 20, per_user: 1 << 20 }).of(TenantId::new(1).expect("an id"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_header_that_says_what_the_body_says_is_never_refused_and_another_never_let_in(
        name in name(), other in name(), ways in vec(any::<u8>(), 1..8),
        (method, member) in select(vec![("tools/call", "name"), ("prompts/get", "name"), ("resources/read", "uri")]),
        more in extras(),
    ) {
        let meta = r#"{"io.modelcontextprotocol\/protocolVersion":"2026\u002d07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
        let mut all = vec![(spelled(member, &ways), spelled(&name, &ways)), (spelled("_meta", &ways), meta.to_owned())];
        all.extend(more);
        let all: Vec<String> = all.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        let params = all.join(" ,");
        let message = parsed(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":{},"params":{{{params}}}}}"#, spelled(method, &ways)
        ));
        for value in said(&name) {
            let outcome = StatelessRequest::parse(&headers(Some(&value), method), &message);
            prop_assert!(outcome.is_ok(), "{value:?} is {name:?}");
        }
        if other != name {
            for value in said(&other) {
                prop_assert!(StatelessRequest::parse(&headers(Some(&value), method), &message).is_err(), "{value:?}");
            }
        }
        prop_assert!(StatelessRequest::parse(&headers(None, method), &message).is_err());
    }

    #[test]
    fn no_bytes_of_a_header_are_taken_for_a_text_that_they_do_not_say(
        bytes in vec(prop_oneof![select(b"=?base64?SGVsbG8 \t".to_vec()), any::<u8>()], 0..24), body in name(),
    ) {
        let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
        let mut headers = HeaderMap::new();
        headers.insert("mcp-name", value);
        let says = |text: &str| said(text).iter().any(|way| way.trim_matches([' ', '\t']).as_bytes() == bytes.trim_ascii());
        prop_assert_eq!(check_decoded(&headers, "mcp-name", &body).is_ok(), says(&body));
        prop_assert_eq!(check(&headers, "mcp-name", &body).is_ok(), bytes.trim_ascii() == body.as_bytes() && body.is_ascii()
            && !body.contains(|c: char| c.is_control() && c != '\t'));
        if let Ok(own) = String::from_utf8(bytes.trim_ascii().to_vec()) {
            prop_assert_eq!(check_decoded(&headers, "mcp-name", &own).is_ok(), says(&own));
        }
    }

    #[test]
    fn the_translation_leaves_out_what_is_of_the_revision_and_touches_nothing_else(
        of_meta in subsequence(vec![
            "io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientInfo",
            "io.modelcontextprotocol/clientCapabilities", "io.modelcontextprotocol/logLevel",
        ], 0..=4),
        of_params in subsequence(vec!["inputResponses", "requestState"], 0..=2),
        (kept_meta, kept) in (extras(), extras()), ways in vec(any::<u8>(), 1..8), id in id(), text in string(),
        turns in any::<[u8; 2]>(),
    ) {
        let with = |names: &[&str], kept: &[(String, String)], turn: u8| {
            let own = names.iter().map(|name| (spelled(name, &ways), text.clone()));
            let mut all: Vec<(String, String)> = own.chain(kept.iter().cloned()).collect();
            let turn = usize::from(turn) % all.len().max(1);
            all.rotate_left(turn);
            let all: Vec<String> = all.iter().map(|(name, value)| format!(" {name}\t: {value} ")).collect();
            format!("{{{}}}", all.join(","))
        };
        let meta = with(&of_meta, &kept_meta, turns[0]);
        let mut params = kept;
        params.push((quoted("_meta"), meta.clone()));
        let given = with(&of_params, &params, turns[1]);
        let text = |params: &str| format!(r#"{{"jsonrpc":"2.0" , "id":{id},"params":{params}, "method":"x/y"}}"#);
        let translated = translation::request(&parsed(&text(&given)), &budget()).expect("within the budget");
        let out = translated.params().expect("parameters");
        // Outside of the parameters nothing changes.
        let around = text(out);
        prop_assert_eq!(translated.text(), around.as_bytes());
        let is_own = |name: &str, names: &[&str]| {
            let name: String = serde_json::from_str(name).expect("a text");
            names.contains(&name.as_str())
        };
        let (was, now) = (members(&given), members(out));
        let was: Vec<_> = was.into_iter().filter(|(name, _)| !is_own(name, &of_params)).collect();
        prop_assert_eq!(was.len(), now.len());
        for ((was_name, was), (now_name, now)) in was.iter().zip(&now) {
            prop_assert_eq!(was_name, now_name);
            if *now_name == "\"_meta\"" {
                let left: Vec<_> = members(was).into_iter().filter(|(name, _)| !is_own(name, &of_meta)).collect();
                prop_assert_eq!(members(now), left);
            } else {
                prop_assert_eq!(was, now);
            }
        }
        if of_meta.is_empty() && of_params.is_empty() {
            prop_assert_eq!(out, given);
        }
    }

    #[test]
    fn parameters_that_are_no_object_pass_as_they_are(params in prop_oneof![Just("[1]".to_owned()), object(extras())]) {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{params}}}"#);
        let out = translation::request(&parsed(&text), &budget()).expect("within the budget");
        prop_assert_eq!(out.text(), text.as_bytes());
    }
}
