//! Logging in: one file a promise. The forge is the stub, the browser a `UserAgent`, the clock a hand.

mod account;
mod attacks;
mod browsers;
mod client_keys;
mod come_again;
mod connections;
mod crowds;
mod discovery;
mod documents;
mod families;
pub(crate) mod fixture;
mod flow;
mod forgejo_tokens;
mod locked_store;
mod pages;
mod registration;
mod revalidation;
mod side_by_side;
mod signer;
mod trouble;
