//! Requests of the stateless era (revision 2026-07-28): each says for itself what it speaks, and none belongs to a session.
//!
//! [`request`] checks what a request says of itself, in headers and body alike ([`mirrored`]). It goes to the warm child of
//! its caller's grant, as it is where that speaks the era, else by way of the [`translation`], in which [`discover`] is
//! answered here; [`listen`] is the one request whose answer is a stream of changes. [`refusal`] has the errors of the era.
//!
//! What holds for sessions holds here: scopes and tools, budgets, quotas, deadlines, metrics and audit. Trusts the same as the
//! endpoint: the [`Principal`](crate::auth::principal::Principal), and nothing that was sent.

mod discover;
mod listen;
mod mirrored;
#[cfg(test)]
mod properties;
pub(crate) mod refusal;
mod request;
mod translation;

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::time::{Instant, timeout_at};

use crate::child::bridge::{Bridge, Pending, SendError};
use crate::child::calls::stateless::Resumed;
use crate::child::calls::{Ending, Stateless};
use crate::child::era::{ChildEra, Server};
use crate::child::handshake::HandshakeError;
use crate::child::parked::Brought;
use crate::child::stamp::{Caching, Stamp};
use crate::jsonrpc::{Kind, RawId};
use crate::mcp::answer::{self, Sent};
use crate::mcp::endpoint::{Endpoint, Said};
use crate::mcp::observed::Observed;
use crate::mcp::refusal::Refusal;
use crate::mcp::stateless::request::StatelessRequest;
use crate::session::error::SessionError;
use crate::session::machine::Event;

/// Answers one message. Takes `observed` along with what has an answer of a child.
pub(super) async fn receive(
    endpoint: &Endpoint,
    headers: &HeaderMap,
    said: Said,
    observed: &mut Option<Observed>,
) -> Result<Response, Refusal> {
    let id = match said.message.kind() {
        Kind::Request { id, .. } => id.clone(),
        // The revision knows of none from a client (streamable HTTP, section Sending Messages). Nothing could be done with
        // one: a number that it names is not the child's, and closing the stream is the way to cancel.
        Kind::Notification { .. } => return Ok(StatusCode::ACCEPTED.into_response()),
        Kind::Response { .. } => return Err(Refusal::response_from_client()),
    };
    let request = StatelessRequest::parse(headers, &said.message)?;
    if said.message.method() == Some("subscriptions/listen") {
        return listen::open(endpoint, &said, &request, id, observed).await;
    }
    let tool = observed.as_ref().and_then(|observed| observed.tool().map(str::to_owned));
    let asked = endpoint.asked(&said, id.clone(), observed.take());
    let endpoint = endpoint.clone();
    let sending = async move { send(&endpoint, &said, &request, &id, tool.as_deref()).await };
    let mut response = answer::respond(sending, asked).await?;
    // As long as no stream has begun, the status says what the error says.
    if let Some(Ending::Error(Some(code))) = response.extensions().get::<Ending>() {
        *response.status_mut() = refusal::status_of(*code);
    }
    Ok(response)
}

/// The child that serves the caller, started if there is none.
async fn child(endpoint: &Endpoint, said: &Said, request: &StatelessRequest) -> Result<Arc<Bridge>, Refusal> {
    loop {
        let route = endpoint.registry().route_for(&said.caller, request.abilities);
        match endpoint.registry().bridge(&route, &said.caller, said.deadline).await {
            Ok(bridge) => return Ok(bridge),
            // It was forgotten for being unused, in this moment.
            Err(SessionError::Unknown) => {}
            Err(error) => return Err(endpoint.start_failed(&error, said).await),
        }
    }
}

/// Waits until a child that takes no requests any more serves nobody any more, so that the next one is another.
async fn gone(
    endpoint: &Endpoint,
    said: &Said,
    request: &StatelessRequest,
    bridge: &Arc<Bridge>,
) -> Result<(), Refusal> {
    let route = endpoint.registry().route_for(&said.caller, request.abilities);
    let Some((number, _)) = route.child().filter(|(_, current)| Arc::ptr_eq(current, bridge)) else { return Ok(()) };
    let refuse = |error: &SessionError| endpoint.refuse(error, said.revision);
    let outcome = timeout_at(said.deadline, bridge.ended()).await.map_err(|_| refuse(&SessionError::Deadline))?;
    if outcome.is_childs_doing() {
        return Err(refuse(&SessionError::Start(HandshakeError::new(&outcome.explain(), ""))));
    }
    route.step(Event::Gone(number, false));
    Ok(())
}

