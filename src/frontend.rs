//! The broker: the unprivileged half that strangers talk to.
//!
//! It trusts no byte of a request before the bearer layer has named a [`principal`], no byte of a child, and the
//! supervisor only as far as `ipc` lets it speak. It holds no capability; what it could lose if it fell is what the
//! users who are logged in gave it.

pub mod access;
pub mod admin;
pub mod bearer;
pub mod config;
pub mod hex;
pub mod jsonrpc;
pub mod limiter;
pub mod mcp;
pub mod oauth;
pub mod principal;
pub mod revocation;
pub mod rotation;
pub mod server;
pub mod session;
pub mod store;
pub mod token;
pub mod tools;
pub mod upstream;
pub mod vault;
