//! Who may come in, and what is kept of it: one file a promise, no network, no process.

mod at_rest;
mod bearer;
pub(crate) mod fixture;
mod full_disk;
mod networks;
mod records;