/// Brings a request to the caller's child, unless their grant keeps it out. A child that is stopped before it takes the
/// request is no reason to fail: the next one gets it.
async fn send(
    endpoint: &Endpoint,
    said: &Said,
    request: &StatelessRequest,
    id: &RawId,
    tool: Option<&str>,
) -> Result<Sent, Refusal> {
    let scope = endpoint.scope();
    loop {
        let bridge = child(endpoint, said, request).await?;
        let Some(server) = bridge.server() else { return Err(Refusal::no_era()) };
        if !scope.allows(&said.need, &bridge, said.deadline).await {
            return Err(scope.insufficient());
        }
        let view = scope.view(&said.caller, &bridge, &said.message);
        // Which arguments headers repeat only the child can say.
        let mirrored = match &request.tool_with_arguments {
            Some(tool) => scope.annotations().mirrored(&bridge, tool, said.deadline).await,
            None => Ok(None),
        };
        let sent = match mirrored {
            Ok(mirrored) => {
                request.check_arguments(&said.message, mirrored.as_deref().unwrap_or_default())?;
                match server.era {
                    ChildEra::Stateless => {
                        let stamp = view.as_ref().filter(|view| view.leaves_out()).map(|_| Stamp::Private);
                        let stateless = Stateless { stamp, logs: request.logs, ..Stateless::default() };
                        let (message, form) = (&said.message, said.form.get());
                        bridge.request_stateless(message, id.clone(), form, stateless, said.deadline).await
                    }
                    ChildEra::Session => translate(endpoint, said, request, id, &bridge, server).await?,
                }
            }
            Err(error) => Err(error),
        };
        match sent {
            Ok(pending) => {
                let effect = tool.and_then(|tool| scope.effect(tool, &bridge));
                return Ok(Sent { pending, view, effect });
            }
            Err(SendError::Deadline) => return Err(endpoint.refuse(&SessionError::Deadline, said.revision)),
            Err(SendError::Closed) => gone(endpoint, said, request, &bridge).await?,
        }
    }
}

/// Brings a request to a child of the session era.
async fn translate(
    endpoint: &Endpoint,
    said: &Said,
    request: &StatelessRequest,
    id: &RawId,
    bridge: &Arc<Bridge>,
    server: &Server,
) -> Result<Result<Pending, SendError>, Refusal> {
    let method = said.message.method().unwrap_or_default();
    if method == "server/discover" {
        return Ok(Ok(Pending::answered(discover::answer(id, server), Ending::Result)));
    }
    if translation::is_unknown(method) {
        return Err(Refusal::unknown_method(method));
    }
    let stamp = Stamp::Translated { caching: Caching::of(method), server: server.info.get().into() };
    let stateless = Stateless { stamp: Some(stamp), abilities: request.abilities, logs: request.logs };
    let deadline = said.deadline;
    let brought = Brought::of(&said.message);
    if let Some(state) = &brought.state {
        let waits = endpoint.registry().children_of(&said.caller).into_iter().find(|bridge| bridge.knows(state));
        let entry = Resumed { form: said.form.get(), stateless, now: Instant::now(), deadline };
        let resumed = match waits {
            Some(bridge) => bridge.resume(&said.message, id.clone(), &brought, entry).await,
            None => None,
        };
        return resumed.ok_or_else(Refusal::request_state);
    }
    let budget = endpoint.registry().budgets().of(said.caller.tenant);
    let translated = translation::request(&said.message, &budget).map_err(Refusal::over_budget)?;
    if let Some(level) = request.logs.filter(|_| server.logs())
        && let Err(error) = bridge.log_from(level, deadline).await
    {
        return Ok(Err(error));
    }
    Ok(bridge.request_stateless(&translated, id.clone(), said.form.get(), stateless, deadline).await)
}

/// The message of a request, for tests of the parts.
#[cfg(test)]
fn request_of(text: &str) -> crate::jsonrpc::Message {
    crate::jsonrpc::Message::parse(bytes::Bytes::copy_from_slice(text.as_bytes())).expect(text)
}
