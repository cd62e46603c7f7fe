//! `tools/list` as a client may see it: without tools that its grant keeps out, and with hints that are true.
//!
//! Works on slices of the child's text: what is not left out or corrected stays byte for byte.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::auth::restriction::AllowedTools;
use crate::jsonrpc::Message;
use crate::mcp::tools::mirrored::MirroredArgument;
use crate::mcp::tools::{Effect, Table};

/// Bytes that are kept of what one child says of its tools; of a thousand tools it is enough. One beyond them counts as one
/// of which the child says nothing.
pub(super) const ROOM: usize = 256 * 1024;
/// What a tool takes beside its name.
const EACH: usize = 64;
/// Of a cursor, which is sent back: a page behind a longer one is not read.
const MAX_CURSOR: usize = 4 * 1024;

/// How a client is to see the list.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// What is known of the tools, where the child's own word does not count.
    pub(crate) table: Option<Arc<Table>>,
    /// Whether tools that write are left out.
    pub(crate) reads_only: bool,
    /// The only tools that are not left out, where the caller's token has a list of them.
    pub(crate) only: Option<Arc<AllowedTools>>,
    /// Whether the table's word is put into the hints.
    pub(crate) correct_hints: bool,
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    tools: &'a RawValue,
    #[serde(borrow, rename = "nextCursor", default)]
    next: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Tool<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    annotations: Option<&'a RawValue>,
}

/// Keeps `null` apart from an absent member.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize, Default)]
struct Hints<'a> {
    #[serde(borrow, rename = "readOnlyHint", default)]
    read_only: Option<&'a RawValue>,
    #[serde(borrow, rename = "destructiveHint", default)]
    destructive: Option<&'a RawValue>,
}

fn hints(annotations: Option<&RawValue>) -> Hints<'_> {
    annotations.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
}

fn says_reads(annotations: Option<&RawValue>) -> bool {
    hints(annotations).read_only.is_some_and(|raw| raw.get() == "true")
}

/// What a child says of one of its tools, as far as it is believed.
#[derive(Debug)]
pub(crate) struct Word {
    /// That it only reads.
    pub(crate) read_only: bool,
    /// Which of its arguments clients repeat in headers, if any.
    pub(crate) mirrored: Option<Arc<[MirroredArgument]>>,
}

/// What one page of a child's own list says, by tool, and the cursor of the next page; as far as there is `room`, in bytes.
pub(crate) fn words(answer: &Message, room: &mut usize) -> Option<(HashMap<String, Word>, Option<String>)> {
    let listed: Listed<'_> = serde_json::from_str(answer.result()?).ok()?;
    let tools: Vec<&RawValue> = serde_json::from_str(listed.tools.get()).ok()?;
    let mut words = HashMap::new();
    for raw in tools {
        let tool: Tool<'_> = serde_json::from_str(raw.get()).ok()?;
        let Some(left) = room.checked_sub(tool.name.len().saturating_add(EACH)) else { break };
        *room = left;
        let mirrored = MirroredArgument::of(raw.get(), room);
        words.insert(tool.name.into_owned(), Word { read_only: says_reads(tool.annotations), mirrored });
    }
    Some((words, listed.next.filter(|next| next.len() <= MAX_CURSOR).map(Cow::into_owned)))
}

impl View {
    /// Whether every list can pass as it is.
    pub(crate) fn is_plain(&self) -> bool {
        !(self.leaves_out() || self.correct_hints && self.table.is_some())
    }

    /// Whether a caller may see less than another one.
    pub(crate) fn leaves_out(&self) -> bool {
        self.reads_only || self.only.is_some()
    }

