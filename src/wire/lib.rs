//! The wire between the broker and the supervisor, and the leaves that both programs need.
//!
//! Both halves import this package and it trusts neither: [`message`] says what can be said at all, [`codec`] turns a
//! packet into a message or refuses it, [`socket`] moves packets and descriptors. Neither side may do anything on
//! the strength of a frame that the types here do not already bound.
//!
//! The leaves: [`secret`] (the upstream token), [`clock`], [`config_file`] (TOML with all its problems at once),
//! [`lifecycle`] (signals, descriptors and `sd_notify`), [`inherited`] and [`unix_socket`] (listening sockets),
//! [`telemetry`] (the journal).
//!
//! What is listed in this package's manifest runs in root's process too: no HTTP, JSON, SQL, URL or regex crate.

#![forbid(unsafe_code)]

pub mod clock;
pub mod codec;
pub mod config_file;
pub mod ending;
pub(crate) mod entry;
pub mod inherited;
pub mod inspection;
pub(crate) mod journal;
pub(crate) mod json_lines;
pub mod lifecycle;
pub mod message;
pub(crate) mod notify;
pub mod secret;
pub mod socket;
pub(crate) mod stderr;
pub mod telemetry;
pub mod unix_socket;
