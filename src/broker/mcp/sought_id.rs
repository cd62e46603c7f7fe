//! The id of a request that could not be read whole or is no proper message, found in what was read of it.
//!
//! A client that waits for the answer to an id waits for ever where the error carries none: so the id is looked for in
//! every byte that came, in the order in which they came, whatever is wrong with the rest. Nothing but a member `id` of
//! the outermost object counts, spelled plainly, and only where the object is no response: the id of a response is one of
//! the child's, and a client would take it for its own.

use crate::jsonrpc::{MAX_ID, RawId};

/// Looks at one message as its bytes come. Keeps at most one name and one id of it.
#[derive(Debug, Default)]
pub(crate) struct SoughtId {
    at: At,
    /// Objects and arrays that are open inside of a value of the outermost object.
    depth: usize,
    text: Text,
    token: Vec<u8>,
    is_id: bool,
    found: Option<RawId>,
    /// There cannot be an id, or not only one.
    none: bool,
}

/// Whether this is inside of a text, and what its next byte is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Text {
    #[default]
    Outside,
    Inside,
    Escaped,
}

/// What comes next.
#[derive(Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Start,
    Name,
    Colon,
    Value,
    End,
}

/// The id in a message of which this is the beginning.
pub(crate) fn in_text(text: &[u8]) -> Option<RawId> {
    let mut sought = SoughtId::default();
    sought.look(text);
    sought.found()
}

impl SoughtId {
    /// The next bytes.
    pub(crate) fn look(&mut self, bytes: &[u8]) {
        for &b in bytes {
            if self.at == At::End {
                return;
            }
            self.step(b);
        }
    }

    /// What was found.
    pub(crate) fn found(self) -> Option<RawId> {
        self.found.filter(|_| !self.none)
    }

    fn step(&mut self, b: u8) {
        if self.text != Text::Outside {
            return self.within_text(b);
        }
        let space = b.is_ascii_whitespace();
        match (&self.at, b) {
            (At::Start, b'{') => self.at = At::Name,
            (At::Name, b'"') => {
                self.token.clear();
                self.text = Text::Inside;
            }
            (At::Name, b',') => {}
            (At::Colon, b':') => self.value_begins(),
            (At::Value, b'"') => {
                self.keep(b);
                self.text = Text::Inside;
            }
            (At::Value, b'{' | b'[') => self.nested(self.depth.saturating_add(1)),
            (At::Value, b'}' | b']') if self.depth > 0 => self.nested(self.depth.saturating_sub(1)),
            (At::Value, b',') if self.depth == 0 => self.value_ends(At::Name),
            (At::Value, b'}') => self.value_ends(At::End),
            (At::Value, _) => self.keep(b),
            (At::Start | At::Name | At::Colon, _) if space => {}
            _ => self.at = At::End,
        }
    }

    fn within_text(&mut self, b: u8) {
        self.text = match (&self.text, b) {
            (Text::Inside, b'"') => Text::Outside,
            (Text::Inside, b'\\') => Text::Escaped,
            _ => Text::Inside,
        };
        let ends = self.text == Text::Outside;
        match self.at {
            At::Name if ends => self.at = At::Colon,
            At::Name | At::Value => self.keep(b),
            At::Start | At::Colon | At::End => {}
        }
    }

    /// Keeps a byte of a name or of the id; a byte too many makes neither of it.
    fn keep(&mut self, b: u8) {
        if (self.at == At::Name || self.is_id) && self.token.len() <= MAX_ID {
            self.token.push(b);
        }
    }

    fn nested(&mut self, depth: usize) {
        // An id is a text or a number.
        (self.depth, self.is_id) = (depth, false);
    }

    fn value_begins(&mut self) {
        self.is_id = self.token == b"id";
        self.none |= matches!(self.token.as_slice(), b"result" | b"error");
        self.token.clear();
        self.at = At::Value;
    }

    fn value_ends(&mut self, then: At) {
        self.at = then;
        if std::mem::take(&mut self.is_id) {
            self.none |= self.found.is_some();
            self.found = RawId::parse(self.token.trim_ascii());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_found_wherever_it_stands_and_whatever_is_wrong_with_the_rest() {
        let table = [
            (r#"{"jsonrpc":"1.0","id":7,"method":"m"}"#, Some("7")),
            (
                r#" { "method" : "m" , "params":{"id":1,"a":[{"id":2}],"s":"}\",\"id\":3"} , "id" : "a\"b" } "#,
                Some(r#""a\"b""#),
            ),
            (r#"{"id":-1.5,"method":"tools/call","params":{"text":"never closed"#, Some("-1.5")),
            (r#"{"jsonrpc":"2.0","id":1,"method":"m"} x"#, Some("1")),
            ("{\"id\":1,\"params\":{\"a\":\"b\nc\"}}", Some("1")),
            (r#"{"jsonrpc":"2.0","id":1}"#, Some("1")),
            // A part of an id is none.
            (r#"{"method":"m","id":12"#, None),
            (r#"{"method":"m","id":"12"#, None),
            (r#"{"id":1,"id":1,"method":"m"}"#, None),
            (r#"{"id":null,"method":"m"}"#, None),
            (r#"{"id":{"id":1},"method":"m"}"#, None),
            (r#"{"id":[1],"method":"m"}"#, None),
            (r#"{"id":truе,"method":"m"}"#, None),
            (r#"{"id":1 2,"method":"m"}"#, None),
            (r#"{"params":{"id":1}}"#, None),
            (r#"{"i\u0064":1}"#, None),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"#, None),
            (r#"{"error":{},"id":1}"#, None),
            (r#"[{"id":1,"method":"m"}]"#, None),
            (r#""id":1"#, None),
            ("{", None),
            ("", None),
        ];
        for (text, id) in table {
            let found = in_text(text.as_bytes());
            assert_eq!(found.as_ref().map(|id| &id.json()[..]), id.map(str::as_bytes), "{text}");
        }
    }

    #[test]
    fn where_the_bytes_are_cut_into_pieces_makes_no_difference() {
        let text = br#"{"method":"m","params":{"a":"\\\"id\":1"},"id":"x\\"}"#;
        for at in 0..text.len() {
            let mut sought = SoughtId::default();
            sought.look(&text[..at]);
            sought.look(&text[at..]);
            assert_eq!(sought.found().map(|id| id.json().to_vec()), Some(br#""x\\""#.to_vec()), "{at}");
        }
    }

    #[test]
    fn an_id_that_is_longer_than_allowed_is_none_and_is_not_kept() {
        let mut sought = SoughtId::default();
        sought.look(format!("{{\"id\":\"{}\"", "x".repeat(100_000)).as_bytes());
        assert!(sought.token.len() <= MAX_ID + 1);
        sought.look(b"}");
        assert_eq!(sought.found(), None);
    }
}
