//! Who may log in: the operator's lists, checked at every login and whenever an upstream token is refreshed.
//!
//! Trusts what Forgejo's API says about a token's user, and nothing else. Names are compared without case, as Forgejo
//! does; a login on a list stands for the account that it was when it was first looked up ([`names`]).

pub(crate) mod names;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use wire::config_file::{Section, seconds};

use crate::forge::access::names::{Candidate, NamedAccount, Names};
use crate::forge::api::{Forgejo, ForgejoUser, UpstreamError};
use crate::forge::membership::Memberships;
use crate::store::Account;
use wire::message::TenantId;
use wire::secret::UpstreamToken;

/// How long an account may be barred unless the operator says otherwise: a holiday long.
const BARRED_FOR: Duration = Duration::from_hours(30 * 24);

/// One entry of a list: `id:NUMBER`, `user:LOGIN`, `org:NAME` or `team:ORG/TEAM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// An account, by its number.
    Id(TenantId),
    /// A login, in lower case as all names here.
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
            Some(("id", number)) => number.parse().ok().and_then(|number| TenantId::new(number).ok()).map(Self::Id),
            Some(("user", name)) if is_name(name) => Some(Self::User(name.to_owned())),
            Some(("org", name)) if is_name(name) => Some(Self::Organisation(name.to_owned())),
            Some(("team", path)) => path
                .split_once('/')
                .filter(|(org, team)| is_name(org) && is_name(team))
                .map(|(org, team)| Self::Team(org.to_owned(), team.to_owned())),
            _ => None,
        };
        parsed.ok_or_else(|| format!("`{text}` must be id:NUMBER, user:LOGIN, org:NAME or team:ORG/TEAM"))
    }
}

impl Subject {
    /// Whether this names accounts, and nothing that they are a member of.
    fn is_account(&self) -> bool {
        matches!(self, Self::Id(_) | Self::User(_))
    }

    fn login(&self) -> Option<&str> {
        if let Self::User(login) = self { Some(login) } else { None }
    }

    /// Whether this is somebody, or something that they are a member of. Whose a login is [`Names`] says.
    fn is(&self, who: &Candidate, of: &Memberships) -> bool {
        match self {
            Self::Id(number) => who.has_number(*number),
            Self::User(login) => who.has_login(login),
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
    /// Whose the logins on both lists are, as far as that was looked up.
    pub(crate) names: Names,
}

impl Access {
    /// Whether these lists let the same in, as far as the operator has written them.
    pub(crate) fn lets_in_like(&self, other: &Self) -> bool {
        (&self.allow, &self.deny, self.restricted) == (&other.allow, &other.deny, other.restricted)
    }
}

/// The lists that are in force; a reload puts others in their place. Cheap to clone, and clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lists(Arc<RwLock<Arc<Access>>>);

impl Lists {
    /// The lists now.
    pub(crate) fn now(&self) -> Arc<Access> {
        Arc::clone(&self.0.read())
    }

    /// Puts others in force. The logins that they name, too, stay whose they are.
    pub(crate) fn replace(&self, access: Access) {
        let mut now = self.0.write();
        let names = now.names.clone();
        *now = Arc::new(access);
        Arc::make_mut(&mut now).hold(&names);
    }

    /// Holds a login that the lists name to an account.
    pub(crate) fn pin(&self, login: &str, account: NamedAccount) {
        Arc::make_mut(&mut self.0.write()).names.pin(login, account);
    }

    /// Holds the logins that the lists name to the accounts that they are known to be.
    pub(crate) fn hold(&self, known: &Names) {
        Arc::make_mut(&mut self.0.write()).hold(known);
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
            names: Names::default(),
        };
        section.close();
        access
    }

    /// The logins that are named, each once.
    pub(crate) fn logins(&self) -> BTreeSet<&str> {
        self.allow.iter().chain(&self.deny).filter_map(Subject::login).collect()
    }

    /// Whether the lists name any account: only then they keep somebody out by themselves.
    pub(crate) fn names_accounts(&self) -> bool {
        self.allow.iter().chain(&self.deny).any(Subject::is_account)
    }

    /// Whether of some nobody has said whose they are.
    pub(crate) fn has_unknown_logins(&self) -> bool {
        self.logins().into_iter().any(|login| self.names.get(login).is_none())
    }

    /// Takes over what is known of the logins that are named.
    fn hold(&mut self, known: &Names) {
        let held: Vec<_> =
            self.logins().into_iter().filter_map(|login| Some((login.to_owned(), known.get(login)?))).collect();
        for (login, account) in held {
            self.names.pin(&login, account);
        }
    }

    /// Whether organisations or teams matter.
    pub(crate) fn asks_for_memberships(&self) -> bool {
        !self.allow.iter().chain(&self.deny).all(Subject::is_account)
    }

    fn is_allowed(&self, who: &Candidate, of: &Memberships) -> bool {
        self.allow.is_empty()
            || self.allow.iter().any(|subject| match subject {
                Subject::User(login) => self.names.lets_in(login, who),
                other => other.is(who, of),
            })
    }

    fn is_denied(&self, who: &Candidate, of: &Memberships) -> bool {
        self.deny.iter().any(|subject| match subject {
            Subject::User(login) => self.names.keeps_out(login, who),
            other => other.is(who, of),
        })
    }

    /// Whether the lists keep an account out whatever else Forgejo says of it: they name it, or they name every account
    /// that may come in and this is none of them.
    pub(crate) fn keeps_out(&self, account: &Account) -> bool {
        let (who, nothing) = (account.into(), Memberships::default());
        let names_all = self.allow.iter().all(Subject::is_account);
        self.is_denied(&who, &nothing) || names_all && !self.is_allowed(&who, &nothing)
    }

    /// Whether this user, with these memberships, is let in.
    pub(crate) fn check(&self, user: &ForgejoUser, of: &Memberships) -> Result<(), NotAdmitted> {
        if user.locked {
            return Err(NotAdmitted::Locked);
        }
        if user.restricted && !self.restricted {
            return Err(NotAdmitted::Restricted);
        }
        let who = user.into();
        if self.is_denied(&who, of) || !self.is_allowed(&who, of) { Err(NotAdmitted::Lists) } else { Ok(()) }
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
            assert_eq!(access.keeps_out(&account(1, "Alice")), out, "allow {allow:?} deny {deny:?}");
            assert!(access.names_accounts() || !out, "not looked for: allow {allow:?} deny {deny:?}");
        }
    }

