//! What the operator's door and `forgejo-mcp-brokerctl` say to each other, in JSON. A leaf that both import.

use serde::{Deserialize, Serialize};

use crate::admin::inspected::{ChildView, GroupView};
use wire::inspection::Inspection;
use wire::message::Status;
use wire::secret::UpstreamToken;

/// `POST /tokens`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// The login that the Forgejo token must belong to.
    pub user: String,
    /// A name for what will use the token.
    pub client: String,
    /// When it ends.
    pub expires: Expiry,
    /// Whether only tools that read may be used.
    pub read_only: bool,
    /// The only tools that may be used, by their names.
    #[serde(default)]
    pub tools: Option<Vec<String>>,
    /// The only addresses and networks (CIDR) that it may come from.
    #[serde(default)]
    pub networks: Option<Vec<String>>,
    /// The user's Forgejo token.
    pub forgejo_token: UpstreamToken,
}

/// When a token ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expiry {
    /// After so many seconds.
    In(u64),
    /// At this time, in seconds since 1970.
    At(i64),
}

/// `PATCH /tokens/{id}`: what is left out stays.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeToken {
    /// When it ends.
    #[serde(default)]
    pub expires: Option<Expiry>,
    /// The tools that may be used.
    #[serde(default)]
    pub tools: Option<NewList>,
    /// The addresses and networks that it may come from.
    #[serde(default)]
    pub networks: Option<NewList>,
}

/// A list in the place of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NewList {
    /// None: anything is let through.
    Any,
    /// What is let through.
    Only(Vec<String>),
}

/// The answer of `PATCH /tokens/{id}`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RestrictedToken {
    /// Names it.
    pub id: String,
    /// The only tools, where not all.
    pub tools: Option<Vec<String>>,
    /// The only networks, where not all.
    pub networks: Option<Vec<String>>,
    /// Sessions that were ended.
    pub sessions: usize,
}

/// The answer of `POST /tokens`; the only time that the token is told.
#[derive(Serialize, Deserialize)]
pub struct CreatedToken {
    /// For `token list` and `token revoke`.
    pub id: String,
    /// The broker's token.
    pub token: String,
    /// Seconds since 1970.
    pub expires_at: i64,
}

impl std::fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The query of `GET /sessions`, `GET /tokens`, `GET /users` and `GET /clients`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// Only what belongs to this login; of `/sessions` and `/tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// How many at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A part of a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// The part.
    pub entries: Vec<T>,
    /// Where the next part begins; absent at the end.
    pub next: Option<String>,
}

/// One of `GET /users`; times in seconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
pub struct UserView {
    /// Forgejo's number.
    pub number: u64,
    /// The login.
    pub login: String,
    /// Grants that are not revoked.
    pub grants: i64,
    /// Of these, how many stand on a token that the operator gave.
    pub personal: i64,
    /// Open sessions.
    pub sessions: usize,
    /// When a grant was last used.
    pub last_used_at: Option<i64>,
    /// When Forgejo made the account.
    pub created_at: Option<i64>,
}

/// One of the answer of `DELETE /users/{login}`.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndedUser {
    /// Forgejo's number.
    pub number: u64,
    /// The login.
    pub login: String,
    /// Grants that were revoked.
    pub grants: usize,
    /// Sessions that were ended.
    pub sessions: usize,
}

/// How a grant came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantKind {
    /// A user gave it to a client.
    Login,
    /// The operator made a token.
    Token,
    /// A user shows a token of Forgejo's own.
    Forgejo,
}

/// One of `GET /tokens`; times in seconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
pub struct GrantView {
    /// Names it.
    pub id: String,
    /// The Forgejo user.
    pub user: String,
    /// Their number.
    pub number: u64,
    /// The client.
    pub client: String,
    /// What it allows.
    pub scopes: String,
    /// How it came to be.
    pub kind: GrantKind,
    /// The only tools that it is for, where not all.
    pub tools: Option<Vec<String>>,
    /// The only networks that it may come from, where not all.
    pub networks: Option<Vec<String>>,
    /// When it was made.
    pub created_at: i64,
    /// When it ends.
    pub expires_at: Option<i64>,
    /// When it was last used.
    pub last_used_at: Option<i64>,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
}

/// One of `GET /sessions`; times in seconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
pub struct SessionView {
    /// As in the journal's `SESSION`: the first eight hex digits of the digest. `-` for a child that serves a client
    /// without a session (revision 2026-07-28).
    pub session: String,
    /// SHA-256 of the session's id, in hex; empty without one.
    pub digest: String,
    /// The Forgejo user.
    pub user: String,
    /// Their number.
    pub number: u64,
    /// The client's id.
    pub client: String,
    /// What the client calls itself.
    pub client_name: String,
    /// The grant that it lives on.
    pub grant: String,
    /// The negotiated protocol version.
    pub version: String,
    /// When it was opened.
    pub created_at: i64,
    /// When it was last used.
    pub last_used_at: i64,
    /// Its child, where one runs.
    pub child_pid: Option<u32>,
    /// Requests that the child has not answered.
    pub in_flight: usize,
}

