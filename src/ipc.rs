//! The wire between the broker and the supervisor.
//!
//! Both halves import this room and it trusts neither: [`message`] says what can be said at all, [`codec`] turns a
//! packet into a message or refuses it, [`socket`] moves packets and descriptors. Neither side may do anything on
//! the strength of a frame that the types here do not already bound.

pub mod codec;
pub mod message;
#[allow(unsafe_code, clippy::allow_attributes)]
pub mod socket;
