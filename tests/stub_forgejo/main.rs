//! The stub forge answers as Forgejo does, so that what the broker is tested against is what it will meet.
//!
//! `contract` runs on the stub, and on a real Forgejo where one is given (`FORGEJO_URL`, `FORGEJO_ADMIN=LOGIN:PASSWORD`):
//! where the two differ, the stub is wrong. `strings` is what only the stub can do, and what only Forgejo 16 says.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper of a test fails the test"
)]

mod contract;
mod fixture;
mod strings;
