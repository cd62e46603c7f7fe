//! Logging in: one file a promise. The forge is the stub, the browser a `Person`, the clock a hand.

#![expect(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests fail by panicking")]

#[path = "../support/forge.rs"]
mod forge;
#[path = "../support/https.rs"]
mod https;
#[path = "../support/person.rs"]
mod person;

mod account;
mod attacks;
mod discovery;
mod documents;
mod flow;
mod trouble;
mod world;
