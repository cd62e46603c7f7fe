//! `initialize` with a fresh child: the client's own when a session opens, the recorded one when a child replaces
//! another.
//!
//! The client of a session never sees that its child is a new one: the recorded parameters are replayed, and only
//! what differs from what the child before answered is worth a word: its program, its capabilities, its tools.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::child::abilities::Abilities;
use crate::child::bridge::{Bridge, SendError};
use crate::child::calls::Event;
use crate::child::calls::form::Form;
use crate::child::get_stream::GetStream;
use crate::child::listed::ToolSet;
use crate::jsonrpc::{Message, Spliced};

/// What a client says when it has the answer to `initialize`.
pub(crate) const INITIALIZED: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

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
    bridge.set_abilities(Abilities::of_initialize(request.params().unwrap_or_default()));
    let too_late = || HandshakeError::new("it did not answer initialize in time", &bridge.last_words());
    let exchange = async {
        let mut pending = match bridge.request(request, id, Form::Json, deadline).await {
            Ok(pending) => pending,
            Err(SendError::Deadline) => return Err(too_late()),
            Err(SendError::Closed) => return Ok(None),
        };
        while let Some(event) = pending.next().await {
            match event {
                Event::Answer(text, _) => return Ok(Some(text)),
                Event::TimedOut => return Err(too_late()),
                Event::Gone(_) => return Ok(None),
                Event::Note(_) | Event::Ask(_) | Event::Silence(_) | Event::Cancelled => {}
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

/// The child before, as its successor is measured by it.
#[derive(Debug)]
pub(crate) struct Predecessor<'a> {
    /// The parameters of its `initialize`.
    pub(crate) initialize: &'a str,
    /// The `result` of it, or what [`replay`] has made of it.
    pub(crate) answer: &'a str,
    /// Its tools, where the client has asked for them.
    pub(crate) tools: Option<ToolSet>,
    /// What brings a child to its state.
    pub(crate) settings: Vec<Message>,
}

/// Replays a recorded handshake with a fresh child and tells the client, where it listens, what has changed. What the
/// next child is to be measured by, where that is not as before.
pub(crate) async fn replay(
    bridge: &Bridge,
    before: Predecessor<'_>,
    get_stream: &Arc<GetStream>,
    deadline: Instant,
) -> Result<Option<String>, HandshakeError> {
    let params = before.initialize;
    let request = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{params}}}"#);
    let request =
        Message::parse(request.into()).map_err(|_| HandshakeError::new("the recorded initialize is damaged", ""))?;
    let answered = initialize(bridge, &request, deadline).await?;
    let Some(result) = answered.result else {
        return Err(HandshakeError::new("it refused the recorded initialize", &bridge.last_words()));
    };
    if let Ok(initialized) = Message::parse(Bytes::from_static(INITIALIZED)) {
        // A child that is gone already is noticed by the request that waits for it.
        let _ = bridge.notify(&initialized, deadline).await;
    }
    for setting in &before.settings {
        if let Some(id) = setting.id().cloned() {
            // The client had its answer from the child before.
            let _ = bridge.request(setting, id, Form::Json, deadline).await;
        }
    }
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (was, is) = (parse(before.answer), parse(&result.result));
    let changed = changed_lists(&was, &is);
    for list in &changed {
        announce(get_stream, list);
    }
    if let Some(tools) = before.tools {
        compare_tools(bridge, tools, !changed.contains(&"tools"), get_stream, deadline).await;
    }
    let (was, is) = (measure(was), measure(is));
    Ok((was != is).then(|| is.to_string()))
}

fn announce(get_stream: &GetStream, list: &str) {
    let text = format!(r#"{{"jsonrpc":"2.0","method":"notifications/{list}/list_changed"}}"#);
    get_stream.send(Spliced::whole(text.into()));
}

/// What of an `initialize` result a child is measured by.
fn measure(mut result: Value) -> Value {
    let mut take = |name: &str| result.get_mut(name).map(Value::take).unwrap_or_default();
    json!({
        "protocolVersion": take("protocolVersion"), "serverInfo": take("serverInfo"), "capabilities": take("capabilities"),
    })
}

/// Asks the child for its tools, ahead of whatever the client sends it, and announces others than those that the client
/// knows. Nobody waits for that: a client's request is answered as soon as without it.
async fn compare_tools(bridge: &Bridge, known: ToolSet, is_news: bool, get_stream: &Arc<GetStream>, deadline: Instant) {
    let listed = bridge.listed();
    listed.set(known.clone());
    let request = Bytes::from_static(br#"{"jsonrpc":"2.0","id":0,"method":"tools/list"}"#);
    let Ok(request) = Message::parse(request) else { return };
    let Some(id) = request.id().cloned() else { return };
    // A child that does not answer is noticed by the request that it was started for.
    let Ok(mut pending) = bridge.request(&request, id, Form::Json, deadline).await else { return };
    let get_stream = Arc::clone(get_stream);
    tokio::spawn(async move {
        // Ends with the child, or at the deadline.
        while let Some(event) = pending.next().await {
            if matches!(event, Event::Answer(..)) && is_news && listed.get().as_ref() != Some(&known) {
                info!(reason = "tools-changed", "a restarted child has other tools");
                announce(&get_stream, "tools");
                return;
            }
        }
    });
}

/// The lists that may differ between the children of two `initialize` results: all that either has where the program is
/// another, else those whose capability is. Logs what differs.
fn changed_lists(recorded: &Value, now: &Value) -> Vec<&'static str> {
    let version = |result: &Value| result.get("protocolVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    let (was, is) = (version(recorded), version(now));
    if was != is {
        warn!(reason = "protocol-version-changed", was, is, "a restarted child speaks another protocol version");
    }
    let (before, after) = (recorded.get("capabilities"), now.get("capabilities"));
    let is_another = recorded.get("serverInfo") != now.get("serverInfo");
    if is_another {
        info!(reason = "program-changed", "a restarted child is of another program or version");
    }
    if before != after {
        warn!(reason = "capabilities-changed", "a restarted child has other capabilities");
    }
    let of = |all: Option<&Value>, list: &str| all.and_then(|all| all.get(list)).cloned();
    let differs = |list: &&str| match (of(before, list), of(after, list)) {
        (None, None) => false,
        (was, is) => is_another || was != is,
    };
    ["tools", "prompts", "resources"].into_iter().filter(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_announced_whose_capability_changed_and_all_of_another_program() {
        let before = json!({"serverInfo": {"name": "a", "version": "1"}, "capabilities": {"tools": {"listChanged": true}, "resources": {}}});
        let mut after = before.clone();
        assert!(changed_lists(&before, &after).is_empty());
        after["capabilities"] = json!({"tools": {"listChanged": true}, "prompts": {}});
        assert_eq!(changed_lists(&before, &after), ["prompts", "resources"]);
        after = before.clone();
        after["serverInfo"]["version"] = json!("2");
        assert_eq!(changed_lists(&before, &after), ["tools", "resources"]);
    }
}
