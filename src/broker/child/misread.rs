//! Lines of a child that are no message: why, and whose answer one was meant to be.
//!
//! A child that prints a greeting does no harm, so a line counts as an answer only where it can be nothing else: it says so
//! by its members. It is the answer to the request that it names, or, where it names none, to the only one in flight. A
//! message that is spread over several lines is looked at as a whole, so that its lines are one complaint and none of them
//! is taken for another's answer.
//!
//! The bytes are a stranger's: what is kept of them is bounded, and none of them is ever told.

use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::child::calls::numbers::number_in;
use crate::child::lines::DEFAULT_MAX_LINE;

/// Bytes that are kept of a message in several lines; its members are known by then, or it is not looked into further.
const MAX_KEPT: usize = 64 * 1024;
/// Bytes of such a message in all; as many as one line may have by default.
const MAX_SPREAD: usize = DEFAULT_MAX_LINE;
/// Between two lines of the log about one child.
const PAUSE: Duration = Duration::from_secs(10);
/// What some programs begin a text with (RFC 8259 section 8.1: MUST NOT be added).
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Why it is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    NotUtf8,
    ByteOrderMark,
    SeveralLines,
    NotJson,
    Batch,
    ResultAndError,
    NotAMessage,
}

impl Cause {
    /// The stable name that the log uses.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::NotUtf8 => "not-utf-8",
            Self::ByteOrderMark => "byte-order-mark",
            Self::SeveralLines => "several-lines",
            Self::NotJson => "not-json",
            Self::Batch => "batch",
            Self::ResultAndError => "result-and-error",
            Self::NotAMessage => "not-a-message",
        }
    }

    /// In words, behind «no JSON-RPC message: ».
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::NotUtf8 => "it is not UTF-8",
            Self::ByteOrderMark => "it begins with a byte order mark",
            Self::SeveralLines => "it is spread over several lines",
            Self::NotJson => "it is not JSON",
            Self::Batch => "it is a batch",
            Self::ResultAndError => "it has both a result and an error",
            Self::NotAMessage => "it is neither a request nor a notification nor an answer",
        }
    }
}

/// Whose answer it was meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meant {
    /// None.
    Nobody,
    /// That to the request with this number.
    Number(u64),
    /// One that it does not name.
    TheOnlyOne,
}

/// What a line came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Misread {
    pub(crate) cause: Cause,
    pub(crate) meant: Meant,
    /// Whether it was told before, with the first lines of it.
    pub(crate) is_told: bool,
}

/// What a message in several lines came to so far.
#[derive(Debug, Default)]
struct Spread {
    text: String,
    bytes: usize,
    depth: usize,
    in_text: bool,
    escaped: bool,
    is_told: bool,
}

/// Looks at one child's lines.
#[derive(Debug, Default)]
pub(crate) struct Misreader {
    spread: Option<Spread>,
    told_at: Option<Instant>,
    left_out: u64,
}

impl Misreader {
    /// A line was a message: whatever was begun before it ends there.
    pub(crate) fn well_read(&mut self) -> Option<Misread> {
        let spread = self.spread.take()?;
        (!spread.is_told).then_some(Misread { cause: Cause::SeveralLines, meant: Meant::Nobody, is_told: false })
    }

    /// A line was none; `None` where it is a part of more.
    pub(crate) fn look_at(&mut self, line: &[u8]) -> Option<Misread> {
        let text = String::from_utf8_lossy(line);
        if let Some(spread) = &mut self.spread {
            let (found, is_over) = spread.goes_on(&text);
            if is_over {
                self.spread = None;
            }
            return found;
        }
        let found = |cause, meant| Some(Misread { cause, meant, is_told: false });
        if std::str::from_utf8(line).is_err() {
            return found(Cause::NotUtf8, judge(&text).1);
        }
        if let Some(rest) = text.strip_prefix(BYTE_ORDER_MARK) {
            return found(Cause::ByteOrderMark, judge(rest).1);
        }
        let (cause, meant) = judge(&text);
        if cause == Cause::SeveralLines {
            let mut spread = Spread::default();
            let (found, is_over) = spread.goes_on(&text);
            if !is_over {
                self.spread = Some(spread);
                return found;
            }
        }
        found(cause, meant)
    }

