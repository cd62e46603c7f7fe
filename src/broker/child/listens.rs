//! Open `subscriptions/listen` of stateless clients (revision 2026-07-28, basic/patterns/subscriptions).
//!
//! A child that speaks the revision tags what it says with the number under which it knows a listen; the client gets its own
//! id back. For one of the session era the broker keeps the filters, tags what passes them, and subscribes to a resource as
//! long as anybody watches it. A listen keeps no child from being idle, and ends with a result when the child stops.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::child::calls::numbers::number_in;
use crate::child::era::Tells;
use crate::jsonrpc::{Kind, Message, RawId, Spliced};

/// Listens of one child that may be open at once.
const MAX_LISTENS: usize = 32;
/// Resources that one listen may watch.
const MAX_WATCHED: usize = 64;
/// Messages that wait for a client that reads its stream too slowly, before it loses the stream.
const MAX_BACKLOG: usize = 256;
/// The first message of a listen.
const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
/// Where the subscription's id stands in `_meta`.
const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";

/// What a client wants to hear of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Filter {
    tools_list_changed: bool,
    prompts_list_changed: bool,
    resources_list_changed: bool,
    resource_subscriptions: Vec<String>,
}

impl Filter {
    /// Of a listen's parameters; `None` where they are not as they should be.
    pub(crate) fn of(params: Option<&str>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Params {
            notifications: Filter,
        }
        serde_json::from_str::<Params>(params?).ok().map(|params| params.notifications)
    }

    /// The part of it that a child tells of.
    pub(crate) fn honoured(mut self, tells: Tells) -> Self {
        self.tools_list_changed &= tells.tools;
        self.prompts_list_changed &= tells.prompts;
        self.resources_list_changed &= tells.resources;
        if !tells.updates {
            self.resource_subscriptions.clear();
        }
        self.resource_subscriptions.truncate(MAX_WATCHED);
        self
    }

    /// Whether there is nothing to hear of.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As JSON.
    fn json(&self) -> String {
        let flags = [
            ("toolsListChanged", self.tools_list_changed),
            ("promptsListChanged", self.prompts_list_changed),
            ("resourcesListChanged", self.resources_list_changed),
        ];
        let mut members: Vec<String> =
            flags.iter().filter(|(_, on)| *on).map(|(name, _)| format!(r#""{name}":true"#)).collect();
        if !self.resource_subscriptions.is_empty() {
            let watched = serde_json::json!(self.resource_subscriptions);
            members.push(format!(r#""resourceSubscriptions":{watched}"#));
        }
        format!("{{{}}}", members.join(","))
    }

    fn passes(&self, method: &str, uri: Option<&str>) -> bool {
        match method {
            "notifications/tools/list_changed" => self.tools_list_changed,
            "notifications/prompts/list_changed" => self.prompts_list_changed,
            "notifications/resources/list_changed" => self.resources_list_changed,
            // A server may tell of a part of what is watched (2025-11-25, server/resources, section Subscriptions).
            "notifications/resources/updated" => uri
                .is_some_and(|uri| self.resource_subscriptions.iter().any(|watched| uri.starts_with(watched.as_str()))),
            _ => false,
        }
    }
}

/// What a listen's client gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A notification.
    Note(Spliced),
    /// The answer that ends the listen, and whether it is an error.
    Last(Spliced, bool),
}

/// Too many listens are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_LISTENS} subscriptions of this login would be open")]
pub(crate) struct TooManyListens;

#[derive(Debug)]
struct Listen {
    id: RawId,
    to: mpsc::Sender<Heard>,
    /// `None` where the child filters for itself.
    filter: Option<Filter>,
}

/// The open ones of one child, by number.
#[derive(Debug, Default)]
pub(crate) struct Listens {
    open: HashMap<u64, Listen>,
}

/// The first message of a listen (section Acknowledgment).
pub(crate) fn acknowledgment(id: &RawId, filter: &Filter) -> Spliced {
    let (id, filter) = (text_of(id), filter.json());
    let text = format!(
        r#"{{"jsonrpc":"2.0","method":"{ACKNOWLEDGED}","params":{{"_meta":{{"{SUBSCRIPTION_ID}":{id}}},"notifications":{filter}}}}}"#
    );
    Spliced::whole(text.into())
}

/// Whether a child acknowledges a listen of which it honours nothing, not even what an extension has added.
pub(crate) fn honours_nothing(first: &Spliced) -> bool {
    #[derive(Deserialize)]
    struct Acknowledged {
        notifications: HashMap<String, Value>,
    }
    let is_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(all) => all.is_empty(),
        _ => false,
    };
    let Ok(first) = Message::parse(first.to_bytes()) else { return false };
    let acknowledged = first.params().filter(|_| first.method() == Some(ACKNOWLEDGED));
    let acknowledged = acknowledged.and_then(|params| serde_json::from_str::<Acknowledged>(params).ok());
    acknowledged.is_some_and(|acknowledged| acknowledged.notifications.values().all(is_nothing))
}

/// The answer to a listen that ends in good order (section Graceful Closure; another page, patterns/cancellation, wants a
/// notification instead, which neither the schema nor an SDK knows).
pub(crate) fn completion(id: &RawId) -> Spliced {
    let id = text_of(id);
    let text = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"resultType":"complete","_meta":{{"{SUBSCRIPTION_ID}":{id}}}}}}}"#
    );
    Spliced::whole(text.into())
}

