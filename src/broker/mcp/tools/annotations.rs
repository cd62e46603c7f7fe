//! What children say of their own tools: whether they only read (`annotations.readOnlyHint`), asked for when a grant that may
//! only read, or the audit, needs to know and no reviewed table names the program; and which arguments clients repeat in
//! headers, asked for when a client without a session calls one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::list::{self, Word};
use super::mirrored::MirroredArgument;
use crate::child::bridge::{Bridge, SendError};
use crate::child::calls::Event;
use crate::child::calls::form::Form;
use crate::child::era::own_params;
use crate::jsonrpc::Message;

/// How long a child may take to list its tools.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);
/// Pages of tools that are read; a tool beyond them counts as one that writes.
const MAX_PAGES: usize = 64;

/// The lists of the children that run. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct ToolAnnotations {
    by_pid: Arc<Mutex<HashMap<u32, OfChild>>>,
}

/// One child's list. Its pid may be another's when it is gone, so the child itself is compared too.
#[derive(Debug, Clone)]
struct OfChild {
    child: Weak<Bridge>,
    listed: Arc<AsyncMutex<Option<Listed>>>,
    /// One more than the number of changes at which it was last asked for somebody who does not wait.
    asked: Arc<AtomicU64>,
}

/// What it said of each tool, and how often it had changed its tools when it said so.
#[derive(Debug)]
struct Listed {
    changes: u64,
    /// `None`: it has answered, and with no list.
    words: Option<HashMap<String, Word>>,
}

/// Why it is not known what a child says of its tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Unlisted {
    /// It has answered, and with no list.
    #[error("the child has answered with no list of tools")]
    NoList,
    /// It has not answered.
    #[error(transparent)]
    Unanswered(#[from] SendError),
}

impl ToolAnnotations {
    /// Whether the child itself says that this tool only reads. It is asked once, and again when it says that its
    /// tools have changed; a tool that it does not list, and a child that does not answer by `deadline`, count as writing.
    pub(crate) async fn read_only(&self, bridge: &Arc<Bridge>, tool: &str, deadline: Instant) -> bool {
        let of_child = self.of_child(bridge);
        // Held while the child is asked: of many callers one asks, and all wait for it.
        let Ok(mut listed) = timeout_at(deadline, of_child.listed.lock()).await else { return false };
        let words = of_child.look(&mut listed, bridge, deadline).await;
        words.ok().and_then(|words| words.get(tool)).is_some_and(|word| word.read_only)
    }

    /// The same as far as it is known now. Where nothing is, the child is asked for the next time, once for each change of
    /// its tools, and nobody waits for it.
    pub(crate) fn known(&self, bridge: &Arc<Bridge>, tool: &str) -> Option<bool> {
        let (of_child, changes) = (self.of_child(bridge), bridge.tools_changed());
        if let Ok(listed) = of_child.listed.try_lock()
            && let Some(listed) = listed.as_ref().filter(|listed| listed.changes == changes)
            && let Some(words) = &listed.words
        {
            return Some(words.get(tool).is_some_and(|word| word.read_only));
        }
        let now = changes.saturating_add(1);
        if of_child.asked.swap(now, Ordering::Relaxed) != now {
            let (all, bridge, tool) = (self.clone(), Arc::clone(bridge), tool.to_owned());
            let deadline = Instant::now() + LIST_TIMEOUT;
            tokio::spawn(async move { all.read_only(&bridge, &tool, deadline).await });
        }
        None
    }

