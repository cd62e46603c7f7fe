//! The form of one answer, by what its client takes, what has come, and what had to be committed to before.

use std::sync::{Arc, OnceLock};

use crate::child::calls::form::Form;
use crate::mcp::headers::Accept;

/// The form of one answer. Cheap to clone: who answers may have to commit to one while somebody else still brings the
/// request to a child, who has to know of it.
#[derive(Debug, Clone)]
pub(crate) struct AnswerForm {
    taken: Form,
    committed: Arc<OnceLock<Form>>,
}

impl AnswerForm {
    /// By what the client takes.
    pub(crate) fn of(accept: Accept) -> Self {
        Self::new(match accept {
            Accept { json: true, events: true } => Form::Open,
            Accept { events: true, .. } => Form::Events,
            Accept { events: false, .. } => Form::Json,
        })
    }

    /// Of the answers to a batch, which go out on one stream where the client takes any.
    pub(crate) fn of_several(accept: Accept) -> Self {
        Self::new(if accept.events { Form::Events } else { Form::Json })
    }

    fn new(taken: Form) -> Self {
        Self { taken, committed: Arc::default() }
    }

    /// As it is now.
    pub(crate) fn get(&self) -> Form {
        self.committed.get().copied().unwrap_or(self.taken)
    }

    /// Commits to one, because the client has heard nothing for long.
    pub(super) fn commit(&self) -> Form {
        let form = if self.taken == Form::Open { Form::Json } else { self.taken };
        *self.committed.get_or_init(|| form)
    }
}
