//! What children say of their own tools (`annotations.readOnlyHint`), asked for when a grant that may only read, or the
//! audit, needs to know and no reviewed table names the program.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::list;
use crate::child::bridge::Bridge;
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

/// Whether each tool only reads, and how often the child had changed its tools when it said so.
#[derive(Debug)]
struct Listed {
    changes: u64,
    read_only: HashMap<String, bool>,
}

impl ToolAnnotations {
    /// Whether the child itself says that this tool only reads. It is asked once, and again when it says that its
    /// tools have changed; a tool that it does not list, and a child that does not answer, count as writing.
    pub(crate) async fn read_only(&self, bridge: &Arc<Bridge>, tool: &str) -> bool {
        let of_child = self.of_child(bridge);
        // Held while the child is asked: of many callers one asks, and all wait for it.
        let mut listed = of_child.listed.lock().await;
        let changes = bridge.tools_changed();
        let deadline = Instant::now() + LIST_TIMEOUT;
        if listed.as_ref().is_none_or(|listed| listed.changes != changes) {
            let Ok(Some(read_only)) = timeout_at(deadline, list_all(bridge, deadline)).await else {
                warn!(
                    child_pid = bridge.pid,
                    reason = "tools-unknown",
                    "the child does not list its tools: none counts as reading"
                );
                return false;
            };
            *listed = Some(Listed { changes, read_only });
        }
        listed.as_ref().and_then(|listed| listed.read_only.get(tool).copied()).unwrap_or(false)
    }

    /// The same as far as it is known now. Where nothing is, the child is asked for the next time, once for each change of
    /// its tools, and nobody waits for it.
    pub(crate) fn known(&self, bridge: &Arc<Bridge>, tool: &str) -> Option<bool> {
        let (of_child, changes) = (self.of_child(bridge), bridge.tools_changed());
        if let Ok(listed) = of_child.listed.try_lock()
            && let Some(listed) = listed.as_ref().filter(|listed| listed.changes == changes)
        {
            return Some(listed.read_only.get(tool).copied().unwrap_or(false));
        }
        let now = changes.saturating_add(1);
        if of_child.asked.swap(now, Ordering::Relaxed) != now {
            let (all, bridge, tool) = (self.clone(), Arc::clone(bridge), tool.to_owned());
            tokio::spawn(async move { all.read_only(&bridge, &tool).await });
        }
        None
    }

    fn of_child(&self, bridge: &Arc<Bridge>) -> OfChild {
        let mut by_pid = self.by_pid.lock();
        if let Some(known) = by_pid.get(&bridge.pid)
            && std::ptr::eq(known.child.as_ptr(), Arc::as_ptr(bridge))
        {
            return known.clone();
        }
        by_pid.retain(|_, known| known.child.strong_count() > 0);
        let new = OfChild { child: Arc::downgrade(bridge), listed: Arc::default(), asked: Arc::default() };
        by_pid.insert(bridge.pid, new.clone());
        new
    }
}

async fn list_all(bridge: &Bridge, deadline: Instant) -> Option<HashMap<String, bool>> {
    let (mut all, mut cursor) = (HashMap::new(), None::<String>);
    for _ in 0..MAX_PAGES {
        // A child that answers each request for itself has to hear of the revision each time.
        let mut params = if bridge.relays() { own_params() } else { json!({}) };
        if let (Some(cursor), Some(members)) = (&cursor, params.as_object_mut()) {
            members.insert("cursor".to_owned(), json!(cursor));
        }
        let text = format!(r#"{{"jsonrpc":"2.0","id":"broker-tools","method":"tools/list","params":{params}}}"#);
        let request = Message::parse(text.into()).ok()?;
        let id = request.id()?.clone();
        let mut pending = bridge.request(&request, id, Form::Json, deadline).await.ok()?;
        let answer = loop {
            if let Event::Answer(text, _) = pending.next().await? {
                break text.to_bytes();
            }
        };
        let (page, next) = list::read_only_hints(&Message::parse(answer).ok()?)?;
        all.extend(page);
        match next {
            None => return Some(all),
            Some(next) if cursor.as_ref() == Some(&next) => return None,
            next => cursor = next,
        }
    }
    Some(all)
}
