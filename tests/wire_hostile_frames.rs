//! What a compromised broker can throw at a real supervisor: each gets a goodbye with its reason, and the next
//! connection is served as if nothing had been.
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

#[cfg(test)]
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use futures_util::FutureExt;
use harness::supervised::{Client, Supervised, hear, root_or_skip};
use nix::sys::socket;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use wire::codec;
use wire::codec::MAX_FRAME;
use wire::message::{Farewell, Label, PROTOCOL, Reply, Request, TenantId, Ticket};
use wire::message::{MAX_QUEUED_REPLIES, MAX_SUPERVISOR_CONNECTIONS};
use wire::secret::UpstreamToken;
use wire::socket::{ReceiveError, Socket};

const SCRIPT: &str = "echo ready; exec cat";

fn hello(protocol: u32) -> Vec<u8> {
    codec::encode(&Request::Hello { protocol }).expect("fits").to_vec()
}

fn spawn() -> Vec<u8> {
    let request = Request::Spawn {
        ticket: Ticket(1),
        tenant: TenantId::new(1).expect("a tenant"),
        label: Label::parse("alice").expect("a label"),
        token: UpstreamToken::parse("t").expect("a token"),
    };
    codec::encode(&request).expect("fits").to_vec()
}

/// A spawn with texts that the types cannot hold.
fn raw_spawn(tenant: u64, label: &[u8], token: &[u8]) -> Vec<u8> {
    let mut frame = [&[1, 0, 0, 0], 1_u64.to_le_bytes().as_slice(), &tenant.to_le_bytes()].concat();
    for text in [label, token] {
        frame.extend(u64::try_from(text.len()).expect("fits").to_le_bytes());
        frame.extend(text);
    }
    frame
}

/// Sends packets and returns the reason of the goodbye; the connection must be closed behind it.
async fn goodbye(supervised: &Supervised, packets: &[&[u8]]) -> Farewell {
    let socket = Socket::connect(&supervised.socket()).await.expect("connect");
    for packet in packets {
        socket.send(packet, &[]).await.expect("sent");
    }
    await_goodbye(&socket).await
}

async fn await_goodbye(socket: &Socket) -> Farewell {
    loop {
        match hear(socket).await {
            Some((Reply::Goodbye { reason }, _)) => {
                assert!(hear(socket).await.is_none(), "closed");
                return reason;
            }
            Some(_) => {}
            None => panic!("closed without a word"),
        }
    }
}

fn descriptors_of(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("readable").count()
}

#[tokio::test]
async fn every_bad_packet_ends_its_connection_with_its_reason_and_nothing_else() {
    let supervised = Supervised::start_unprivileged(SCRIPT, "");
    let ok = hello(PROTOCOL);
    let spawn = spawn();
    let mut absurd = spawn.clone();
    absurd[20..28].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    let trailing = [spawn.as_slice(), &[0]].concat();
    let oversize = vec![0; MAX_FRAME + 1];
    let cases: Vec<(&str, Vec<&[u8]>, Farewell)> = vec![
        ("truncated", vec![&ok, &spawn[..spawn.len() - 1]], Farewell::BadFrame),
        ("trailing bytes", vec![&ok, &trailing], Farewell::BadFrame),
        ("oversize", vec![&ok, &oversize], Farewell::BadFrame),
        ("absurd length", vec![&ok, &absurd], Farewell::BadFrame),
        ("noise", vec![b"GET / HTTP/1.1\r\n\r\n"], Farewell::BadFrame),
        ("before hello", vec![&spawn], Farewell::HelloExpected),
        ("hello twice", vec![&ok, &ok], Farewell::HelloRepeated),
    ];
    let texts: [(&str, &[u8]); 7] = [
        ("newline", b"alice\nUID=0"),
        ("equals sign", b"LD_PRELOAD=/tmp/x"),
        ("NUL", b"alice\0"),
        ("not UTF-8", b"\xff\xfe"),
        ("empty", b""),
        ("space", b"a b"),
        ("16 KiB", &[b'a'; MAX_FRAME - 64]),
    ];
    // (In a token, an equals sign is good, and goes where a token goes: behind the name of the variable.)
    let (labels, tokens) =
        (texts, texts.map(|(name, text)| (name, if name == "equals sign" { b"\x7f" } else { text })));
    let spawns = labels.map(|(name, text)| (name, raw_spawn(1, text, b"t")));
    let spawns = spawns.into_iter().chain(tokens.map(|(name, text)| (name, raw_spawn(1, b"alice", text))));
    let strange: Vec<_> = spawns
        .chain([("no tenant", raw_spawn(0, b"alice", b"t")), ("beyond Forgejo's", raw_spawn(1 << 63, b"alice", b"t"))])
        .collect();
    let strange = strange.iter().map(|(name, spawn)| (*name, vec![ok.as_slice(), spawn], Farewell::BadFrame));
    for (name, packets, expected) in cases.into_iter().chain(strange) {
        assert_eq!(goodbye(&supervised, &packets).await, expected, "{name}");
    }
    let wrong = hello(PROTOCOL + 1);
    assert_eq!(goodbye(&supervised, &[&wrong]).await, Farewell::UnsupportedProtocol { speaks: PROTOCOL });
    Client::connect(&supervised).await.spawn(1).await;
}

