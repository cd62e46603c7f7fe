//! The broker: the unprivileged half that strangers talk to.
//!
//! It trusts no byte of a request before the bearer layer has named a [`Principal`](auth::principal::Principal), no
//! byte of a child, and the supervisor only as far as `wire` lets it speak. It holds no capability; what it could lose
//! if it fell is what the users who are logged in gave it.
//!
//! The rooms, from the outside in: [`http`] (connections, health, the program put together) → [`auth`] (who asks) →
//! [`mcp`] (what is asked, and whether it may be) → [`session`] (whose session, which child) → [`child`] (to the
//! process and back). Beside them: [`oauth`] (logging in), [`forge`] (Forgejo's API and the users' credentials there),
//! [`store`] (the database), [`admin`] (the operator's socket). Leaves: [`jsonrpc`], [`metrics`], [`budget`],
//! [`backoff`], [`chain`], [`deadline`], [`hex`], [`live`], [`trace`].

pub mod admin;
pub(crate) mod auth;
pub(crate) mod backoff;
pub(crate) mod budget;
pub(crate) mod chain;
pub(crate) mod child;
pub(crate) mod config;
pub(crate) mod deadline;
pub(crate) mod forge;
pub(crate) mod hex;
pub(crate) mod http;
pub(crate) mod jsonrpc;
pub(crate) mod live;
pub(crate) mod mcp;
pub(crate) mod metrics;
pub(crate) mod oauth;
pub(crate) mod session;
pub(crate) mod store;
pub(crate) mod trace;

#[cfg(test)]
mod tests;

pub use http::server::{command, main};
