//! Sessions: who owns which, and which child serves it.
//!
//! A session is a record, a child is disposable. [`registry`] keeps the sessions and starts, stops and replaces their
//! children, and those that serve a grant's stateless requests; [`record`] is one session, [`route`] what a child serves,
//! [`machine`] all that is decided about that; [`quota`] and [`start_queue`] are the
//! bounds, [`record_store`] all that is known of the database. Trusts a
//! [`Principal`](crate::auth::principal::Principal), because only the bearer layer makes one.

pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod id;
pub(crate) mod machine;
pub(crate) mod quota;
pub(crate) mod record;
pub(crate) mod record_store;
pub(crate) mod registry;
mod restart_backoff;
pub(crate) mod route;
mod settings;
pub(crate) mod start_queue;
