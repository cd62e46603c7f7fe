//! One request of a client as it is counted, timed and, where it calls a tool that is audited, told.
//!
//! It goes along with the request's answer and tells what it came to when it is dropped, so that a client that hangs up
//! in the middle of a stream is told of as well.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::warn;

use crate::auth::principal::Principal;
use crate::auth::rates::Limiter;
use crate::child::calls::Ending;
use crate::jsonrpc::{Kind, Message};
use crate::mcp::audit::{AuditedCall, AuditedCalls};
use crate::mcp::refusal::Refusal;
use crate::mcp::tools::Effect;
use crate::mcp::writes::RecentWrites;
use crate::metrics::{CallOutcome, Method, Metrics};
use crate::session::id;
use crate::store::SessionDigest;
use crate::trace::Trace;
use wire::clock::Clock;
use wire::message::TenantId;
use wire::telemetry::message_id;

/// Lines a minute about refusals of one user.
const REFUSALS_A_MINUTE: u32 = 6;

/// What is done with requests besides carrying them out. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    /// Counts all.
    metrics: Metrics,
    /// Which are told.
    audit: AuditedCalls,
    /// Lines about refusals, by user: who is refused asks again and again.
    lines: Arc<Limiter<TenantId>>,
    /// The last writes, for their users, and the time.
    writes: (RecentWrites, Clock),
}

impl Observer {
    /// Counts with these metrics and tells these calls.
    pub(crate) fn new(metrics: Metrics, audit: AuditedCalls, writes: RecentWrites, clock: Clock) -> Self {
        Self { metrics, audit, lines: Arc::new(Limiter::new(REFUSALS_A_MINUTE)), writes: (writes, clock) }
    }

    /// A request is not carried out for its head alone; `reason` is a stable name.
    pub(crate) fn refused_early(&self, reason: &'static str) {
        self.metrics.refused(reason);
    }

    /// A request that could not even be read as one is not carried out.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.metrics.refused(refusal.reason());
    }

    /// A request was read; `received` is when it came. `None` for what is no request and calls no tool.
    pub(crate) fn begin(
        &self,
        message: &Message,
        trace: &Trace,
        caller: &Principal,
        received: Instant,
    ) -> Option<Observed> {
        let method = Method::of(message.method()?);
        let is_request = matches!(message.kind(), Kind::Request { .. });
        if !is_request && method != Method::ToolsCall {
            return None;
        }
        Some(Observed {
            metrics: self.metrics.clone(),
            lines: Arc::clone(&self.lines),
            writes: self.writes.clone(),
            caller: caller.clone(),
            method,
            received,
            call: AuditedCall::of(self.audit, message, trace, caller).map(Box::new),
            session: None,
            effect: None,
            outcome: if is_request { CallOutcome::Abandoned } else { CallOutcome::Unanswered },
            reason: None,
        })
    }
}

/// A request until it has ended.
#[derive(Debug)]
pub(crate) struct Observed {
    metrics: Metrics,
    lines: Arc<Limiter<TenantId>>,
    writes: (RecentWrites, Clock),
    caller: Principal,
    method: Method,
    received: Instant,
    call: Option<Box<AuditedCall>>,
    session: Option<SessionDigest>,
    effect: Option<Effect>,
    outcome: CallOutcome,
    reason: Option<&'static str>,
}

impl Observed {
    /// It is a request of this session.
    pub(crate) fn of_session(&mut self, session: SessionDigest) {
        self.session = Some(session);
    }

    /// The tool that is called, where that matters.
    pub(crate) fn tool(&self) -> Option<&str> {
        self.call.as_ref().map(|call| call.tool())
    }

    /// What the tool does, as far as that is known.
    pub(crate) fn does(&mut self, effect: Option<Effect>) {
        self.effect = effect;
    }

    /// What it came to.
    pub(crate) fn came_to(&mut self, outcome: CallOutcome) {
        self.outcome = outcome;
    }

    /// It is not carried out.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        (self.outcome, self.reason) = (CallOutcome::Refused, Some(refusal.reason()));
        if let Some(why) = refusal.worth_a_line()
            && self.lines.count(&self.caller.tenant).is_ok()
        {
            let (caller, method, reason) = (&self.caller, self.method.as_str(), refusal.reason());
            warn!(
                MESSAGE_ID = message_id::CALL_REFUSED, tenant = %caller.tenant, login = %caller.login,
                grant = %caller.grant, client = %caller.client_id, reason,
                session = self.session.as_ref().map(|digest| tracing::field::display(id::tag(digest))),
                "refused {method} of {} with {}: {why} ({reason})", caller.login, caller.client_id
            );
        }
    }
}

impl From<Ending> for CallOutcome {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Result => Self::Ok,
            Ending::ToolError => Self::ToolError,
            Ending::Error(_) => Self::Error,
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let took = self.received.elapsed();
        self.metrics.call_ended(self.method, self.outcome, took);
        if let Some(reason) = self.reason {
            self.metrics.refused(reason);
        }
        if let Some(call) = &self.call {
            let (writes, clock) = &self.writes;
            if let Some(write) = call.write(self.effect, self.outcome, clock.now()) {
                writes.note(write);
            }
            call.ended(self.session.as_ref(), self.effect, self.outcome, self.reason, took);
        }
    }
}