/// One of `GET /clients`; times in seconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
pub struct ClientView {
    /// Its id.
    pub client: String,
    /// What it calls itself.
    pub name: String,
    /// Grants that are not revoked.
    pub grants: i64,
    /// When it was first seen.
    pub created_at: i64,
    /// When one of its grants was last used.
    pub last_used_at: Option<i64>,
}

/// The answer of `DELETE /sessions/{name}`.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndedSession {
    /// As in the journal's `SESSION`.
    pub session: String,
}

/// How a look at one thing went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is wrong.
    Note,
    /// Works, but not as well as it should.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that `doctor` has looked at.
#[derive(Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub check: String,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do, where something is to be done.
    pub advice: Option<String>,
}

/// `GET /status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct StatusView {
    /// Open sessions.
    pub sessions: usize,
    /// Live children of the broker.
    pub children: usize,
    /// Absent while the supervisor cannot be reached.
    pub supervisor: Option<SupervisorView>,
}

/// The supervisor's numbers, and what the kernel really enforces.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts, shown one by one")]
pub struct SupervisorView {
    /// Whether each user's children have uids that no one else has.
    pub own_uid: bool,
    /// Whether a cgroup bounds their memory and their processes.
    pub cgroup: bool,
    /// Whether Landlock holds them.
    pub landlock: bool,
    /// The version of it; 0 is none.
    pub landlock_abi: u32,
    /// Whether seccomp holds them.
    pub seccomp: bool,
    /// Which limits of cgroups hold.
    pub enforced: EnforcedView,
    /// The limits of all children together; absent without a cgroup.
    pub all: Option<GroupView>,
    /// Children that run or are being stopped.
    pub children: u32,
    /// The cap on them.
    pub max_children: u32,
    /// Users that have children.
    pub tenants: u32,
    /// Uids that can be leased.
    pub uids_free: u32,
    /// Uids that are not clean.
    pub uids_unclean: u32,
    /// The children that this broker has.
    pub running: Vec<ChildView>,
}

/// Controllers of the cgroup.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts, shown one by one")]
pub struct EnforcedView {
    /// Memory.
    pub memory: bool,
    /// Processes and threads.
    pub pids: bool,
    /// CPU time.
    pub cpu: bool,
    /// Disk.
    pub io: bool,
}

impl SupervisorView {
    /// From what the supervisor answers.
    pub(crate) fn new(status: &Status, running: Vec<Inspection>) -> Self {
        let Status { isolation, enforced, .. } = *status;
        Self {
            own_uid: isolation.own_uid,
            cgroup: isolation.cgroup,
            landlock: isolation.landlock,
            landlock_abi: status.landlock_abi,
            seccomp: isolation.seccomp,
            enforced: EnforcedView { memory: enforced.memory, pids: enforced.pids, cpu: enforced.cpu, io: enforced.io },
            all: status.all.map(Into::into),
            children: status.children,
            max_children: status.max_children,
            tenants: status.tenants,
            uids_free: status.uids_free,
            uids_unclean: status.uids_unclean,
            running: running.into_iter().map(Into::into).collect(),
        }
    }
}

/// `GET /key`: the key that seals Forgejo's tokens; ids only.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeyView {
    /// Its file.
    pub file: String,
    /// Whether the service manager provides it.
    pub managed: bool,
    /// The id of the key that seals.
    pub key: String,
    /// The id of the key that is being replaced.
    pub replacing: Option<String>,
    /// Keys with how many credentials they seal.
    pub sealed: Vec<SealedView>,
}

/// How much a key seals.
#[derive(Debug, Serialize, Deserialize)]
pub struct SealedView {
    /// The key's id.
    pub key: String,
    /// Credentials.
    pub credentials: i64,
}

/// The answer of `POST /key/rotate`.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeyRotated {
    /// The id of the new key.
    pub key: String,
    /// Credentials that were sealed anew.
    pub credentials: u64,
}

/// In the answer of `POST /backup`: the ids of the keys that open the copy, with commas.
pub const BACKUP_KEYS: &str = "x-sealing-keys";

/// A refusal, in words for a person.
#[derive(Debug, Serialize, Deserialize)]
pub struct Problem {
    /// What happened and what to do.
    pub error: String,
}
