//! Every number that bounds something, with its reason. A leaf: it imports nothing of this crate.
//!
//! What an operator may change has its default here and its key in the configuration; what must not change
//! without changing the other side of a contract (the frame size, the length of a label) is only here.

use std::time::Duration;

/// Bytes in one frame between broker and supervisor. A frame carries at most one token (see [`MAX_UPSTREAM_TOKEN`])
/// and a label; 16 KiB leaves room and keeps what an attacker can make the supervisor hold small.
pub const MAX_FRAME: usize = 16 * 1024;

/// Bytes in a Forgejo access token. Forgejo's own JWTs have about 517 with the default key; an RSA-8192 key gives
/// under 2 KiB. Eight KiB fits a frame twice over.
pub const MAX_UPSTREAM_TOKEN: usize = 8 * 1024;

/// Characters in a tenant's label. Forgejo's logins have at most 40.
pub const MAX_LABEL: usize = 64;

/// Connections to the supervisor at once. One broker needs one; a second during a restart of the broker.
pub const MAX_SUPERVISOR_CONNECTIONS: usize = 4;

/// Answers waiting for a broker that does not read before the supervisor hangs up on it.
pub const MAX_QUEUED_REPLIES: usize = 1024;

/// How long a peer may stay connected without saying `Hello`.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes in one JSON-RPC message of a client. Forgejo attachments travel as base64 inside tool arguments.
pub const DEFAULT_MAX_BODY: usize = 16 * 1024 * 1024;

/// Bytes in one line of a child's standard output; `forgejo-mcp` writes a 50 MB file as one 50 MB line, and a
/// child that goes past the cap is stopped (facts: a 5 MB file came back as one 5.0 MB line).
pub const DEFAULT_MAX_LINE: usize = 32 * 1024 * 1024;

/// Bytes of one line of a child's standard error that reach the log; the rest of the line is cut.
pub const MAX_STDERR_LINE: usize = 4 * 1024;

/// Bytes of standard error kept to explain a child that died before it answered `initialize`.
pub const STDERR_TAIL: usize = 2 * 1024;

/// Messages waiting for a client that reads its stream too slowly before that stream is dropped.
pub const MAX_STREAM_BACKLOG: usize = 256;

/// Requests of one session that a child may hold unanswered. `forgejo-mcp` works on five at once and queues the rest.
pub const MAX_IN_FLIGHT: usize = 64;

/// Principals kept in memory by the bearer layer.
pub const MAX_CACHED_PRINCIPALS: usize = 65_536;

/// How often the reaper looks for idle children and sessions.
pub const REAP_EVERY: Duration = Duration::from_secs(30);

/// Silence on an SSE stream before a comment is sent, so that proxies keep it open and a dead peer is noticed.
pub const SSE_KEEPALIVE: Duration = Duration::from_secs(15);

/// Silence of a child after which an answer is committed to SSE instead of JSON, so that the client sees headers.
pub const SSE_AFTER_SILENCE: Duration = Duration::from_secs(10);
