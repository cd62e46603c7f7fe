//! Where log lines go: the journal where standard error is the journal, else standard error, as text or as JSON. A leaf.
//!
//! No line waits for whoever reads it: what is not taken at once is lost, and how much that was is told later.
//!
//! Field names are stable and go to the journal in capitals: `TENANT`, `SESSION`, `GRANT`, `UID`,
//! `CHILD_PID`, `REASON`, `DURATION_MS`. `RUST_LOG` filters, else what the configuration says, else `info`.

use std::os::unix::fs::MetadataExt;
use std::str::FromStr;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::entry::Entries;
use crate::journal::Journal;
use crate::json_lines::JsonLines;
use crate::stderr::LogWriter;
use crate::{json_lines, stderr};

/// The target of what children write themselves; it has an identifier of its own in the journal.
pub const CHILD: &str = "child";
/// The target of the audit.
pub const AUDIT: &str = "audit";

/// Stable `MESSAGE_ID`s for `journalctl MESSAGE_ID=…` (sd-journal's message catalog).
pub mod message_id {
    /// The supervisor refused a request; `REASON` is the code of the refusal.
    pub const REFUSED: &str = "6f0c7a2e0a5b4a0e9a5d8c1f3b7e2d41";
    /// The supervisor closed a connection; `REASON` is the code of the farewell.
    pub const HUNG_UP: &str = "b1d4e6f80c2a4d1e8f3a5b7c9d0e1f23";
    /// A child was started.
    pub const CHILD_STARTED: &str = "3c9e5a7b1d2f4e6a8b0c2d4e6f8a0b1c";
    /// A child has ended.
    pub const CHILD_ENDED: &str = "d7a9b1c3e5f74a8b9c0d1e2f3a4b5c6d";
    /// Something of the isolation is missing here.
    pub const NOT_ISOLATED: &str = "5e8d2c4b6a7f4e3d9c1b0a8f7e6d5c4b";
    /// Processes under a uid did not go away.
    pub const UID_QUARANTINED: &str = "92f1e3d5c7b94a6b8d0e2f4a6c8b0d1e";
    /// A client opened a session.
    pub const SESSION_OPENED: &str = "be6db9280c04421cbefb68436a047750";
    /// A session has ended; `REASON` says why.
    pub const SESSION_ENDED: &str = "aa04cb694d684556bd15fe5bea1808d8";
    /// A child serves a session from now on: joins `SESSION` and `CHILD_PID`.
    pub const CHILD_SERVES: &str = "3773fb78d92044838e7c3a53edaec052";
    /// The broker stops a child; its session goes on. `REASON` says why.
    pub const CHILD_STOPPED: &str = "92f0f9bf637341d2bc86aaddec22178b";
    /// A child ended on its own, or was killed for a limit; `REASON` says which.
    pub const CHILD_GONE: &str = "1d3e857086d749419adc0141b7f7d6d6";
    /// A child wrote a line that is no message, or one that is not kept; `REASON` says why.
    pub const CHILD_MISREAD: &str = "72566635c3cf499dbd32fa94185022d0";
    /// A client's request was not carried out, for want of room or of a right; `REASON` says which.
    pub const CALL_REFUSED: &str = "2723d1f4f24a4a399d8479429a0464c7";
    /// A user logged in at Forgejo.
    pub const LOGGED_IN: &str = "bd82f470a8e34f668208f023dd993dce";
    /// A user is not let in, at a login or later; `REASON` says why.
    pub const LOGIN_DENIED: &str = "9d541f00f38b4b7f9805b73a22eb3273";
    /// A user connected a client: there is a new grant.
    pub const CLIENT_CONNECTED: &str = "2bff8d4577294e538f5b1e130457375a";
    /// A grant has ended with its sessions; `REASON` says why.
    pub const GRANT_REVOKED: &str = "82b5ca235965410cb1d533c7f595bd9a";
    /// A code or a refresh token came a second time: somebody may have stolen it.
    pub const TOKEN_STOLEN: &str = "301f2093e62e483188be1e2a8a18e78c";
    /// A user's token at Forgejo was refreshed.
    pub const TOKEN_ROTATED: &str = "bac6647b53424fe090cb1412f474a63f";
    /// A user's token at Forgejo could not be refreshed; `REASON` says why.
    pub const TOKEN_NOT_ROTATED: &str = "b8be8f2b430b4ffe8d99fdc5f0536f01";
    /// The supervisor cannot be reached, or went away.
    pub const SUPERVISOR_LOST: &str = "ed1204c99de748ffbba196b488684f81";
    /// The broker is connected to the supervisor.
    pub const SUPERVISOR_BACK: &str = "30bcfab1dfd04fc79cc4dfb412ff78e4";
    /// The key file is not the one that the database belongs to; the broker does not start.
    pub const KEY_MISMATCH: &str = "a5cbba3dd6e24a68b9d8461a4e76754a";
    /// The database cannot be read or written.
    pub const STORE_FAILS: &str = "e2e2c9d2a7e548f2a0f1670de68ee1be";
    /// The supervisor's policy has problems; the one before it stays in force.
    pub const POLICY_BAD: &str = "67c442be5539489bbb8bcae451e539c5";
    /// A client called a tool: the audit. `TOOL`, `OWNER`, `REPO`, `NUMBER`, `EFFECT`, `OUTCOME`, `DURATION_MS`.
    pub const TOOL_CALLED: &str = "c59afb2cd9f347428642e082a5ba68f5";
    /// Somebody showed a bearer token that was never one here; `ADDRESS` is theirs.
    pub const BAD_TOKEN: &str = "1f8a2274a3f44d679cf1eb5e98e8bbe2";
    /// A good token came from a network that it is not for; `ADDRESS` is there.
    pub const TOKEN_ELSEWHERE: &str = "057b4302c8da4902b11dd06779bde813";
    /// A Forgejo token that was stored for one account is another's; it was shut out.
    pub const FOREIGN_ACCOUNT: &str = "c4b0f5f2d1ad4b7e9a6f3e1c8d27b950";
    /// Forgejo's address is answered by another forge than the one that the database belongs to.
    pub const FOREIGN_FORGE: &str = "0f6a9d3be7c54c1f8b2d4e90a1c6735b";
}