    fn account(number: u64, login: &str) -> Account {
        let (tenant, login) = (TenantId::new(number).expect("an id"), Label::parse(login).expect("a login"));
        Account { tenant, login, created: Some(UnixTime::from_secs(1)) }
    }

    #[test]
    fn a_number_is_its_account_and_a_login_the_account_that_it_was_found_to_be() {
        let named =
            |number| NamedAccount { tenant: TenantId::new(number).expect("an id"), created: UnixTime::from_secs(1) };
        let nobody = Names::default();
        let mut one = Names::default();
        one.pin("alice", named(1));
        one.pin("alice", named(2));
        let mut earlier = Names::default();
        earlier.pin("alice", NamedAccount { created: UnixTime::from_secs(0), ..named(1) });
        // What is said of the logins, the list, the account, its login; is it let in, is it kept out?
        let table = [
            (&nobody, "id:1", 1, "whoever", true, true),
            (&nobody, "id:1", 2, "alice", false, false),
            (&nobody, "user:alice", 2, "Alice", true, true),
            (&one, "user:ALICE", 1, "alicia", true, true),
            // Who takes the login is not let in, and not free either.
            (&one, "user:alice", 2, "alice", false, true),
            (&one, "user:alice", 2, "bob", false, false),
            // The number is another account's.
            (&earlier, "user:alice", 1, "alicia", false, false),
        ];
        for (names, entry, number, login, let_in, kept_out) in table {
            let account = account(number, login);
            let user = ForgejoUser { id: account.tenant, ..user(login) };
            let lists = |allow: &[&str], deny: &[&str]| Access {
                allow: list(allow),
                deny: list(deny),
                names: names.clone(),
                ..Access::default()
            };
            let (allowing, denying) = (lists(&[entry], &[]), lists(&[], &[entry]));
            let is_let_in = |access: &Access| {
                let is = access.check(&user, &Memberships::default()).is_ok();
                assert_eq!(is, !access.keeps_out(&account), "{entry}: {number}, {login}");
                is
            };
            assert_eq!((is_let_in(&allowing), !is_let_in(&denying)), (let_in, kept_out), "{entry}: {number}, {login}");
        }
    }

    #[test]
    fn what_names_nobody_is_no_subject() {
        for text in
            ["", "alice", "user:", "team:acme", "team:/x", "group:a", "user:a b", "org:a/b", "id:0", "id:x", "id:"]
        {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }
}
