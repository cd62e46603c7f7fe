//! `initialize` with a fresh child: the client's own when a session opens, the recorded one when a child replaces
//! another.
//!
//! The client of a session never sees that its child is a new one: the recorded parameters are replayed, and only
//! what differs from the recorded answer is worth a word.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::child::bridge::{Bridge, SendError};
use crate::child::calls::Event;
use crate::child::get_stream::GetStream;
use crate::jsonrpc::{Message, Spliced};

/// The child did not complete the handshake: what happened, and the end of its standard error, which is redacted already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HandshakeError(Box<str>);

impl HandshakeError {
    pub(crate) fn new(what: &str, last_words: &str) -> Self {
        if last_words.is_empty() {
            return Self(what.into());
        }
        Self(format!("{what}; it wrote: {last_words}").into())
    }
}

/// What a child answered to `initialize`.
#[derive(Debug)]
pub(crate) struct InitializeAnswer {
    /// The whole message, with the id of the request.
    pub(crate) text: Spliced,
    /// The `result`, if it was none of the errors.
    pub(crate) result: Option<InitializeResult>,
}

/// A successful answer.
#[derive(Debug)]
pub(crate) struct InitializeResult {
    /// The version that the child chose.
    pub(crate) version: String,
    /// The whole `result`, for the record.
    pub(crate) result: String,
}

/// Sends `initialize` and waits for the answer, until `deadline`.
pub(crate) async fn initialize(
    bridge: &Bridge,
    request: &Message,
    deadline: Instant,
) -> Result<InitializeAnswer, HandshakeError> {
    let Some(id) = request.id().cloned() else { return Err(HandshakeError::new("initialize has no id", "")) };
    let too_late = || HandshakeError::new("it did not answer initialize in time", &bridge.last_words());
    let exchange = async {
        let mut pending = match bridge.request(request, id, false, deadline).await {
            Ok(pending) => pending,
            Err(SendError::Deadline) => return Err(too_late()),
            Err(SendError::Closed) => return Ok(None),
        };
        while let Some(event) = pending.events.recv().await {
            match event {
                Event::Answer(text, _) => return Ok(Some(text)),
                Event::TimedOut => return Err(too_late()),
                Event::Gone(_) => return Ok(None),
                Event::Note(_) | Event::Silence | Event::Cancelled => {}
            }
        }
        Ok(None)
    };
    let answer = timeout_at(deadline, exchange).await.map_err(|_| too_late())??;
    let Some(text) = answer else {
        let outcome = timeout_at(deadline, bridge.ended()).await.map_err(|_| too_late())?;
        return Err(HandshakeError::new(&outcome.explain(), &bridge.last_words()));
    };
    let result = result(text.to_bytes(), bridge);
    Ok(InitializeAnswer { text, result })
}

fn result(answer: Bytes, bridge: &Bridge) -> Option<InitializeResult> {
    #[derive(Deserialize)]
    struct Chosen {
        #[serde(rename = "protocolVersion")]
        version: String,
        #[serde(rename = "serverInfo", default)]
        server: Named,
    }
    #[derive(Deserialize, Default)]
    struct Named {
        #[serde(default)]
        name: String,
    }
    let message = Message::parse(answer).ok()?;
    let result = message.result()?;
    let chosen: Chosen = serde_json::from_str(result).ok()?;
    bridge.set_program(&chosen.server.name);
    Some(InitializeResult { version: chosen.version, result: result.to_owned() })
}

/// Replays a recorded handshake with a fresh child and tells the client, where it listens, what has changed.
pub(crate) async fn replay(
    bridge: &Bridge,
    params: &str,
    recorded: &str,
    settings: &[Message],
    get_stream: &GetStream,
    deadline: Instant,
) -> Result<(), HandshakeError> {
    let request = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{params}}}"#);
    let request =
        Message::parse(request.into()).map_err(|_| HandshakeError::new("the recorded initialize is damaged", ""))?;
    let answered = initialize(bridge, &request, deadline).await?;
    let Some(result) = answered.result else {
        return Err(HandshakeError::new("it refused the recorded initialize", &bridge.last_words()));
    };
    let initialized = Bytes::from_static(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    if let Ok(initialized) = Message::parse(initialized) {
        // A child that is gone already is noticed by the request that waits for it.
        let _ = bridge.notify(&initialized, deadline).await;
    }
    for setting in settings {
        if let Some(id) = setting.id().cloned() {
            // The client had its answer from the child before.
            let _ = bridge.request(setting, id, false, deadline).await;
        }
    }
    for list in changed_lists(recorded, &result.result) {
        let text = format!(r#"{{"jsonrpc":"2.0","method":"notifications/{list}/list_changed"}}"#);
        get_stream.send(Spliced::whole(text.into()));
    }
    Ok(())
}

/// The lists whose capability differs between two `initialize` results; logs what differs.
fn changed_lists(recorded: &str, now: &str) -> Vec<&'static str> {
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (recorded, now) = (parse(recorded), parse(now));
    let version = |result: &Value| result.get("protocolVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    let (was, is) = (version(&recorded), version(&now));
    if was != is {
        warn!(reason = "protocol-version-changed", was, is, "a restarted child speaks another protocol version");
    }
    let (before, after) = (recorded.get("capabilities"), now.get("capabilities"));
    if before == after {
        return Vec::new();
    }
    warn!(reason = "capabilities-changed", "a restarted child has other capabilities");
    let of = |all: Option<&Value>, list: &str| all.and_then(|all| all.get(list)).cloned();
    ["tools", "prompts", "resources"].into_iter().filter(|list| of(before, list) != of(after, list)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lists_whose_capability_changed_are_announced() {
        let before = r#"{"capabilities":{"tools":{"listChanged":true},"resources":{}}}"#;
        let after = r#"{"capabilities":{"tools":{"listChanged":true},"prompts":{}}}"#;
        assert_eq!(changed_lists(before, after), ["prompts", "resources"]);
        assert!(changed_lists(before, before).is_empty());
    }
}
