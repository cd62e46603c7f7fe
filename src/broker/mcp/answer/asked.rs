//! What is known of a request while it is answered, and what its client is told whatever happens.

use std::time::Duration;

use super::form::AnswerForm;
use crate::budget::{Budget, counted};
use crate::child::bridge::Pending;
use crate::child::calls::Ending;
use crate::jsonrpc::{self, RawId, Spliced, code};
use crate::mcp::doubt::Doubt;
use crate::mcp::observed::Observed;
use crate::mcp::refusal::Refusal;
use crate::mcp::tools::Effect;
use crate::mcp::tools::list::View;
use crate::metrics::CallOutcome;

/// A request that a child has.
#[derive(Debug)]
pub(crate) struct Sent {
    /// What comes of it.
    pub(crate) pending: Pending,
    /// How the caller is to see the answer, where that is not as the child gives it.
    pub(crate) view: Option<View>,
    /// What the tool that is called does, as far as that is known and matters.
    pub(crate) effect: Option<Effect>,
}

/// What a request's client is told whatever happens.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The request's id.
    pub(crate) id: RawId,
    /// The form of its answer.
    pub(crate) form: AnswerForm,
    /// How long it may take in all, to name it where it took too long.
    pub(crate) limit: Duration,
    /// Of the caller.
    pub(crate) budget: Budget,
    /// Hears what the request comes to.
    pub(crate) observed: Option<Observed>,
    /// Looks into what a child says of its token.
    pub(crate) doubt: Option<Doubt>,
}

impl Asked {
    pub(super) fn error(&self, message: &str) -> Spliced {
        Spliced::whole(jsonrpc::error_text(Some(&self.id), code::INTERNAL_ERROR, message))
    }

    pub(super) fn timed_out(&self) -> Spliced {
        let limit = humantime::format_duration(self.limit);
        self.error(&format!("the forgejo-mcp process did not answer within {limit}"))
    }

    pub(super) fn lost(&self) -> Spliced {
        self.error("the answer was lost because the stream was read too slowly")
    }

    pub(super) fn cancelled(&self) -> Spliced {
        self.error("Request cancelled")
    }

    /// A refusal as the answer, where the status cannot say it.
    pub(crate) fn told_of(&mut self, refusal: Refusal) -> Spliced {
        self.refused(&refusal);
        Spliced::whole(refusal.of(Some(&self.id)).into_text())
    }

    pub(super) fn came_to(&mut self, outcome: impl Into<CallOutcome>) {
        if let Some(observed) = &mut self.observed {
            observed.came_to(outcome.into());
        }
    }

    pub(super) fn refused(&mut self, refusal: &Refusal) {
        if let Some(observed) = &mut self.observed {
            observed.refused(refusal);
        }
    }

    pub(crate) fn sent(&mut self, sent: &Sent) {
        if let Some(observed) = &mut self.observed {
            observed.does(sent.effect);
        }
    }

    /// Where a child says that its token is refused and that is so: the refusal in the place of its answer.
    pub(super) async fn settled(&mut self, answer: &Spliced, ending: Ending) -> Option<Refusal> {
        let refusal = self.doubt.as_ref()?.settle(answer, ending).await?;
        self.refused(&refusal);
        Some(refusal)
    }

    /// The answer as its caller may see it. What is made anew is held against their budget, like what it was made of.
    pub(super) fn seen(&self, answer: Spliced, view: Option<&View>) -> Spliced {
        let Some(view) = view else { return answer };
        let seen = view.apply(answer.to_bytes());
        match self.budget.hold(seen.len()) {
            Ok(held) => Spliced::whole(counted(seen, held)),
            Err(over) => self.error(&over.to_string()),
        }
    }
}
