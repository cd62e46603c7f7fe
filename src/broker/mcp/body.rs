//! The body of a request, read within its bounds: in bytes, in time, and in what its user may have in memory.
//!
//! What is refused in the middle is refused with the request's id, where that was in what came.

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Duration, Instant, timeout_at};

use crate::budget::{Budget, Held, OverBudget, counted};
use crate::mcp::refusal::Refusal;
use crate::mcp::sought_id::SoughtId;

/// How long a client may send nothing in the middle of a message. A slow line is no error, silence is.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// Bodies below this are not counted: each is smaller than what a connection costs anyway.
const COUNTED_FROM: usize = 1024;

/// How much of a body is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes.
    pub(crate) limit: usize,
    /// Of the whole request.
    pub(crate) deadline: Instant,
    /// Whether a body that is too much is read on, within the limit and without keeping it, for the request's id: the
    /// official SDKs write it last. For requests of a session, whose clients survive an error better than a status.
    pub(crate) seeks_id: bool,
}

/// Reads a whole body. Its bytes are held against the budget for as long as any part of them is kept.
pub(crate) async fn read(body: Body, headers: &HeaderMap, bounds: Bounds, budget: &Budget) -> Result<Bytes, Refusal> {
    let said = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    // Before a byte of it is read.
    if said.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > bounds.limit)) {
        return Err(Refusal::body_too_large(bounds.limit));
    }
    let mut incoming = Incoming { body, deadline: bounds.deadline };
    let mut whole = Whole::default();
    let (refusal, mut sought) = loop {
        let data = match incoming.next().await {
            Ok(Some(data)) => data,
            Ok(None) => return Ok(whole.finish()),
            Err(refusal) => return Err(refusal.of(whole.sought_id().found().as_ref())),
        };
        let refusal = if whole.length().saturating_add(data.len()) > bounds.limit {
            Refusal::body_too_large(bounds.limit)
        } else {
            match whole.push(&data, budget) {
                Ok(()) => continue,
                Err(over) => Refusal::over_budget(over),
            }
        };
        let mut sought = whole.sought_id();
        sought.look(&data);
        break (refusal, sought);
    };
    let mut read = whole.length();
    // Given back before the wait for more.
    drop(whole);
    while bounds.seeks_id
        && read < bounds.limit
        && let Ok(Some(data)) = incoming.next().await
    {
        sought.look(&data);
        read = read.saturating_add(data.len());
    }
    Err(refusal.of(sought.found().as_ref()))
}

/// A body as it comes.
struct Incoming {
    body: Body,
    deadline: Instant,
}

impl Incoming {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        while !self.body.is_end_stream() {
            let by = self.deadline.min(Instant::now() + MAX_SILENCE);
            let frame = timeout_at(by, self.body.frame()).await.map_err(|_| Refusal::body_timeout())?;
            let Some(frame) = frame else { break };
            if let Ok(data) = frame.map_err(|_| Refusal::body_unreadable())?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// What has come so far. One piece, as nearly all bodies are, is not copied.
#[derive(Default)]
struct Whole {
    first: Bytes,
    all: BytesMut,
    held: Option<Held>,
}

impl Whole {
    fn length(&self) -> usize {
        self.first.len().saturating_add(self.all.len())
    }

    /// The id in what has come.
    fn sought_id(&self) -> SoughtId {
        let mut sought = SoughtId::default();
        sought.look(&self.first);
        sought.look(&self.all);
        sought
    }

    fn push(&mut self, data: &Bytes, budget: &Budget) -> Result<(), OverBudget> {
        let length = self.length().saturating_add(data.len());
        if length >= COUNTED_FROM {
            let held = match &mut self.held {
                Some(held) => held,
                none => none.insert(budget.hold(0)?),
            };
            held.grow(length.saturating_sub(held.bytes()))?;
        }
        if self.length() == 0 {
            self.first = data.clone();
            return Ok(());
        }
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            self.all.extend_from_slice(&first);
        }
        self.all.extend_from_slice(data);
        Ok(())
    }

    fn finish(self) -> Bytes {
        let bytes = if self.all.is_empty() { self.first } else { self.all.freeze() };
        match self.held {
            Some(held) => counted(bytes, held),
            None => bytes,
        }
    }
}
