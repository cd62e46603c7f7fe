//! The broker's promises about sessions, over fake children: one file a promise, nothing forked, no network.

mod backend;
pub(crate) mod fixture;
mod records;

mod binding;
mod bridging;
mod budgets;
mod caps;
mod changes;
mod deadlines;
mod ends;
mod idle;
mod journal;
mod misreading;
mod living_on;
mod observing;
mod opening;
mod refusals;
mod revisions;
mod rotating;
mod scopes;
mod starts;
mod streams;
mod traces;
mod trouble;
mod upgrading;
