//! The broker's promises about requests without a session, over fake children: one file a promise, nothing forked, no network.

mod asking;
mod cancelling;
pub(crate) mod fixture;
mod late;
mod listening;
mod mirroring;
mod relaying;
mod routing;
mod traces;
mod translating;
