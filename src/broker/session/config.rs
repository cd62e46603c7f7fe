//! What an operator decides about sessions and their children: `[sessions]`.

use std::time::Duration;

use crate::budget::BudgetCaps;
use crate::child::lines::DEFAULT_MAX_LINE;
use crate::session::quota::Caps;
use wire::config_file::{Section, bytes, seconds};

/// What an operator decides about sessions.
#[derive(Debug, Clone)]
pub(crate) struct SessionConfig {
    /// On sessions.
    pub(crate) sessions: Caps,
    /// On live children.
    pub(crate) children: Caps,
    /// A child without requests for so long is stopped.
    pub(crate) child_idle: Duration,
    /// A session without use for so long ends.
    pub(crate) session_idle: Duration,
    /// A session must have been idle for so long before it makes room for another of the same user.
    pub(crate) evict_after: Duration,
    /// How long a child may take to answer `initialize`.
    pub(crate) start_timeout: Duration,
    /// How long it may take to answer a request.
    pub(crate) request_timeout: Duration,
    /// Bytes held in memory for users.
    pub(crate) memory: BudgetCaps,
    /// Bytes in one line of a child.
    pub(crate) max_line: usize,
    /// Whether the session of a child that ended on its own lives on.
    pub(crate) respawn: bool,
    /// How long calls may go on when their child is replaced or the broker stops.
    pub(crate) drain: Duration,
}

impl SessionConfig {
    /// Reads the keys that are its own.
    pub(crate) fn read(section: &mut Section, request_timeout: Duration) -> Self {
        let max_line = section.size("max_line", bytes(DEFAULT_MAX_LINE), 64 << 10..=1 << 30);
        let memory = memory(section);
        let caps = |section: &mut Section, total: (&str, usize), per_user: (&str, usize)| {
            let all = section.integer(total.0, total.1, 1..=1_000_000);
            let of_one = section.integer(per_user.0, per_user.1.min(all), 1..=1_000_000);
            if of_one > all {
                section.complain(per_user.0, format!("must not be above {}, which is {all}", total.0));
            }
            Caps { total: all, per_user: of_one }
        };
        let session_idle = section.duration("session_idle", Duration::from_hours(24), seconds(1, 365 * 86_400));
        let child_idle =
            section.duration("child_idle", session_idle.min(Duration::from_mins(5)), seconds(1, 7 * 86_400));
        if child_idle > session_idle {
            section.complain("child_idle", "must not be above session_idle: a child ends with its session");
        }
        Self {
            sessions: caps(section, ("total", 10_000), ("per_user", 100)),
            children: caps(section, ("children_total", 500), ("children_per_user", 8)),
            child_idle,
            session_idle,
            drain: section.duration("drain", Duration::from_secs(5), seconds(0, 60)),
            evict_after: section.duration("evict_after", Duration::from_mins(1), seconds(0, 86_400)),
            start_timeout: section.duration("start_timeout", Duration::from_secs(20), seconds(1, 600)),
            request_timeout,
            memory,
            max_line: usize::try_from(max_line).unwrap_or(DEFAULT_MAX_LINE),
            respawn: section
                .value("on_child_exit", |value| match value.as_str() {
                    Some("end") => Ok(false),
                    Some("respawn") => Ok(true),
                    _ => Err("must be \"end\" or \"respawn\"".to_owned()),
                })
                .unwrap_or(false),
        }
    }
}

/// `memory_per_user` and `memory_total`: what may be held of bodies being read, lines of children, and answers that wait.
/// One answer or attachment of the largest size must fit twice into a user's.
fn memory(section: &mut Section) -> BudgetCaps {
    let (per_user, total) = (96 << 20, 1 << 30);
    let caps = BudgetCaps {
        per_user: usize::try_from(section.size("memory_per_user", per_user, 1 << 20..=1 << 40)).unwrap_or(usize::MAX),
        total: usize::try_from(section.size("memory_total", total, 1 << 20..=1 << 40)).unwrap_or(usize::MAX),
    };
    if caps.per_user > caps.total {
        section.complain("memory_per_user", "must not be above memory_total");
    }
    caps
}
