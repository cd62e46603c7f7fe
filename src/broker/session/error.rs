//! Why a session cannot be had, in words for its client.

use std::time::Duration;

use crate::budget::OverBudget;
use crate::child::handshake::HandshakeError;
use crate::child::spawner::SpawnError;

/// Why a session cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    /// No such session: never minted here, or ended.
    #[error("Session not found")]
    Unknown,
    /// It is another user's or another client's.
    #[error("The session belongs to another login")]
    Foreign,
    /// The caller's grant was revoked while this request was on its way.
    #[error("The login that this request was made with was revoked")]
    GrantRevoked,
    /// The cap on sessions of all users is reached.
    #[error("The broker has no room for another session")]
    SessionsTotal,
    /// The user's cap on sessions is reached and none of theirs is idle.
    #[error("You have too many sessions")]
    SessionsOfUser {
        /// When the oldest can make room.
        retry_after: Duration,
    },
    /// The cap on children of all users is reached and none is idle.
    #[error("The broker has no room for another forgejo-mcp process")]
    ChildrenTotal,
    /// The user's cap on children is reached and none of theirs is idle.
    #[error("You have too many requests running")]
    ChildrenOfUser,
    /// Too many starts of this user wait already.
    #[error("Too many of your sessions are starting")]
    StartsWaiting,
    /// What a client says of itself is kept with its session, and this is more than any client has to say.
    #[error("The parameters of initialize have more than {limit} bytes")]
    InitializeTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// The request's time was over before it could be given to a process.
    #[error("The request waited for a forgejo-mcp process until its time was over")]
    Deadline,
    /// More waits for this user than may.
    #[error("Memory is used up: {0}")]
    OverBudget(#[from] OverBudget),
    /// The child could not be had from the supervisor.
    #[error("The forgejo-mcp process cannot be started now: {0}")]
    Spawn(SpawnError),
    /// The child was started and did not complete the handshake.
    #[error("The forgejo-mcp process did not start: {0}")]
    Start(#[from] HandshakeError),
    /// The broker is stopping.
    #[error("The broker is shutting down")]
    ShuttingDown,
    /// The store failed; logged where it happened.
    #[error("The broker's storage failed")]
    Storage,
}

impl SessionError {
    /// The stable name that the log, the metrics and the operator's documentation use.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown-session",
            Self::Foreign => "foreign-session",
            Self::GrantRevoked => "revoked-grant",
            Self::SessionsTotal => "sessions-total",
            Self::SessionsOfUser { .. } => "sessions-of-user",
            Self::ChildrenTotal => "children-total",
            Self::ChildrenOfUser => "children-of-user",
            Self::StartsWaiting => "starts-of-user",
            Self::InitializeTooLarge { .. } => "initialize-too-large",
            Self::Deadline => "deadline",
            Self::OverBudget(OverBudget::User(_)) => "memory-of-user",
            Self::OverBudget(OverBudget::Total) => "memory-total",
            Self::Spawn(SpawnError::Unreachable) => "supervisor-unreachable",
            Self::Spawn(SpawnError::Refused(refusal)) => refusal.code(),
            Self::Start(_) => "start-failed",
            Self::ShuttingDown => "shutting-down",
            Self::Storage => "storage",
        }
    }
}
