//! Connections of clients, and the program put together.
//!
//! [`listener`] is where they come in, [`accept`] serves them, [`shares`] says how many of whom, [`health`] answers
//! probes, [`metrics_page`] Prometheus, [`server`] reads the
//! configuration, builds every other room, and stops them in order; [`reload`] reads it again, [`once`] does what only
//! the operator can decide. Nothing here trusts a request.

pub(crate) mod accept;
pub(crate) mod health;
pub(crate) mod listener;
pub(crate) mod metrics_page;
mod once;
pub(crate) mod reload;
pub(crate) mod server;
pub(crate) mod shares;
pub(crate) mod status;
