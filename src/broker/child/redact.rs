//! Takes a user's upstream token out of what their child writes.
//!
//! Forgejo 16 repeats a refused token in the body of its 401, and a child passes that on to its standard error and
//! into JSON-RPC errors. Neither the log nor the client may see it.

use bytes::Bytes;
use memchr::memmem::Finder;

use wire::secret::UpstreamToken;
use zeroize::Zeroizing;

/// What stands where a token stood.
const MARK: &[u8] = b"[redacted]";
/// Shorter tokens do not exist at Forgejo, and taking them out would shred ordinary text.
const MIN_TOKEN: usize = 8;

/// Knows one token, and clears it when it is dropped.
pub(crate) struct Redactor(Option<Known>);

struct Known {
    token: Zeroizing<Box<[u8]>>,
    /// Of the token's last bytes alone: what a finder keeps is not cleared, and so few bytes of a token are worth nothing.
    tail: Finder<'static>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor")
    }
}

impl Known {
    fn new(token: &[u8]) -> Option<Self> {
        let (_, tail) = token.split_last_chunk::<MIN_TOKEN>()?;
        Some(Self { token: Zeroizing::new(token.into()), tail: Finder::new(tail).into_owned() })
    }

    /// Where the token begins in a text, the first time.
    fn find(&self, text: &[u8]) -> Option<usize> {
        let mut from = 0;
        loop {
            let at = self.tail.find(text.get(from..)?)?.checked_add(from)?;
            let end = at.checked_add(MIN_TOKEN)?;
            if text.get(..end).is_some_and(|before| before.ends_with(&self.token)) {
                return end.checked_sub(self.token.len());
            }
            from = at.checked_add(1)?;
        }
    }
}

impl Redactor {
    /// For the token that one child was given.
    pub(crate) fn new(token: &UpstreamToken) -> Self {
        Self(Known::new(token.expose().as_bytes()))
    }

    /// The text without the token; the text itself, uncopied, where the token is not in it.
    pub(crate) fn clean(&self, text: Bytes) -> Bytes {
        let Some(known) = &self.0 else { return text };
        let Some(first) = known.find(&text) else { return text };
        let mut out = Vec::with_capacity(text.len());
        let mut rest: &[u8] = &text;
        let mut hit = Some(first);
        while let Some(at) = hit {
            let (before, after) = rest.split_at(at);
            out.extend_from_slice(before);
            out.extend_from_slice(MARK);
            rest = after.get(known.token.len()..).unwrap_or_default();
            hit = known.find(rest);
        }
        out.extend_from_slice(rest);
        out.into()
    }

    /// The same for a text that was cut off at its end, where the token may have been cut as well.
    pub(crate) fn clean_cut(&self, text: Bytes) -> Bytes {
        let text = self.clean(text);
        let Some(token) = self.0.as_ref().map(|known| &*known.token) else { return text };
        let begun = (MIN_TOKEN..token.len()).rev().find(|&n| token.get(..n).is_some_and(|begun| text.ends_with(begun)));
        match begun.and_then(|n| text.get(..text.len().saturating_sub(n))) {
            Some(before) => [before, MARK].concat().into(),
            None => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_occurrence_is_taken_out() {
        let redactor = Redactor::new(&UpstreamToken::parse("s3cr3t-t0ken").expect("a token"));
        let text = Bytes::from_static(b"s3cr3t-t0ken is not s3cr3t-t0ken!");
        assert_eq!(redactor.clean(text), &b"[redacted] is not [redacted]!"[..]);
    }

    #[test]
    fn the_beginning_of_a_token_that_was_cut_off_is_taken_out() {
        let redactor = Redactor::new(&UpstreamToken::parse("s3cr3t-t0ken").expect("a token"));
        let cut = |text: &'static str| redactor.clean_cut(Bytes::from_static(text.as_bytes()));
        assert_eq!(cut("it is s3cr3t-t0k"), &b"it is [redacted]"[..]);
        assert_eq!(cut("it is s3cr3t-t0ken"), &b"it is [redacted]"[..]);
        assert_eq!(cut("it is s3cr3t"), &b"it is s3cr3t"[..], "too short to tell");
        assert_eq!(cut("nothing here"), &b"nothing here"[..]);
    }

    #[test]
    fn only_the_whole_token_is_taken_out_also_where_its_end_stands_alone_before() {
        let redactor = Redactor::new(&UpstreamToken::parse("abab-abababab").expect("a token"));
        let text = Bytes::from_static(b"abababab ababababab-abababababab-abababab");
        assert_eq!(redactor.clean(text), &b"abababab ababab[redacted][redacted]"[..]);
        let short = Redactor::new(&UpstreamToken::parse("short").expect("a token"));
        assert_eq!(short.clean(Bytes::from_static(b"a short text")), &b"a short text"[..]);
    }

    #[test]
    fn other_text_is_not_copied() {
        let redactor = Redactor::new(&UpstreamToken::parse("s3cr3t-t0ken").expect("a token"));
        let text = Bytes::from_static(b"nothing here");
        assert_eq!(redactor.clean(text.clone()).as_ptr(), text.as_ptr());
    }
}
