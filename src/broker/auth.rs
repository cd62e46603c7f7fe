//! Who asks: bearer tokens, what stands behind them, and how often strangers may try.
//!
//! [`bearer`] is the only maker of a [`principal::Principal`]; whoever holds one may believe it. [`token`] mints and
//! parses the broker's own tokens, [`restriction`] says what one is held to, [`rates`] counts requests by their [`source`],
//! [`revocation`] ends grants everywhere at once.

pub(crate) mod bearer;
pub(crate) mod principal;
pub(crate) mod rates;
pub(crate) mod restriction;
pub(crate) mod revocation;
pub(crate) mod source;
pub(crate) mod token;
