//! A line of a child that is too long to be kept: whose answer it was, by its two ends.
//!
//! Programs write the members of an answer in an order of their own: the id comes first, or last. A line counts as an
//! answer only where it has `result` or `error` and no `method` among the members of its outermost object.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::budget::OverBudget;
use crate::child::calls::numbers::number_in;
use crate::child::lines::NotKept;
use crate::child::misread::Meant;
use wire::ending::Bytes;

/// A line of which only the two ends are there.
#[derive(Debug)]
pub(crate) struct Overlong {
    why: NotKept,
    members: Members,
}

/// What the beginning of an object tells of its members.
#[derive(Debug, Default)]
struct Members {
    id: Option<u64>,
    has_method: bool,
    has_outcome: bool,
}

impl Overlong {
    /// By its first bytes.
    pub(crate) fn begun(head: &[u8], why: NotKept) -> Self {
        Self { why, members: Members::of(&String::from_utf8_lossy(head)) }
    }

    /// Whose answer it is, where that is known before its end.
    pub(crate) fn meant(&self) -> Option<Meant> {
        match self.members {
            Members { has_method: true, .. } | Members { has_outcome: false, .. } => Some(Meant::Nobody),
            Members { id: Some(id), .. } => Some(Meant::Number(id)),
            Members { id: None, .. } => None,
        }
    }

    /// Whose answer it is by its last bytes too.
    pub(crate) fn meant_by(&self, tail: &[u8]) -> Meant {
        self.meant().unwrap_or_else(|| last_id(tail).map_or(Meant::TheOnlyOne, Meant::Number))
    }

    /// The stable name that the log uses.
    pub(crate) const fn code(&self) -> &'static str {
        match self.why {
            NotKept::TooLong(_) => "line-too-long",
            NotKept::NoRoom(_) => "over-budget",
        }
    }
}

/// For the client, and for the operator, who finds the key that allows more.
impl fmt::Display for Overlong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |count: usize| Bytes(u64::try_from(count).unwrap_or(u64::MAX));
        match self.why {
            NotKept::TooLong(cap) => write!(
                f,
                "the forgejo-mcp process wrote a message of more than {}, which is the limit (max_line); ask for less",
                bytes(cap)
            ),
            NotKept::NoRoom(OverBudget::User(cap)) => write!(
                f,
                "no memory was left for what the forgejo-mcp process wrote: {} of one user's requests and answers may wait \
                 to be read (memory_per_user)",
                bytes(cap)
            ),
            NotKept::NoRoom(OverBudget::Total) => f.write_str(
                "no memory was left for what the forgejo-mcp process wrote beside what waits for all users to be read \
                 (memory_total); try again soon",
            ),
        }
    }
}

impl Members {
    fn of(head: &str) -> Self {
        let mut members = Self::default();
        // It is broken off, so it ends with an error; what came before that was seen.
        let _ = serde_json::Deserializer::from_str(head).deserialize_map(Look(&mut members));
        members
    }
}

struct Look<'a>(&'a mut Members);

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut id = None;
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            // Only now it is certain that none of its digits were cut off.
            self.0.id = id.or(self.0.id);
            match &*name {
                "id" => {
                    id = number_in(map.next_value::<&RawValue>()?.get().as_bytes());
                    continue;
                }
                "method" => self.0.has_method = true,
                "result" | "error" => self.0.has_outcome = true,
                _ => {}
            }
            map.next_value::<IgnoredAny>()?;
        }
        self.0.id = id.or(self.0.id);
        Ok(())
    }
}

