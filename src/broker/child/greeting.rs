//! The handshake of the wire, on the broker's side: connect, say `Hello`, be welcomed within a deadline.
//!
//! The peer is whoever listens at the configured path; it hears nothing unless it is root or who runs the broker, and is
//! trusted with nothing before its `Welcome`. Why there was
//! none is told in words that an operator can act upon, above all in the moment of an upgrade, when the two programs may
//! be of different versions.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::unistd::Uid;
use tokio::time::timeout;

use wire::codec::{self, CodecError};
use wire::message::{Farewell, Isolation, PROTOCOL, Reply, Request};
use wire::socket::{ReceiveError, Socket};

/// How long the supervisor may take for the handshake.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why the supervisor at a path could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetingError {
    /// Nobody listens there, or its owner and mode keep the broker out.
    #[error("connecting: {0}")]
    Connect(#[source] io::Error),
    /// Who listens there is not known.
    #[error("asking who listens there: {0}")]
    Peer(#[source] io::Error),
    /// Whoever listens there would be given users' tokens, and is neither root nor who runs the broker.
    #[error("it is served by uid {0}, who is neither root nor who runs this broker: the path is not the supervisor's")]
    Stranger(Uid),
    /// [`DEADLINE`] is over.
    #[error("no answer to Hello within {} s", DEADLINE.as_secs())]
    Late,
    /// The connection failed before an answer.
    #[error("reading the answer to Hello: {0}")]
    Receive(#[source] ReceiveError),
    /// It was closed before an answer.
    #[error("closed without a word")]
    Closed,
    /// What came is no frame of the contract, or `Hello` cannot be written as one.
    #[error("a frame that is not of the contract: {0}")]
    Codec(#[from] CodecError),
    /// The supervisor is of another version. Nothing is lost meanwhile but time.
    #[error(
        "it speaks protocol {theirs}, and this broker {PROTOCOL}: the two are of different versions; restart {} if the \
         upgrade does not",
        outdated(*theirs)
    )]
    OtherVersion {
        /// The protocol's number there.
        theirs: u32,
    },
    /// The supervisor refuses this broker.
    #[error("it refuses this broker: {}", .0.code())]
    Refused(Farewell),
    /// A reply, but none to `Hello`.
    #[error("an answer to another question")]
    Unexpected,
}

/// A connection that the supervisor at `path` has welcomed, and what separates its children.
///
/// Besides root, only `served_by` may serve it: where both programs run without root, who runs the broker.
pub(super) async fn greet(path: &Path, served_by: Uid) -> Result<(Socket, Isolation), GreetingError> {
    timeout(DEADLINE, exchange(path, served_by)).await.unwrap_or(Err(GreetingError::Late))
}

async fn exchange(path: &Path, served_by: Uid) -> Result<(Socket, Isolation), GreetingError> {
    let socket = Socket::connect(path).await.map_err(GreetingError::Connect)?;
    // Before anything is said: the broker sends users' tokens to whoever made this socket listen (SO_PEERCRED, unix(7)).
    let peer = socket.peer_uid().map_err(GreetingError::Peer)?;
    if !peer.is_root() && peer != served_by {
        return Err(GreetingError::Stranger(peer));
    }
    let hello = codec::encode(&Request::Hello { protocol: PROTOCOL })?;
    // A supervisor that refuses at once says why before it closes, so the answer is read even if this fails.
    let _sent = socket.send(&hello, &[]).await;
    let packet = socket.receive().await.map_err(GreetingError::Receive)?.ok_or(GreetingError::Closed)?;
    match codec::decode(&packet.frame)? {
        Reply::Welcome { protocol: PROTOCOL, isolation } => Ok((socket, isolation)),
        Reply::Welcome { protocol: theirs, .. }
        | Reply::Goodbye { reason: Farewell::UnsupportedProtocol { speaks: theirs } } => {
            Err(GreetingError::OtherVersion { theirs })
        }
        Reply::Goodbye { reason } => Err(GreetingError::Refused(reason)),
        _ => Err(GreetingError::Unexpected),
    }
}

/// The unit that still runs the older program. Protocols are numbered upwards.
fn outdated(theirs: u32) -> &'static str {
    if theirs < PROTOCOL { "forgejo-mcp-supervisor.service" } else { "forgejo-mcp-broker.service" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_versions_the_older_ones_unit_is_named() {
        let says = |theirs| GreetingError::OtherVersion { theirs }.to_string();
        let later = says(PROTOCOL + 1);
        assert!(later.contains("restart forgejo-mcp-broker.service"), "{later}");
        let earlier = says(PROTOCOL - 1);
        assert!(earlier.contains("restart forgejo-mcp-supervisor.service"), "{earlier}");
    }
}
