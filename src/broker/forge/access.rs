//! Who may log in: the operator's lists, checked at every login and whenever an upstream token is refreshed.
//!
//! Trusts what Forgejo's API says about a token's user, and nothing else. Names are compared without case, as Forgejo
//! does.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use wire::config_file::{Section, seconds};

use crate::forge::api::{Forgejo, ForgejoUser, UpstreamError};
use crate::forge::membership::Memberships;
use wire::secret::UpstreamToken;

/// How long an account may be barred unless the operator says otherwise: a holiday long.
const BARRED_FOR: Duration = Duration::from_hours(30 * 24);

/// One entry of a list: `user:LOGIN`, `org:NAME` or `team:ORG/TEAM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A login.
    User(String),
    /// An organisation's members.
    Organisation(String),
    /// A team's members.
    Team(String, String),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.to_lowercase().split_once(':') {
            Some(("user", name)) if is_name(name) => Some(Self::User(name.to_owned())),
            Some(("org", name)) if is_name(name) => Some(Self::Organisation(name.to_owned())),
            Some(("team", path)) => path
                .split_once('/')
                .filter(|(org, team)| is_name(org) && is_name(team))
                .map(|(org, team)| Self::Team(org.to_owned(), team.to_owned())),
            _ => None,
        };
        parsed.ok_or_else(|| format!("`{text}` must be user:LOGIN, org:NAME or team:ORG/TEAM"))
    }
}

impl Subject {
    /// Whether this is the user, or something that they are a member of.
    fn is(&self, user: &ForgejoUser, of: &Memberships) -> bool {
        match self {
            Self::User(name) => *name == user.login.as_str().to_lowercase(),
            Self::Organisation(name) => of.organisations.contains(name),
            Self::Team(org, team) => of.teams.iter().any(|(o, t)| o == org && t == team),
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', ':']) && !text.contains(char::is_whitespace)
}

/// The operator's lists. Denying wins; an empty `allow` lets everybody in who is not denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// Who may.
    pub(crate) allow: Vec<Subject>,
    /// Who may not.
    pub(crate) deny: Vec<Subject>,
    /// Whether restricted accounts may.
    pub(crate) restricted: bool,
    /// Whether users may show tokens of Forgejo's own instead of logging in.
    pub(crate) forgejo_tokens: bool,
    /// How long Forgejo may bar an account before what it has here is ended.
    pub(crate) revoke_barred_after: Duration,
}

/// The lists that are in force; a reload puts others in their place. Cheap to clone, and clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lists(Arc<RwLock<Arc<Access>>>);

impl Lists {
    /// The lists now.
    pub(crate) fn now(&self) -> Arc<Access> {
        Arc::clone(&self.0.read())
    }

    /// Puts others in force.
    pub(crate) fn replace(&self, access: Access) {
        *self.0.write() = Arc::new(access);
    }
}

impl From<Access> for Lists {
    fn from(access: Access) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(access))))
    }
}

/// Why somebody may not log in. Said to them on a page, so it says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdmitted {
    /// The account is deactivated or may not log in.
    #[error("the account is locked at Forgejo")]
    Locked,
    /// A restricted account.
    #[error("restricted accounts may not use this service")]
    Restricted,
    /// On the list of those who may not, or not on the list of those who may.
    #[error("the operator of this service does not let the account in")]
    Lists,
    /// The lists name organisations or teams, and Forgejo holds the user to scopes that do not show them.
    #[error(
        "Forgejo does not show this service the account's organisations and teams, for which it needs the scope \
         read:organization; after a login remove this service at Forgejo (Settings, Applications) and log in again"
    )]
    Hidden,
    /// Another account had this number before, as when the forge was set up anew.
    #[error(
        "Forgejo gave the account the number of an earlier one; what that one had here was ended just now, so log in \
         once more"
    )]
    Successor,
    /// The lists name organisations or teams, and the user is in more than can be read.
    #[error("the account is in too many organisations or teams to be found on the operator's lists")]
    TooMany,
}

/// Why a user is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccessError {
    /// Forgejo does not say now what they are a member of, so the lists cannot be applied.
    #[error("the user's organisations and teams cannot be read: {0}")]
    Memberships(UpstreamError),
    /// They may not.
    #[error("{0}")]
    NotAdmitted(#[from] NotAdmitted),
}

impl Access {
    /// `[access]`: who may log in.
    pub(crate) fn read(mut section: Section) -> Self {
        let subjects = |section: &mut Section, key: &str| -> Vec<Subject> {
            let mut subjects = Vec::new();
            for text in section.texts(key, &[]) {
                match text.parse() {
                    Ok(subject) => subjects.push(subject),
                    Err(what) => section.complain(key, what),
                }
            }
            subjects
        };
        let access = Self {
            allow: subjects(&mut section, "allow"),
            deny: subjects(&mut section, "deny"),
            restricted: section.flag("restricted", false),
            forgejo_tokens: section.flag("forgejo_tokens", false),
            revoke_barred_after: section.duration("revoke_barred_after", BARRED_FOR, seconds(0, 366 * 24 * 3600)),
        };
        section.close();
        access
    }

    /// Whether organisations or teams matter.
    pub(crate) fn asks_for_memberships(&self) -> bool {
        self.allow.iter().chain(&self.deny).any(|subject| !matches!(subject, Subject::User(_)))
    }

