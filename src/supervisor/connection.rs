//! One connection of the broker: packets in, packets out, in a task of its own.
//!
//! The next packet is read only when the loop has taken the last one and every answer so far is sent, so a peer that
//! does not read its answers is not listened to either.

use std::os::fd::{AsFd, OwnedFd};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use super::core::{ConnectionId, Event};
use crate::ipc::codec::FrameError;
use crate::ipc::message::{Farewell, Reply, Request};
use crate::ipc::socket::{Connection, Packet, SocketError};
use crate::limits::HELLO_DEADLINE;

/// How long the last packet may take to a peer that is being hung up on.
const LAST_PACKET: std::time::Duration = std::time::Duration::from_secs(1);

/// A packet to send.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) reply: Reply,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Converses until either side ends it; tells the loop so.
pub(super) async fn converse(
    id: ConnectionId,
    connection: Connection,
    mut outgoing: mpsc::Receiver<Outgoing>,
    events: mpsc::Sender<Event>,
) {
    let mut greeted = false;
    loop {
        let received = tokio::select! {
            biased;
            out = outgoing.recv() => match out {
                Some(out) => {
                    let last = matches!(out.reply, Reply::Goodbye { .. });
                    greeted |= matches!(out.reply, Reply::Welcome { .. });
                    let sent = async {
                        let descriptors: Vec<_> = out.descriptors.iter().map(AsFd::as_fd).collect();
                        connection.send(&out.reply, &descriptors).await
                    };
                    let sent = if last { timeout(LAST_PACKET, sent).await.unwrap_or(Err(SocketError::Closed)) } else { sent.await };
                    if last || sent.is_err() {
                        break;
                    }
                    continue;
                }
                None => break,
            },
            received = listen(&connection, greeted) => received,
        };
        let event = match received {
            Ok(Packet { message, descriptors }) if descriptors.is_empty() => {
                Event::Received { connection: id, request: message }
            }
            Err(SocketError::Closed | SocketError::System(..)) => break,
            other => Event::Misused { connection: id, how: misuse(&other) },
        };
        if events.send(event).await.is_err() {
            break;
        }
    }
    let _ = events.send(Event::Disconnected { connection: id }).await;
}

async fn listen(connection: &Connection, greeted: bool) -> Result<Packet<Request>, SocketError> {
    if greeted {
        return connection.receive().await;
    }
    match timeout(HELLO_DEADLINE, connection.receive()).await {
        Ok(received) => received,
        Err(_) => Err(SocketError::Frame(FrameError::Undecodable)),
    }
}

/// What is wrong with a packet. Its descriptors are closed when it is dropped.
fn misuse(received: &Result<Packet<Request>, SocketError>) -> Farewell {
    debug!(packet = ?received.as_ref().err(), "a packet is refused");
    match received {
        Ok(_) | Err(SocketError::TooManyDescriptors) => Farewell::UnexpectedDescriptors,
        Err(_) => Farewell::BadFrame,
    }
}
