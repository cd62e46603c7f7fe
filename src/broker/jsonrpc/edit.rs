//! Replacing and inserting parts of a message without building it anew.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;

use super::{Message, Spliced};

/// Bytes in the place of others. An empty range inserts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edit {
    at: Range<usize>,
    new: Bytes,
}

impl Edit {
    /// Nothing in the place of these bytes.
    pub(crate) fn cut(at: Range<usize>) -> Self {
        Self { at, new: Bytes::new() }
    }
}

impl Message {
    /// The code of an error.
    pub(crate) fn error_code(&self) -> Option<i32> {
        #[derive(Deserialize)]
        struct Refused {
            error: Code,
        }
        #[derive(Deserialize)]
        struct Code {
            code: i32,
        }
        serde_json::from_slice::<Refused>(&self.text).ok().map(|refused| refused.error.code)
    }

    /// New bytes in the place of `part`, which is a slice of this message's text.
    pub(crate) fn replace(&self, part: &str, new: impl Into<Bytes>) -> Edit {
        Edit { at: self.place_of(part), new: new.into() }
    }

    /// New bytes behind the first `skip` bytes of `part`, which is a slice of this message's text.
    pub(crate) fn insert(&self, part: &str, skip: usize, new: impl Into<Bytes>) -> Edit {
        let at = self.place_of(part).start.saturating_add(skip);
        Edit { at: at..at, new: new.into() }
    }

    /// Where a slice of this message's text stands in it.
    pub(crate) fn place_of(&self, part: &str) -> Range<usize> {
        let start = part.as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
        start..start.saturating_add(part.len())
    }

    /// The message with these edits, which must not overlap, and with another id where one is given. What is not touched is
    /// shared, byte for byte. What a request takes along ([`Self::carrying`]) is not in it: see [`Self::reworded`].
    pub(crate) fn edited(&self, id: Option<Bytes>, mut edits: Vec<Edit>) -> Spliced {
        if let (Some(at), Some(new)) = (self.id_at.clone(), id) {
            edits.push(Edit { at, new });
        }
        edits.sort_by_key(|edit| edit.at.start);
        let mut parts = Vec::with_capacity(edits.len().saturating_mul(2).saturating_add(1));
        let mut from = 0;
        for Edit { at, new } in edits {
            // Out of order or out of the text there is nothing to replace.
            if let Some(before) = self.text.get(from..at.start) {
                parts.push(self.text.slice_ref(before));
                parts.push(new);
                from = at.end;
            }
        }
        parts.push(self.text.slice_ref(self.text.get(from..).unwrap_or_default()));
        Spliced { parts }
    }
}

impl Spliced {
    /// These pieces.
    pub(crate) fn of(parts: Vec<Bytes>) -> Self {
        Self { parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_leave_every_other_byte_alone_in_whatever_order_they_come() {
        let text = r#"{"result": {"a":1.50,"b":[ ]},"id":7,"jsonrpc":"2.0"}"#;
        let message = Message::parse(text.into()).expect("a response");
        let result = message.result().expect("a result");
        let list = result.get(14..17).expect("the list");
        assert_eq!(list, "[ ]");
        let edits = vec![message.replace(list, "[1]"), message.insert(result, 1, r#""c":0,"#)];
        let out = message.edited(Some("\"x\"".into()), edits).to_bytes();
        assert_eq!(out, r#"{"result": {"c":0,"a":1.50,"b":[1]},"id":"x","jsonrpc":"2.0"}"#.as_bytes());
        assert_eq!(message.edited(None, Vec::new()).to_bytes(), text.as_bytes());
    }
}