fn text_of(id: &RawId) -> &str {
    std::str::from_utf8(id.json()).unwrap_or("null")
}

impl Listens {
    /// Enters one under a number. With a filter, the lines that subscribe the child to what is watched newly; each takes a
    /// number of its own.
    pub(crate) fn enter(
        &mut self,
        number: u64,
        id: RawId,
        filter: Option<Filter>,
        next: impl FnMut() -> u64,
    ) -> Result<(mpsc::Receiver<Heard>, Vec<Spliced>), TooManyListens> {
        self.open.retain(|_, listen| !listen.to.is_closed());
        if self.open.len() >= MAX_LISTENS {
            return Err(TooManyListens);
        }
        let wanted = filter.iter().flat_map(|filter| &filter.resource_subscriptions);
        let new: Vec<String> = wanted.filter(|uri| !self.is_watched(uri)).cloned().collect();
        let (to, heard) = mpsc::channel(MAX_BACKLOG);
        self.open.insert(number, Listen { id, to, filter });
        Ok((heard, lines("resources/subscribe", &new, next)))
    }

    fn is_watched(&self, uri: &str) -> bool {
        let mut watched = self.open.values().filter_map(|listen| listen.filter.as_ref());
        watched.any(|filter| filter.resource_subscriptions.iter().any(|known| known == uri))
    }

