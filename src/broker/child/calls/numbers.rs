//! The broker's numbers, as a child or a client says them again: ids of its requests, and progress tokens.

/// The number that an id or a token spells. JSON-RPC 2.0 wants an id back as it was, type included, but the clients of the
/// SDKs for TypeScript and Python take a text for the number in it, so that children which answer in texts work with them:
/// here they do as well. No other id is taken for a number of the broker's, so nothing can be mistaken for it.
pub(crate) fn number_in(json: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(json).ok()?;
    let digits = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_in_digits_or_as_a_text_of_digits_and_as_nothing_else() {
        for spelled in ["70001", r#""70001""#] {
            assert_eq!(number_in(spelled.as_bytes()), Some(70_001), "{spelled}");
        }
        for other in [
            "",
            r#""""#,
            r#"""#,
            "7.0",
            "7e0",
            "-7",
            r#""+7""#,
            r#"" 7""#,
            r#""7a""#,
            r#"""7"""#,
            "null",
            "99999999999999999999",
        ] {
            assert_eq!(number_in(other.as_bytes()), None, "{other}");
        }
        assert_eq!(number_in(b"\"7\xff\""), None);
    }
}
