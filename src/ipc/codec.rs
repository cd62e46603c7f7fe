//! A packet's bytes into a message, or a refusal: the only file that names bincode.
//!
//! The bytes may come from a compromised peer. Decoding is bounded by [`MAX_FRAME`] in its type, allocates no more
//! than the packet could fill, and demands that the message ends where the packet ends.
//!
//! The layout is bincode's legacy one (fixed-width little-endian integers, as bincode 1 wrote it): should bincode
//! have to go, any crate that writes those bytes replaces it in this file alone.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::limits::MAX_FRAME;

const LAYOUT: Configuration<LittleEndian, Fixint, Limit<MAX_FRAME>> =
    bincode::config::legacy().with_limit::<MAX_FRAME>();

/// Why bytes are no message, or a message makes no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Truncated, an unknown variant, a length beyond the frame, a value outside its type.
    #[error("the frame does not decode")]
    Undecodable,
    /// Bytes behind the message.
    #[error("the frame has {0} bytes behind its message")]
    TrailingBytes(usize),
    /// The message is longer than a frame may be.
    #[error("the message does not fit a frame of {MAX_FRAME} bytes")]
    TooLong,
}

/// A message as bytes; cleared when dropped, because it may hold a token.
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    let bytes = bincode::serde::encode_to_vec(message, LAYOUT).map_err(|_| FrameError::TooLong)?;
    let bytes = Zeroizing::new(bytes);
    if bytes.len() > MAX_FRAME { Err(FrameError::TooLong) } else { Ok(bytes) }
}

/// The message that fills `bytes` exactly.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let (message, used) = bincode::serde::decode_from_slice(bytes, LAYOUT).map_err(|_| FrameError::Undecodable)?;
    match bytes.len().saturating_sub(used) {
        0 => Ok(message),
        rest => Err(FrameError::TrailingBytes(rest)),
    }
}