    /// Whether a line of the log may be written now, with how many were left out before it.
    pub(crate) fn may_tell(&mut self, now: Instant) -> Option<u64> {
        if self.told_at.is_some_and(|at| now.saturating_duration_since(at) < PAUSE) {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Spread {
    /// One more line; what is known now, and whether it was the last one.
    fn goes_on(&mut self, line: &str) -> (Option<Misread>, bool) {
        self.bytes = self.bytes.saturating_add(line.len());
        if self.text.len().saturating_add(line.len()) <= MAX_KEPT {
            self.text.push_str(line);
            self.text.push('\n');
        }
        let is_over = self.closes_in(line) || self.bytes > MAX_SPREAD;
        let known = |meant, is_told| Some(Misread { cause: Cause::SeveralLines, meant, is_told });
        if is_over {
            return (known(judge(&self.text).1, self.is_told), true);
        }
        if !self.is_told && is_like_an_answer(&self.text) {
            self.is_told = true;
            return (known(Meant::TheOnlyOne, false), false);
        }
        (None, false)
    }

    /// Whether what was opened is closed within this line.
    fn closes_in(&mut self, line: &str) -> bool {
        for byte in line.bytes() {
            match byte {
                _ if std::mem::take(&mut self.escaped) => {}
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                b'{' | b'[' if !self.in_text => self.depth = self.depth.saturating_add(1),
                b'}' | b']' if !self.in_text => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return true;
                    }
                }
                _ => {}
            }
        }
        false
    }
}

/// The members that tell an answer from the rest.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "is_there")]
    method: bool,
    #[serde(default, deserialize_with = "is_there")]
    result: bool,
    #[serde(default, deserialize_with = "is_there")]
    error: bool,
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

fn judge(text: &str) -> (Cause, Meant) {
    let doubtful = || if is_like_an_answer(text) { Meant::TheOnlyOne } else { Meant::Nobody };
    // serde would take an array for a struct.
    let is_object = text.trim_start().starts_with('{');
    match serde_json::from_str::<Members<'_>>(text) {
        Ok(members) if is_object => {
            let is_answer = (members.result || members.error) && !members.method;
            let cause = if members.result && members.error { Cause::ResultAndError } else { Cause::NotAMessage };
            let number = members.id.and_then(|id| number_in(id.get().as_bytes()));
            (cause, if is_answer { number.map_or(Meant::TheOnlyOne, Meant::Number) } else { Meant::Nobody })
        }
        _ => match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) if text.trim_start().starts_with('[') => (Cause::Batch, doubtful()),
            Ok(_) => (Cause::NotAMessage, doubtful()),
            Err(e) if e.is_eof() && text.trim_start().starts_with(['{', '[']) => (Cause::SeveralLines, doubtful()),
            Err(_) => (Cause::NotJson, doubtful()),
        },
    }
}

