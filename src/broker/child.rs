//! One running child process and the traffic with it. Knows neither who the user is nor what a tool does.
//!
//! No byte of a child is trusted: what comes out is redacted, capped and parsed before anybody else sees it. [`bridge`]
//! is the running child; below it are its [`stdin`], its output ([`stdout`], [`lines`], [`stderr`], what of it is
//! [`misread`] or [`overlong`]), the requests in flight ([`calls`]), the tools that were [`listed`], and the session's
//! [`get_stream`]. [`handshake`] opens MCP with it, [`redact`] takes the token out of what it says. For clients without
//! sessions (revision 2026-07-28) [`era`] finds out what it speaks, [`stamp`] makes its answers theirs, [`listens`]
//! tells them of changes, [`parked`] keeps what waits for them, [`tasks`] what it has begun for them; [`abilities`] and
//! [`log_level`] are what they say of themselves. [`spawner`] is all that is known of the world that makes children,
//! [`supervisor_client`] the one implementation of it, which begins with the wire's [`greeting`].

pub(crate) mod abilities;
pub(crate) mod activity;
pub(crate) mod bridge;
pub(crate) mod calls;
pub(crate) mod era;
pub(crate) mod get_stream;
mod greeting;
pub(crate) mod handshake;
pub(crate) mod lines;
pub(crate) mod listed;
pub(crate) mod listens;
pub(crate) mod log_level;
pub(crate) mod misread;
mod overlong;
mod pace;
pub(crate) mod parked;
pub(crate) mod redact;
pub(crate) mod spawner;
pub(crate) mod stamp;
pub(crate) mod stderr;
pub(crate) mod stdin;
pub(crate) mod stdout;
pub(crate) mod supervisor_client;
pub(crate) mod tasks;
