//! What goes to each connection: a bounded queue, and a goodbye at its end.
//!
//! Trusts nobody to read: an answer that does not fit any more is told to the core, which parts with the connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::core::{ConnId, Event};
use crate::executor::Executor;
use crate::log_limit::Line;
use wire::codec;
use wire::message::{Farewell, MAX_QUEUED_REPLIES, Reply};
use wire::telemetry::message_id;

/// A packet on its way to the broker.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The frame.
    pub(crate) frame: Zeroizing<Vec<u8>>,
    /// What rides on it.
    pub(crate) fds: Vec<OwnedFd>,
}

/// What waits for one connection, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// At most [`MAX_QUEUED_REPLIES`], and a goodbye.
    pub(crate) queue: RefCell<VecDeque<Outgoing>>,
    /// The goodbye is in the queue: close when it is sent.
    pub(crate) leaving: Cell<bool>,
    /// `StopStep` when either has changed.
    pub(crate) changed: Notify,
}

impl Executor {
    pub(super) fn send(&self, conn: ConnId, reply: &Reply, fds: Vec<OwnedFd>) -> Option<Event> {
        if let Reply::Refused { refusal, .. } = reply
            && let Some(Line { left_out }) = self.may_log(refusal.code())
        {
            let reason = refusal.code();
            tracing::warn!(
                MESSAGE_ID = message_id::REFUSED,
                reason,
                ?refusal,
                left_out,
                "a request of the broker was refused: {refusal}"
            );
        }
        let outbox = self.state.borrow().conns.get(&conn).cloned()?;
        if outbox.leaving.get() {
            return None;
        }
        if outbox.queue.borrow().len() >= MAX_QUEUED_REPLIES {
            return Some(Event::Backlogged(conn));
        }
        match codec::encode(reply) {
            Ok(frame) => outbox.queue.borrow_mut().push_back(Outgoing { frame, fds }),
            // No reply comes near a frame's size; a new one that does must be seen.
            Err(error) => tracing::error!(%error, "a reply was lost"),
        }
        outbox.changed.notify_one();
        None
    }

    pub(super) fn hang_up(&self, conn: ConnId, reason: Farewell) {
        if let Some(Line { left_out }) = self.may_log(reason.code()) {
            let reason = reason.code();
            tracing::info!(
                MESSAGE_ID = message_id::HUNG_UP,
                reason,
                left_out,
                "connection closed by the supervisor ({reason})"
            );
        }
        let Some(outbox) = self.state.borrow().conns.get(&conn).cloned() else { return };
        if reason == Farewell::NotReading {
            outbox.queue.borrow_mut().clear();
        }
        if let Ok(frame) = codec::encode(&Reply::Goodbye { reason }) {
            outbox.queue.borrow_mut().push_back(Outgoing { frame, fds: Vec::new() });
        }
        outbox.leaving.set(true);
        outbox.changed.notify_one();
    }
}
