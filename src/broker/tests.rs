//! The broker's promises, room by room, on fakes or on the stub of Forgejo, with time standing still.

mod admin;
pub(crate) mod captured_log;
pub(crate) mod identity;
pub(crate) mod memory_pipe;
mod oauth;
pub(crate) mod properties;
mod rotation;
pub(crate) mod sessions;
mod stateless;
mod supervisor_client;
