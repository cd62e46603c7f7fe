//! The messages between broker and supervisor: the whole of what a compromised broker can say.
//!
//! One message is one bincode frame is one `SOCK_SEQPACKET` packet of at most [`MAX_FRAME`](crate::codec::MAX_FRAME)
//! bytes. No message can express a program, an argument, a path, a uid, a gid, a limit, an environment variable's
//! name or a pid to act on: those are the supervisor's own configuration.
//!
//! ```text
//! broker                                supervisor
//!   Hello { protocol }           ──>
//!                                <──   Welcome { isolation }            or Goodbye, and the connection is closed
//!   Spawn { ticket, tenant, … }  ──>
//!                                <──   Spawned { ticket, child, … } + 3 descriptors (stdin, stdout, stderr)
//!                                      or Refused { ticket, refusal }
//!   Stop { ticket, child }       ──>
//!                                <──   Stopping { ticket }              or Refused
//!                                <──   Exited { child, ending }         once for each child, whoever ended it
//!   Status { ticket }            ──>
//!                                <──   Status { ticket, status }
//!   Inspect { ticket, child }    ──>
//!                                <──   Inspected { ticket, … }          or Refused
//!                                <──   ProgramReplaced { below }        older children run what is not installed any more
//!                                <──   Draining                         the supervisor stops; Goodbye follows
//! ```
//!
//! `Draining` comes before anything is stopped: no `Exited` behind it is the child's own doing.
//!
//! A child belongs to the connection that asked for it and is stopped when that connection ends. The layout of the
//! bytes is fixed by golden tests (`tests/wire_golden_bytes.rs`); any change to it needs a new [`PROTOCOL`] number.
//! serde attributes that change the layout by looking at the data (flatten, skip, tag, untagged) corrupt bincode
//! and are banned here by a test.

use serde::{Deserialize, Serialize};

use crate::ending::Ending;
use crate::inspection::{Group, Inspection};
use crate::secret::UpstreamToken;

/// How long a peer may stay connected without saying `Hello`.
pub const HELLO_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

/// Answers waiting for a broker that does not read before the supervisor hangs up on it.
pub const MAX_QUEUED_REPLIES: usize = 1024;

/// Connections to the supervisor at once. One broker needs one; a second during a restart of the broker.
pub const MAX_SUPERVISOR_CONNECTIONS: usize = 4;

/// Characters in a tenant's label. Forgejo's logins have at most 40.
pub const MAX_LABEL: usize = 64;

/// The version of this contract. Both sides must name exactly this number; there is no negotiation, because
/// both binaries come out of one package.
pub const PROTOCOL: u32 = 4;

/// A Forgejo user, by the number that Forgejo gave them (`id` in `GET /api/v1/user`): logins change, ids do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct TenantId(u64);

/// Why a number or a text does not name a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Forgejo's ids start at 1 and fit an `i64`.
    #[error("a tenant id is between 1 and 2^63-1")]
    TenantId,
    /// See [`Label`].
    #[error("a label is 1 to {MAX_LABEL} characters of A-Z a-z 0-9 . _ -")]
    Label,
}

