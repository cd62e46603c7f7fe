//! A child's standard input.
//!
//! Whoever has a line writes it at once, without a task in between, as long as the pipe takes it; what does not fit is
//! queued and fed by one task as the child reads. Lines never mix: a line is written only when nothing waits before it.
//! Lines in the queue are bounded by slots, so a child that does not read makes its clients wait, and nobody else.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::child::spawner::WriteEnd;
use crate::jsonrpc::Spliced;

/// Lines that wait for a child that does not read.
const MAX_QUEUED_LINES: usize = 16;
/// Pieces below this are joined before they are written; above, the copy would cost more than a system call.
const JOIN_BELOW: usize = 64 * 1024;

/// The pipe, and what waits for it.
pub(crate) struct StdinWriter {
    pipe: Mutex<Pipe>,
    slots: Arc<Semaphore>,
    /// Rung when something waits.
    more: Notify,
}

struct Pipe {
    /// `None` once it is closed.
    end: Option<WriteEnd>,
    waiting: VecDeque<(Bytes, Option<Slot>)>,
}

/// The right to have one line waiting.
pub(crate) type Slot = OwnedSemaphorePermit;

impl StdinWriter {
    pub(crate) fn new(end: WriteEnd) -> Self {
        let pipe = Mutex::new(Pipe { end: Some(end), waiting: VecDeque::new() });
        Self { pipe, slots: Arc::new(Semaphore::new(MAX_QUEUED_LINES)), more: Notify::new() }
    }

    /// Waits for a slot; `None` when the pipe is closed.
    pub(crate) async fn slot(&self) -> Option<Slot> {
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }

    /// Sends a line. What the pipe does not take now keeps its slot until it does.
    pub(crate) fn send(&self, line: Spliced, slot: Slot) {
        let mut pipe = self.pipe.lock();
        pipe.queue(line, slot);
        // Nobody is woken by this look: the feeder looks again when it is woken.
        if !matches!(pipe.write(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))) {
            self.more.notify_one();
        }
    }

    /// Sends a line if a slot is free; else it is lost, which the caller can afford.
    pub(crate) fn try_send(&self, line: Spliced) {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            self.send(line, slot);
        }
    }

    /// Feeds what waits until told to stop, then closes the pipe.
    pub(crate) async fn feed(&self, stop: &CancellationToken) {
        let feeding = async {
            loop {
                self.more.notified().await;
                let written = std::future::poll_fn(|cx| self.pipe.lock().write(cx)).await;
                if let Err(error) = written {
                    // The reader sees the end of the output and tells the clients.
                    debug!(error = %error, "the child does not read its input any more");
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = feeding => {}
        }
        self.slots.close();
        let mut pipe = self.pipe.lock();
        pipe.end = None;
        pipe.waiting = VecDeque::new();
    }
}

impl Pipe {
    fn queue(&mut self, line: Spliced, slot: Slot) {
        if self.end.is_none() {
            return;
        }
        let mut parts = if line.len() < JOIN_BELOW {
            let mut joined = Vec::with_capacity(line.len().saturating_add(1));
            for part in line.into_parts() {
                joined.extend_from_slice(&part);
            }
            joined.push(b'\n');
            vec![Bytes::from(joined)]
        } else {
            let mut parts = line.into_parts();
            parts.push(Bytes::from_static(b"\n"));
            parts
        };
        // The slot is free again when the last piece is written.
        let last = parts.pop();
        self.waiting.extend(parts.into_iter().map(|part| (part, None)));
        self.waiting.extend(last.map(|part| (part, Some(slot))));
    }

    /// Writes what waits, as far as the pipe takes it.
    fn write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(end) = &mut self.end else { return Poll::Ready(Ok(())) };
        while let Some((part, _)) = self.waiting.front_mut() {
            while part.has_remaining() {
                let written = match Pin::as_mut(end).poll_write(cx, part) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => written,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => return Poll::Pending,
                };
                part.advance(written);
            }
            self.waiting.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}
