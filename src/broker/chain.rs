//! An error with all its causes as one text. A leaf.

use std::error::Error;

/// From the outermost to the first cause, with colons between. A cause that the text before it ends with is not repeated.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Outer(&'static str, #[source] std::io::Error);

    #[test]
    fn causes_follow_each_other_and_none_is_said_twice() {
        let cause = || std::io::Error::other("disk full");
        assert_eq!(chain(&Outer("storing", cause())), "storing: disk full");
        assert_eq!(chain(&Outer("storing: disk full", cause())), "storing: disk full");
    }
}