/// Whether a text that is no JSON, or not yet, has the members of an answer and of nothing else.
fn is_like_an_answer(text: &str) -> bool {
    let has = |name: &str| memchr::memmem::find(text.as_bytes(), name.as_bytes()).is_some();
    has("\"jsonrpc\"") && (has("\"result\"") || has("\"error\"")) && !has("\"method\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(lines: &[&[u8]]) -> Vec<(Cause, Meant)> {
        let mut reader = Misreader::default();
        let found = lines.iter().filter_map(|line| reader.look_at(line));
        found.map(|found| (found.cause, found.meant)).collect()
    }

    #[test]
    fn a_line_is_the_answer_to_whom_it_names_or_to_the_only_one_or_to_nobody() {
        for (line, cause, meant) in [
            (&br#"{"jsonrpc":"2.0","id":17,"result":{},"error":{}}"#[..], Cause::ResultAndError, Meant::Number(17)),
            (br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700}}"#, Cause::NotAMessage, Meant::TheOnlyOne),
            (br#"{"id":17,"result":null}"#, Cause::NotAMessage, Meant::Number(17)),
            (br#"{"id":"17","result":null}"#, Cause::NotAMessage, Meant::Number(17)),
            (br#"{"jsonrpc":"2.0","result":{}}"#, Cause::NotAMessage, Meant::TheOnlyOne),
            (br#"{"jsonrpc":"2.0","id":17,"result":{"a":NaN}}"#, Cause::NotJson, Meant::TheOnlyOne),
            (br#"[{"jsonrpc":"2.0","id":17,"result":{}}]"#, Cause::Batch, Meant::TheOnlyOne),
            (b"\xef\xbb\xbf{\"jsonrpc\":\"2.0\",\"id\":17,\"result\":{}}", Cause::ByteOrderMark, Meant::Number(17)),
            (b"{\"jsonrpc\":\"2.0\",\"id\":17,\"result\":{\"a\":\"\xff\"}}", Cause::NotUtf8, Meant::Number(17)),
            (b"\xff\xfe", Cause::NotUtf8, Meant::Nobody),
            (b"Listening on stdio", Cause::NotJson, Meant::Nobody),
            (b"17", Cause::NotAMessage, Meant::Nobody),
            (b"[]", Cause::Batch, Meant::Nobody),
            (br#"{"level":"info","msg":"up"}"#, Cause::NotAMessage, Meant::Nobody),
            (
                br#"{"jsonrpc":"2.0","method":"notifications/message","params":{"error":NaN}}"#,
                Cause::NotJson,
                Meant::Nobody,
            ),
            (br#"{"jsonrpc":"1.0","id":17,"method":"m","result":{}}"#, Cause::NotAMessage, Meant::Nobody),
        ] {
            assert_eq!(looked(&[line]), [(cause, meant)], "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_message_in_several_lines_is_one_complaint_as_soon_as_it_is_known_for_an_answer() {
        let pretty: [&[u8]; 7] =
            [b"{", b"  \"jsonrpc\": \"2.0\",", b"  \"id\": 17,", b"  \"result\": {", b"    \"a\": \"}\"", b"  }", b"}"];
        let mut reader = Misreader::default();
        let found: Vec<_> = pretty.iter().map(|line| reader.look_at(line)).collect();
        let several = |meant, is_told| Some(Misread { cause: Cause::SeveralLines, meant, is_told });
        assert_eq!(found[3], several(Meant::TheOnlyOne, false));
        assert_eq!(found[6], several(Meant::Number(17), true), "and by its name where there are more");
        assert!(found.iter().enumerate().all(|(n, found)| found.is_none() || n == 3 || n == 6), "{found:?}");
        assert_eq!(looked(&[b"x"]), [(Cause::NotJson, Meant::Nobody)]);
        // Broken off in the middle of a text, as by a line break that was not escaped.
        assert_eq!(
            looked(&[b"{\"jsonrpc\":\"2.0\",\"id\":17,\"result\":\"a"]),
            [(Cause::SeveralLines, Meant::TheOnlyOne)]
        );
    }

    #[test]
    fn what_a_program_prints_for_people_is_nobodys_answer() {
        let printed: [&[u8]; 3] = [b"{", b"  name: 'forgejo', it's: 1,", b"}"];
        assert_eq!(looked(&printed), [(Cause::SeveralLines, Meant::Nobody)]);
        let pretty: [&[u8]; 4] =
            [b"{", b"  \"jsonrpc\": \"2.0\", \"method\": \"m\",", b" \"params\": {\"error\": 1}", b"}"];
        assert_eq!(looked(&pretty), [(Cause::SeveralLines, Meant::Nobody)]);
        let mut reader = Misreader::default();
        assert_eq!(reader.look_at(b"{ \"open"), None);
        assert!(reader.well_read().is_some_and(|found| found.meant == Meant::Nobody), "told when a message comes");
        assert_eq!(reader.well_read(), None);
    }

    #[test]
    fn what_is_kept_of_a_message_without_an_end_is_bounded() {
        let mut reader = Misreader::default();
        assert_eq!(reader.look_at(b"{\"a\":\""), None);
        let line = vec![b'x'; 1024 * 1024];
        let found = (0..=DEFAULT_MAX_LINE >> 20).filter_map(|_| reader.look_at(&line)).count();
        assert!(found >= 1, "it ends by its length");
        assert!(reader.spread.is_none_or(|spread| spread.text.len() <= MAX_KEPT));
    }

    #[test]
    fn one_line_in_ten_seconds_is_told_with_the_count_of_those_between() {
        let (mut reader, start) = (Misreader::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(reader.may_tell(at(0)), Some(0));
        assert_eq!((reader.may_tell(at(1)), reader.may_tell(at(9999))), (None, None));
        assert_eq!(reader.may_tell(at(10_000)), Some(2));
    }
}
