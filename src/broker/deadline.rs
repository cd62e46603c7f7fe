//! When a request came and by when it is to be answered: what every wait on its way counts against.

use std::time::Duration;

use tokio::time::Instant;

/// The time of a request. Goes with it in its extensions, from before anything is awaited for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    received: Instant,
    at: Instant,
}

impl Deadline {
    /// Of a request that has come just now and may take so long.
    pub(crate) fn within(limit: Duration) -> Self {
        let received = Instant::now();
        Self { received, at: received + limit }
    }

    /// When it came.
    pub(crate) fn received(self) -> Instant {
        self.received
    }

    /// By when it is to be answered.
    pub(crate) fn at(self) -> Instant {
        self.at
    }
}