    /// Which arguments of this tool clients repeat in headers, by the child's own word; none where it has no list of tools. It
    /// is asked once, and again when it says that its tools have changed; until it has answered, or `deadline`, nothing may
    /// be sent to it that this could keep out.
    pub(crate) async fn mirrored(
        &self,
        bridge: &Arc<Bridge>,
        tool: &str,
        deadline: Instant,
    ) -> Result<Option<Arc<[MirroredArgument]>>, SendError> {
        let of_child = self.of_child(bridge);
        let mut listed = timeout_at(deadline, of_child.listed.lock()).await.map_err(|_| SendError::Deadline)?;
        let changes = bridge.tools_changed();
        if listed.as_ref().is_some_and(|listed| listed.changes == changes && listed.words.is_none()) {
            return Ok(None);
        }
        match of_child.look(&mut listed, bridge, deadline).await {
            Ok(words) => Ok(words.get(tool).and_then(|word| word.mirrored.clone())),
            Err(Unlisted::NoList) => {
                *listed = Some(Listed { changes, words: None });
                Ok(None)
            }
            Err(Unlisted::Unanswered(error)) => Err(error),
        }
    }

    fn of_child(&self, bridge: &Arc<Bridge>) -> OfChild {
        let mut by_pid = self.by_pid.lock();
        if let Some(known) = by_pid.get(&bridge.pid)
            && std::ptr::eq(known.child.as_ptr(), Arc::as_ptr(bridge))
        {
            return known.clone();
        }
        by_pid.retain(|_, known| known.child.strong_count() > 0);
        let child = Arc::downgrade(bridge);
        let new = OfChild { child, listed: Arc::default(), asked: Arc::default() };
        by_pid.insert(bridge.pid, new.clone());
        new
    }
}

impl OfChild {
    /// What the child says of its tools today; it is asked where that is not known.
    async fn look<'a>(
        &self,
        listed: &'a mut Option<Listed>,
        bridge: &Bridge,
        deadline: Instant,
    ) -> Result<&'a HashMap<String, Word>, Unlisted> {
        let changes = bridge.tools_changed();
        if listed.as_ref().is_none_or(|listed| listed.changes != changes || listed.words.is_none()) {
            let by = deadline.min(Instant::now() + LIST_TIMEOUT);
            let answer = timeout_at(by, list_all(bridge, by)).await;
            let words = answer.unwrap_or(Err(SendError::Deadline.into())).inspect_err(|error| {
                warn!(
                    child_pid = bridge.pid, reason = "tools-unknown", error = %error,
                    "the child does not list its tools: none counts as reading"
                );
            })?;
            *listed = Some(Listed { changes, words: Some(words) });
        }
        listed.as_ref().and_then(|listed| listed.words.as_ref()).ok_or(Unlisted::NoList)
    }
}

async fn list_all(bridge: &Bridge, deadline: Instant) -> Result<HashMap<String, Word>, Unlisted> {
    let (mut all, mut cursor, mut room) = (HashMap::new(), None::<String>, list::ROOM);
    for _ in 0..MAX_PAGES {
        // A child that answers each request for itself has to hear of the revision each time.
        let mut params = if bridge.relays() { own_params() } else { json!({}) };
        if let (Some(cursor), Some(members)) = (&cursor, params.as_object_mut()) {
            members.insert("cursor".to_owned(), json!(cursor));
        }
        let text = format!(r#"{{"jsonrpc":"2.0","id":"broker-tools","method":"tools/list","params":{params}}}"#);
        let request = Message::parse(text.into()).map_err(|_| Unlisted::NoList)?;
        let id = request.id().cloned().ok_or(Unlisted::NoList)?;
        let mut pending = bridge.request(&request, id, Form::Json, deadline).await?;
        let answer = loop {
            match pending.next().await {
                Some(Event::Answer(text, _)) => break text.to_bytes(),
                Some(Event::TimedOut) => return Err(SendError::Deadline.into()),
                Some(_) => {}
                None => return Err(SendError::Closed.into()),
            }
        };
        let answer = Message::parse(answer).map_err(|_| Unlisted::NoList)?;
        let (page, next) = list::words(&answer, &mut room).ok_or(Unlisted::NoList)?;
        all.extend(page);
        match next {
            None => return Ok(all),
            Some(next) if cursor.as_ref() == Some(&next) => return Err(Unlisted::NoList),
            next => cursor = next,
        }
    }
    Ok(all)
}
