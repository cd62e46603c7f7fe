//! What is in flight with all children together: whether any deadline has to be looked at, and word of children that have
//! become idle, for those who wait for one to make room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The count of requests in flight.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    calls: AtomicUsize,
    /// The first request is in flight.
    begun: Notify,
    /// A child has answered all it had.
    idle: Notify,
}

impl Activity {
    /// Resolves as soon as something is in flight.
    pub(crate) async fn any(&self) {
        loop {
            let begun = self.begun.notified();
            if self.calls.load(Ordering::Acquire) > 0 {
                return;
            }
            begun.await;
        }
    }

    /// Resolves when the next child becomes idle; made before a look, it misses none after it.
    pub(crate) fn idle(&self) -> Notified<'_> {
        self.idle.notified()
    }

    /// A child has become idle.
    pub(crate) fn became_idle(&self) {
        self.idle.notify_waiters();
    }

    /// Requests in flight.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    pub(crate) fn begin(self: &Arc<Self>) -> Active {
        if self.calls.fetch_add(1, Ordering::AcqRel) == 0 {
            self.begun.notify_one();
        }
        Active(Arc::clone(self))
    }
}

/// One request in flight, until dropped.
#[derive(Debug)]
pub(crate) struct Active(Arc<Activity>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}
