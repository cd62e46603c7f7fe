//! Logins, which Forgejo may give to other accounts: notes which one an account has, looks up whose those are that the
//! operator's lists name, and holds the lists to it.
//!
//! Forgejo is asked when the lists are read, as a stranger: the broker has no token of its own there. What it does not tell
//! then, the next look of anybody tells who has the login: that account is the one from then on. Until then an entry means
//! whoever has the login, so that nobody waits for a look-up who is named.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::timeout;
use tracing::{error, info, warn};
use wire::secret::UpstreamToken;

use crate::chain::chain;
use crate::forge::access::AccessError;
use crate::forge::access::names::NamedAccount;
use crate::forge::api::ForgejoUser;
use crate::forge::rotation::{Change, Rotation};
use crate::store::{Account, StoreError};

/// Logins that Forgejo is asked about at once.
const AT_ONCE: usize = 8;
/// How long a start or a reload waits for all of them.
const PATIENCE: Duration = Duration::from_secs(10);
/// Logins of which Forgejo shows nobody are looked up again after this.
const ASK_AGAIN: Duration = Duration::from_hours(1);
/// All of them, where it had no answer for some.
const ASK_AGAIN_SOON: Duration = Duration::from_mins(5);

/// Whether Forgejo has said whose the logins are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    All,
    Partial,
    /// It is away, as far as can be told.
    Away,
}

impl Rotation {
    /// Whether the lists let a user in, whose token this is.
    pub(crate) async fn admits(&self, user: &ForgejoUser, token: &UpstreamToken) -> Result<(), AccessError> {
        let lists = self.0.access.now();
        let login = user.login.as_str().to_lowercase();
        if lists.logins().contains(login.as_str()) {
            self.pin(&login, NamedAccount { tenant: user.id, created: user.created }).await;
        }
        self.0.access.now().verify(&self.0.forgejo, user, token).await
    }

    /// Notes an account as Forgejo tells it, where that is not how it is `known`. Where it was known by another login, all
    /// that shows one follows: tokens that are remembered, and children that run, whose lines have it.
    pub(super) async fn note(&self, user: &ForgejoUser, known: Option<&Account>) -> Result<(), StoreError> {
        if known.is_some_and(|known| known.login == user.login && known.created == Some(user.created)) {
            return Ok(());
        }
        let (inner, tenant) = (&self.0, user.id);
        inner.store.note_account(tenant, &user.login, user.created, inner.clock.now()).await?;
        let Some(former) = known.filter(|known| known.login != user.login) else { return Ok(()) };
        info!(
            tenant = %tenant, login = %user.login, former = %former.login, reason = "login-changed",
            "user {tenant} is {} at Forgejo now, and was {}", user.login, former.login
        );
        let rotation = self.clone();
        // Whoever follows changes may wait for the turn that this is in.
        inner.tasks.spawn(async move {
            match rotation.0.store.grants_of(tenant).await {
                Ok(grants) => drop(rotation.0.changes.send(Change::Rotated(grants)).await),
                Err(e) => {
                    warn!(tenant = %tenant, error = %e, "lines about a user have the former login on: {}", chain(&e));
                }
            }
        });
        Ok(())
    }

    /// Takes up what is known of the logins on the lists, and forgets what no list names any more.
    pub(super) async fn take_up_names(&self) -> Result<(), StoreError> {
        let (inner, lists) = (&self.0, self.0.access.now());
        let known = inner.store.list_names().await?;
        let named = lists.logins();
        for login in known.logins().filter(|login| !named.contains(login)) {
            inner.store.forget_list_name(login).await?;
        }
        inner.access.hold(&known);
        Ok(())
    }

    /// Asks Forgejo whose the logins on the lists are. Gives back whether more of them are known than before.
    pub(super) async fn look_up_names(&self) -> bool {
        let lists = self.0.access.now();
        let (known, unknown): (Vec<_>, Vec<_>) =
            lists.logins().into_iter().map(str::to_owned).partition(|login| lists.names.get(login).is_some());
        // Of those that are known it is only told that they have changed hands.
        let logins = unknown.into_iter().chain(known);
        let answers = timeout(PATIENCE, self.look_up(logins)).await.unwrap_or(Answers::Away);
        let after = match answers {
            Answers::All => ASK_AGAIN,
            Answers::Partial => ASK_AGAIN_SOON,
            Answers::Away => Duration::ZERO,
        };
        *self.0.names_due.lock() = Some(self.0.clock.now().plus(after));
        self.0.access.now().names != lists.names
    }

    /// The same of those that are not known, now and then: soon, where Forgejo did not answer.
    pub(crate) async fn look_up_names_again(&self) {
        let now = self.0.clock.now();
        let is_due = self.0.names_due.lock().is_some_and(|at| at <= now);
        if is_due
            && self.0.access.now().has_unknown_logins()
            && self.look_up_names().await
            && let Err(e) = self.end_kept_out().await
        {
            error!(error = %e, "who is kept out by the lists of [access] cannot be ended: {}", chain(&e));
        }
    }

    /// Of those who are connected Forgejo has said within an hour which login they have.
    pub(super) async fn pin_connected(&self, account: &Account) {
        let login = account.login.as_str().to_lowercase();
        let lists = self.0.access.now();
        if let Some(created) = account.created
            && lists.names.get(&login).is_none()
            && lists.logins().contains(login.as_str())
        {
            self.pin(&login, NamedAccount { tenant: account.tenant, created }).await;
        }
    }

    /// Forgejo may have no answer for one login alone: the others are looked up all the same.
    async fn look_up(&self, logins: impl Iterator<Item = String>) -> Answers {
        let ask = |login: String| async move {
            let answer = self.0.forgejo.user_named(&login).await;
            (login, answer)
        };
        let mut answers = stream::iter(logins).map(ask).buffer_unordered(AT_ONCE);
        let (mut heard, mut failed, mut in_a_row) = (false, false, 0);
        while let Some((login, answer)) = answers.next().await {
            match answer {
                Ok(account) => {
                    (heard, in_a_row) = (true, 0);
                    if let Some(account) = account {
                        self.pin(&login, account).await;
                    }
                }
                Err(e) => {
                    // Said once, however many they are.
                    if !failed {
                        warn!(error = %e, login, "whose a login on the lists of [access] is cannot be looked up now: {}", chain(&e));
                    }
                    failed = true;
                    in_a_row += 1;
                    if in_a_row == AT_ONCE {
                        return Answers::Away;
                    }
                }
            }
        }
        match (heard, failed) {
            (_, false) => Answers::All,
            (true, true) => Answers::Partial,
            (false, true) => Answers::Away,
        }
    }

    /// Holds a login to the account that Forgejo says it is, unless it is another's already, which is told.
    async fn pin(&self, login: &str, account: NamedAccount) {
        let (inner, number) = (&self.0, account.tenant);
        match inner.access.now().names.get(login) {
            Some(known) if known == account => {}
            Some(known) => {
                warn!(
                    tenant = %number, login, reason = "login-moved",
                    "user:{login} in [access] stays account {}, and the login is account {number}'s now: write \
                     id:{number} to name that one", known.tenant
                );
            }
            None => {
                inner.access.pin(login, account);
                info!(tenant = %number, login, reason = "login-pinned", "user:{login} in [access] is account {number}");
                if let Err(e) = inner.store.note_list_name(login, account, inner.clock.now()).await {
                    // Until the broker ends it is known all the same.
                    warn!(error = %e, login, "whose a login on the lists is cannot be kept: {}", chain(&e));
                }
            }
        }
    }
}