    /// A client has hung up: what the child is to be told, if it is still there.
    pub(crate) fn leave(&mut self, number: u64, next: impl FnMut() -> u64) -> Vec<Spliced> {
        let Some(listen) = self.open.remove(&number) else { return Vec::new() };
        match listen.filter {
            None => {
                let text = format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{number}}}}}"#
                );
                vec![Spliced::whole(text.into())]
            }
            Some(filter) => {
                let lost: Vec<String> =
                    filter.resource_subscriptions.into_iter().filter(|uri| !self.is_watched(uri)).collect();
                lines("resources/unsubscribe", &lost, next)
            }
        }
    }

    /// The child's answer to a listen; whether it was one.
    pub(crate) fn answered(&mut self, number: u64, answer: &Message) -> bool {
        let Some(listen) = self.open.remove(&number) else { return false };
        let is_error = matches!(answer.kind(), Kind::Response { is_error: true, .. });
        let mut edits = Vec::new();
        if let Some((tag, _)) = answer.result().and_then(tag_in) {
            edits.push(answer.replace(tag, listen.id.json().clone()));
        }
        let _ = listen.to.try_send(Heard::Last(answer.edited(Some(listen.id.json().clone()), edits), is_error));
        true
    }

    /// A notification of a child that tags them; whether it was of a listen.
    pub(crate) fn tagged(&mut self, note: &Message) -> bool {
        let Some((tag, number)) = note.params().and_then(tag_in) else { return false };
        let Some(listen) = number.and_then(|number| self.open.get_mut(&number)) else { return true };
        let edits = vec![note.replace(tag, listen.id.json().clone())];
        deliver(listen, note.edited(None, edits));
        true
    }

    /// A notification of a child of the session era: to all who want to hear of it.
    pub(crate) fn changed(&mut self, note: &Message, method: &str) {
        #[derive(Deserialize)]
        struct Updated {
            uri: String,
        }
        let updated = note.params().and_then(|text| serde_json::from_str::<Updated>(text).ok());
        let uri = updated.as_ref().map(|updated| updated.uri.as_str());
        for listen in self.open.values_mut() {
            if listen.filter.as_ref().is_some_and(|filter| filter.passes(method, uri)) {
                let meta = format!(r#""_meta":{{"{SUBSCRIPTION_ID}":{}}}"#, text_of(&listen.id));
                let params = match uri {
                    Some(uri) => format!(r#"{{{meta},"uri":{}}}"#, serde_json::json!(uri)),
                    None => format!("{{{meta}}}"),
                };
                let text = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#);
                deliver(listen, Spliced::whole(text.into()));
            }
        }
    }

    /// One ends in good order; whether it was open.
    pub(crate) fn end(&mut self, number: u64) -> bool {
        let listen = self.open.remove(&number);
        listen.map(|listen| listen.to.try_send(Heard::Last(completion(&listen.id), false))).is_some()
    }

    /// The child stops: all end in good order.
    pub(crate) fn end_all(&mut self) {
        let open: Vec<u64> = self.open.keys().copied().collect();
        for number in open {
            self.end(number);
        }
    }
}

/// A client that reads too slowly loses the stream: its end of the channel sees the sender go.
fn deliver(listen: &mut Listen, note: Spliced) {
    if listen.to.try_send(Heard::Note(note)).is_err() {
        listen.to = mpsc::channel(1).0;
    }
}

fn lines(method: &str, uris: &[String], mut next: impl FnMut() -> u64) -> Vec<Spliced> {
    let line = |uri: &String| {
        let (number, uri) = (next(), serde_json::json!(uri));
        let text = format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"{method}","params":{{"uri":{uri}}}}}"#);
        Spliced::whole(Bytes::from(text))
    };
    uris.iter().map(line).collect()
}

#[derive(Deserialize)]
struct Tagged<'a> {
    #[serde(borrow, rename = "_meta")]
    meta: Tag<'a>,
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(borrow, rename = "io.modelcontextprotocol/subscriptionId")]
    id: &'a RawValue,
}

