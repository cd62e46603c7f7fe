//! Tasks of the stateless era (extension `io.modelcontextprotocol/tasks`), which live as long as this program.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// How long a task lives, in milliseconds: longer than any test.
const LIFE: u64 = 3_600_000;

/// All of them, with what has become of each.
#[derive(Default)]
pub(crate) struct Tasks(Mutex<BTreeMap<String, &'static str>>);

impl Tasks {
    /// Begins one that does not end by itself; the answer that names it.
    pub(crate) fn begin(&self) -> Value {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The process, too, so that no two children have tasks of one name.
        let id = format!("task-{}-{}", std::process::id(), all.len());
        let answer = told("task", &id, "working");
        all.insert(id, "working");
        answer
    }

    /// `tasks/get`.
    pub(crate) fn get(&self, params: &Value) -> Result<Value, (i64, String)> {
        self.of(params, |status| *status)
    }

    /// `tasks/cancel`.
    pub(crate) fn cancel(&self, params: &Value) -> Result<Value, (i64, String)> {
        self.of(params, |status| {
            *status = "cancelled";
            *status
        })
    }

    fn of(&self, params: &Value, look: impl FnOnce(&mut &'static str) -> &'static str) -> Result<Value, (i64, String)> {
        let id = params.get("taskId").and_then(Value::as_str).unwrap_or_default();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let status = all.get_mut(id).ok_or_else(|| (-32602, format!("task '{id}' not found")))?;
        Ok(told("complete", id, look(status)))
    }
}

fn told(result_type: &str, id: &str, status: &str) -> Value {
    json!({"resultType": result_type, "taskId": id, "status": status, "ttlMs": LIFE})
}
