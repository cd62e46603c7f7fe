//! One request from when it is on its way to a child to its answer, as messages for its client.

use std::future::Future;
use std::pin::Pin;

use futures_util::stream::{self, Stream};
use tokio::time::timeout;

use super::asked::{Asked, Sent};
use super::events::KEEPALIVE_AFTER;
use crate::child::calls::Event;
use crate::jsonrpc::Spliced;
use crate::mcp::refusal::Refusal;
use crate::metrics::CallOutcome;

/// Brings a request to a child.
pub(super) type Sending = Pin<Box<dyn Future<Output = Result<Sent, Refusal>> + Send>>;

/// One request while its answer is made.
pub(crate) struct Answering {
    phase: Phase,
    asked: Asked,
}

/// Where it is.
enum Phase {
    /// On its way to a child.
    Sending(Sending),
    /// With a child.
    Sent(Sent),
    /// Answered.
    Over,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Next {
    /// A message ahead of the answer.
    Note(Spliced),
    /// The answer; nothing comes after it.
    Last(Spliced),
    /// Nothing has come for a while.
    Silence,
    /// The request was cancelled, and nothing comes after this: no answer, or this error where there has to be one.
    Cancelled(Spliced),
}

impl Answering {
    /// Of a request that is on its way.
    pub(super) fn sending(sending: Sending, asked: Asked) -> Self {
        Self { phase: Phase::Sending(sending), asked }
    }

    /// Of a request that a child has.
    pub(crate) fn sent(sent: Sent, asked: Asked) -> Self {
        Self { phase: Phase::Sent(sent), asked }
    }

    /// What comes next; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Next> {
        let asked = &mut self.asked;
        loop {
            let last = match &mut self.phase {
                Phase::Sending(sending) => match timeout(KEEPALIVE_AFTER, sending).await {
                    Ok(Ok(sent)) => {
                        asked.sent(&sent);
                        self.phase = Phase::Sent(sent);
                        continue;
                    }
                    Ok(Err(refusal)) => Next::Last(asked.told_of(refusal)),
                    Err(_) => return Some(Next::Silence),
                },
                Phase::Sent(sent) => match sent.pending.next().await {
                    Some(Event::Note(text)) => return Some(Next::Note(text)),
                    Some(Event::Silence(_) | Event::Ask(_)) => return Some(Next::Silence),
                    Some(Event::Answer(text, ending)) => {
                        // The status is sent already: what it came to shows with the client's next request.
                        let _ = asked.settled(&text, ending).await;
                        asked.came_to(ending);
                        Next::Last(asked.seen(text, sent.view.as_ref()))
                    }
                    Some(Event::Gone(error)) => {
                        asked.came_to(CallOutcome::ChildGone);
                        Next::Last(error)
                    }
                    Some(Event::Cancelled) => {
                        asked.came_to(CallOutcome::Cancelled);
                        Next::Cancelled(asked.cancelled())
                    }
                    Some(Event::TimedOut) => {
                        asked.came_to(CallOutcome::TimedOut);
                        Next::Last(asked.timed_out())
                    }
                    None => {
                        asked.came_to(CallOutcome::Lost);
                        Next::Last(asked.lost())
                    }
                },
                Phase::Over => return None,
            };
            self.phase = Phase::Over;
            return Some(last);
        }
    }

    /// The answer, or the error that stands for it; what comes ahead of it has gone elsewhere.
    pub(super) async fn last(mut self) -> Spliced {
        loop {
            match self.next().await {
                Some(Next::Last(text) | Next::Cancelled(text)) => return text,
                Some(Next::Note(_) | Next::Silence) => {}
                None => return self.asked.lost(),
            }
        }
    }

    /// All that comes.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Next> + Send + 'static {
        stream::unfold(self, async |mut answering| answering.next().await.map(|next| (next, answering)))
    }
}
