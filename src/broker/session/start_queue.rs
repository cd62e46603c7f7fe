//! Who may start a child next.
//!
//! Starts are the dearest thing a user can cause, so only a few run at once, and each user stands in the common queue
//! at most once: a user who asks for fifty waits behind themselves, not in front of others. The user's own queue is
//! bounded; beyond it the answer is «try again», not a longer queue.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use wire::message::TenantId;

/// The user waits for too many starts already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many starts of this user are waiting")]
pub(crate) struct QueueFull;

/// The queues.
#[derive(Debug)]
pub(crate) struct StartQueue {
    common: Arc<Semaphore>,
    users: Mutex<HashMap<TenantId, Queue>>,
    longest: usize,
}

#[derive(Debug)]
struct Queue {
    permit: Arc<Semaphore>,
    waiting: usize,
}

/// The right to start one child, until dropped.
#[derive(Debug)]
pub(crate) struct StartPermit<'a> {
    start_queue: &'a StartQueue,
    tenant: TenantId,
    /// Held, never read: the user's own and the common one.
    held: [Option<OwnedSemaphorePermit>; 2],
}

impl StartQueue {
    /// At most `at_once` starts together, and `longest` of one user waiting or running.
    pub(crate) fn new(at_once: usize, longest: usize) -> Self {
        Self { common: Arc::new(Semaphore::new(at_once)), users: Mutex::default(), longest }
    }

    /// Starts that run or wait, of all users.
    pub(crate) fn waiting(&self) -> usize {
        self.users.lock().values().map(|queue| queue.waiting).sum()
    }

    /// Waits for the user's own turn. Dropping the future leaves the queue. A start that goes on to wait for something of
    /// its user's holds up nobody else, before it has the common permit as well ([`StartPermit::common`]).
    pub(crate) async fn own(&self, tenant: TenantId) -> Result<StartPermit<'_>, QueueFull> {
        let own = {
            let mut users = self.users.lock();
            let queue =
                users.entry(tenant).or_insert_with(|| Queue { permit: Arc::new(Semaphore::new(1)), waiting: 0 });
            if queue.waiting >= self.longest {
                return Err(QueueFull);
            }
            queue.waiting = queue.waiting.saturating_add(1);
            Arc::clone(&queue.permit)
        };
        // From here on the guard leaves the queue, also when this future is dropped while it waits.
        let mut permit = StartPermit { start_queue: self, tenant, held: [None, None] };
        // Neither semaphore is ever closed.
        permit.held = [own.acquire_owned().await.ok(), None];
        Ok(permit)
    }
}

impl StartPermit<'_> {
    /// Waits for the common permit as well, unless it is held.
    pub(crate) async fn common(&mut self) {
        let [_, common] = &mut self.held;
        if common.is_none() {
            *common = Arc::clone(&self.start_queue.common).acquire_owned().await.ok();
        }
    }

    /// Gives the common permit back, while this start has to wait for something of its own.
    pub(crate) fn step_back(&mut self) {
        let [_, common] = &mut self.held;
        *common = None;
    }
}

impl Drop for StartPermit<'_> {
    fn drop(&mut self) {
        let mut users = self.start_queue.users.lock();
        if let Some(queue) = users.get_mut(&self.tenant) {
            queue.waiting = queue.waiting.saturating_sub(1);
            if queue.waiting == 0 {
                users.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn tenant(id: u64) -> TenantId {
        TenantId::new(id).expect("an id")
    }

    /// Both permits, as a start takes them.
    async fn turn(queue: &StartQueue, tenant: TenantId) -> Result<StartPermit<'_>, QueueFull> {
        let mut permit = queue.own(tenant).await?;
        permit.common().await;
        Ok(permit)
    }

    #[tokio::test]
    async fn a_burst_of_one_user_does_not_hold_up_another() {
        let queue = StartQueue::new(2, 8);
        let first = turn(&queue, tenant(1)).await.expect("a turn");
        let mut second = Box::pin(turn(&queue, tenant(1)));
        assert!((&mut second).now_or_never().is_none(), "the user's second start waits for the first");
        let other = turn(&queue, tenant(2)).now_or_never().expect("another user does not wait");
        drop(other);
        drop(first);
        assert!(second.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_start_that_waits_for_something_of_its_users_keeps_nobody_from_starting() {
        let queue = StartQueue::new(1, 8);
        let mut first = queue.own(tenant(1)).await.expect("its user's turn");
        let other = turn(&queue, tenant(2)).now_or_never().expect("not held up").expect("a turn");
        assert!(first.common().now_or_never().is_none(), "the common permit is the other's");
        drop(other);
        assert!(first.common().now_or_never().is_some());
        assert!(first.common().now_or_never().is_some(), "it is asked for once");
        first.step_back();
        assert!(turn(&queue, tenant(2)).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_users_queue_is_bounded_and_leaves_nothing_behind() {
        let queue = StartQueue::new(1, 2);
        let first = turn(&queue, tenant(1)).await.expect("a turn");
        let mut second = Box::pin(turn(&queue, tenant(1)));
        assert!((&mut second).now_or_never().is_none());
        assert!(queue.own(tenant(1)).await.is_err());
        drop(second);
        drop(first);
        assert!(queue.users.lock().is_empty());
        assert!(turn(&queue, tenant(1)).now_or_never().is_some());
    }
}
