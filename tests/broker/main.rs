//! The broker's promises about sessions, over fake children: one file a promise, nothing forked, no network.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "tests fail by panicking"
)]

mod backend;
mod desk;
mod records;

mod binding;
mod bridging;
mod caps;
mod ends;
mod idle;
mod opening;
mod refusals;
mod rotating;
mod scopes;
mod streams;
mod trouble;
