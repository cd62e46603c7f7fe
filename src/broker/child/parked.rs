//! Requests whose child has asked for something and waits for their client (revision 2026-07-28, basic/patterns/mrtr).
//!
//! A child of the session era asks in the middle of a request. Its client gets the question as the request's answer, with a
//! random state that names the waiting request, and brings both back with the answer in a request of its own. The state is a
//! secret of the grant: it is looked for among the requests of the caller's own children, fits only the same call of the same
//! tool, prompt or resource, is taken once, and means nothing any more when its request has ended.

use std::collections::HashMap;

use bytes::Bytes;
use rand::TryCryptoRng;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::child::bridge::Pending;
use crate::child::calls::Question;
use crate::hex;
use crate::jsonrpc::{Message, RawId, Spliced};

/// Random bytes in a state.
const BYTES: usize = 16;

/// Names a waiting request (`requestState`).
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct RequestState(Box<str>);

impl std::fmt::Debug for RequestState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RequestState")
    }
}

/// The random source failed.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes for the state of a request")]
pub(crate) struct NoRandomness;

impl RequestState {
    /// A new one.
    pub(crate) fn mint(rng: &mut impl TryCryptoRng) -> Result<Self, NoRandomness> {
        let mut bytes = [0; BYTES];
        rng.try_fill_bytes(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(hex::encode(&bytes).into()))
    }
}

/// What a request is about: only the same may bring an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    method: Box<str>,
    /// `name` or `uri`.
    name: Box<str>,
}

impl About {
    /// Of a request.
    pub(crate) fn of(request: &Message) -> Self {
        #[derive(Deserialize, Default)]
        struct Params {
            #[serde(default)]
            name: Box<str>,
            #[serde(default)]
            uri: Box<str>,
        }
        let params: Params = request.params().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let name = if params.name.is_empty() { params.uri } else { params.name };
        Self { method: request.method().unwrap_or_default().into(), name }
    }
}

/// What a client brings back.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    /// For which request.
    pub(crate) state: Option<RequestState>,
    /// Its answers, by the name that the question had.
    answers: HashMap<String, Box<RawValue>>,
}

impl Brought {
    /// Of a request's parameters; a state that is no text names nothing.
    pub(crate) fn of(request: &Message) -> Self {
        #[derive(Deserialize)]
        struct Params {
            #[serde(rename = "requestState", default)]
            state: Option<Box<RawValue>>,
            #[serde(rename = "inputResponses", default)]
            answers: HashMap<String, Box<RawValue>>,
        }
        let Some(params) = request.params() else { return Self::default() };
        if memchr::memmem::find(params.as_bytes(), b"requestState").is_none() {
            return Self::default();
        }
        let Ok(params) = serde_json::from_str::<Params>(params) else { return Self::default() };
        let text = |raw: Box<RawValue>| serde_json::from_str(raw.get()).unwrap_or_default();
        Self { state: params.state.map(|raw| RequestState(text(raw))), answers: params.answers }
    }

    /// The answer to a question, if it is an object, as all of them are.
    pub(crate) fn answer(&self, question: &Question) -> Option<&str> {
        let answer = self.answers.get(&key(question)).map(|raw| raw.get());
        answer.filter(|text| text.starts_with('{'))
    }
}

/// A question's name towards the client.
fn key(question: &Question) -> String {
    format!("input-{}", question.number)
}

/// The answer to a request that gives its client the question instead of a result.
pub(crate) fn input_required(id: &RawId, question: &Question, state: &RequestState) -> Spliced {
    let (method, key) = (serde_json::json!(question.method), key(question));
    let params: &[u8] = if question.params.is_empty() { b"" } else { br#","params":"# };
    let id = String::from_utf8_lossy(id.json());
    let before = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"resultType":"input_required","requestState":"{}","inputRequests":{{"{key}":{{"method":{method}"#,
        state.0
    );
    let parts = [before.into(), Bytes::copy_from_slice(params), question.params.clone(), Bytes::from_static(b"}}}}")];
    Spliced::of(parts.into())
}

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// It goes on here.
    pub(crate) pending: Pending,
    /// What its client was asked.
    pub(crate) question: Question,
    /// What it is about.
    pub(crate) about: About,
    /// When it is given up.
    pub(crate) until: Instant,
}

/// All that wait of one child.
#[derive(Debug, Default)]
pub(crate) struct Parked(HashMap<RequestState, Waiting>);

impl Parked {
    /// One more.
    pub(crate) fn insert(&mut self, state: RequestState, waiting: Waiting) {
        self.0.insert(state, waiting);
    }

    /// The one with this state, if the request that brings it is about the same.
    pub(crate) fn take(&mut self, state: &RequestState, about: &About) -> Option<Waiting> {
        if self.0.get(state)?.about != *about {
            return None;
        }
        self.0.remove(state)
    }

    /// Whether one has this state.
    pub(crate) fn knows(&self, state: &RequestState) -> bool {
        self.0.contains_key(state)
    }

    /// Those whose client has not come back in time. To be dropped without a lock held.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Waiting> {
        self.0.extract_if(|_, waiting| waiting.until <= now).map(|(_, waiting)| waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).expect(text)
    }

    #[test]
    fn a_question_becomes_an_answer_with_a_state_and_comes_back() {
        let request = message(r#"{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"t"}}"#);
        let question = Question { number: 7, method: "elicitation/create".into(), params: r#"{"message":"?"}"#.into() };
        let state = RequestState::mint(&mut rand::rngs::SysRng).expect("a state");
        let text = input_required(request.id().expect("an id"), &question, &state).to_bytes();
        let answer: serde_json::Value = serde_json::from_slice(&text).expect("json");
        let asked = answer.pointer("/result/inputRequests/input-7").expect("the question");
        assert_eq!(*asked, serde_json::json!({"method": "elicitation/create", "params": {"message": "?"}}));
        let told = answer.pointer("/result/requestState").expect("a state");
        let back = format!(
            r#"{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{{"name":"t","requestState":{told},"inputResponses":{{"input-7":{{"action":"accept"}},"more":1}}}}}}"#
        );
        let brought = Brought::of(&message(&back));
        assert_eq!(brought.state, Some(state));
        assert_eq!(brought.answer(&question), Some(r#"{"action":"accept"}"#));
        assert_eq!(brought.answer(&Question { number: 8, ..question }), None);
    }

    #[test]
    fn only_a_request_about_the_same_is_about_the_same() {
        let about = |method: &str, params: &str| {
            About::of(&message(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#)))
        };
        let first = about("tools/call", r#"{"name":"a"}"#);
        assert_eq!(first, about("tools/call", r#"{"name":"a","inputResponses":{}}"#));
        assert_ne!(first, about("tools/call", r#"{"name":"b"}"#));
        assert_ne!(first, about("prompts/get", r#"{"name":"a"}"#));
        assert_ne!(about("resources/read", r#"{"uri":"a:"}"#), about("resources/read", r#"{"uri":"b:"}"#));
    }
}
