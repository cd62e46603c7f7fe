//! Which tools a client was told of last, so that it hears when its next child has others.
//!
//! Kept as a hash: of ten thousand sessions nobody needs the tools themselves. It outlives the child that named them, and
//! trusts none: what is no list of tools is none.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::hex;

/// The SHA-256 of the tools of one `tools/list`, in whatever order a child names them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ToolSet(Box<str>);

impl ToolSet {
    /// Of the `result` of `tools/list`. Of a list in pages the first one stands for all: programs without pages are all
    /// that is known.
    pub(crate) fn of(result: &str) -> Option<Self> {
        let mut result: Value = serde_json::from_str(result).ok()?;
        let Value::Array(tools) = result.get_mut("tools")?.take() else { return None };
        let mut texts: Vec<String> = tools.into_iter().map(|tool| tool.to_string()).collect();
        texts.sort_unstable();
        // JSON text has no line breaks of its own, so no two lists come to the same text.
        Some(Self(hex::encode(&Sha256::digest(texts.join("\n"))).into()))
    }
}

impl fmt::Debug for ToolSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was listed last, shared by a child and the session that it serves. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listed(Arc<Mutex<Option<ToolSet>>>);

impl Listed {
    /// The tools; `None` where nobody has asked for them.
    pub(crate) fn get(&self) -> Option<ToolSet> {
        self.0.lock().clone()
    }

    /// Whether nobody else has it, so that it changes no more: its child is gone.
    pub(crate) fn is_final(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// They have been listed.
    pub(crate) fn set(&self, tools: ToolSet) {
        *self.0.lock() = Some(tools);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tools_are_the_same_in_any_order_and_nothing_else_is() {
        let of = |text: &str| ToolSet::of(text);
        let both = of(r#"{"tools":[{"name":"a","x":1},{"name":"b"}]}"#);
        assert!(both.is_some());
        assert_eq!(of(r#"{"nextCursor":"1","tools":[ {"name":"b"}, {"name":"a", "x":1}]}"#), both);
        for other in
            [r#"{"tools":[]}"#, r#"{"tools":[{"name":"a","x":1}]}"#, r#"{"tools":[{"name":"a","x":2},{"name":"b"}]}"#]
        {
            assert!(of(other).is_some() && of(other) != both, "{other}");
        }
        for none in ["", "{}", r#"{"tools":{}}"#, "[]"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
