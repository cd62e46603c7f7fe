//! Logging in: one file a promise. The forge is the stub, the browser a `Person`, the clock a hand.

#![expect(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests fail by panicking")]

#[path = "../support/forge.rs"]
#[expect(dead_code, reason = "shared with the other tests")]
mod forge;
#[path = "../support/person.rs"]
#[expect(dead_code, reason = "shared with the end-to-end tests")]
mod person;

mod attacks;
mod flow;
mod world;