#[tokio::test]
async fn stray_descriptors_are_closed_and_end_the_connection() {
    if !root_or_skip("stray_descriptors_are_closed_and_end_the_connection") {
        return;
    }
    let supervised = Supervised::start_unprivileged(SCRIPT, "");
    let mut client = Client::connect(&supervised).await;
    let before = descriptors_of(supervised.pid());
    let file = std::fs::File::open("/dev/null").expect("open");
    for count in [1, 3, 200] {
        let socket = Socket::connect(&supervised.socket()).await.expect("connect");
        let fds = vec![file.as_fd(); count];
        socket.send(&hello(PROTOCOL), &fds).await.expect("sent");
        assert_eq!(await_goodbye(&socket).await, Farewell::UnexpectedDescriptors, "{count}");
    }
    // It closes when it has seen that this side has; each answer means that it had another turn.
    let mut turns = 0;
    while descriptors_of(supervised.pid()) != before {
        turns += 1;
        assert!(turns < 1000, "{} descriptors, and {before} before", descriptors_of(supervised.pid()));
        client.status().await;
    }
}

#[tokio::test]
async fn a_stranger_is_told_so_and_hung_up_on() {
    if !root_or_skip("a_stranger_is_told_so_and_hung_up_on") {
        return;
    }
    // The supervisor runs as nobody and lets root in; the stranger is somebody else whom the file mode lets in.
    let supervised = Supervised::start_unprivileged(SCRIPT, "");
    std::fs::set_permissions(supervised.socket(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
    let listener = supervised.socket();
    let python = "import socket,sys; s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); print(s.recv(99).hex())";
    if let Ok(output) = Command::new("python3").args(["-c", python]).arg(listener).uid(12_345).output() {
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0600000000000000", "{output:?}");
    } else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs python3");
        println!("SKIPPED: a_stranger_is_told_so_and_hung_up_on: needs python3");
    }
}

#[tokio::test]
async fn one_connection_too_many_is_refused_and_the_others_go_on() {
    let supervised = Supervised::start_unprivileged(SCRIPT, "");
    let mut clients = Vec::new();
    for _ in 0..MAX_SUPERVISOR_CONNECTIONS {
        clients.push(Client::connect(&supervised).await);
    }
    let socket = Socket::connect(&supervised.socket()).await.expect("connect");
    assert_eq!(await_goodbye(&socket).await, Farewell::TooManyConnections);
    clients[0].spawn(1).await;
}

#[tokio::test]
async fn one_connection_too_many_reads_its_farewell_also_when_it_said_hello_at_once() {
    let supervised = Supervised::start_unprivileged(SCRIPT, "");
    let mut clients = Vec::new();
    for _ in 0..MAX_SUPERVISOR_CONNECTIONS {
        clients.push(Client::connect(&supervised).await);
    }
    let farewell = codec::encode(&Reply::Goodbye { reason: Farewell::TooManyConnections }).expect("fits");
    for round in 0..100 {
        // System calls alone: a socket of ours would read over a reset.
        let kind = (AddressFamily::Unix, SockType::SeqPacket);
        let raw = socket::socket(kind.0, kind.1, SockFlag::empty(), None).expect("a socket");
        let fd = raw.as_raw_fd();
        socket::connect(fd, &UnixAddr::new(&supervised.socket()).expect("a path")).expect("connected");
        for packet in [hello(PROTOCOL), spawn()] {
            // Too late is no matter here: what was said in time is what could reset.
            let _ = socket::send(fd, &packet, MsgFlags::MSG_NOSIGNAL);
        }
        let mut read = [0; 64];
        let length = socket::recv(fd, &mut read, MsgFlags::empty());
        assert_eq!(length.map(|length| &read[..length]), Ok(farewell.as_slice()), "round {round}");
        assert_eq!(socket::recv(fd, &mut read, MsgFlags::empty()), Ok(0), "closed, round {round}");
    }
    clients[0].spawn(1).await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_not_read_from_and_holds_up_nobody() {
    let supervised = Supervised::start_unprivileged(SCRIPT, "");
    let deaf = Client::connect(&supervised).await;
    let status = codec::encode(&Request::Status { ticket: Ticket(1) }).expect("fits");
    // Until the supervisor stops reading, which fills this side's buffer.
    let mut sent = 0;
    loop {
        if deaf.socket.send(&status, &[]).now_or_never().is_none() {
            // Another client's answer proves that the supervisor has had its turn.
            let mut other = Client::connect(&supervised).await;
            other.spawn(1).await;
            if deaf.socket.send(&status, &[]).now_or_never().is_none() {
                break;
            }
        }
        sent += 1;
        assert!(sent < 100 * MAX_QUEUED_REPLIES, "everything is read, whatever is read of the answers");
    }
    assert!(sent > 10, "the socket's buffer took {sent} only, so nothing is proven");
    // It was held up and not dropped: once it reads, it gets every answer.
    for _ in 0..sent {
        assert!(matches!(hear(&deaf.socket).await, Some((Reply::Status { .. }, _))));
    }
}

#[tokio::test]
async fn a_received_descriptor_is_close_on_exec_and_owned() {
    let (a, b) = Socket::pair().expect("a pair");
    let file = std::fs::File::open("/dev/null").expect("open");
    a.send(b"x", &[file.as_fd(), file.as_fd()]).await.expect("sent");
    let packet = b.receive().await.expect("received").expect("a packet");
    let fds: Vec<OwnedFd> = packet.fds;
    assert_eq!(fds.len(), 2);
    for fd in &fds {
        let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).expect("flags");
        assert_eq!(flags & 1, 1, "close-on-exec of {}", fd.as_raw_fd());
    }
}

#[tokio::test]
async fn the_largest_frame_passes_and_one_byte_more_does_not() {
    let (a, b) = Socket::pair().expect("a pair");
    a.send(&vec![7; MAX_FRAME], &[]).await.expect("sent");
    assert_eq!(b.receive().await.expect("received").expect("a packet").frame.len(), MAX_FRAME);
    a.send(&vec![7; MAX_FRAME + 1], &[]).await.expect("sent");
    assert!(matches!(b.receive().await, Err(ReceiveError::TooLong)));
}
