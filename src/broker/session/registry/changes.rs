//! What becomes of a session and must hold after a restart: that it ended, or moved to a later login.
//!
//! In memory it holds at once, whatever the store says. What the store does not take, because its disk is full or somebody
//! has it locked, is kept and stored again by the reaper and at a stop: without that an ended session would be back after
//! a restart, and one that moved would end with the login that it has left. Of sessions there are only so many, and none is
//! opened without the store; [`MAX_UNSTORED`] is for those whose opening the store may have taken or not.

use tracing::{debug, error};

use crate::chain::chain;
use crate::session::id;
use crate::session::registry::Registry;
use crate::store::{SessionDigest, StoreError};
use wire::clock::UnixTime;

/// Changes that are kept at most, with some 5 MiB.
const MAX_UNSTORED: usize = 1 << 16;

/// What became of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It ended.
    Ended {
        /// Why.
        reason: &'static str,
        /// When.
        at: UnixTime,
    },
    /// It belongs to a later grant: the one that it has when this is stored.
    Moved,
}

impl Registry {
    /// Stores a change, now or as soon as the store takes it.
    pub(super) async fn store_change(&self, digest: SessionDigest, change: Change) {
        if let Err(error) = self.try_to_store(&digest, change).await {
            error!(
                session = %id::tag(&digest), error = %error,
                "what became of a session could not be stored; it is tried again every half minute: {}", chain(&error)
            );
            let mut unstored = self.0.unstored.lock();
            if unstored.len() < MAX_UNSTORED || unstored.contains_key(&digest) {
                // An end is final: a move that was under way when the session ended must not take its place.
                let kept = unstored.entry(digest).or_insert(change);
                if *kept == Change::Moved {
                    *kept = change;
                }
            }
        }
    }

    /// Stores what the store did not take before.
    pub(super) async fn store_changes_again(&self) {
        let unstored: Vec<_> = self.0.unstored.lock().iter().map(|(digest, change)| (*digest, *change)).collect();
        for (digest, change) in unstored {
            match self.try_to_store(&digest, change).await {
                Ok(()) => {
                    let mut unstored = self.0.unstored.lock();
                    if unstored.get(&digest) == Some(&change) {
                        unstored.remove(&digest);
                    }
                }
                // The others would wait for it as long, one after the other.
                Err(error) => {
                    let left = self.0.unstored.lock().len();
                    error!(left, error = %error, "what became of sessions can still not be stored: {}", chain(&error));
                    return;
                }
            }
        }
    }

    /// How many changes wait for the store.
    #[cfg(test)]
    pub(crate) fn unstored(&self) -> usize {
        self.0.unstored.lock().len()
    }

    async fn try_to_store(&self, digest: &SessionDigest, change: Change) -> Result<(), StoreError> {
        let inner = &self.0;
        match change {
            Change::Ended { reason, at } => inner.records.end(digest, reason, at).await,
            Change::Moved => {
                let Some(session) = inner.sessions.lock().get(digest).cloned() else {
                    debug!(session = %id::tag(digest), "a session that moved has ended");
                    return Ok(());
                };
                match inner.records.move_to(digest, &session.grant()).await {
                    // That login was revoked since its token was looked at: the session ends with it.
                    Err(StoreError::GrantRevoked) => {
                        self.end(&session, "revoked");
                        Ok(())
                    }
                    moved => moved,
                }
            }
        }
    }
}
