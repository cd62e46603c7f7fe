//! The open sessions, found by what their clients name and by the grants that they end with.
//!
//! Logins, refreshes and revocations each ask for the sessions of one grant, so that must not cost a look at everybody's.

use std::collections::HashMap;
use std::sync::Arc;

use crate::auth::principal::{GrantId, Principal};
use crate::session::record::{Admitted, Session};
use crate::store::SessionDigest;

/// All open sessions. A session's grant changes in [`Table::admit`] and nowhere else, so that both ways lead to the same.
#[derive(Debug, Default)]
pub(super) struct Table {
    sessions: HashMap<SessionDigest, Arc<Session>>,
    of_grants: HashMap<GrantId, Vec<Arc<Session>>>,
}

impl Table {
    /// A session opens.
    pub(super) fn insert(&mut self, session: Arc<Session>) {
        self.of_grants.entry(session.grant()).or_default().push(Arc::clone(&session));
        self.sessions.insert(session.digest, session);
    }

    /// A session ends; whether it was open.
    pub(super) fn remove(&mut self, digest: &SessionDigest) -> bool {
        let Some(session) = self.sessions.remove(digest) else { return false };
        self.leave(&session.grant(), digest);
        true
    }

    /// Whether the caller may use a session, which may move to the caller's grant by that; none where none is open.
    pub(super) fn admit(&mut self, digest: &SessionDigest, caller: &Principal) -> Option<(Arc<Session>, Admitted)> {
        let session = Arc::clone(self.sessions.get(digest)?);
        let admitted = session.admit(caller);
        if let Admitted::Moved { from } = &admitted {
            self.leave(from, digest);
            self.of_grants.entry(session.grant()).or_default().push(Arc::clone(&session));
        }
        Some((session, admitted))
    }

    fn leave(&mut self, grant: &GrantId, digest: &SessionDigest) {
        if let Some(sessions) = self.of_grants.get_mut(grant) {
            sessions.retain(|session| session.digest != *digest);
            if sessions.is_empty() {
                self.of_grants.remove(grant);
            }
        }
    }

    /// One by its digest.
    pub(super) fn get(&self, digest: &SessionDigest) -> Option<&Arc<Session>> {
        self.sessions.get(digest)
    }

    /// Those that end with this grant.
    pub(super) fn of_grant(&self, grant: &GrantId) -> Vec<Arc<Session>> {
        self.of_grants.get(grant).cloned().unwrap_or_default()
    }

    /// All of them.
    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.sessions.values()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::machine::Machine;
    use crate::session::quota::{Caps, Quota};
    use crate::session::record::Record;
    use crate::session::settings::Settings;
    use crate::tests::sessions::fixture::{caller, caller_but};
    use std::time::Duration;

    fn session(n: u8, owner: &Principal, quota: &Quota) -> Arc<Session> {
        let record = Record {
            digest: SessionDigest([n; 32]),
            holder: owner.holder(),
            given: owner.given(),
            version: "2025-06-18".into(),
            get_stream: Arc::default(),
            last_used: owner.granted_at,
        };
        let permit = quota.take(owner.tenant).expect("a permit");
        Arc::new(Session::new(record, Settings::default(), Machine::cold(false), permit))
    }

    #[test]
    fn a_session_is_found_by_the_grant_that_it_has_moved_to_and_leaves_nothing_behind() {
        let quota = Quota::new(Caps { total: 9, per_user: 9 });
        let first = caller(1, "g1");
        let second = caller_but(1, "g2", "upstream", |parts| {
            parts.granted_at = parts.granted_at.plus(Duration::from_secs(1));
        });
        let mut table = Table::default();
        for n in [1, 2] {
            table.insert(session(n, &first, &quota));
        }
        let found = |table: &Table, grant: &str| -> Vec<u8> {
            table.of_grant(&GrantId::new(grant)).iter().map(|session| session.digest.0[0]).collect()
        };
        assert_eq!((found(&table, "g1"), found(&table, "g2")), (vec![1, 2], vec![]));
        let digest = SessionDigest([1; 32]);
        let admitted = |table: &mut Table, caller: &Principal| table.admit(&digest, caller).expect("open").1;
        assert_eq!(admitted(&mut table, &first), Admitted::Yes);
        assert_eq!(admitted(&mut table, &caller(2, "g3")), Admitted::No);
        assert!(matches!(admitted(&mut table, &second), Admitted::Moved { .. }));
        assert_eq!((found(&table, "g1"), found(&table, "g2")), (vec![2], vec![1]));
        assert!(table.remove(&digest) && !table.remove(&digest));
        assert!(table.remove(&SessionDigest([2; 32])));
        assert!(table.of_grants.is_empty() && table.len() == 0, "{table:?}");
    }
}
