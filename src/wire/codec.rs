//! Turns a message into a frame and a frame into a message. The only file that names bincode.
//!
//! The frame is not trusted: a length inside it that goes past [`MAX_FRAME`] fails before anything is allocated, and
//! bytes behind the message are an error. The layout is bincode 1's (`legacy`: little endian, fixed width), pinned by
//! golden tests, so that another crate can write the same bytes the day this one has to go.

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// Bytes in one frame between broker and supervisor. A frame carries at most one token (see [`MAX_UPSTREAM_TOKEN`])
/// and a label; 16 KiB leaves room and keeps what an attacker can make the supervisor hold small.
pub const MAX_FRAME: usize = 16 * 1024;

/// Why a message did not become a frame, or a frame a message. Holds nothing of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The message needs more than [`MAX_FRAME`] bytes.
    #[error("a message does not fit a frame of {MAX_FRAME} bytes")]
    EncodeTooLong,
    /// The frame has more than [`MAX_FRAME`] bytes.
    #[error("a frame has more than {MAX_FRAME} bytes")]
    FrameTooLong,
    /// The bytes are no message of the expected type.
    #[error("a frame does not decode")]
    Undecodable,
    /// A message, and more bytes behind it.
    #[error("a frame has bytes behind its message")]
    TrailingBytes,
}

fn layout() -> impl bincode::config::Config {
    bincode::config::legacy().with_limit::<MAX_FRAME>()
}

/// The frame of a message. Cleared on drop, because a `Spawn` carries a token; written into a buffer of its final
/// size, because a vector that grows would leave copies behind.
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, CodecError> {
    let mut frame = Zeroizing::new(vec![0; MAX_FRAME]);
    let length = bincode::serde::encode_into_slice(message, frame.as_mut_slice(), layout())
        .map_err(|_| CodecError::EncodeTooLong)?;
    frame.truncate(length);
    Ok(frame)
}

/// The message of a frame; the whole frame must be the message.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, CodecError> {
    if frame.len() > MAX_FRAME {
        return Err(CodecError::FrameTooLong);
    }
    let (message, used) = bincode::serde::decode_from_slice(frame, layout()).map_err(|_| CodecError::Undecodable)?;
    if used == frame.len() { Ok(message) } else { Err(CodecError::TrailingBytes) }
}
