//! Attacks on the network and on local services: taking a port, sockets that show or reach too much.

use std::net::{TcpStream, UdpSocket};

use crate::system_call::{attempt, call, told};
use crate::{Rows, Targets};

const IPPROTO_SMC: i32 = 256;
/// Each with family, type and protocol.
const SOCKETS: [(&str, i32, i32, i32); 26] = [
    ("TCP", libc::AF_INET, libc::SOCK_STREAM, 0),
    ("TCP over IPv6", libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP),
    ("UDP", libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::IPPROTO_UDP),
    ("route netlink", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
    ("raw", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
    ("raw IPv6", libc::AF_INET6, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMPV6),
    ("ping", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
    ("MPTCP", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
    ("UDP-Lite", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
    ("SCTP", libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
    ("SCTP in packets", libc::AF_INET, libc::SOCK_SEQPACKET, 0),
    ("SMC over IP", libc::AF_INET, libc::SOCK_STREAM, IPPROTO_SMC),
    ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0x300),
    ("old packet", libc::AF_INET, 10, 0x300),
    ("diag netlink", libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_SOCK_DIAG),
    ("xfrm netlink", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_XFRM),
    ("netfilter netlink", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
    ("generic netlink", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC),
    ("uevent netlink", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT),
    ("Unix", libc::AF_UNIX, libc::SOCK_STREAM, 0),
    ("Unix packets", libc::AF_UNIX, libc::SOCK_SEQPACKET, 0),
    ("crypto", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
    ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
    ("RxRPC", libc::AF_RXRPC, libc::SOCK_DGRAM, libc::AF_INET),
    ("TIPC", libc::AF_TIPC, libc::SOCK_RDM, 0),
    ("key", libc::AF_KEY, libc::SOCK_RAW, 2),
];

pub(crate) fn attack(targets: &Targets, rows: &mut Rows) {
    let mut row = |what: &str, ended| rows.push((what.to_owned(), ended));
    for (name, family, kind, protocol) in SOCKETS {
        row(&format!("socket: {name}"), attempt(libc::SYS_socket, [family.into(), kind.into(), protocol.into()]));
    }
    ports(targets, &mut row);
    for (name, kind) in [("stream", libc::SOCK_STREAM), ("datagram", libc::SOCK_DGRAM), ("raw", libc::SOCK_RAW)] {
        let mut pair = [0_u8; 8];
        let made = attempt(libc::SYS_socketpair, [libc::AF_UNIX.into(), kind.into(), 0.into(), (&mut pair[..]).into()]);
        row(&format!("socketpair: {name}"), made);
        let [a, b, c, d, ..] = pair;
        if kind == libc::SOCK_STREAM {
            let socket = i32::from_ne_bytes([a, b, c, d]);
            let send = |flags: i32| {
                attempt(libc::SYS_sendto, [socket.into(), (&mut b"x".to_owned()[..]).into(), 1.into(), flags.into()])
            };
            row("send", send(0));
            row("send out of band", send(libc::MSG_OOB));
            row("connect a socketpair elsewhere", told(connect(socket, targets.text("admin_socket"))));
        }
    }
    let Ok(tcp) = call(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into()]) else { return };
    let mut set = |what: &str, level: i32, name: i32, value: &mut [u8]| {
        let length = i64::try_from(value.len()).unwrap_or(0);
        let set = [tcp.into(), level.into(), name.into(), value.into(), length.into()];
        row(&format!("option: {what}"), attempt(libc::SYS_setsockopt, set));
    };
    set("no delay", libc::SOL_TCP, libc::TCP_NODELAY, &mut [1, 0, 0, 0]);
    set("TLS in the kernel", libc::SOL_TCP, libc::TCP_ULP, &mut b"tls\0".to_owned());
    set("a filter program", libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &mut [0; 16]);
}

fn ports(targets: &Targets, row: &mut impl FnMut(&str, String)) {
    let port = u16::try_from(targets.number("free_port")).unwrap_or(0).to_be_bytes();
    for (name, family, length) in [("IPv4", libc::AF_INET, 16), ("IPv6", libc::AF_INET6, 28)] {
        let Ok(socket) = call(libc::SYS_socket, [family.into(), libc::SOCK_STREAM.into()]) else { continue };
        let mut address = [0_u8; 28];
        let family = u16::try_from(family).unwrap_or(0).to_ne_bytes();
        for (to, from) in address.iter_mut().zip(family.into_iter().chain(port)) {
            *to = from;
        }
        row(&format!("listen: {name}, any port"), attempt(libc::SYS_listen, [socket.into(), 1.into()]));
        row(
            &format!("bind: {name}"),
            attempt(libc::SYS_bind, [socket.into(), (&mut address[..]).into(), length.into()]),
        );
        row(&format!("listen: {name}"), attempt(libc::SYS_listen, [socket.into(), 1.into()]));
        row(&format!("accept: {name}"), attempt(libc::SYS_accept4, [socket.into()]));
    }
    row("bind: UDP", told(UdpSocket::bind("127.0.0.1:0")));
    for name in ["forge", "other"] {
        let port = u16::try_from(targets.number(&format!("{name}_port"))).unwrap_or(0);
        row(&format!("connect: {name}"), told(TcpStream::connect(("127.0.0.1", port))));
    }
    for name in ["supervisor_socket", "admin_socket"] {
        row(&format!("connect: {name}"), told(std::os::unix::net::UnixStream::connect(targets.text(name))));
    }
}

/// connect(2) of a Unix socket to a path.
fn connect(socket: i32, path: &str) -> std::io::Result<i64> {
    let mut address = u16::try_from(libc::AF_UNIX).unwrap_or(0).to_ne_bytes().to_vec();
    address.extend(path.bytes().chain([0]));
    let length = i64::try_from(address.len()).unwrap_or(0);
    Ok(call(libc::SYS_connect, [socket.into(), address.as_mut_slice().into(), length.into()])?)
}
