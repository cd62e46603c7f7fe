//! `subscriptions/listen`: the one answer that is a stream without an end (2026-07-28, basic/patterns/subscriptions).
//!
//! What the child does not tell of is not in the acknowledgment, and if nothing is left, the listen is over at once. It is no
//! activity, keeps no child, and has no deadline once it was acknowledged.

use axum::response::Response;
use tokio::time::timeout_at;

use crate::child::bridge::SendError;
use crate::child::calls::stateless::ListenRefused;
use crate::child::era::{ChildEra, Server};
use crate::child::listens::{Filter, Heard, acknowledgment, completion, honours_nothing};
use crate::jsonrpc::{Message, RawId};
use crate::mcp::answer;
use crate::mcp::endpoint::{Endpoint, Said};
use crate::mcp::observed::Observed;
use crate::mcp::refusal::Refusal;
use crate::mcp::stateless::request::StatelessRequest;
use crate::mcp::stateless::{child, gone, refusal};
use crate::metrics::CallOutcome;
use crate::session::error::SessionError;

/// Opens one.
pub(super) async fn open(
    endpoint: &Endpoint,
    said: &Said,
    request: &StatelessRequest,
    id: RawId,
    observed: &mut Option<Observed>,
) -> Result<Response, Refusal> {
    if !said.accept.events {
        return Err(Refusal::not_acceptable("text/event-stream"));
    }
    let filter = Filter::of(said.message.params());
    let filter = filter.ok_or_else(|| Refusal::bad_params("notifications must be an object of what to tell of"))?;
    loop {
        let bridge = child(endpoint, said, request).await?;
        let Some(server) = bridge.server() else { return Err(Refusal::no_era()) };
        let honoured = filter.clone().honoured(server.tells);
        if tells_nothing(server, &honoured) {
            came_to_ok(observed);
            return Ok(answer::whole_stream(vec![acknowledgment(&id, &Filter::default()), completion(&id)]));
        }
        let (kept, first) = match server.era {
            ChildEra::Stateless => (None, None),
            ChildEra::Session => (Some(honoured.clone()), Some(acknowledgment(&id, &honoured))),
        };
        let mut listening = match bridge.listen(&said.message, id.clone(), kept, said.deadline).await {
            Ok(Ok(listening)) => listening,
            Ok(Err(SendError::Deadline)) => return Err(endpoint.refuse(&SessionError::Deadline, said.revision)),
            Ok(Err(SendError::Closed)) | Err(ListenRefused::Closed) => {
                gone(endpoint, said, request, &bridge).await?;
                continue;
            }
            Err(ListenRefused::TooMany(why)) => return Err(Refusal::too_many_listens(why)),
        };
        let first = if let Some(first) = first {
            Heard::Note(first)
        } else {
            // The child's own word, which may be a refusal.
            let heard = timeout_at(said.deadline, listening.next()).await;
            let heard = heard.map_err(|_| endpoint.refuse(&SessionError::Deadline, said.revision))?;
            heard.unwrap_or_else(|| Heard::Last(completion(&id), false))
        };
        if let Heard::Last(text, true) = &first {
            let code = Message::parse(text.to_bytes()).ok().and_then(|message| message.error_code());
            let mut response = answer::json(text.clone());
            *response.status_mut() = refusal::status_of(code.unwrap_or_default());
            return Ok(response);
        }
        came_to_ok(observed);
        return Ok(match first {
            // The official SDK's servers keep it open. It would wait for nothing, and keep others from a place.
            Heard::Note(text) if honours_nothing(&text) => answer::whole_stream(vec![text, completion(&id)]),
            first => answer::listening(first, listening),
        });
    }
}

fn came_to_ok(observed: &mut Option<Observed>) {
    if let Some(observed) = observed {
        observed.came_to(CallOutcome::Ok);
    }
}

/// Whether a child has nothing to tell of what is asked. One that speaks the revision filters for itself, unless it tells of
/// nothing at all; an extension may have more to tell of than the revision names.
fn tells_nothing(server: &Server, honoured: &Filter) -> bool {
    match server.era {
        ChildEra::Session => honoured.is_empty(),
        ChildEra::Stateless => !server.tells.anything() && !server.has("extensions"),
    }
}
