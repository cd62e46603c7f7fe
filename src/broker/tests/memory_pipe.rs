//! A pipe in memory that behaves like the kernel's: bounded, and waking whoever waits when something was read.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};

use crate::child::spawner::PipeWriter;

#[derive(Debug)]
pub(crate) struct MemoryPipe {
    state: Mutex<State>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    writers: Vec<Waker>,
    reader: Option<Waker>,
    write_closed: bool,
    read_closed: bool,
}

impl MemoryPipe {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), capacity }
    }

    /// Both ends, each of which closes its own side when dropped.
    pub(crate) fn ends(capacity: usize) -> (Arc<Writer>, Reader) {
        let pipe = Arc::new(Self::new(capacity));
        (Arc::new(Writer(Arc::clone(&pipe))), Reader(pipe))
    }

    /// Reads at most `most` bytes that are there.
    pub(crate) fn read(&self, most: usize) -> Vec<u8> {
        let mut state = self.state.lock();
        let most = most.min(state.bytes.len());
        let read = state.bytes.drain(..most).collect::<Vec<u8>>();
        if !read.is_empty() {
            state.writers.drain(..).for_each(Waker::wake);
        }
        read
    }
}

impl PipeWriter for MemoryPipe {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        if state.read_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = self.capacity.saturating_sub(state.bytes.len()).min(bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.bytes.extend(&bytes[..room]);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(room)
    }

    fn writable(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.bytes.len() < self.capacity || state.read_closed {
                return Poll::Ready(Ok(()));
            }
            state.writers.push(cx.waker().clone());
            Poll::Pending
        }))
    }
}

#[derive(Debug)]
pub(crate) struct Writer(Arc<MemoryPipe>);

impl PipeWriter for Writer {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn writable(&self) -> BoxFuture<'_, io::Result<()>> {
        self.0.writable()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.write_closed = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

#[derive(Debug)]
pub(crate) struct Reader(Arc<MemoryPipe>);

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.0.read(buffer.remaining());
        if !read.is_empty() {
            buffer.put_slice(&read);
            return Poll::Ready(Ok(()));
        }
        let mut state = self.0.state.lock();
        if state.write_closed {
            return Poll::Ready(Ok(()));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.read_closed = true;
        state.writers.drain(..).for_each(Waker::wake);
    }
}