/// The id in `"id":17}` at a line's end, also where `"jsonrpc":"2.0"` stands between. Nothing else can look like that
/// there: what closes the line closes the outermost object, and a quotation mark inside of a text has a backslash before it.
fn last_id(tail: &[u8]) -> Option<u64> {
    let rest = tail.trim_ascii_end().strip_suffix(b"}")?;
    let before = |rest| {
        let rest = without(rest, b"\"2.0\"")?;
        without(without(without(rest, b":")?, b"\"jsonrpc\"")?, b",")
    };
    let rest = before(rest).unwrap_or(rest).trim_ascii_end();
    let length = rest.iter().rev().take_while(|&&byte| byte.is_ascii_digit() || byte == b'"').count();
    let (rest, id) = rest.split_at_checked(rest.len().checked_sub(length)?)?;
    let rest = without(without(rest, b":")?, b"\"id\"")?.trim_ascii_end();
    matches!(rest.last(), Some(b',' | b'{')).then(|| number_in(id))?
}

fn without<'a>(text: &'a [u8], end: &[u8]) -> Option<&'a [u8]> {
    text.trim_ascii_end().strip_suffix(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(head: &str, tail: &str) -> (Option<Meant>, Meant) {
        let line = Overlong::begun(head.as_bytes(), NotKept::TooLong(1));
        (line.meant(), line.meant_by(tail.as_bytes()))
    }

    #[test]
    fn an_id_before_the_outcome_is_known_at_once() {
        let known = (Some(Meant::Number(17)), Meant::Number(17));
        assert_eq!(meant(r#"{"jsonrpc":"2.0","id":17,"result":{"content":[{"text":"xxx"#, "xxx"), known);
        assert_eq!(meant(r#" { "id" : 17, "result" : {"a": {"id": 3}, "b": "xx"#, r#""id":3}}}"#), known);
        assert_eq!(meant("{\"id\":17,\"error\":\"\u{fffd}", ""), known);
        assert_eq!(meant(r#"{"id":"17","result":"xx"#, ""), known, "some say it as a text");
    }

    #[test]
    fn an_id_after_the_outcome_is_known_at_the_end_and_without_one_it_is_that_of_the_only_request() {
        for tail in [
            r#"xx"}]},"jsonrpc":"2.0","id":17}"#,
            r#"xx"}]},"id":17,"jsonrpc":"2.0"}"#,
            "\"}, \"id\" : 17 , \"jsonrpc\" : \"2.0\" } \r",
            r#"xx","id":"17"}"#,
        ] {
            assert_eq!(meant(r#"{"result":{"content":[{"id":3,"text":"xx"#, tail), (None, Meant::Number(17)), "{tail}");
        }
        for tail in [r#"xx","jsonrpc":"2.0"}"#, r#"\"id":17}"#, r#""id":"17"}"#, r#","id":}"#, r#""id":17}}"#, ""] {
            assert_eq!(meant(r#"{"result":"xx"#, tail), (None, Meant::TheOnlyOne), "{tail}");
        }
    }

    #[test]
    fn an_id_that_may_have_been_cut_off_is_none() {
        assert_eq!(Members::of(r#"{"result":1,"id":1"#).id, None);
        assert_eq!(Members::of(r#"{"result":1,"id":17}"#).id, Some(17));
    }

    #[test]
    fn what_is_no_answer_is_nobodys() {
        let nobody = (Some(Meant::Nobody), Meant::Nobody);
        for head in [
            "xxxxxx",
            "[1,",
            "",
            r#"{"jsonrpc":"2.0","id":17,"method":"sampling/createMessage","params":{"a":"xx"#,
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"result":"xx"#,
            r#"{"level":"info","text":"\"result\": "#,
        ] {
            assert_eq!(meant(head, r#"","id":17}"#), nobody, "{head}");
        }
    }

    #[test]
    fn it_names_the_limit_and_the_key() {
        let said = |why| Overlong::begun(b"", why).to_string();
        assert!(said(NotKept::TooLong(80 << 20)).contains("more than 80 MiB, which is the limit (max_line)"));
        assert!(said(NotKept::NoRoom(OverBudget::User(96 << 20))).contains("96 MiB of one user"));
        assert!(said(NotKept::NoRoom(OverBudget::Total)).contains("memory_total"));
    }
}
