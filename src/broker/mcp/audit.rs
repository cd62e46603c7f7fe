//! Who called which tool on which repository, with what outcome and how long: one line of the journal a call.
//!
//! A line has the tool's name, and of the arguments the owner, the repository and the number, each only where it looks
//! like one at Forgejo. Nothing else of a call or its answer is ever told. What a lenient child may read otherwise than
//! we do counts as writing, and a tool of which nothing is known is told with the writes, so that no spelling of a call
//! keeps it out of the audit.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::info;

use crate::auth::principal::Principal;
use crate::jsonrpc::Message;
use crate::jsonrpc::members::each_member;
use crate::mcp::tools::Effect;
use crate::mcp::tools::call::Ask;
use crate::metrics::CallOutcome;
use crate::session::id;
use crate::store::{SessionDigest, WriteCall};
use crate::trace::Trace;
use wire::clock::UnixTime;
use wire::config_file::Section;
use wire::telemetry::{AUDIT, message_id};

/// Characters of a tool's name that are told (MCP, tools: names have at most 128).
const MAX_TOOL: usize = 128;
/// Characters of an owner; Forgejo's logins and organisations have at most 40.
const MAX_OWNER: usize = 40;
/// Characters of a repository; Forgejo's have at most 100.
const MAX_REPO: usize = 100;
/// What the broker's own tokens begin with: no name that holds it is told, whoever put it there.
const TOKEN_PREFIX: &str = "fjb_";
/// Names under which programs take an issue's or pull request's number.
const NUMBERS: [&str; 6] = ["index", "number", "issue_index", "issue_number", "pull_index", "pull_number"];

/// Which calls are told: `[audit] calls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum AuditedCalls {
    /// None.
    Off,
    /// Those that may change something.
    #[default]
    Writes,
    /// All.
    All,
}

impl AuditedCalls {
    /// Reads the section.
    pub(crate) fn read(mut section: Section) -> Self {
        let calls = section.value("calls", |value| match value.as_str() {
            Some("off") => Ok(Self::Off),
            Some("writes") => Ok(Self::Writes),
            Some("all") => Ok(Self::All),
            _ => Err("must be \"off\", \"writes\" or \"all\"".to_owned()),
        });
        section.close();
        calls.unwrap_or_default()
    }
}

/// A call that is told when it has ended.
#[derive(Debug)]
pub(crate) struct AuditedCall {
    which: AuditedCalls,
    caller: Principal,
    tool: Box<str>,
    /// Whether readers could disagree on what is called.
    is_ambiguous: bool,
    target: Target,
    trace: Trace,
}

impl AuditedCall {
    /// Of a message, if it calls a tool.
    pub(crate) fn of(which: AuditedCalls, message: &Message, trace: &Trace, caller: &Principal) -> Option<Self> {
        if which == AuditedCalls::Off || message.method() != Some("tools/call") {
            return None;
        }
        let (tool, is_ambiguous) = match Ask::of(message) {
            Ask::Tool(name) => (name, false),
            // As a notification, which some children carry out all the same.
            Ask::Writing => (named(message).unwrap_or_default(), false),
            Ask::Reading | Ask::Content | Ask::Ambiguous => (named(message).unwrap_or_default(), true),
        };
        let params: Params<'_> = message.params().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Some(Self {
            which,
            caller: caller.clone(),
            tool: if is_name(&tool, MAX_TOOL, "/:") { tool.into() } else { "?".into() },
            is_ambiguous,
            target: params.arguments.map(|raw| Target::of(raw.get())).unwrap_or_default(),
            trace: trace.clone(),
        })
    }

    /// The tool's name.
    pub(crate) fn tool(&self) -> &str {
        &self.tool
    }

    /// The call, where it may have changed something, for its user.
    pub(crate) fn write(&self, effect: Option<Effect>, outcome: CallOutcome, at: UnixTime) -> Option<WriteCall> {
        let changed = (self.is_ambiguous || effect != Some(Effect::Reads)) && outcome != CallOutcome::Refused;
        let Target { owner, repo, .. } = &self.target;
        let target = [owner, repo].into_iter().flatten().map(|name| &**name).collect::<Vec<_>>().join("/");
        let grant = self.caller.grant.clone();
        changed.then(|| WriteCall { grant, at, tool: self.tool.to_string(), target, outcome: outcome.as_str().into() })
    }

    /// The call has ended. `effect` is unknown where no child was there to ask about the tool.
    pub(crate) fn ended(
        &self,
        session: Option<&SessionDigest>,
        effect: Option<Effect>,
        outcome: CallOutcome,
        reason: Option<&'static str>,
        took: Duration,
    ) {
        let effect = match effect {
            _ if self.is_ambiguous => "write",
            Some(Effect::Reads) if self.which != AuditedCalls::All => return,
            Some(Effect::Reads) => "read",
            Some(Effect::Adds | Effect::Changes) => "write",
            None => "unknown",
        };
        let Self { caller, tool, target, .. } = self;
        let number = target.number.map(tracing::field::display);
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let why = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        info!(
            target: AUDIT,
            // Inside of the request or after it, with one field for its trace.
            parent: None,
            MESSAGE_ID = message_id::TOOL_CALLED, tenant = %caller.tenant, login = %caller.login, grant = %caller.grant,
            client = %caller.client_id, session = session.map(|digest| tracing::field::display(id::tag(digest))),
            tool = %tool, owner = target.owner.as_deref(), repo = target.repo.as_deref(), number,
            effect, outcome = outcome.as_str(), reason, duration_ms,
            request_id = %self.trace.request_id(), trace_id = %self.trace.id(),
            "{} called {tool}{target} with {}: {}{why}, after {duration_ms} ms",
            caller.login, caller.client_id, outcome.as_str(),
        );
    }
}

