//! Who may come in, and what is kept of it: one file a promise, no network, no process.

mod at_rest;
mod bearer;
mod fixture;
mod records;
