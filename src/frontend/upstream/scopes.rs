//! Forgejo's scopes: what of what was asked for is missing, and what was never asked for.
//!
//! `all` holds everything and `write:x` holds `read:x` (Forgejo's documentation, "Access token scope").

/// How granted scopes differ from those that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Asked for and not granted: tools that need these fail.
    pub missing: Vec<String>,
    /// Granted and not asked for: the token can do more than it should.
    pub excess: Vec<String>,
}

/// `None` where both allow the same.
pub fn difference(asked: &[String], granted: &[String]) -> Option<Difference> {
    let without = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|scope| !those.iter().any(|held| holds(held, scope))).cloned().collect()
    };
    let found = Difference { missing: without(asked, granted), excess: without(granted, asked) };
    (!found.missing.is_empty() || !found.excess.is_empty()).then_some(found)
}

fn holds(held: &str, needed: &str) -> bool {
    let group = |scope: &'static str, text| str::strip_prefix(text, scope);
    held == "all"
        || held == needed
        || group("write:", held).is_some_and(|written| group("read:", needed) == Some(written))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(asked: &str, granted: &str) -> Option<(String, String)> {
        let list = |text: &str| text.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
        difference(&list(asked), &list(granted)).map(|found| (found.missing.join(" "), found.excess.join(" ")))
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_told() {
        let some = |missing: &str, excess: &str| Some((missing.to_owned(), excess.to_owned()));
        assert_eq!(told("read:user write:issue", "write:issue read:user"), None, "the order does not matter");
        assert_eq!(told("read:user write:user", "write:user"), None, "write holds read");
        assert_eq!(told("read:user write:issue", "read:user"), some("write:issue", ""));
        assert_eq!(told("write:issue", "read:issue"), some("write:issue", ""));
        assert_eq!(told("read:issue", "write:issue"), some("", "write:issue"));
        assert_eq!(told("read:user", "all"), some("", "all"));
        assert_eq!(told("all", "read:user"), some("all", ""));
        assert_eq!(told("read:user", ""), some("read:user", ""));
    }
}
