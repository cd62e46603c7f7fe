//! Open `subscriptions/listen` of the stateless era, which hear of this program's tools and of nothing else.
//!
//! As the official SDK does it: what is not told of is not acknowledged, and a listen of which nothing is left goes on.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::Server;

/// All of them: the id, and whether it hears of the tools.
#[derive(Default)]
pub(crate) struct Listens(Mutex<Vec<(Value, bool)>>);

fn notify(method: &str, id: &Value, honoured: Option<&Value>) {
    let meta = json!({"io.modelcontextprotocol/subscriptionId": id});
    let params =
        honoured.map_or_else(|| json!({"_meta": meta}), |honoured| json!({"_meta": meta, "notifications": honoured}));
    Server::send(&json!({"jsonrpc": "2.0", "method": method, "params": params}));
}

impl Listens {
    /// Opens one and acknowledges it.
    pub(crate) fn open(&self, id: Value, params: &Value) {
        let tools = params.pointer("/notifications/toolsListChanged") == Some(&Value::Bool(true));
        let honoured = if tools { json!({"toolsListChanged": true}) } else { json!({}) };
        // Held, so that no change goes ahead of the acknowledgment.
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notify("notifications/subscriptions/acknowledged", &id, Some(&honoured));
        open.push((id, tools));
    }

    /// The client does not want it any more.
    pub(crate) fn close(&self, id: &Value) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(open, _)| open != id);
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Tells those that hear of the tools of a change; whether any does.
    pub(crate) fn tell(&self) -> bool {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, _) in open.iter().filter(|(_, tools)| *tools) {
            notify("notifications/tools/list_changed", id, None);
        }
        open.iter().any(|(_, tools)| *tools)
    }
}
