//! Writes that must not fail: what Forgejo has just given out is nowhere else.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::error;

use crate::chain::chain;
use crate::forge::rotation::pause::BACKOFF;
use crate::store::StoreError;

/// How often such a write is tried again, with growing pauses: for two and a half minutes.
const MAX_WRITES: u32 = 5;

/// A login that waits for a store that takes nothing: how whoever is to tell its person hears of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeldUp(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Whether the last try has failed.
    is_so: watch::Sender<bool>,
    again: Notify,
}

impl HeldUp {
    /// Has what is held up tried now, whatever is left of the pause. It is not for nothing: somebody asks.
    pub(crate) fn try_again(&self) {
        if *self.0.is_so.borrow() {
            self.0.again.notify_one();
        }
    }

    /// What completes once a try has failed from now on.
    pub(crate) fn failed(&self) -> impl Future<Output = ()> + use<> {
        // Kept, so that the channel stays open: the login may end first.
        let held_up = self.clone();
        let mut is_so = self.0.is_so.subscribe();
        async move {
            while is_so.changed().await.is_ok() && !*is_so.borrow_and_update() {}
            drop(held_up);
        }
    }

    /// Waits; whether to the end, and not until somebody asked.
    async fn pause(&self, pause: Duration) -> bool {
        tokio::select! {
            () = sleep(pause) => true,
            () = self.0.again.notified() => false,
        }
    }
}

/// Tries a write until it succeeds, for a while.
pub(super) async fn persist<T, F: Future<Output = Result<T, StoreError>>>(
    held_up: &HeldUp,
    mut write: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let mut pauses = 0;
    loop {
        let outcome = write().await;
        held_up.0.is_so.send_replace(outcome.is_err());
        match outcome {
            Err(e) if pauses < MAX_WRITES => {
                error!(error = %e, "a token that Forgejo has given out cannot be stored; trying again: {}", chain(&e));
            }
            outcome => return outcome,
        }
        // Only these count: who asks again and again must not use the tries up.
        if held_up.pause(BACKOFF.after(pauses.saturating_add(1))).await {
            pauses = pauses.saturating_add(1);
        }
    }
}
