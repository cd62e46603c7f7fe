//! What a client has told its child beyond the handshake, so that the child's successor can be told as well: the log
//! level, and which resources it watches. Kept in memory only; after a restart of the broker clients that care say it
//! again.

use crate::frontend::jsonrpc::Message;

/// Subscriptions of one session; what goes beyond is not remembered.
const MOST: usize = 64;
/// Bytes of one setting.
const LONGEST: usize = 2048;

/// One session's settings. Empty for nearly all sessions.
#[derive(Debug, Default)]
pub(super) struct Settings {
    level: Option<Box<str>>,
    watched: Vec<Box<str>>,
}

impl Settings {
    /// Notes a request of the client, if it is one of those.
    pub(super) fn note(&mut self, request: &Message) {
        let Some(params) = request.params().filter(|params| params.len() <= LONGEST) else { return };
        match request.method() {
            Some("logging/setLevel") => self.level = Some(params.into()),
            Some("resources/subscribe")
                if self.watched.len() < MOST && !self.watched.iter().any(|watched| **watched == *params) =>
            {
                self.watched.push(params.into());
            }
            Some("resources/unsubscribe") => self.watched.retain(|watched| **watched != *params),
            _ => {}
        }
    }

    /// The requests that bring a fresh child to the same state.
    pub(super) fn requests(&self) -> Vec<Message> {
        let level = self.level.iter().map(|params| ("logging/setLevel", params));
        let watched = self.watched.iter().map(|params| ("resources/subscribe", params));
        let texts = level
            .chain(watched)
            .map(|(method, params)| format!(r#"{{"jsonrpc":"2.0","id":0,"method":"{method}","params":{params}}}"#));
        texts.filter_map(|text| Message::parse(text.into()).ok()).collect()
    }
}