impl TenantId {
    /// Forgejo's id of the user, 1 to 2^63-1.
    pub fn new(id: u64) -> Result<Self, NameError> {
        if id == 0 || i64::try_from(id).is_err() { Err(NameError::TenantId) } else { Ok(Self(id)) }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for TenantId {
    type Error = NameError;
    fn try_from(id: u64) -> Result<Self, NameError> {
        Self::new(id)
    }
}

impl From<TenantId> for u64 {
    fn from(id: TenantId) -> Self {
        id.0
    }
}

impl std::fmt::Display for TenantId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The user's login as it is to appear in log lines; nothing is decided by it.
///
/// 1 to [`MAX_LABEL`] characters of `A-Z a-z 0-9 . _ -`, what Forgejo allows in a login, so that it can stand in a
/// journal field and can forge no line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// Checks the characters and the length.
    pub fn parse(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > MAX_LABEL || !text.bytes().all(allowed) {
            return Err(NameError::Label);
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Label {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The broker's number for one of its requests; the answer carries it back. Chosen by the broker, meaningless to
/// the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// The supervisor's number for a child, unique in the life of one supervisor and valid on one connection only.
/// It is not a pid and says nothing about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChildId(pub u64);

/// What the broker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// First and once on each connection.
    Hello {
        /// Must equal [`PROTOCOL`].
        protocol: u32,
    },
    /// Start a child for this user.
    Spawn {
        /// Comes back in `Spawned` or `Refused`.
        ticket: Ticket,
        /// Whose child it is: decides uid, limits and caps.
        tenant: TenantId,
        /// For the log.
        label: Label,
        /// Goes into the child's environment and nowhere else.
        token: UpstreamToken,
    },
    /// Begin the stop ladder of a child. The broker has closed its end of the child's standard input.
    Stop {
        /// Comes back in `Stopping` or `Refused`.
        ticket: Ticket,
        /// A child of this connection.
        child: ChildId,
    },
    /// Ask for [`Status`].
    Status {
        /// Comes back in the answer.
        ticket: Ticket,
    },
    /// Ask what is really in force for a child.
    Inspect {
        /// Comes back in `Inspected` or `Refused`.
        ticket: Ticket,
        /// A child of this connection.
        child: ChildId,
    },
}

/// What the supervisor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The answer to a good `Hello`.
    Welcome {
        /// Equals [`PROTOCOL`].
        protocol: u32,
        /// What really separates the children.
        isolation: Isolation,
    },
    /// A child runs; its standard input, output and error ride on this packet, in this order.
    Spawned {
        /// Of the `Spawn`.
        ticket: Ticket,
        /// Names the child from now on.
        child: ChildId,
        /// For the log only.
        pid: u32,
        /// For the log only.
        uid: u32,
    },
    /// The stop ladder has begun; `Exited` follows.
    Stopping {
        /// Of the `Stop`.
        ticket: Ticket,
    },
    /// The request was not carried out, and why.
    Refused {
        /// Of the request.
        ticket: Ticket,
        /// Why.
        refusal: Refusal,
    },
    /// A child has ended and was reaped. Sent once for each `Spawned`.
    Exited {
        /// Which.
        child: ChildId,
        /// How, and why.
        ending: Ending,
    },
    /// The answer to `Status`.
    Status {
        /// Of the request.
        ticket: Ticket,
        /// The numbers.
        status: Box<Status>,
    },
    /// The last packet on a connection that the supervisor closes.
    Goodbye {
        /// Why.
        reason: Farewell,
    },
    /// The supervisor is stopping: it starts nothing any more, and stops what runs after a grace. Whatever `Exited`
    /// follows is the supervisor's doing, however the child ended.
    Draining,
    /// The answer to `Inspect`.
    Inspected {
        /// Of the request.
        ticket: Ticket,
        /// What the kernel says.
        inspection: Box<Inspection>,
    },
    /// Another child program is installed than the one that this connection's older children run. They run on; the broker
    /// stops each when nobody has a call. Said again at each further replacement.
    ProgramReplaced {
        /// Children with smaller numbers, also such whose `Spawned` is still to come.
        below: ChildId,
    },
}

/// Why a request was refused. Each has a stable code for the log, see [`Refusal::code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The cap on children in total is reached.
    ChildrenTotal {
        /// When trying again makes sense.
        retry_after_ms: u32,
    },
    /// The cap on children of this tenant is reached.
    ChildrenOfTenant {
        /// When trying again makes sense.
        retry_after_ms: u32,
    },
    /// More starts a second than allowed.
    SpawnRate {
        /// When trying again makes sense.
        retry_after_ms: u32,
    },
    /// Every uid of the range is leased, being cleaned or in quarantine.
    NoFreeUid {
        /// When trying again makes sense.
        retry_after_ms: u32,
    },
    /// The named child is not one of this connection's, or has already ended.
    NoSuchChild,
    /// The child could not be started.
    StartFailed {
        /// What failed.
        step: StartStep,
        /// The error number, 0 where there is none.
        errno: i32,
    },
    /// The supervisor is stopping.
    ShuttingDown,
}

impl Refusal {
    /// The stable name that the log and the operator's documentation use.
    pub const fn code(self) -> &'static str {
        match self {
            Self::ChildrenTotal { .. } => "children-total",
            Self::ChildrenOfTenant { .. } => "children-of-tenant",
            Self::SpawnRate { .. } => "spawn-rate",
            Self::NoFreeUid { .. } => "no-free-uid",
            Self::NoSuchChild => "no-such-child",
            Self::StartFailed { .. } => "start-failed",
            Self::ShuttingDown => "shutting-down",
        }
    }

    /// How long to wait before asking again, in milliseconds, where waiting helps.
    pub const fn retry_after_ms(self) -> Option<u32> {
        match self {
            Self::ChildrenTotal { retry_after_ms }
            | Self::ChildrenOfTenant { retry_after_ms }
            | Self::SpawnRate { retry_after_ms }
            | Self::NoFreeUid { retry_after_ms } => Some(retry_after_ms),
            Self::NoSuchChild | Self::StartFailed { .. } | Self::ShuttingDown => None,
        }
    }
}

/// In words for whoever asked for the child.
impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::StartFailed { step: StartStep::Program, errno: libc::ENOENT } => {
                "its program is not installed on the server; the operator finds the path in the supervisor's log"
            }
            Self::StartFailed { step: StartStep::Program, .. } => {
                "its program cannot be run on the server; the operator finds why in the supervisor's log"
            }
            other => return write!(f, "the supervisor refused: {}", other.code()),
        })
    }
}

