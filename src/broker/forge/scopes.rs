//! Forgejo's scopes: what they let a token do, what of what was asked for is missing, and what was never asked for.
//!
//! `all` holds everything and `write:x` holds `read:x` (Forgejo's documentation, "Access token scope"). A grant without
//! any scope of the API's holds everything too (seen on a real one).

/// How granted scopes differ from those that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Asked for and not granted: tools that need these fail.
    pub(crate) missing: Vec<String>,
    /// Granted and not asked for: the token can do more than it should.
    pub(crate) excess: Vec<String>,
}

/// `None` where both allow the same.
pub(crate) fn difference(asked: &[String], granted: &[String]) -> Option<Difference> {
    let without = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|scope| !those.iter().any(|held| holds(held, scope))).cloned().collect()
    };
    let found = Difference { missing: without(asked, granted), excess: without(granted, asked) };
    (!found.missing.is_empty() || !found.excess.is_empty()).then_some(found)
}

/// The scopes that Forgejo's own text of a grant amounts to.
pub(crate) fn effective(text: &str) -> Vec<String> {
    let of_the_api = |scope: &&str| *scope == "all" || scope.contains(':');
    let scopes: Vec<&str> = text.split_whitespace().collect();
    let scopes = if scopes.iter().any(of_the_api) { scopes } else { vec!["all"] };
    scopes.into_iter().map(ToOwned::to_owned).collect()
}

fn holds(held: &str, needed: &str) -> bool {
    let group = |scope: &'static str, text| str::strip_prefix(text, scope);
    held == "all"
        || held == needed
        || group("write:", held).is_some_and(|written| group("read:", needed) == Some(written))
}

/// Forgejo's groups of rights that tools have a use for, in words for the account's owner.
const GROUPS: [(&str, &str); 6] = [
    ("repository", "repositories with their files, branches, pull requests, releases, wikis and hooks"),
    ("issue", "issues"),
    ("organization", "organisations and teams"),
    ("package", "packages"),
    ("notification", "notifications"),
    ("user", "your account"),
];

/// What scopes let a token do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reach {
    /// What can be read and changed.
    pub(crate) changes: Vec<&'static str>,
    /// What can be read only.
    pub(crate) reads: Vec<&'static str>,
}

impl Reach {
    /// Of a token with these scopes.
    pub(crate) fn of(scopes: &[String]) -> Self {
        let may = |right: &str, group: &str| scopes.iter().any(|held| holds(held, &format!("{right}:{group}")));
        let words = |(_, words): &(&str, &'static str)| *words;
        let (changes, rest): (Vec<_>, Vec<_>) = GROUPS.into_iter().partition(|(group, _)| may("write", group));
        let reads = rest.into_iter().filter(|(group, _)| may("read", group));
        Self { changes: changes.iter().map(words).collect(), reads: reads.map(|group| words(&group)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scopes_reach_is_said_in_words() {
        let reach = |text: &str| Reach::of(&text.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>());
        let some = reach("read:user write:issue read:issue read:misc");
        assert_eq!((some.changes, some.reads), (vec!["issues"], vec!["your account"]));
        assert_eq!(reach("all").changes.len(), GROUPS.len());
        assert!(reach("read:user read:repository").changes.is_empty());
    }

    #[test]
    fn a_grant_without_a_scope_of_the_api_holds_everything() {
        for text in ["", "openid profile", "mcp"] {
            assert_eq!(effective(text), ["all"], "{text}");
        }
        assert_eq!(effective("openid read:user"), ["openid", "read:user"]);
    }

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
