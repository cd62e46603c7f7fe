//! Which era a fresh child speaks: found out by asking it, as the stateless revision says (2026-07-28, basic/transports,
//! stdio, section Backward Compatibility), and never configured.
//!
//! The first thing that the child hears is `server/discover`. One that answers it with the revision is spoken to in it from
//! then on, and never hears anything else; any other answer, or none for a while, means the session era, and the child hears
//! `initialize` as the broker's own client. A program that ends when it is asked so is started again and not asked.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tracing::info;

use crate::child::abilities::Abilities;
use crate::child::bridge::{Bridge, Outcome, Pending};
use crate::child::calls::Event;
use crate::child::calls::form::Form;
use crate::child::handshake::{self, HandshakeError};
use crate::jsonrpc::Message;

/// The stateless revision that is spoken here.
pub(crate) const STATELESS: &str = "2026-07-28";
/// The newest revision of the session era, which the broker proposes to a child that speaks only that.
const SESSION_ERA: &str = "2025-11-25";
/// How long a child may be silent before it is spoken to in the session era as well: some programs answer nothing before
/// `initialize`. A child that is slow to start is told both and answers the question first.
const SILENCE: Duration = Duration::from_secs(3);

/// How long children are not asked after one has ended of it, until it is tried again: it may have been another program.
const UNASKED: Duration = Duration::from_mins(10);

/// Until when children are not asked, because the program does not survive it. One for all: they run the same.
#[derive(Debug, Default)]
pub(crate) struct Probing(Mutex<Option<Instant>>);

impl Probing {
    fn is_fatal(&self, now: Instant) -> bool {
        self.0.lock().is_some_and(|until| now < until)
    }

    fn set_fatal(&self, until: Option<Instant>) {
        *self.0.lock() = until;
    }
}

/// What a child can do, as far as the broker has to know.
#[derive(Debug)]
pub(crate) struct Server {
    /// Which era.
    pub(crate) era: ChildEra,
    /// `capabilities`, as the child spelled them.
    pub(crate) capabilities: Box<RawValue>,
    /// `serverInfo`, likewise; `null` where it did not say.
    pub(crate) info: Box<RawValue>,
    /// `instructions`, likewise.
    pub(crate) instructions: Option<Box<RawValue>>,
    /// What it tells of changes.
    pub(crate) tells: Tells,
}

impl Server {
    /// Whether it has a capability of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        let all = serde_json::from_str::<Value>(self.capabilities.get()).unwrap_or_default();
        all.get(name).is_some_and(Value::is_object)
    }

    /// Whether it logs to its client.
    pub(crate) fn logs(&self) -> bool {
        self.has("logging")
    }
}

/// An era that a child speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildEra {
    /// It has been through `initialize`.
    Session,
    /// It answers each request for itself.
    Stateless,
}

/// Which changes a child tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "Capabilities")]
#[expect(clippy::struct_excessive_bools, reason = "one for each kind that the revision names")]
pub(crate) struct Tells {
    /// Of its list of tools.
    pub(crate) tools: bool,
    /// Of its list of prompts.
    pub(crate) prompts: bool,
    /// Of its list of resources.
    pub(crate) resources: bool,
    /// Of single resources, to those who subscribe.
    pub(crate) updates: bool,
}

impl Tells {
    /// Whether it tells of anything.
    pub(crate) fn anything(self) -> bool {
        self != Self::default()
    }
}

#[derive(Deserialize, Default)]
struct Capabilities {
    #[serde(default)]
    tools: Option<Notices>,
    #[serde(default)]
    prompts: Option<Notices>,
    #[serde(default)]
    resources: Option<Notices>,
}

#[derive(Deserialize, Default)]
struct Notices {
    #[serde(default, rename = "listChanged")]
    list_changed: bool,
    #[serde(default)]
    subscribe: bool,
}