/// What a call is about.
#[derive(Debug, Default, PartialEq, Eq)]
struct Target {
    owner: Option<Box<str>>,
    repo: Option<Box<str>>,
    number: Option<u64>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.owner, &self.repo) {
            (Some(owner), Some(repo)) => write!(f, " on {owner}/{repo}")?,
            (Some(name), None) | (None, Some(name)) => write!(f, " on {name}")?,
            (None, None) => {}
        }
        self.number.map_or(Ok(()), |number| write!(f, " #{number}"))
    }
}

impl Target {
    /// Of a call's `arguments`. A name that is there twice with two values, in whatever case, is not told: we do not know
    /// which of them the child takes.
    fn of(arguments: &str) -> Self {
        let Members { owner, org, repo, number } = Members::of(arguments);
        let text = |member: Member<'_>, longest: usize| {
            let text: String = serde_json::from_str(member.only()?).ok()?;
            is_name(&text, longest, "").then(|| text.into_boxed_str())
        };
        let number = number.only().and_then(|text| text.trim_matches('"').parse().ok());
        Self { owner: text(owner, MAX_OWNER).or_else(|| text(org, MAX_OWNER)), repo: text(repo, MAX_REPO), number }
    }
}

/// The members that matter, as spelled.
#[derive(Default)]
struct Members<'a> {
    owner: Member<'a>,
    org: Member<'a>,
    repo: Member<'a>,
    number: Member<'a>,
}

#[derive(Default)]
enum Member<'a> {
    #[default]
    Absent,
    One(&'a str),
    Differing,
}

impl<'a> Member<'a> {
    fn add(&mut self, text: &'a str) {
        *self = match self {
            Self::Absent => Self::One(text),
            Self::One(known) if *known == text => Self::One(text),
            Self::One(_) | Self::Differing => Self::Differing,
        };
    }

    fn only(&self) -> Option<&'a str> {
        match self {
            Self::One(text) => Some(text),
            Self::Absent | Self::Differing => None,
        }
    }
}

impl<'a> Members<'a> {
    /// None of them for what is no object.
    fn of(arguments: &'a str) -> Self {
        let mut members = Self::default();
        let read = each_member(arguments, |member| {
            let known = match member.name.to_ascii_lowercase().as_str() {
                "owner" => &mut members.owner,
                "org" => &mut members.org,
                "repo" => &mut members.repo,
                name if NUMBERS.contains(&name) => &mut members.number,
                _ => return,
            };
            known.add(member.value.get());
        });
        read.map(|()| members).unwrap_or_default()
    }
}

#[derive(Deserialize, Default)]
struct Params<'a> {
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

/// The name that a plain reader sees, for a call that not all read alike.
fn named(message: &Message) -> Option<String> {
    #[derive(Deserialize)]
    struct Call {
        name: String,
    }
    serde_json::from_str::<Call>(message.params()?).ok().map(|call| call.name)
}

/// Whether a text looks like a name at Forgejo, and like no token.
fn is_name(text: &str, longest: usize, more: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || more.contains(c);
    !text.is_empty() && text.len() <= longest && text.chars().all(allowed) && !text.contains(TOKEN_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(owner: Option<&str>, repo: Option<&str>, number: Option<u64>) -> Target {
        Target { owner: owner.map(Into::into), repo: repo.map(Into::into), number }
    }

    #[test]
    fn of_the_arguments_only_names_and_a_number_are_told() {
        let table = [
            (
                r#"{"owner":"acme","repo":"site","index":12,"body":"secret"}"#,
                target(Some("acme"), Some("site"), Some(12)),
            ),
            (r#"{"owner":"acme","repo":"site","number":"7"}"#, target(Some("acme"), Some("site"), Some(7))),
            (r#"{"org":"acme"}"#, target(Some("acme"), None, None)),
            (r#"{"owner":"my secret text","repo":"a/b"}"#, Target::default()),
            (r#"{"owner":["acme"],"repo":{"name":"x"},"index":-1}"#, Target::default()),
            (r#"{"repo":"fjb_at_0123456789","owner":"0123456789012345678901234567890123456789x"}"#, Target::default()),
            (r#"["owner","acme"]"#, Target::default()),
            ("{}", Target::default()),
        ];
        for (arguments, expected) in table {
            assert_eq!(Target::of(arguments), expected, "{arguments}");
        }
    }

    #[test]
    fn a_target_that_readers_could_disagree_on_is_not_told() {
        for arguments in [
            r#"{"owner":"acme","Owner":"evil","repo":"site"}"#,
            r#"{"owner":"acme","owner":"evil","repo":"site"}"#,
            r#"{"owner":"acme","OWNE\u0052":"evil","repo":"site"}"#,
        ] {
            assert_eq!(Target::of(arguments), target(None, Some("site"), None), "{arguments}");
        }
        assert_eq!(Target::of(r#"{"repo":"site","Repo":"site"}"#), target(None, Some("site"), None));
    }
}
