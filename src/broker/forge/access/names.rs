//! Whose the logins are that the operator's lists name.
//!
//! A login is a word that its account may change and another may take: by the word alone, who is denied would rename itself
//! free, and who takes an allowed login would be let in. So each login that a list names is held to the account that it was
//! when it was first looked up.

use std::collections::HashMap;

use crate::forge::api::ForgejoUser;
use crate::store::Account;
use wire::clock::UnixTime;
use wire::message::TenantId;

/// An account: its number, and the time of its making, because a new forge gives numbers out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NamedAccount {
    /// Forgejo's number.
    pub(crate) tenant: TenantId,
    /// When Forgejo made it.
    pub(crate) created: UnixTime,
}

/// Somebody whom the lists are applied to.
#[derive(Debug)]
pub(super) struct Candidate {
    tenant: TenantId,
    /// In lower case.
    login: String,
    /// Where it is known.
    created: Option<UnixTime>,
}

impl From<&ForgejoUser> for Candidate {
    fn from(user: &ForgejoUser) -> Self {
        Self { tenant: user.id, login: user.login.as_str().to_lowercase(), created: Some(user.created) }
    }
}

impl From<&Account> for Candidate {
    fn from(account: &Account) -> Self {
        Self { tenant: account.tenant, login: account.login.as_str().to_lowercase(), created: account.created }
    }
}

impl Candidate {
    pub(super) fn has_number(&self, number: TenantId) -> bool {
        self.tenant == number
    }

    pub(super) fn has_login(&self, login: &str) -> bool {
        self.login == login
    }

    fn is(&self, account: NamedAccount) -> bool {
        self.tenant == account.tenant && self.created.is_none_or(|created| created == account.created)
    }
}

/// Logins in lower case, and the accounts that they are held to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(HashMap<String, NamedAccount>);

impl Names {
    /// The account that a login is held to, where it was looked up.
    pub(crate) fn get(&self, login: &str) -> Option<NamedAccount> {
        self.0.get(login).copied()
    }

    /// Holds a login to an account. The one before it stays: only the operator lets go of it.
    pub(crate) fn pin(&mut self, login: &str, account: NamedAccount) {
        self.0.entry(login.to_owned()).or_insert(account);
    }

    /// All of the logins.
    pub(crate) fn logins(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether an entry of those who may come in means somebody: the account alone. As long as nobody has said whose the
    /// login is, whoever has it.
    pub(super) fn lets_in(&self, login: &str, who: &Candidate) -> bool {
        self.get(login).map_or_else(|| who.has_login(login), |account| who.is(account))
    }

    /// Whether an entry of those who may not means somebody: the account, and whoever has the login.
    pub(super) fn keeps_out(&self, login: &str, who: &Candidate) -> bool {
        who.has_login(login) || self.get(login).is_some_and(|account| who.is(account))
    }
}
