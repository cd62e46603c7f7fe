//! Forgejo: its API, the users' credentials there, and who may log in.
//!
//! Forgejo's answers are parsed into types at this edge and capped in size. [`api`] asks, [`token_endpoint`] trades codes
//! and refresh tokens, [`application`] is the broker's registration there, [`identity`] says which forge it is;
//! [`rotation`] keeps one credential a user fresh, [`vault`] seals it at rest under the key in [`key_file`]; [`access`]
//! and [`membership`] say who is let in, [`scopes`] what Forgejo's own scopes reach.

pub(crate) mod access;
pub(crate) mod api;
pub(crate) mod application;
pub(crate) mod identity;
mod key_file;
pub(crate) mod membership;
pub(crate) mod rotation;
pub(crate) mod scopes;
pub(crate) mod token_endpoint;
pub(crate) mod vault;
