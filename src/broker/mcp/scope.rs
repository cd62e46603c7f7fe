//! What a grant lets through: with `forgejo:write` everything, with `forgejo:read` what only reads; of a token with a list
//! of tools these only, whatever its scopes.
//!
//! A refusal names the scopes that would do, so that a client can ask its user for them (step-up; MCP revision
//! 2025-11-25, basic/authorization, section Scope Challenge Handling).

use std::sync::Arc;

use axum::http::HeaderValue;
use tokio::time::Instant;

use crate::auth::bearer::Challenge;
use crate::auth::principal::{Principal, Scopes};
use crate::child::bridge::Bridge;
use crate::jsonrpc::Message;
use crate::live::Live;
use crate::mcp::refusal::Refusal;
use crate::mcp::tools::annotations::ToolAnnotations;
use crate::mcp::tools::call::Ask;
use crate::mcp::tools::list::View;
use crate::mcp::tools::{Effect, Tables};

/// The rules.
#[derive(Debug)]
pub(crate) struct Scope {
    tables: Live<Tables>,
    annotations: ToolAnnotations,
    /// Says which scopes would do; none where the operator allows no writing, so that none would.
    challenge: Option<HeaderValue>,
}

/// What remains to be known before a message may go to a child.
#[derive(Debug)]
pub(crate) enum Need {
    /// Nothing.
    Nothing,
    /// Whether this tool only reads.
    ReadingTool(String),
}

impl Scope {
    /// Decides by these tables; refuses with this challenge, where more can be had at all.
    pub(crate) fn new(tables: Live<Tables>, challenge: &Challenge, offered: Scopes) -> Self {
        let text = format!(
            "Bearer error=\"insufficient_scope\", {}, error_description=\"this tool changes something at Forgejo\"",
            challenge.parameters()
        );
        // Our own address and scopes are header characters.
        let challenge =
            HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Bearer error=\"insufficient_scope\""));
        let challenge = offered.write.then_some(challenge);
        Self { tables, annotations: ToolAnnotations::default(), challenge }
    }

    /// Looks at a message before anything is done with it. A grant that may do everything costs nothing here.
    pub(crate) fn need(&self, caller: &Principal, message: &Message) -> Result<Need, Refusal> {
        let restricted = caller.restrictions.tools.is_some();
        if caller.scopes.write && !restricted {
            return Ok(Need::Nothing);
        }
        match Ask::of(message) {
            Ask::Tool(name) if !caller.restrictions.allow_tool(&name) => Err(Refusal::other_tool(&name)),
            Ask::Tool(_) if caller.scopes.write => Ok(Need::Nothing),
            Ask::Tool(name) => Ok(Need::ReadingTool(name)),
            // What is read past the tools, or in a way that nobody knows, no list of tools names.
            Ask::Content | Ask::Writing if restricted => Err(Refusal::no_tool()),
            Ask::Reading | Ask::Content => Ok(Need::Nothing),
            Ask::Writing => Err(self.insufficient()),
            Ask::Ambiguous => Err(Refusal::ambiguous()),
        }
    }

    /// Whether the message may go to this child; not where that is not known by `deadline`.
    pub(crate) async fn allows(&self, need: &Need, bridge: &Arc<Bridge>, deadline: Instant) -> bool {
        let Need::ReadingTool(tool) = need else { return true };
        match self.tables.get().of(bridge.program()) {
            Some(table) => table.effect(tool) == Effect::Reads,
            None => self.annotations.read_only(bridge, tool, deadline).await,
        }
    }

    /// What a tool of this child does; unknown where only the child itself could say and has not yet.
    pub(crate) fn effect(&self, tool: &str, bridge: &Arc<Bridge>) -> Option<Effect> {
        if let Some(table) = self.tables.get().of(bridge.program()) {
            return Some(table.effect(tool));
        }
        let reads = self.annotations.known(bridge, tool)?;
        Some(if reads { Effect::Reads } else { Effect::Changes })
    }

    /// What children say of their own tools.
    pub(crate) fn annotations(&self) -> &ToolAnnotations {
        &self.annotations
    }

    /// How the caller is to see the answer, where that is not as the child gives it.
    pub(crate) fn view(&self, caller: &Principal, bridge: &Bridge, message: &Message) -> Option<View> {
        if message.method() != Some("tools/list") {
            return None;
        }
        let tables = self.tables.get();
        let view = View {
            table: tables.of(bridge.program()).cloned(),
            reads_only: !caller.scopes.write,
            only: caller.restrictions.tools.clone(),
            correct_hints: tables.correct_hints,
        };
        (!view.is_plain()).then_some(view)
    }

    /// The refusal of what the grant does not allow.
    pub(crate) fn insufficient(&self) -> Refusal {
        self.challenge.clone().map_or_else(Refusal::no_writing, Refusal::insufficient_scope)
    }
}
