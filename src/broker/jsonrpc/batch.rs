//! Several messages in one text, an array of them (JSON-RPC 2.0 section 6), taken apart without being rebuilt.

use std::collections::HashSet;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Kind, Message, MessageError, RawId};

/// Messages in one batch: as many as a child may hold unanswered, so that a batch can be in flight as a whole.
pub(crate) const MAX_MEMBERS: usize = 64;

/// Why a text is no batch that is carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BatchError {
    /// Not JSON, or no array.
    #[error("Parse error: the body is no JSON array")]
    NotAnArray,
    /// Nothing in it (JSON-RPC 2.0 section 6: an invalid request).
    #[error("Invalid Request: the batch is empty")]
    Empty,
    /// More in it than allowed.
    #[error("Invalid Request: a batch may have at most {MAX_MEMBERS} messages")]
    TooMany,
    /// What is in it is no message.
    #[error("message {place} of the batch: {why}")]
    Member {
        /// Its place, from 1.
        place: usize,
        /// What is wrong with it.
        why: MessageError,
    },
    /// What is in it may only come by itself.
    #[error("Invalid Request: message {place} of the batch must come by itself")]
    Alone {
        /// Its place, from 1.
        place: usize,
    },
    /// Two requests have the same id, so that nobody could tell their answers apart.
    #[error("Invalid Request: the id {} is there twice", String::from_utf8_lossy(.0.json()))]
    SameId(RawId),
}

impl BatchError {
    /// The JSON-RPC code for it.
    pub(crate) const fn code(&self) -> i32 {
        match self {
            Self::NotAnArray => super::code::PARSE_ERROR,
            Self::Member { why, .. } => why.code(),
            _ => super::code::INVALID_REQUEST,
        }
    }
}

/// Reads a batch: all of its messages are good, or none is carried out.
pub(crate) fn parse(text: &Bytes) -> Result<Vec<Message>, BatchError> {
    let members: Members<'_> = serde_json::from_slice(text).map_err(|_| BatchError::NotAnArray)?;
    if members.0.is_empty() {
        return Err(BatchError::Empty);
    }
    if members.0.len() > MAX_MEMBERS {
        return Err(BatchError::TooMany);
    }
    let mut ids = HashSet::new();
    let mut messages = Vec::with_capacity(members.0.len());
    for (place, raw) in (1..).zip(members.0) {
        let message = Message::parse(text.slice_ref(raw.get().as_bytes()));
        let message = message.map_err(|why| BatchError::Member { place, why })?;
        if let Kind::Request { id, .. } = message.kind()
            && !ids.insert(id.clone())
        {
            return Err(BatchError::SameId(id.clone()));
        }
        messages.push(message);
    }
    Ok(messages)
}

/// The first members, at most one more than allowed.
struct Members<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;
        impl<'de> Visitor<'de> for First {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while members.len() <= MAX_MEMBERS {
                    let Some(member) = items.next_element()? else { return Ok(Members(members)) };
                    members.push(member);
                }
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Members(members))
            }
        }
        deserializer.deserialize_seq(First)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Message>, BatchError> {
        parse(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn members_are_slices_of_the_batch_as_they_were_spelled() {
        let text = Bytes::from_static(
            b" [ {\"id\": 1.50,\"method\":\"m\" ,\"jsonrpc\":\"2.0\"} ,\n{\"jsonrpc\":\"2.0\", \"method\":\"n\"}] ",
        );
        let messages = parse(&text).expect("a batch");
        assert_eq!(messages[0].text(), &b"{\"id\": 1.50,\"method\":\"m\" ,\"jsonrpc\":\"2.0\"}"[..]);
        assert_eq!(messages[1].text(), &b"{\"jsonrpc\":\"2.0\", \"method\":\"n\"}"[..]);
        let whole = text.as_ptr_range();
        assert!(messages.iter().all(|message| whole.contains(&message.text().as_ptr())), "and no copies");
    }

    #[test]
    fn what_is_no_batch_is_told_apart() {
        let good = r#"{"jsonrpc":"2.0","id":7,"method":"m"}"#;
        let twice = BatchError::SameId(RawId::parse(b"7").expect("an id"));
        let member = |place, why| BatchError::Member { place, why };
        for (text, error) in [
            ("{}".to_owned(), BatchError::NotAnArray),
            ("[1".to_owned(), BatchError::NotAnArray),
            (format!("[{good}] x"), BatchError::NotAnArray),
            ("[ ]".to_owned(), BatchError::Empty),
            (format!("[{good},{good}]"), twice),
            (format!("[{good},1]"), member(2, MessageError::NotAMessage)),
            (format!("[[{good}]]"), member(1, MessageError::Batch)),
            (format!("[{}]", vec![good; MAX_MEMBERS + 1].join(",")), BatchError::TooMany),
            (format!("[{}]", vec!["1"; 100_000].join(",")), BatchError::TooMany),
        ] {
            assert_eq!(read(&text).err(), Some(error), "{text:.100}");
        }
        let response = r#"{"jsonrpc":"2.0","id":7,"result":{}}"#;
        assert_eq!(read(&format!("[{good},{response}]")).map(|messages| messages.len()), Ok(2), "ids of two sides");
        let numbered = |n: usize| format!(r#"{{"jsonrpc":"2.0","id":{n},"method":"m"}}"#);
        let most: Vec<String> = (0..MAX_MEMBERS).map(numbered).collect();
        assert_eq!(read(&format!("[{}]", most.join(","))).map(|messages| messages.len()), Ok(MAX_MEMBERS));
    }
}
