//! The broker's promises about sessions, over fake children: one file a promise, nothing forked, no network.

pub(crate) mod backend;
pub(crate) mod fixture;
pub(crate) mod records;

mod batches;
mod binding;
mod bridging;
mod budgets;
mod caps;
mod changes;
mod deadlines;
mod ends;
mod idle;
mod journal;
mod late;
mod living_on;
mod misreading;
mod observing;
mod opening;
mod refusals;
mod revisions;
mod rotating;
pub(crate) mod scopes;
mod starts;
mod streams;
mod tool_lists;
mod traces;
mod trouble;
mod unstored;
mod upgrading;