impl From<Capabilities> for Tells {
    fn from(all: Capabilities) -> Self {
        let changes = |part: &Option<Notices>| part.as_ref().is_some_and(|part| part.list_changed);
        Self {
            tools: changes(&all.tools),
            prompts: changes(&all.prompts),
            resources: changes(&all.resources),
            updates: all.resources.is_some_and(|part| part.subscribe),
        }
    }
}

/// Why a child's era is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindOutError {
    /// It ended when it was asked; another one will not be asked.
    #[error("the child ended when it was asked for its era")]
    DiedOfTheProbe,
    /// It spoke neither.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

/// Brings a fresh child so far that it takes requests, until `deadline`; notes with the bridge what it speaks.
pub(crate) async fn find_out(
    bridge: &Bridge,
    abilities: Abilities,
    probing: &Probing,
    deadline: Instant,
) -> Result<(), FindOutError> {
    let mut probe = None;
    let asks = !probing.is_fatal(Instant::now());
    if asks {
        let mut pending = send(bridge, "server/discover", &own_params(), deadline).await?;
        match timeout_at(deadline.min(Instant::now() + SILENCE), answer(&mut pending)).await {
            Ok(Answer::Said(text)) => {
                if let Some(server) = discovered(&text) {
                    bridge.speaks(server);
                    return Ok(());
                }
            }
            Ok(Answer::Gone) => {
                let outcome = timeout_at(deadline, bridge.ended()).await;
                let own_doing = outcome.is_ok_and(Outcome::is_childs_doing);
                if !own_doing {
                    return Err(HandshakeError::new("it was stopped before it answered", &bridge.last_words()).into());
                }
                // Whether it died of the question or would have died anyway, the next one tells.
                probing.set_fatal(Instant::now().checked_add(UNASKED));
                info!(reason = "era-unknown", "a child ended when it was asked for its era; the next is not asked");
                return Err(FindOutError::DiedOfTheProbe);
            }
            // It may still answer; the question stays open so that its answer is known for what it is.
            Err(_) => probe = Some(pending),
        }
    }
    let params = json!({
        "protocolVersion": SESSION_ERA, "capabilities": abilities.to_capabilities(),
        "clientInfo": {"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")},
    });
    let text = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{params}}}"#);
    let request = Message::parse(text.into()).map_err(|_| HandshakeError::new("initialize is damaged", ""))?;
    let answered = handshake::initialize(bridge, &request, deadline).await.inspect_err(|_| {
        // It was not the question.
        if !asks {
            probing.set_fatal(None);
        }
    })?;
    drop(probe);
    let Some(result) = answered.result else {
        return Err(HandshakeError::new("it refused initialize", &bridge.last_words()).into());
    };
    let Some(server) = server(ChildEra::Session, &result.result) else {
        return Err(HandshakeError::new("its answer to initialize has no capabilities", &bridge.last_words()).into());
    };
    bridge.speaks(server);
    if let Ok(initialized) = Message::parse(Bytes::from_static(handshake::INITIALIZED)) {
        // A child that is gone already is noticed by the request that waits for it.
        let _ = bridge.notify(&initialized, deadline).await;
    }
    Ok(())
}

/// The parameters of a request that the broker makes for itself in the stateless era.
pub(crate) fn own_params() -> Value {
    json!({"_meta": {
        "io.modelcontextprotocol/protocolVersion": STATELESS,
        "io.modelcontextprotocol/clientInfo": {"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")},
        "io.modelcontextprotocol/clientCapabilities": {},
    }})
}

enum Answer {
    Said(Bytes),
    Gone,
}

async fn send(bridge: &Bridge, method: &str, params: &Value, deadline: Instant) -> Result<Pending, HandshakeError> {
    let text = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"{method}","params":{params}}}"#);
    let request = Message::parse(text.into()).map_err(|_| HandshakeError::new("the first request is damaged", ""))?;
    let Some(id) = request.id().cloned() else { return Err(HandshakeError::new("the first request has no id", "")) };
    let sent = bridge.request(&request, id, Form::Json, deadline).await;
    sent.map_err(|_| HandshakeError::new("it does not read its input", &bridge.last_words()))
}