/// What was being done when a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartStep {
    /// Making the three pipes.
    Pipes,
    /// Making the tenant's cgroup.
    Cgroup,
    /// Anything between fork and exec: limits, ids, sandbox, exec itself.
    Exec,
    /// Looking at the child program: it is not installed (`ENOENT`), cannot be run (`EACCES`), or is not root's alone
    /// (`EPERM`).
    Program,
    /// Making the sandbox.
    Sandbox,
}

/// Why the supervisor closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Farewell {
    /// The peer's uid (`SO_PEERCRED`) is not the broker's.
    PeerNotAllowed,
    /// Too many connections at once.
    TooManyConnections,
    /// `Hello` named another protocol.
    UnsupportedProtocol {
        /// The one number that is spoken here.
        speaks: u32,
    },
    /// The first frame was not `Hello`, or none came in time.
    HelloExpected,
    /// A second `Hello`.
    HelloRepeated,
    /// A packet that was too long, did not decode, or had bytes behind the message.
    BadFrame,
    /// A packet that carried descriptors.
    UnexpectedDescriptors,
    /// The peer does not read its answers.
    NotReading,
    /// The supervisor is stopping.
    ShuttingDown,
}

impl Farewell {
    /// The stable name that the log and the operator's documentation use.
    pub const fn code(self) -> &'static str {
        match self {
            Self::PeerNotAllowed => "peer-not-allowed",
            Self::TooManyConnections => "too-many-connections",
            Self::UnsupportedProtocol { .. } => "unsupported-protocol",
            Self::HelloExpected => "hello-expected",
            Self::HelloRepeated => "hello-repeated",
            Self::BadFrame => "bad-frame",
            Self::UnexpectedDescriptors => "unexpected-descriptors",
            Self::NotReading => "not-reading",
            Self::ShuttingDown => "shutting-down",
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What separates the children from each other and from the machine. `false` means: it is not done here, and
/// everybody who shows this to a person must say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts, shown one by one")]
pub struct Isolation {
    /// Each tenant's children run under a uid that no one else has.
    pub own_uid: bool,
    /// Each tenant's children are in a cgroup that bounds their memory and their processes.
    pub cgroup: bool,
    /// Landlock restricts the file system.
    pub landlock: bool,
    /// A seccomp filter is installed.
    pub seccomp: bool,
}

/// The supervisor's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What separates the children.
    pub isolation: Isolation,
    /// Children that run or are being stopped.
    pub children: u32,
    /// The cap on them.
    pub max_children: u32,
    /// Tenants that have children.
    pub tenants: u32,
    /// Uids of the range that could be leased now.
    pub uids_free: u32,
    /// Uids being cleaned, or whose processes did not go away.
    pub uids_unclean: u32,
    /// Which of the cgroup's limits the kernel enforces.
    pub enforced: Enforced,
    /// The limits of all children together, and what they use; `None` without a cgroup.
    pub all: Option<Group>,
    /// The version of Landlock that holds the children; 0 is none.
    pub landlock_abi: u32,
    /// Children find none but their own processes in `/proc` (proc(5), `hidepid`).
    pub proc_hidden: bool,
    /// Children are not dumpable, because their program may be run and not read: nobody of the same uid looks into their
    /// memory either (`PR_SET_DUMPABLE(2const)`).
    pub undumpable: bool,
}

/// The controllers that are switched on, as the kernel says, for each child. `false`: the limits of that kind do not
/// hold, whatever the policy says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts, shown one by one")]
pub struct Enforced {
    /// Memory.
    pub memory: bool,
    /// Processes and threads.
    pub pids: bool,
    /// CPU time.
    pub cpu: bool,
    /// Disk.
    pub io: bool,
}
