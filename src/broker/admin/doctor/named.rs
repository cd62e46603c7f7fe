//! The logins that the operator's lists name: a login is not an account, and may come to be another's.

use futures_util::stream::{self, StreamExt};
use tokio::time::timeout;

use crate::admin::Admin;
use crate::admin::api::{Finding, State as Health};
use crate::admin::doctor::{LOOK_WITHIN, finding};
use crate::forge::access::names::NamedAccount;

/// Logins that Forgejo is asked about at once.
const AT_ONCE: usize = 8;
/// Logins that one line tells.
const TOLD: usize = 20;

/// Looks at them.
pub(super) async fn look(admin: &Admin) -> Vec<Finding> {
    let lists = admin.rotation.lists().now();
    let ask = |login: String| async move {
        let answer = admin.forgejo.user_named(&login).await.ok().flatten();
        (login, answer)
    };
    let logins: Vec<_> = lists.logins().into_iter().map(str::to_owned).collect();
    let asked = stream::iter(logins).map(ask).buffered(AT_ONCE).collect::<Vec<_>>();
    // Without an answer nothing is known to have changed.
    let answers = timeout(LOOK_WITHIN, asked).await.unwrap_or_default();
    let held: Vec<_> = lists.logins().into_iter().map(|login| (login, lists.names.get(login))).collect();
    judge(&held, &answers)
}

fn judge(held: &[(&str, Option<NamedAccount>)], answers: &[(String, Option<NamedAccount>)]) -> Vec<Finding> {
    const CHECK: &str = "logins on the lists";
    let answer = |login: &str| answers.iter().find(|(asked, _)| asked == login).and_then(|(_, account)| *account);
    let (mut known, mut unknown, mut moved) = (Vec::new(), Vec::new(), Vec::new());
    for (login, account) in held {
        match (account, answer(login)) {
            (None, _) => unknown.push(format!("user:{login}")),
            (Some(account), Some(now)) if now != *account => {
                moved.push(format!("user:{login} (id:{}, and the login is id:{}'s now)", account.tenant, now.tenant));
            }
            (Some(account), _) => known.push(format!("user:{login} is id:{}", account.tenant)),
        }
    }
    let mut all = Vec::new();
    if !known.is_empty() {
        let advice = "`id:NUMBER` in the lists says the same and needs no look-up";
        all.push(finding(CHECK, Health::Note, told(&known), Some(advice)));
    }
    if !unknown.is_empty() {
        let found = format!("nobody has said whose these are: {}", told(&unknown));
        let advice = "until Forgejo does, whoever has such a login is meant: who is denied can take another one, and who \
                      takes an allowed one is let in; write `id:NUMBER` (`forgejo-mcp-brokerctl users`, or `id` in \
                      Forgejo's /api/v1/users/LOGIN)";
        all.push(finding(CHECK, Health::Warn, found, Some(advice)));
    }
    if !moved.is_empty() {
        let found = format!("these have changed hands: {}", told(&moved));
        let advice = "the entry stays with the account that it was read for, and `deny` holds for both: write the \
                      `id:NUMBER` that you mean";
        all.push(finding(CHECK, Health::Warn, found, Some(advice)));
    }
    all
}

fn told(all: &[String]) -> String {
    let text = all.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(more) = all.len().checked_sub(TOLD).filter(|more| *more > 0) {
        return format!("{text} and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::clock::UnixTime;
    use wire::message::TenantId;

    fn account(number: u64) -> NamedAccount {
        NamedAccount { tenant: TenantId::new(number).expect("an id"), created: UnixTime::from_secs(1) }
    }

    #[test]
    fn a_login_that_nobody_has_said_whose_it_is_or_that_changed_hands_is_a_warning() {
        let held = [("alice", Some(1)), ("bob", Some(2)), ("carol", None), ("dora", Some(4))]
            .map(|(login, number)| (login, number.map(account)));
        let answers = [("alice", Some(1)), ("bob", Some(9)), ("carol", None), ("dora", None)]
            .map(|(login, number)| (login.to_owned(), number.map(account)));
        let found = judge(&held, &answers);
        let told: Vec<_> = found.iter().map(|one| (one.state, one.found.as_str())).collect();
        assert_eq!(
            told,
            [
                (Health::Note, "user:alice is id:1, user:dora is id:4"),
                (Health::Warn, "nobody has said whose these are: user:carol"),
                (Health::Warn, "these have changed hands: user:bob (id:2, and the login is id:9's now)"),
            ]
        );
        assert!(judge(&[], &[]).is_empty(), "lists without logins need no word");
    }

    #[test]
    fn a_long_list_is_cut_short() {
        let all: Vec<String> = (0..23).map(|n| n.to_string()).collect();
        assert!(super::told(&all).ends_with(", 19 and 3 more"));
    }
}
