//! Tasks that a child has begun and not ended (extension `io.modelcontextprotocol/tasks`): it answers a request with a
//! handle, and whoever holds that asks for the outcome later. They live in the child's memory, so it is not idle meanwhile.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::jsonrpc::Message;

/// Tasks of one child that keep it; it is believed about no more.
const MAX_TASKS: usize = 64;
/// Bytes of a task's name; the names are kept.
const MAX_NAME: usize = 256;
/// How long a task keeps its child where the child sets no limit, from the last word on it.
const UNLIMITED: Duration = Duration::from_hours(1);
/// The longest limit that is believed.
const LONGEST: Duration = Duration::from_hours(24);

/// The open tasks of one child, each with the time until which it keeps the child.
#[derive(Debug, Default)]
pub(crate) struct Tasks(HashMap<Box<str>, Instant>);

#[derive(Deserialize)]
struct Told {
    #[serde(rename = "resultType", default)]
    result_type: String,
    #[serde(rename = "taskId")]
    id: String,
    #[serde(default)]
    status: String,
    #[serde(rename = "ttlMs", default)]
    ttl_ms: Option<u64>,
}

impl Tasks {
    /// Notes what an answer says of a task, if it does. Nearly none does, and a look for the word is cheaper than a parse.
    pub(crate) fn note(&mut self, answer: &Message, now: Instant) {
        let Some(result) = answer.result() else { return };
        if memchr::memmem::find(result.as_bytes(), br#""taskId""#).is_none() {
            return;
        }
        let Ok(told) = serde_json::from_str::<Told>(result) else { return };
        let begins = told.result_type == "task";
        if !(begins || self.0.contains_key(told.id.as_str())) || told.id.len() > MAX_NAME {
            return;
        }
        if matches!(told.status.as_str(), "completed" | "failed" | "cancelled") {
            self.0.remove(told.id.as_str());
        } else if begins || told.ttl_ms.is_none() {
            self.0.retain(|_, until| now < *until);
            let keeps = told.ttl_ms.map_or(UNLIMITED, Duration::from_millis).min(LONGEST);
            if self.0.len() < MAX_TASKS {
                self.0.insert(told.id.into(), now + keeps);
            }
        }
    }

    /// When the last of them is over, if nothing more is heard of it.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.0.values().max().copied()
    }

    /// Whether one is open.
    pub(crate) fn any(&self, now: Instant) -> bool {
        self.0.values().any(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(result: &str) -> Message {
        Message::parse(format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#).into()).expect(result)
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_open_from_its_handle_to_its_end() {
        let (mut tasks, now) = (Tasks::default(), Instant::now());
        tasks.note(&answer(r#"{"resultType":"complete","content":[{"text":"taskId"}]}"#), now);
        assert!(!tasks.any(now), "no task");
        tasks.note(&answer(r#"{"resultType":"task","taskId":"t","status":"working","ttlMs":60000}"#), now);
        assert!(tasks.any(now));
        tasks.note(&answer(r#"{"resultType":"complete","taskId":"t","status":"input_required","ttlMs":60000}"#), now);
        assert!(tasks.any(now), "still");
        tasks.note(&answer(r#"{"resultType":"complete","taskId":"t","status":"completed","result":{}}"#), now);
        assert!(!tasks.any(now), "it has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_keeps_its_child_no_longer_than_it_lives() {
        let (mut tasks, now) = (Tasks::default(), Instant::now());
        tasks.note(&answer(r#"{"resultType":"task","taskId":"t","status":"working","ttlMs":60000}"#), now);
        assert!(!tasks.any(now + Duration::from_mins(1)));
        tasks.note(&answer(r#"{"resultType":"task","taskId":"u","status":"working","ttlMs":null}"#), now);
        assert!(tasks.any(now + Duration::from_mins(59)));
        let later = now + Duration::from_mins(59);
        tasks.note(&answer(r#"{"taskId":"u","status":"working","ttlMs":null}"#), later);
        assert!(tasks.any(later + Duration::from_mins(59)), "somebody still asks for it");
        for n in 0..1000 {
            tasks.note(&answer(&format!(r#"{{"resultType":"task","taskId":"{n}","ttlMs":1000}}"#)), now);
        }
        assert_eq!(tasks.0.len(), MAX_TASKS);
    }
}
