//! Who may come in, and what is kept of it: one file a promise, no network, no process.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod at_rest;
mod bearer;
mod records;
mod world;