/// What is logged: a level, or several by module, such as `info,forgejo_mcp_broker=debug`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFilter(Targets);

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // `Targets` takes a word alone for a module, so that a typing error would silence all others.
        let is_level = |level: &str| !level.is_empty() && level.parse::<LevelFilter>().is_ok();
        let is_good = |part: &str| match part.split_once('=') {
            Some((module, level)) => !module.is_empty() && is_level(level),
            None => is_level(part),
        };
        let parsed = text.parse().ok().filter(|_| text.split(',').all(is_good)).map(Self);
        parsed.ok_or_else(|| {
            "must be a level (off, error, warn, info, debug, trace), or levels by module, such as \
             \"info,forgejo_mcp_broker=debug\""
                .to_owned()
        })
    }
}

/// The form of lines on standard error. The journal has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line, with the journal's fields.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be \"text\" or \"json\"".to_owned()),
        }
    }
}

/// Both forms of standard error: spans are kept for either, so that it can change while they are open.
struct Forms<T, J> {
    text: T,
    json: J,
}

impl<S, T, J> Layer<S> for Forms<T, J>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    T: Layer<S>,
    J: Layer<S>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.text.on_new_span(attributes, id, context.clone());
        self.json.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.text.on_record(id, values, context.clone());
        self.json.on_record(id, values, context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if json_lines::is_on() { self.json.on_event(event, context) } else { self.text.on_event(event, context) }
    }
}

/// One subscriber a process, so one filter.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// `RUST_LOG`, where it is one. Whoever starts the program with it looks for something and is not to be overruled.
fn of_environment() -> Option<Targets> {
    // `Targets`, not `EnvFilter`: the same directives without a regex engine in root.
    std::env::var("RUST_LOG").ok().and_then(|directives| directives.parse().ok())
}

/// Logs by what the configuration says from now on, unless `RUST_LOG` does; `info` where neither does.
pub fn filter_by(configured: Option<&LogFilter>) {
    if of_environment().is_some() {
        return;
    }
    let filter = configured.map_or_else(usual, |LogFilter(filter)| filter.clone());
    if let Some(Err(error)) = FILTER.get().map(|handle| handle.reload(filter)) {
        tracing::warn!(%error, "the log filter cannot be changed");
    }
}

/// Writes lines on standard error in this form from now on; text where the configuration does not say.
pub fn write_as(configured: Option<LogFormat>) {
    json_lines::switch(configured.unwrap_or_default() == LogFormat::Json && !stderr_is_the_journal());
}

fn usual() -> Targets {
    Targets::new().with_default(tracing::Level::INFO)
}

/// Installs the subscriber; once, at the start of a program. A second call changes nothing.
pub fn init() {
    let (filter, handle) = reload::Layer::new(of_environment().unwrap_or_else(usual));
    let journal = if stderr_is_the_journal() { Journal::open().ok() } else { None };
    let outcome = if let Some(journal) = journal {
        tracing_subscriber::registry().with(filter).with(Entries::new(journal)).try_init()
    } else {
        stderr::open();
        let text = fmt::layer().compact().with_writer(LogWriter).with_ansi(false);
        let forms = Forms { text, json: Entries::new(JsonLines) };
        tracing_subscriber::registry().with(filter).with(forms).try_init()
    };
    if outcome.is_err() || FILTER.set(handle).is_err() {
        tracing::debug!("a subscriber is installed already");
    }
}

/// What is written to standard error as an error, with its newline: where that is the journal, each line says so
/// (sd-daemon(3)), or it would be taken for a word by the way; where it has JSON, it is one object.
pub fn as_error(text: &str) -> String {
    if json_lines::is_on() {
        json_lines::of_text("3", text)
    } else if stderr_is_the_journal() {
        with_priority(text) + "\n"
    } else {
        text.to_owned() + "\n"
    }
}

fn with_priority(text: &str) -> String {
    text.lines().map(|line| format!("<3>{line}")).collect::<Vec<_>>().join("\n")
}

/// systemd names the device and inode of the journal's stream in `JOURNAL_STREAM` (systemd.exec(5)); a redirected
/// standard error no longer matches.
fn stderr_is_the_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(meta) = std::fs::metadata("/proc/self/fd/2") else { return false };
    named == format!("{}:{}", meta.dev(), meta.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_levels_and_a_typing_error_silences_nothing() {
        for good in ["info", "off", "INFO", "warn,forgejo_mcp_broker=debug", "a=trace"] {
            assert!(good.parse::<LogFilter>().is_ok(), "{good}");
        }
        for bad in ["", "inof", "info,", "info,broker", "=debug", "broker=loud", "info,,warn", "a="] {
            assert!(bad.parse::<LogFilter>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_line_of_an_error_has_its_priority_for_the_journal() {
        assert_eq!(with_priority("a: bad\nb: worse"), "<3>a: bad\n<3>b: worse");
        assert_eq!(as_error("a: bad"), "a: bad\n", "elsewhere it is text");
    }
}
