//! Log lines on standard error as JSON, one object a line, for whoever collects a container's output or a file.
//!
//! The fields are the journal's, under the same names, and all values are strings, as `journalctl -o json` prints them; what
//! reads that reads this. `__REALTIME_TIMESTAMP` is microseconds since 1970. A name that is there with two values has an
//! array of both. JSON is only written here, never read: the supervisor has no parser of it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::of_a_line;
use crate::entry;
use crate::entry::{Entry, Sink};
use crate::stderr;

/// Bytes of a line. A longer one would be cut by [`stderr`] and be no JSON any more, so values are cut to stay below.
const MAX_LINE: usize = 15 * 1024;
/// Bytes of one value as it is written. What stands before the message leaves it room for this.
const MAX_VALUE: usize = 6 * 1024;
/// What is told first, because it must not be what is left out of a long line.
const FIRST: [&str; 4] = ["PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE", "MESSAGE_ID"];

/// One standard error a process, so one form of its lines.
static ON: AtomicBool = AtomicBool::new(false);

/// Whether standard error has JSON from now on.
pub(crate) fn switch(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// Whether standard error has JSON.
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Writes each entry as one line.
#[derive(Debug)]
pub(crate) struct JsonLines;

impl Sink for JsonLines {
    fn send(&self, entry: Entry) {
        stderr::line(render(&entry, of_a_line()).as_bytes());
    }
}

/// A text that no event stands behind, such as why the program does not start; with its newline.
pub(crate) fn of_text(priority: &str, text: &str) -> String {
    let mut entry = Entry::default();
    entry.put("PRIORITY", priority);
    entry.put("SYSLOG_IDENTIFIER", entry::program());
    entry.put("MESSAGE", text);
    render(&entry, of_a_line())
}

fn render(entry: &Entry, now: u128) -> String {
    let mut names: Vec<&str> = FIRST.to_vec();
    for (name, _) in entry.fields() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut line = format!("{{\"__REALTIME_TIMESTAMP\":\"{now}\"");
    for name in names {
        let mut values: Vec<&str> = Vec::new();
        for (_, value) in entry.fields().filter(|(field, _)| *field == name) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        let values: Vec<String> = values.into_iter().map(quoted).collect();
        let value = match values.as_slice() {
            [] => continue,
            [one] => one.clone(),
            several => format!("[{}]", several.join(",")),
        };
        // Of a line that is too long the last fields are left out whole.
        if line.len().saturating_add(name.len()).saturating_add(value.len()) < MAX_LINE {
            // Writing to a string cannot fail.
            let _ = write!(line, ",\"{name}\":{value}");
        }
    }
    line.push_str("}\n");
    line
}

/// A string of JSON (RFC 8259 section 7), cut to at most [`MAX_VALUE`] bytes.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        if quoted.len() > MAX_VALUE.saturating_sub(8) {
            break;
        }
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            // The separators are line ends to some readers.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(fields: &[(&str, &str)]) -> Entry {
        let mut entry = Entry::default();
        for (name, value) in fields {
            entry.put(name, *value);
        }
        entry
    }

    #[test]
    fn a_line_has_the_journals_names_and_the_message_before_what_may_be_left_out() {
        let entry = entry(&[("tenant", "7"), ("PRIORITY", "4"), ("message", "it was x"), ("reason", "y")]);
        assert_eq!(
            render(&entry, 12),
            "{\"__REALTIME_TIMESTAMP\":\"12\",\"PRIORITY\":\"4\",\"MESSAGE\":\"it was x\",\"TENANT\":\"7\",\
             \"REASON\":\"y\"}\n"
        );
    }

    #[test]
    fn no_value_ends_its_string_or_its_line() {
        let forged = entry(&[("reason", "a\",\"UID\":\"0\"}\n{\u{7}\u{2028}\\")]);
        let line = render(&forged, 0);
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.contains(r#""REASON":"a\",\"UID\":\"0\"}\n{\u0007\u2028\\"}"#), "{line}");
    }

    #[test]
    fn a_name_with_two_values_has_both_and_one_with_the_same_value_has_it_once() {
        let twice = entry(&[("session", "a"), ("tenant", "7"), ("session", "b"), ("tenant", "7")]);
        assert!(render(&twice, 0).ends_with(",\"SESSION\":[\"a\",\"b\"],\"TENANT\":\"7\"}\n"));
    }

    #[test]
    fn a_line_stays_whole_however_long_its_values_are() {
        let long = "\u{1}".repeat(20_000);
        let fields: Vec<(String, &str)> = (0..30).map(|n| (format!("F{n}"), long.as_str())).collect();
        let mut fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        fields.push(("MESSAGE", "why"));
        let line = render(&entry(&fields), 0);
        assert!(line.len() < MAX_LINE + 8 && line.ends_with("\"}\n"), "{}", line.len());
        assert!(line.contains("\"MESSAGE\":\"why\",\"F0\":\"") && !line.contains("\"F5\""));
    }
}
