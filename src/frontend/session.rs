//! Sessions: who owns which, which child serves it, and how messages get there and back.
//!
//! A session is a record, a child is disposable. [`registry`] keeps the sessions, [`bridge`] is one running child,
//! [`calls`] what is in flight with it, [`spawner`] all that is known of the world that makes children.

pub mod bridge;
pub mod calls;
pub mod entry;
pub mod error;
mod falls;
mod handshake;
pub mod id;
pub mod lines;
pub mod listener;
pub mod places;
pub mod records;
pub mod redact;
pub mod registry;
mod settings;
pub mod spawner;
pub mod supervisor;
pub mod turns;
