//! Batches: several messages in one POST (2025-03-26, basic/index, section Batching: MUST be received), in sessions that
//! negotiated that revision and in no other.
//!
//! A child speaks lines, so that each message goes to it by itself, in the order of the batch, and passes every check that
//! it would pass alone: scope, tool, audit, deadline, budget. A batch is well formed as a whole, or nothing of it is carried
//! out; from then on each request has an answer of its own, and a refused one its error in that place.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::Instant;

use crate::jsonrpc::batch::{self, BatchError};
use crate::jsonrpc::{Kind, Message, MessageError, RawId, Spliced, empty_result};
use crate::mcp::answer::{AnswerForm, Answering, Next, several};
use crate::mcp::endpoint::{self, Endpoint, Post, Said};
use crate::mcp::era::Era;
use crate::mcp::observed::Observed;
use crate::mcp::refusal::Refusal;
use crate::mcp::scope::Need;
use crate::metrics::CallOutcome;
use crate::session::record::Session;

/// The revision that has them; 2025-06-18 took them out again.
const REVISION: &str = "2025-03-26";

/// One message of a batch, and what a look at it came to.
struct Member {
    message: Message,
    need: Result<Need, Refusal>,
    observed: Option<Observed>,
}

/// What is done for it.
enum Step {
    /// It goes to the child and has an answer.
    Ask(Box<Said>, RawId, Option<Observed>),
    /// It goes to the child and wants no answer.
    Tell(Message, Instant),
    /// It is answered here.
    Answered(Spliced),
}

/// Answers a POST of a batch.
pub(super) async fn receive(endpoint: &Endpoint, post: Post<'_>, body: Bytes) -> Result<Response, Refusal> {
    let session = endpoint.session(post.headers, &post.caller)?;
    let session = session.filter(|session| *session.version == *REVISION);
    let session = session.ok_or_else(|| Refusal::message(MessageError::Batch, &[]))?;
    let messages = batch::parse(&body).map_err(|error| Refusal::batch(&error))?;
    drop(body);
    for (place, message) in (1..).zip(&messages) {
        if message.method() == Some("initialize") || Era::of(post.headers, message) == Era::Stateless {
            return Err(Refusal::batch(&BatchError::Alone { place }));
        }
    }
    let mut members: Vec<Member> =
        messages.into_iter().map(|message| look(endpoint, &session, &post, message)).collect();
    if let Some(refusal) = refused_as_a_whole(&mut members) {
        return refusal;
    }
    let has_answers = members.iter().any(Member::is_request);
    let steps: Vec<Step> = members.into_iter().map(|member| member.step(&post)).collect();
    let endpoint = endpoint.clone();
    let messages = stream::iter(steps).enumerate().then(move |(place, step)| {
        let (endpoint, session) = (endpoint.clone(), Arc::clone(&session));
        async move { take(&endpoint, session, step).await.map(move |next| (place, next)).boxed() }
    });
    // One after the other to the child, and all at once back.
    let mut messages = messages.flatten_unordered(None).boxed();
    if has_answers {
        return Ok(several(messages, post.accept).await);
    }
    while messages.next().await.is_some() {}
    Ok(StatusCode::ACCEPTED.into_response())
}

/// Looks at a message as at one that comes alone.
fn look(endpoint: &Endpoint, session: &Session, post: &Post<'_>, message: Message) -> Member {
    let message = endpoint::traced(message, &post.trace);
    let mut observed = post.begin(endpoint, &message);
    if let Some(observed) = &mut observed {
        observed.of_session(session.digest);
    }
    Member { need: endpoint.scope().need(&post.caller, &message), message, observed }
}

/// The refusal of all, where something is refused that wants no answer, so that nothing else could tell of it.
fn refused_as_a_whole(members: &mut [Member]) -> Option<Result<Response, Refusal>> {
    let mut silent = members.iter_mut().filter(|member| !member.is_request());
    let refusal = silent.find_map(|member| std::mem::replace(&mut member.need, Ok(Need::Nothing)).err())?;
    let mut is_observed = false;
    for observed in members.iter_mut().filter_map(|member| member.observed.as_mut()) {
        observed.refused(&refusal);
        is_observed = true;
    }
    // Counted once.
    Some(if is_observed { Ok(refusal.into_response()) } else { Err(refusal) })
}

impl Member {
    fn is_request(&self) -> bool {
        matches!(self.message.kind(), Kind::Request { .. })
    }

    fn step(self, post: &Post<'_>) -> Step {
        let Self { message, need, mut observed } = self;
        match (message.kind().clone(), need) {
            (Kind::Request { id, .. }, Err(refusal)) => {
                if let Some(observed) = &mut observed {
                    observed.refused(&refusal);
                }
                Step::Answered(Spliced::whole(refusal.of(Some(&id)).into_text()))
            }
            (Kind::Request { id, method }, Ok(_)) if method == "ping" => {
                if let Some(observed) = &mut observed {
                    observed.came_to(CallOutcome::Ok);
                }
                Step::Answered(Spliced::whole(empty_result(&id)))
            }
            (Kind::Request { id, .. }, Ok(need)) => {
                Step::Ask(Box::new(post.says(message, need, AnswerForm::of_several(post.accept))), id, observed)
            }
            (Kind::Notification { .. } | Kind::Response { .. }, _) => Step::Tell(message, post.deadline),
        }
    }
}

/// Takes one step; what comes of it.
async fn take(endpoint: &Endpoint, session: Arc<Session>, step: Step) -> BoxStream<'static, Next> {
    let last = match step {
        Step::Ask(said, id, observed) => {
            let (sending, mut asked) = endpoint::request(endpoint, session, *said, id, observed);
            match sending.await {
                Ok(sent) => {
                    asked.sent(&sent);
                    return Answering::sent(sent, asked).into_stream().boxed();
                }
                Err(refusal) => asked.told_of(refusal.in_session()),
            }
        }
        Step::Tell(message, deadline) => {
            endpoint::pass_on(&session, &message, deadline).await;
            return stream::empty().boxed();
        }
        Step::Answered(answer) => answer,
    };
    stream::once(std::future::ready(Next::Last(last))).boxed()
}