/// The tag and the number in it, of an object with `_meta`.
fn tag_in(object: &str) -> Option<(&str, Option<u64>)> {
    memchr::memmem::find(object.as_bytes(), SUBSCRIPTION_ID.as_bytes())?;
    let tag = serde_json::from_str::<Tagged<'_>>(object).ok()?.meta.id.get();
    Some((tag, number_in(tag.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).expect(text)
    }

    fn id(json: &str) -> RawId {
        message(&format!(r#"{{"jsonrpc":"2.0","id":{json},"method":"m"}}"#)).id().cloned().expect("an id")
    }

    fn said(heard: &mut mpsc::Receiver<Heard>) -> Option<String> {
        let (Heard::Note(text) | Heard::Last(text, _)) = heard.try_recv().ok()?;
        Some(String::from_utf8(text.to_bytes().to_vec()).expect("text"))
    }

    fn filter(json: &str) -> Filter {
        Filter::of(Some(&format!(r#"{{"notifications":{json}}}"#))).expect(json)
    }

    #[test]
    fn of_a_filter_only_what_the_child_tells_of_is_honoured() {
        let wanted = filter(r#"{"toolsListChanged":true,"promptsListChanged":true,"resourceSubscriptions":["a:"]}"#);
        let tells = Tells { tools: true, resources: true, ..Tells::default() };
        assert_eq!(wanted.clone().honoured(tells).json(), r#"{"toolsListChanged":true}"#);
        assert!(wanted.clone().honoured(Tells::default()).is_empty());
        let all = Tells { tools: true, prompts: true, resources: true, updates: true };
        assert_eq!(wanted.clone().honoured(all), wanted);
        assert_eq!(Filter::of(Some("{}")), None);
    }

    #[test]
    fn an_acknowledgment_of_nothing_is_known_whichever_way_a_child_writes_it() {
        let table = [
            ("{}", true),
            (r#"{"toolsListChanged":false,"promptsListChanged":null,"resourceSubscriptions":[]}"#, true),
            (r#"{"toolsListChanged":true}"#, false),
            (r#"{"resourceSubscriptions":["a:"]}"#, false),
            (r#"{"toolsListChanged":false,"taskIds":["t"]}"#, false),
            (r#"{"extension":{}}"#, false),
            ("null", false),
        ];
        for (notifications, is_nothing) in table {
            let params = format!(r#""params":{{"notifications":{notifications}}}"#);
            let first = |method| Spliced::whole(format!(r#"{{"jsonrpc":"2.0","method":"{method}",{params}}}"#).into());
            assert_eq!(honours_nothing(&first(ACKNOWLEDGED)), is_nothing, "{notifications}");
            assert!(!honours_nothing(&first("notifications/else")), "{notifications}");
        }
        assert!(honours_nothing(&acknowledgment(&id("1"), &Filter::default())));
    }

    #[test]
    fn a_child_that_tags_is_heard_under_the_clients_own_id() {
        let mut listens = Listens::default();
        let (mut heard, lines) = listens.enter(7, id("\"mine\""), None, || 0).expect("room");
        assert!(lines.is_empty());
        let note = |tag| {
            message(&format!(
                r#"{{"jsonrpc":"2.0","method":"n","params":{{"_meta":{{"{SUBSCRIPTION_ID}":{tag}}},"x":1.50}}}}"#
            ))
        };
        assert!(listens.tagged(&note("7")));
        assert!(listens.tagged(&note("8")), "of nobody's, and no other's business");
        assert_eq!(
            said(&mut heard).expect("a note"),
            format!(r#"{{"jsonrpc":"2.0","method":"n","params":{{"_meta":{{"{SUBSCRIPTION_ID}":"mine"}},"x":1.50}}}}"#)
        );
        assert_eq!(said(&mut heard), None);
        assert!(!listens.tagged(&message(r#"{"jsonrpc":"2.0","method":"n"}"#)));
        let gone = listens.leave(7, || 0);
        assert_eq!(gone.len(), 1);
        assert!(listens.leave(7, || 0).is_empty());
    }

    #[test]
    fn a_resource_is_watched_from_the_first_listen_to_the_last() {
        let mut listens = Listens::default();
        let watching = filter(r#"{"resourceSubscriptions":["a:1"]}"#);
        let (mut first, lines) = listens.enter(1, id("1"), Some(watching.clone()), || 50).expect("room");
        let text = lines.first().expect("a line").to_bytes();
        assert_eq!(
            text,
            r#"{"jsonrpc":"2.0","id":50,"method":"resources/subscribe","params":{"uri":"a:1"}}"#.as_bytes()
        );
        let (mut second, lines) = listens.enter(2, id("2"), Some(watching), || 51).expect("room");
        assert!(lines.is_empty(), "it is watched already");
        let updated = message(r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:1"}}"#);
        listens.changed(&updated, "notifications/resources/updated");
        listens.changed(&updated, "notifications/tools/list_changed");
        for heard in [&mut first, &mut second] {
            assert!(said(heard).expect("a note").contains(r#""uri":"a:1""#));
            assert_eq!(said(heard), None, "what nobody asked for is not told");
        }
        assert!(listens.leave(1, || 52).is_empty());
        assert_eq!(listens.leave(2, || 53).len(), 1);
    }

    #[test]
    fn when_the_child_stops_a_listen_ends_with_a_result() {
        let mut listens = Listens::default();
        let (mut heard, _) = listens.enter(1, id("\"x\""), None, || 0).expect("room");
        listens.end_all();
        assert_eq!(
            said(&mut heard).expect("an end"),
            format!(
                r#"{{"jsonrpc":"2.0","id":"x","result":{{"resultType":"complete","_meta":{{"{SUBSCRIPTION_ID}":"x"}}}}}}"#
            )
        );
    }

    #[test]
    fn listens_are_bounded() {
        let mut listens = Listens::default();
        let kept: Vec<_> = (0..32).map(|n| listens.enter(n, id("1"), None, || 0).expect("room")).collect();
        assert!(listens.enter(99, id("1"), None, || 0).is_err());
        drop(kept);
        assert!(listens.enter(99, id("1"), None, || 0).is_ok(), "those that hung up make room");
    }
}
