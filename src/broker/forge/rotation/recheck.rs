//! Accounts are looked at now and then, also where no token is refreshed: personal ones never are.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::{self, StreamExt};
use tracing::error;

use crate::chain::chain;
use crate::forge::identity;
use crate::forge::rotation::ownership::GOOD_FOR;
use crate::forge::rotation::{MAX_REFRESHES, Rotation, Word};
use crate::store::UncheckedCredential;

impl Rotation {
    /// Looks whether the forge is still the same, once an hour; where it is not, all accounts are looked at again.
    pub(crate) async fn recheck_forge(&self) {
        let (inner, now) = (&self.0, self.0.clock.now());
        let mut last = inner.forge_seen.lock().await;
        if last.is_some_and(|at| at > now.minus(GOOD_FOR)) {
            return;
        }
        *last = Some(now);
        if identity::look(&inner.store, &inner.forgejo, now).await {
            return;
        }
        inner.unwritten.lock().clear();
        if let Err(e) = inner.store.age_owner_checks().await {
            error!(error = %e, "the accounts that must be looked at cannot be noted: {}", chain(&e));
        }
    }

    /// Looks at the accounts behind tokens that a live grant needs and that were not looked at for an hour. Who is not
    /// let in any more, or is another, loses the grants that stand on the token; trouble on the way is no verdict.
    pub(crate) async fn recheck(&self) {
        // In whole seconds: what is stale for whoever asks for a token is stale here.
        let before = self.0.clock.now().minus(GOOD_FOR);
        let due = match self.0.store.credentials_unchecked_since(before).await {
            Ok(due) => due,
            Err(e) => {
                error!(error = %e, "the accounts that must be looked at cannot be looked up: {}", chain(&e));
                return;
            }
        };
        let in_vain = AtomicUsize::new(0);
        let look = |credential: UncheckedCredential| {
            let in_vain = &in_vain;
            async move {
                // While Forgejo is away, nobody else can be looked at. It is where nobody had an answer of those who were
                // asked about last: it may have none for one account alone.
                let is_away = in_vain.load(Ordering::Relaxed) >= MAX_REFRESHES;
                // What is due is refreshed by the next sweep, which looks then.
                if is_away || self.is_due(credential.refreshed_before) {
                    return;
                }
                // What came of it was logged where it was seen.
                match self.looked_at_in_a_task(&credential.id, false).await.word {
                    Word::Away => in_vain.fetch_add(1, Ordering::Relaxed),
                    _ => in_vain.swap(0, Ordering::Relaxed),
                };
            }
        };
        stream::iter(due).for_each_concurrent(MAX_REFRESHES, look).await;
    }
}
