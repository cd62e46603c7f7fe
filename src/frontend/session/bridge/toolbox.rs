//! What a child says of its own tools, asked for when a grant that may only read needs to know.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::Bridge;
use crate::frontend::jsonrpc::Message;
use crate::frontend::session::calls::Event;
use crate::frontend::tools::list;

/// How long a child may take to list its tools.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pages of tools that are read; a tool beyond them counts as one that writes.
const PAGES: usize = 64;

/// The child's word, and the state of its list that it is about.
#[derive(Debug, Default)]
pub(super) struct Toolbox {
    word: Option<(u64, Arc<HashMap<String, bool>>)>,
}

impl Bridge {
    /// Whether the child itself says that this tool only reads. It is asked once, and again when it says that its
    /// tools have changed; a tool that it does not list, and a child that does not answer, count as writing.
    pub async fn says_reads(&self, tool: &str) -> bool {
        let mut toolbox = self.toolbox.lock().await;
        let now = self.shared.calls.lock().tools_changed();
        let known = toolbox.word.clone().filter(|(then, _)| *then == now);
        let word = if let Some((_, word)) = known {
            word
        } else {
            let Ok(Some(word)) = timeout(PATIENCE, self.listed()).await else {
                warn!(
                    child_pid = self.pid,
                    reason = "tools-unknown",
                    "the child does not list its tools: none counts as reading"
                );
                return false;
            };
            let word = Arc::new(word);
            toolbox.word = Some((now, Arc::clone(&word)));
            word
        };
        word.get(tool).copied().unwrap_or(false)
    }

    async fn listed(&self) -> Option<HashMap<String, bool>> {
        let (mut all, mut cursor) = (HashMap::new(), None::<String>);
        for _ in 0..PAGES {
            let params = match &cursor {
                Some(cursor) => format!(r#"{{"cursor":{}}}"#, serde_json::to_string(cursor).ok()?),
                None => "{}".to_owned(),
            };
            let text = format!(r#"{{"jsonrpc":"2.0","id":"broker-tools","method":"tools/list","params":{params}}}"#);
            let request = Message::parse(text.into()).ok()?;
            let id = request.id()?.clone();
            let mut pending = self.request(&request, id, false).await.ok()?;
            let answer = loop {
                if let Event::Answer(text) = pending.events.recv().await? {
                    break text.to_bytes();
                }
            };
            let (page, next) = list::own_word(&Message::parse(answer).ok()?)?;
            all.extend(page);
            match next {
                None => return Some(all),
                Some(next) if cursor.as_ref() == Some(&next) => return None,
                next => cursor = next,
            }
        }
        Some(all)
    }
}
