//! What a message asks a child to do, read as suspiciously as the most lenient child may read it.
//!
//! Go's decoder matches names without case and lets the last one win, so `{"name":"get_x","Name":"delete_x"}` is one
//! tool to us and another to the child. Where readers could disagree, the message is refused.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::jsonrpc::{Kind, Message};

/// Methods besides `tools/call` that change nothing at the forge, in every revision up to 2026-07-28. One that is not
/// here counts as writing.
const READING: [&str; 17] = [
    "initialize",
    "ping",
    "server/discover",
    "tools/list",
    "resources/list",
    "resources/templates/list",
    "resources/subscribe",
    "resources/unsubscribe",
    "subscriptions/listen",
    "prompts/list",
    "logging/setLevel",
    "tasks/list",
    "tasks/get",
    "tasks/result",
    "tasks/cancel",
    "tasks/update",
    "roots/list",
];

/// Methods that read what a child has beside its tools.
const CONTENT: [&str; 3] = ["resources/read", "prompts/get", "completion/complete"];

/// What a message asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Nothing that a read-only grant would have to be kept from.
    Reading,
    /// The same, but it reads past the tools.
    Content,
    /// A call of this tool.
    Tool(String),
    /// Something that may write.
    Writing,
    /// Readers could disagree on what it asks for.
    Ambiguous,
}

impl Ask {
    /// Of a message from a client.
    pub(crate) fn of(message: &Message) -> Self {
        #[derive(Deserialize)]
        struct Call {
            name: String,
        }
        const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
        let whole = std::str::from_utf8(message.text()).ok().and_then(names);
        if !whole.is_some_and(|names| names.iter().all(|name| ENVELOPE.contains(&name.as_str()))) {
            return Self::Ambiguous;
        }
        let method = match message.kind() {
            Kind::Request { method, .. } => method,
            // A child that takes any method without an id for a notification may do what it says all the same.
            Kind::Notification { method } if !method.starts_with("notifications/") => return Self::Writing,
            Kind::Notification { .. } | Kind::Response { .. } => return Self::Reading,
        };
        if method != "tools/call" {
            return match method.as_str() {
                method if READING.contains(&method) => Self::Reading,
                method if CONTENT.contains(&method) => Self::Content,
                _ => Self::Writing,
            };
        }
        let params = message.params().unwrap_or_default();
        let other_name = |name: &String| name != "name" && name.to_lowercase() == "name";
        match (names(params), serde_json::from_str::<Call>(params)) {
            (Some(names), Ok(call)) if !names.iter().any(other_name) => Self::Tool(call.name),
            _ => Self::Ambiguous,
        }
    }
}

/// The names in an object, unescaped; `None` where it is no object.
fn names(text: &str) -> Option<BTreeSet<String>> {
    let object: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    Some(object.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn ask(text: &str) -> Ask {
        Ask::of(&Message::parse(Bytes::copy_from_slice(text.as_bytes())).expect(text))
    }

    #[test]
    fn a_call_names_its_tool() {
        let text =
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_x","arguments":{"Name":"y"}}}"#;
        assert_eq!(ask(text), Ask::Tool("get_x".to_owned()));
        assert_eq!(ask(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#), Ask::Reading);
        assert_eq!(ask(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#), Ask::Reading);
        assert_eq!(ask(r#"{"jsonrpc":"2.0","id":1,"method":"resources/read"}"#), Ask::Content);
        assert_eq!(ask(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"delete_x"}}"#), Ask::Writing);
        assert_eq!(ask(r#"{"jsonrpc":"2.0","id":1,"method":"something/new"}"#), Ask::Writing);
    }

    #[test]
    fn a_message_that_a_lenient_reader_could_take_for_another_is_ambiguous() {
        let table = [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_x","Name":"delete_x"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_x","NAM\u0045":"delete_x"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_x","name":"delete_x"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_x"},"Params":{"name":"delete_x"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","Method":"tools/call","params":{"name":"delete_x"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/x","Method":"tools/call","ID":3,"params":{"name":"delete_x"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"Method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","param\u017f":{"name":"delete_x"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["delete_x"]}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}"#,
        ];
        for text in table {
            assert_eq!(ask(text), Ask::Ambiguous, "{text}");
        }
    }
}
