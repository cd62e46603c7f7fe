//! A child's standard input.
//!
//! Whoever has a line writes it at once, without a task in between, as long as the pipe takes it; what does not fit is
//! queued and fed by one task as the child reads. Lines never mix: a line is written only when nothing waits before it.
//! Lines in the queue are bounded by slots, so a child that does not read makes its clients wait, and nobody else.
//!
//! Who waits for the pipe is the runtime's business ([`PipeWriter::writable`]): a write that is tried in between takes no
//! wake-up away from the feeding task. The tests below try every order of a few steps.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

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
    queue: Mutex<Queue>,
    slots: Arc<Semaphore>,
    /// Something waits, so the feeding task has work.
    more: Notify,
    /// The child has closed its end.
    broken: CancellationToken,
}

struct Queue {
    /// `None` once it is closed.
    pipe: Option<WriteEnd>,
    waiting: VecDeque<(Bytes, Option<Slot>)>,
}

/// The right to have one line waiting.
pub(crate) type Slot = OwnedSemaphorePermit;

impl StdinWriter {
    pub(crate) fn new(pipe: WriteEnd) -> Self {
        let queue = Mutex::new(Queue { pipe: Some(pipe), waiting: VecDeque::new() });
        Self {
            queue,
            slots: Arc::new(Semaphore::new(MAX_QUEUED_LINES)),
            more: Notify::new(),
            broken: CancellationToken::new(),
        }
    }

    /// A slot, if one is free now.
    pub(crate) fn try_slot(&self) -> Option<Slot> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Resolves when the child has closed its end of the pipe, which is noticed when something is written.
    pub(crate) async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Waits for a slot; `None` when the pipe is closed.
    pub(crate) async fn slot(&self) -> Option<Slot> {
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }

    /// Sends a line. What the pipe does not take now keeps its slot until it does.
    pub(crate) fn send(&self, line: Spliced, slot: Slot) {
        let mut queue = self.queue.lock();
        queue.push(line, slot);
        // An error is the feeding task's to report: it tries the same write.
        if queue.write().is_err() {
            self.more.notify_one();
        }
    }

    /// Sends a line if a slot is free; else it is lost, which the caller can afford.
    pub(crate) fn try_send(&self, line: Spliced) {
        if let Some(slot) = self.try_slot() {
            self.send(line, slot);
        }
    }

    /// Feeds what waits until told to stop, then closes the pipe.
    pub(crate) async fn feed(&self, stop: &CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Err(error) = self.feed_until_closed() => {
                debug!(error = %error, "the child does not read its input any more");
                self.broken.cancel();
            }
        }
        self.slots.close();
        let mut queue = self.queue.lock();
        queue.pipe = None;
        queue.waiting = VecDeque::new();
    }

    async fn feed_until_closed(&self) -> io::Result<()> {
        loop {
            self.more.notified().await;
            loop {
                let pipe = {
                    let mut queue = self.queue.lock();
                    match queue.write() {
                        Ok(()) => break,
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => queue.pipe.clone(),
                        Err(e) => return Err(e),
                    }
                };
                let Some(pipe) = pipe else { return Ok(()) };
                pipe.writable().await?;
            }
        }
    }
}

impl Queue {
    fn push(&mut self, line: Spliced, slot: Slot) {
        if self.pipe.is_none() {
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

    /// Writes what waits, as far as the pipe takes it; `WouldBlock` where something is left.
    fn write(&mut self) -> io::Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        while let Some((part, _)) = self.waiting.front_mut() {
            while part.has_remaining() {
                match pipe.try_write(part)? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    written => part.advance(written),
                }
            }
            self.waiting.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    use super::*;
    use crate::tests::memory_pipe::MemoryPipe;

    /// What the runtime does with a task: it is polled when it was woken, and only then.
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        SendSmall,
        SendLarge,
        ReadSome,
        Run,
    }

    const STEPS: [Step; 4] = [Step::SendSmall, Step::SendLarge, Step::ReadSome, Step::Run];
    const STEPS_EACH: u32 = 7;

    fn line(n: usize, length: usize) -> String {
        format!("{n}:{}", "x".repeat(length))
    }

    #[test]
    fn no_order_of_writes_reads_and_wake_ups_loses_or_mixes_a_line() {
        for schedule in 0..STEPS.len().pow(STEPS_EACH) {
            let steps: Vec<_> = (0..STEPS_EACH).map(|at| STEPS[schedule / STEPS.len().pow(at) % STEPS.len()]).collect();
            let pipe = Arc::new(MemoryPipe::new(8));
            let writer = StdinWriter::new(pipe.clone());
            let (mut sent, mut read) = (String::new(), Vec::new());
            let woken = Arc::new(Woken(AtomicBool::new(true)));
            let waker = Waker::from(Arc::clone(&woken));
            let stop = CancellationToken::new();
            let mut feeding = Box::pin(writer.feed(&stop));
            let mut run = || {
                if woken.0.swap(false, Ordering::SeqCst) {
                    let polled = feeding.as_mut().poll(&mut Context::from_waker(&waker));
                    assert_eq!(polled, Poll::Pending, "{steps:?}");
                }
            };
            for (n, step) in steps.iter().enumerate() {
                match step {
                    Step::SendSmall | Step::SendLarge => {
                        let text = line(n, if matches!(step, Step::SendSmall) { 2 } else { 20 });
                        sent.push_str(&text);
                        sent.push('\n');
                        writer.try_send(Spliced::whole(text.into()));
                    }
                    Step::ReadSome => read.extend(pipe.read(5)),
                    Step::Run => run(),
                }
            }
            // The child reads on, the task runs when it is woken: everything must come, without a further line.
            loop {
                run();
                let more = pipe.read(5);
                if more.is_empty() {
                    break;
                }
                read.extend(more);
            }
            assert_eq!(String::from_utf8(read).as_deref(), Ok(&*sent), "{steps:?}");
        }
    }
}
