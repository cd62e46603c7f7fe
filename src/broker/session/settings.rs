//! What a client has told its child beyond the handshake, so that the child's successor can be told as well: the log
//! level, and which resources it watches; and by what the successor is measured. Recorded with the session, by every sweep and at shutdown.

use serde::{Deserialize, Serialize};

use crate::child::listed::ToolSet;
use crate::jsonrpc::Message;

/// Subscriptions of one session; what goes beyond is not remembered.
const MAX_SUBSCRIPTIONS: usize = 64;
/// Bytes of one setting.
const MAX_SETTING: usize = 2048;

/// One session's settings. Empty for nearly all sessions.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Settings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    watched: Vec<Box<str>>,
    /// The tools that the client was told of last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tools: Option<ToolSet>,
    /// What the latest child answered to `initialize`, where that was not as the first did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Box<str>>,
    /// Whether they are all there is: not so for a session of before a restart until its record was read.
    #[serde(skip)]
    known: bool,
    #[serde(skip)]
    unsaved: bool,
}

impl Settings {
    /// Of a session that opens.
    pub(crate) fn of_new_session() -> Self {
        Self { known: true, ..Self::default() }
    }

    /// Takes over what was recorded, unless more is known already.
    pub(crate) fn restore(&mut self, recorded: &str) {
        if !self.known {
            *self = Self { known: true, ..serde_json::from_str(recorded).unwrap_or_default() };
        }
    }

    /// What to record, if it has changed since the last time.
    pub(crate) fn take_unsaved(&mut self) -> Option<String> {
        std::mem::take(&mut self.unsaved).then(|| serde_json::to_string(self).ok())?
    }

    /// What was taken could not be recorded.
    pub(crate) fn not_saved(&mut self) {
        self.unsaved = true;
    }

    /// Whether a request is one of those.
    pub(crate) fn concerns(request: &Message) -> bool {
        matches!(request.method(), Some("logging/setLevel" | "resources/subscribe" | "resources/unsubscribe"))
    }

    /// Notes a request of the client, if it is one of those.
    pub(crate) fn note(&mut self, request: &Message) {
        let Some(params) = request.params().filter(|params| params.len() <= MAX_SETTING) else { return };
        match request.method() {
            Some("logging/setLevel") => self.level = Some(params.into()),
            Some("resources/subscribe")
                if self.watched.len() < MAX_SUBSCRIPTIONS
                    && !self.watched.iter().any(|watched| **watched == *params) =>
            {
                self.watched.push(params.into());
            }
            Some("resources/unsubscribe") => self.watched.retain(|watched| **watched != *params),
            _ => return,
        }
        self.unsaved = true;
    }

    /// Notes which tools the client was told of last.
    pub(crate) fn listed(&mut self, tools: Option<ToolSet>) {
        if tools.is_some() && tools != self.tools {
            self.tools = tools;
            self.unsaved = true;
        }
    }

    /// The tools that the client was told of last.
    pub(crate) fn tools(&self) -> Option<ToolSet> {
        self.tools.clone()
    }

    /// Notes what a child answered to `initialize` that is not like the one before.
    pub(crate) fn answered(&mut self, answer: String) {
        self.answer = Some(answer.into());
        self.unsaved = true;
    }

    /// What a child answered to `initialize` that was not like the first.
    pub(crate) fn answer(&self) -> Option<Box<str>> {
        self.answer.clone()
    }

    /// The requests that bring a fresh child to the same state.
    pub(crate) fn requests(&self) -> Vec<Message> {
        let level = self.level.iter().map(|params| ("logging/setLevel", params));
        let watched = self.watched.iter().map(|params| ("resources/subscribe", params));
        let texts = level
            .chain(watched)
            .map(|(method, params)| format!(r#"{{"jsonrpc":"2.0","id":0,"method":"{method}","params":{params}}}"#));
        texts.filter_map(|text| Message::parse(text.into()).ok()).collect()
    }
}
