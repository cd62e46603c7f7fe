//! One connection of the broker: packets in, answers out, with backpressure.
//!
//! Trusts no byte of a packet. As long as an answer waits to be sent, nothing further is read, so a peer that does
//! not read can make the supervisor hold no more than it already does.
//!
//! A socket that is closed with something unread resets its peer, who then reads an error ahead of the farewell, or
//! instead of it (`unix_release_sock` of Linux). So what a peer still says is read and thrown away until it has closed,
//! too: for a bounded time, a bounded number of packets, and a bounded number of connections.

use std::os::fd::AsFd;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::core::{ConnId, Event};
use crate::executor::Executor;
use crate::executor::outbox::{Outbox, Outgoing};
use wire::codec;
use wire::message::{HELLO_DEADLINE, MAX_SUPERVISOR_CONNECTIONS};
use wire::socket::{ReceiveError, Socket};

/// How long a peer may take to read its goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Packets that are thrown away of a peer that was told goodbye. An honest one has a few on their way.
const MAX_UNHEARD: usize = 256;
/// Connections at once, open ones among them, up to which a peer is waited for; beyond it, it is closed on.
const MAX_LINGERING: usize = 4 * MAX_SUPERVISOR_CONNECTIONS;

/// Serves one connection until it is closed.
pub(crate) async fn serve(executor: Executor, socket: Socket) {
    let Ok(peer) = socket.peer_uid() else { return };
    let (conn, outbox) = executor.connected(peer);
    converse(&executor, conn, &socket, &outbox).await;
    executor.gone(conn);
}

async fn converse(executor: &Executor, conn: ConnId, socket: &Socket, outbox: &Outbox) {
    let hello_by = Instant::now() + HELLO_DEADLINE;
    let mut hello_overdue = false;
    loop {
        if outbox.leaving.get() {
            let by = Instant::now() + GOODBYE_TIMEOUT;
            while timeout_at(by, send_first(socket, outbox)).await.is_ok_and(|sent| sent) {}
            if executor.connections() <= MAX_LINGERING {
                // Late is no error here: the peer has had its time.
                let _ = timeout_at(by, hear_out(socket)).await;
            }
            return;
        }
        if !outbox.queue.borrow().is_empty() {
            tokio::select! {
                sent = send_first(socket, outbox) => if !sent { return },
                () = outbox.changed.notified() => {}
            }
            continue;
        }
        tokio::select! {
            received = socket.receive() => match received {
                Ok(None) | Err(ReceiveError::Io(_)) => return,
                Ok(Some(packet)) if !packet.fds.is_empty() => executor.feed(Event::Smuggled(conn)),
                Err(ReceiveError::DescriptorsLost) => executor.feed(Event::Smuggled(conn)),
                Err(ReceiveError::TooLong) => executor.feed(Event::Garbled(conn)),
                Ok(Some(packet)) => executor.feed(match codec::decode(&packet.frame) {
                    Ok(request) => Event::Said(conn, request),
                    Err(_) => Event::Garbled(conn),
                }),
            },
            () = outbox.changed.notified() => {}
            () = sleep_until(hello_by), if !hello_overdue => {
                hello_overdue = true;
                executor.feed(Event::HelloOverdue(conn));
            }
        }
    }
}

/// Tells the peer that nothing follows, and throws away what it says until it has closed.
async fn hear_out(socket: &Socket) {
    if socket.close_writing().is_err() {
        return;
    }
    for _ in 0..MAX_UNHEARD {
        // The next one may be good; an error of the socket's is its end.
        if matches!(socket.receive().await, Ok(None) | Err(ReceiveError::Io(_))) {
            return;
        }
    }
}

/// Sends the first packet in the queue and takes it off; `false` when there is none or the peer is gone.
async fn send_first(socket: &Socket, outbox: &Outbox) -> bool {
    let Some(first) = outbox.queue.borrow_mut().pop_front() else { return false };
    let mut back = PutBack { outbox, packet: Some(first) };
    let Some(packet) = &back.packet else { return false };
    let fds: Vec<_> = packet.fds.iter().map(AsFd::as_fd).collect();
    let sent = socket.send(&packet.frame, &fds).await.is_ok();
    back.packet = None;
    sent
}

/// Puts a packet back when its sending is cancelled: it is sent whole or not at all.
struct PutBack<'a> {
    outbox: &'a Outbox,
    packet: Option<Outgoing>,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        if let Some(packet) = self.packet.take() {
            self.outbox.queue.borrow_mut().push_front(packet);
        }
    }
}