async fn answer(pending: &mut Pending) -> Answer {
    while let Some(event) = pending.next().await {
        match event {
            Event::Answer(text, _) => return Answer::Said(text.to_bytes()),
            Event::Gone(_) | Event::TimedOut => return Answer::Gone,
            Event::Note(_) | Event::Ask(_) | Event::Silence(_) | Event::Cancelled => {}
        }
    }
    Answer::Gone
}

/// What a child said to `server/discover`, if it speaks the revision.
fn discovered(answer: &Bytes) -> Option<Server> {
    #[derive(Deserialize)]
    struct Discovered {
        #[serde(rename = "supportedVersions")]
        versions: Vec<String>,
    }
    let message = Message::parse(answer.clone()).ok()?;
    let result = message.result()?;
    let discovered: Discovered = serde_json::from_str(result).ok()?;
    let speaks = discovered.versions.iter().any(|version| version == STATELESS);
    if speaks { server(ChildEra::Stateless, result) } else { None }
}

/// What a child says of itself, in `server/discover` or `initialize`.
fn server(era: ChildEra, result: &str) -> Option<Server> {
    #[derive(Deserialize)]
    struct Said<'a> {
        #[serde(borrow)]
        capabilities: &'a RawValue,
        #[serde(borrow, rename = "serverInfo", default)]
        info: Option<&'a RawValue>,
        #[serde(borrow, default)]
        instructions: Option<&'a RawValue>,
        #[serde(borrow, rename = "_meta", default)]
        meta: Option<Meta<'a>>,
    }
    #[derive(Deserialize)]
    struct Meta<'a> {
        #[serde(borrow, rename = "io.modelcontextprotocol/serverInfo", default)]
        info: Option<&'a RawValue>,
    }
    let said: Said<'_> = serde_json::from_str(result).ok()?;
    let info = said.meta.and_then(|meta| meta.info).or(said.info);
    Some(Server {
        era,
        tells: serde_json::from_str(said.capabilities.get()).unwrap_or_default(),
        capabilities: said.capabilities.to_owned(),
        info: info.map(ToOwned::to_owned).unwrap_or_default(),
        instructions: said.instructions.map(ToOwned::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(result: &str) -> Option<Server> {
        discovered(&format!(r#"{{"jsonrpc":"2.0","id":0,"result":{result}}}"#).into())
    }

    #[test]
    fn a_child_speaks_the_revision_if_it_says_so() {
        let server =
            said(r#"{"supportedVersions":["2025-11-25","2026-07-28"],"capabilities":{"tools":{"listChanged":true}}}"#);
        let server = server.expect("it does");
        assert_eq!((server.era, server.tells), (ChildEra::Stateless, Tells { tools: true, ..Tells::default() }));
        assert_eq!(server.info.get(), "null");
        for no in
            [r#"{"supportedVersions":["2027-01-01"],"capabilities":{}}"#, r#"{"supportedVersions":"2026-07-28"}"#, "{}"]
        {
            assert!(said(no).is_none(), "{no}");
        }
        let refused = Bytes::from_static(br#"{"jsonrpc":"2.0","id":0,"error":{"code":-32601,"message":"no"}}"#);
        assert!(discovered(&refused).is_none());
    }

    #[test]
    fn who_it_is_stands_in_either_place() {
        let base = r#""supportedVersions":["2026-07-28"],"capabilities":{}"#;
        let older = said(&format!(r#"{{{base},"serverInfo":{{"name":"a"}}}}"#)).expect("it does");
        assert_eq!(older.info.get(), r#"{"name":"a"}"#);
        let newer = format!(r#"{{{base},"_meta":{{"io.modelcontextprotocol/serverInfo":{{"name":"b"}}}}}}"#);
        assert_eq!(said(&newer).expect("it does").info.get(), r#"{"name":"b"}"#);
    }
}