    /// The answer to `tools/list` as the client is to see it. One that is no list of tools is an error for a client
    /// with a read-only grant to see nothing of, so it loses its tools altogether.
    pub(crate) fn apply(&self, answer: Bytes) -> Bytes {
        if self.is_plain() {
            return answer;
        }
        let Ok(message) = Message::parse(answer.clone()) else { return answer };
        let Some(result) = message.result() else { return answer };
        let Ok(listed) = serde_json::from_str::<Listed<'_>>(result) else { return answer };
        let place = message.text().slice_ref(listed.tools.get().as_bytes());
        let tools: Vec<&RawValue> = serde_json::from_str(listed.tools.get()).unwrap_or_default();
        let mut kept = Vec::with_capacity(place.len());
        kept.push(b'[');
        for raw in tools {
            let seen = serde_json::from_str::<Tool<'_>>(raw.get()).ok().and_then(|tool| self.tool(raw, &tool));
            if let Some(seen) = seen {
                if kept.len() > 1 {
                    kept.push(b',');
                }
                kept.extend_from_slice(seen.as_bytes());
            }
        }
        kept.push(b']');
        message.rewritten(None, Some((&place, kept.into()))).to_bytes()
    }

    /// One tool; `None` where it is left out.
    fn tool<'a>(&self, raw: &'a RawValue, tool: &Tool<'a>) -> Option<Cow<'a, str>> {
        if self.only.as_ref().is_some_and(|only| !only.contains(&tool.name)) {
            return None;
        }
        let effect = self.table.as_ref().map(|table| table.effect(&tool.name));
        let reads = effect.map_or_else(|| says_reads(tool.annotations), |effect| effect == Effect::Reads);
        if self.reads_only && !reads {
            return None;
        }
        Some(match effect {
            Some(effect) if self.correct_hints => Cow::Owned(corrected(raw.get(), tool.annotations, effect)),
            _ => Cow::Borrowed(raw.get()),
        })
    }
}

