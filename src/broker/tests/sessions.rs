//! The broker's promises about sessions, over fake children: one file a promise, nothing forked, no network.

mod backend;
mod fixture;
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