    /// Whether the lists keep a login out whatever else Forgejo says of the account: they name it, or they name every
    /// login that may come in and this is none of them.
    pub(crate) fn keeps_out(&self, login: &str) -> bool {
        let login = login.to_lowercase();
        let is = |subject: &Subject| matches!(subject, Subject::User(name) if *name == login);
        let names_all = !self.allow.is_empty() && self.allow.iter().all(|one| matches!(one, Subject::User(_)));
        self.deny.iter().any(is) || names_all && !self.allow.iter().any(is)
    }

    /// Whether this user, with these memberships, is let in.
    pub(crate) fn check(&self, user: &ForgejoUser, of: &Memberships) -> Result<(), NotAdmitted> {
        if user.locked {
            return Err(NotAdmitted::Locked);
        }
        if user.restricted && !self.restricted {
            return Err(NotAdmitted::Restricted);
        }
        let is = |subject: &Subject| subject.is(user, of);
        let allowed = self.allow.is_empty() || self.allow.iter().any(is);
        if self.deny.iter().any(is) || !allowed { Err(NotAdmitted::Lists) } else { Ok(()) }
    }

    /// Whether this user is let in, who `token` belongs to. What keeps the account itself out does so whether or not
    /// Forgejo tells what it is a member of, and nobody gets in, or stays, by being a member of too much to be told.
    pub(crate) async fn verify(
        &self,
        forgejo: &Forgejo,
        user: &ForgejoUser,
        token: &UpstreamToken,
    ) -> Result<(), AccessError> {
        let nothing = Memberships::default();
        if !self.asks_for_memberships() {
            return Ok(self.check(user, &nothing)?);
        }
        Self { allow: Vec::new(), ..self.clone() }.check(user, &nothing)?;
        match forgejo.memberships(token).await {
            Ok(memberships) => Ok(self.check(user, &memberships)?),
            Err(UpstreamError::Forbidden) => Err(NotAdmitted::Hidden.into()),
            Err(UpstreamError::TooMany) => Err(NotAdmitted::TooMany.into()),
            Err(e) => Err(AccessError::Memberships(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::clock::UnixTime;
    use wire::message::{Label, TenantId};

    fn user(login: &str) -> ForgejoUser {
        let (id, login) = (TenantId::new(1).expect("an id"), Label::parse(login).expect("a login"));
        ForgejoUser { id, login, created: UnixTime::from_secs(1), restricted: false, locked: false }
    }

    fn list(entries: &[&str]) -> Vec<Subject> {
        entries.iter().map(|entry| entry.parse().expect("a subject")).collect()
    }

    #[test]
    fn denying_wins_and_an_empty_list_lets_everybody_in() {
        let of = Memberships { organisations: vec!["acme".into()], teams: vec![("acme".into(), "devs".into())] };
        let none = Memberships::default();
        let table = [
            (&[][..], &[][..], &none, true),
            (&["user:Alice"], &[], &none, true),
            (&["user:bob"], &[], &of, false),
            (&["org:ACME"], &[], &of, true),
            (&["org:acme"], &[], &none, false),
            (&["team:acme/Devs"], &[], &of, true),
            (&["team:acme/ops"], &[], &of, false),
            (&["user:alice"], &["org:acme"], &of, false),
            (&[], &["user:alice"], &none, false),
            (&[], &["team:acme/devs"], &none, true),
        ];
        for (allow, deny, memberships, admitted) in table {
            let access = Access { allow: list(allow), deny: list(deny), ..Access::default() };
            let verdict = access.check(&user("alice"), memberships);
            assert_eq!(verdict.is_ok(), admitted, "allow {allow:?} deny {deny:?}");
        }
    }

    #[test]
    fn restricted_and_locked_accounts_are_refused() {
        let restricted = ForgejoUser { restricted: true, ..user("alice") };
        let locked = ForgejoUser { locked: true, ..user("alice") };
        let (strict, lenient) = (Access::default(), Access { restricted: true, ..Access::default() });
        assert_eq!(strict.check(&restricted, &Memberships::default()), Err(NotAdmitted::Restricted));
        assert_eq!(lenient.check(&restricted, &Memberships::default()), Ok(()));
        assert_eq!(lenient.check(&locked, &Memberships::default()), Err(NotAdmitted::Locked));
    }

    #[test]
    fn a_login_is_kept_out_without_a_question_only_where_the_lists_alone_say_so() {
        let table = [
            (&[][..], &[][..], false),
            (&[], &["user:ALICE"], true),
            (&[], &["user:bob"], false),
            (&["user:bob"], &[], true),
            (&["user:bob", "user:alice"], &[], false),
            (&["user:bob", "org:acme"], &[], false),
            (&["org:acme"], &["user:alice"], true),
            (&[], &["org:acme"], false),
        ];
        for (allow, deny, out) in table {
            let access = Access { allow: list(allow), deny: list(deny), ..Access::default() };
            assert_eq!(access.keeps_out("Alice"), out, "allow {allow:?} deny {deny:?}");
        }
    }

    #[test]
    fn what_names_nobody_is_no_subject() {
        for text in ["", "alice", "user:", "team:acme", "team:/x", "group:a", "user:a b", "org:a/b"] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }
}
