//! The body of a request, read within its bounds: in bytes, in time, and in what its user may have in memory.

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Duration, Instant, timeout_at};

use crate::budget::{Budget, Held, OverBudget, counted};
use crate::mcp::refusal::Refusal;

/// How long a client may send nothing in the middle of a message. A slow line is no error, silence is.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// Bodies below this are not counted: each is smaller than what a connection costs anyway.
const COUNTED_FROM: usize = 1024;

/// Reads a whole body. Its bytes are held against the budget for as long as any part of them is kept.
pub(crate) async fn read(
    mut body: Body,
    headers: &HeaderMap,
    limit: usize,
    budget: &Budget,
    deadline: Instant,
) -> Result<Bytes, Refusal> {
    let said = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    // Before a byte of it is read.
    if said.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > limit)) {
        return Err(Refusal::body_too_large(limit));
    }
    let mut whole = Whole::default();
    loop {
        let by = deadline.min(Instant::now() + MAX_SILENCE);
        let frame = timeout_at(by, body.frame()).await.map_err(|_| Refusal::body_timeout())?;
        let Some(frame) = frame else { return Ok(whole.finish()) };
        let Ok(data) = frame.map_err(|_| Refusal::body_unreadable())?.into_data() else { continue };
        if whole.length().saturating_add(data.len()) > limit {
            return Err(Refusal::body_too_large(limit));
        }
        whole.push(data, budget).map_err(Refusal::over_budget)?;
        if body.is_end_stream() {
            return Ok(whole.finish());
        }
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

    fn push(&mut self, data: Bytes, budget: &Budget) -> Result<(), OverBudget> {
        let length = self.length().saturating_add(data.len());
        if length >= COUNTED_FROM {
            let held = match &mut self.held {
                Some(held) => held,
                none => none.insert(budget.hold(0)?),
            };
            held.grow(length.saturating_sub(held.bytes()))?;
        }
        if self.length() == 0 {
            self.first = data;
            return Ok(());
        }
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            self.all.extend_from_slice(&first);
        }
        self.all.extend_from_slice(&data);
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