/// The tool's text with hints that fit its effect.
fn corrected(tool: &str, annotations: Option<&RawValue>, effect: Effect) -> String {
    let read_only = if effect == Effect::Reads { "true" } else { "false" };
    let destructive = if effect == Effect::Changes { "true" } else { "false" };
    let Some(raw) = annotations.filter(|raw| raw.get().starts_with('{')) else {
        let hints = format!(r#""annotations":{{"readOnlyHint":{read_only},"destructiveHint":{destructive}}}"#);
        return match annotations {
            // `null`, where an object belongs.
            Some(raw) => replaced(tool, raw.get(), hints.trim_start_matches(r#""annotations":"#)),
            None => tool.replacen('{', &format!("{{{hints},"), 1),
        };
    };
    let known = hints(Some(raw));
    let mut text = raw.get().to_owned();
    // From the back, so that places in front stay where they are.
    let mut edits = [(known.read_only, "readOnlyHint", read_only), (known.destructive, "destructiveHint", destructive)];
    edits.sort_by_key(|(old, ..)| std::cmp::Reverse(old.map(|old| old.get().as_ptr().addr())));
    for (old, name, new) in edits {
        text = if let Some(old) = old {
            let start = old.get().as_ptr().addr().saturating_sub(raw.get().as_ptr().addr());
            let end = start.saturating_add(old.get().len());
            [text.get(..start), Some(new), text.get(end..)].into_iter().flatten().collect()
        } else {
            let comma = if text.trim_start_matches('{').trim_start() == "}" { "" } else { "," };
            text.replacen('{', &format!(r#"{{"{name}":{new}{comma}"#), 1)
        };
    }
    replaced(tool, raw.get(), &text)
}

/// `whole` with its slice `part` replaced.
fn replaced(whole: &str, part: &str, new: &str) -> String {
    let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    let end = start.saturating_add(part.len());
    [whole.get(..start), Some(new), whole.get(end..)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const TABLE: &str = "server\tX\nget\tread\nput\tadd\ndrop\tchange\n";

    fn view(reads_only: bool, table: bool) -> View {
        let table = table.then(|| Arc::new(Table::parse(TABLE).expect("a table")));
        View { table, reads_only, only: None, correct_hints: true }
    }

    fn apply(view: &View, tools: &str) -> Value {
        let text = format!(r#"{{"jsonrpc":"2.0","id":7,"result":{{"tools":{tools},"nextCursor":"n","x":1.50}}}}"#);
        let seen = view.apply(text.into());
        assert!(std::str::from_utf8(&seen).expect("text").ends_with(r#","nextCursor":"n","x":1.50}}"#));
        let value: Value = serde_json::from_slice(&seen).expect("json");
        value["result"]["tools"].clone()
    }

    #[test]
    fn no_more_is_kept_of_what_a_child_says_than_there_is_room_for() {
        let page = |names: &mut dyn Iterator<Item = String>, next: usize| {
            let tools: Vec<_> =
                names.map(|name| json!({"name": name, "annotations": {"readOnlyHint": true}})).collect();
            let result = json!({"tools": tools, "nextCursor": "n".repeat(next)});
            Message::parse(json!({"jsonrpc": "2.0", "id": 1, "result": result}).to_string().into()).expect("a message")
        };
        let mut room = ROOM;
        let (kept, next) =
            words(&page(&mut (0..1000).map(|n| format!("a_tool_of_some_length_{n}")), 9), &mut room).expect("a list");
        assert_eq!((kept.len(), next.map(|next| next.len())), (1000, Some(9)));
        let (kept, next) =
            words(&page(&mut (0..9).map(|n| format!("{n}{}", "x".repeat(50_000))), 5000), &mut room).expect("a list");
        assert_eq!((kept.len(), next), (3, None));
        assert!(room < 50_000, "{room}");
    }

    #[test]
    fn a_table_decides_and_corrects_the_hints() {
        let all = r#"{"readOnlyHint":false,"destructiveHint":true,"title":"t"}"#;
        let tools = format!(
            r#"[{{"name":"get","annotations":{all}}}, {{"annotations":{all},"name":"put"}},{{"name":"drop","annotations":{all}}},{{"name":"new"}}]"#
        );
        let hints =
            |read: bool, destroys: bool| json!({"readOnlyHint": read, "destructiveHint": destroys, "title": "t"});
        let seen = apply(&view(false, true), &tools);
        assert_eq!(seen[0], json!({"name": "get", "annotations": hints(true, false)}));
        assert_eq!(seen[1], json!({"name": "put", "annotations": hints(false, false)}));
        assert_eq!(seen[2], json!({"name": "drop", "annotations": hints(false, true)}));
        assert_eq!(seen[3]["annotations"], json!({"readOnlyHint": false, "destructiveHint": true}));
        let seen = apply(&view(true, true), &tools);
        assert_eq!(seen, json!([{"name": "get", "annotations": hints(true, false)}]));
    }

    #[test]
    fn hints_that_are_missing_are_added() {
        for annotations in ["{}", "{ }", "null", r#"{"title":"t"}"#, r#"{"destructiveHint":true}"#] {
            let seen = apply(&view(false, true), &format!(r#"[{{"name":"get","annotations":{annotations}}}]"#));
            assert_eq!(seen[0]["annotations"]["readOnlyHint"], json!(true), "{annotations}");
            assert_eq!(seen[0]["annotations"]["destructiveHint"], json!(false), "{annotations}");
        }
    }

    #[test]
    fn without_a_table_the_childs_word_decides_and_stays_as_it_is() {
        let tools = r#"[{"name":"a","annotations":{"readOnlyHint":true}},{"name":"b","annotations":{"readOnlyHint":false}},{"name":"c"},{"name":"d","annotations":{"readOnlyHint":"true"}}]"#;
        assert_eq!(apply(&view(true, false), tools), json!([{"name": "a", "annotations": {"readOnlyHint": true}}]));
        let text = Bytes::from(format!(r#"{{"jsonrpc":"2.0","id":7,"result":{{"tools":{tools}}}}}"#));
        assert_eq!(view(false, false).apply(text.clone()), text);
    }

    #[test]
    fn an_error_passes_as_it_is() {
        let text = Bytes::from_static(br#"{"jsonrpc":"2.0","id":7,"error":{"code":-1,"message":"no"}}"#);
        assert_eq!(view(true, true).apply(text.clone()), text);
    }
}
