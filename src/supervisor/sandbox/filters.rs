//! seccomp: which system calls a child can make, and with which arguments (seccomp(2)).
//!
//! The deny list takes away what an interpreter of hostile content has no use for and what most kernel exploits of recent
//! years started with; the allow list denies the rest as well. A call that is denied fails with `EPERM`, as it would for
//! a user without rights, so that programs take their fallback. A call of another architecture ends the process.
//!
//! Filters see numbers and not what pointers point at. So they cannot tell ports, names or addresses; where a call hides
//! its arguments (clone3), it fails with `ENOSYS`, and C libraries take the older one.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::calls::{ALLOWED, DENIED, NEWEST_CALL, SYSV_IPC};
use super::policy::{SandboxPolicy, Seccomp};

/// clone(2) with any of these makes a namespace.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The types of IP sockets: the rest is raw, or a protocol of its own (SCTP, DCCP). The low bits of socket(2)'s second
/// argument; flags are above.
const TYPES: [libc::c_int; 2] = [libc::SOCK_STREAM, libc::SOCK_DGRAM];
const TYPE_BITS: u64 = 0xf;

/// Protocols of IP sockets; 0 is the type's own. Not among them: MPTCP, UDP-Lite, SCTP, SMC, L2TP, ICMP.
const PROTOCOLS: [libc::c_int; 3] = [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP];

/// Options of sockets that put code or another protocol into the kernel's path of a packet: socket filters, and what runs
/// above TCP and beside UDP in the kernel (TLS, ESP, L2TP).
const OPTIONS: [(libc::c_int, libc::c_int); 6] = [
    (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
    (libc::SOL_SOCKET, libc::SO_ATTACH_BPF),
    (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF),
    (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF),
    (libc::SOL_TCP, libc::TCP_ULP),
    (libc::SOL_UDP, UDP_ENCAP),
];
/// linux/udp.h
const UDP_ENCAP: libc::c_int = 100;

/// Calls that take `MSG_OOB`, with the place of their flags. Out-of-band data of Unix sockets was a way from a browser's
/// sandbox into the kernel (CVE-2025-38236).
const FLAGS: [(libc::c_long, u8); 6] = [
    (libc::SYS_sendto, 3),
    (libc::SYS_sendmsg, 2),
    (libc::SYS_sendmmsg, 3),
    (libc::SYS_recvfrom, 3),
    (libc::SYS_recvmsg, 2),
    (libc::SYS_recvmmsg, 3),
];

/// Calls that name a process in their first argument, where 0 is the caller. The siblings of a session are not asked:
/// a thread names itself by 0 as well.
const ON_A_PROCESS: [libc::c_long; 5] = [
    libc::SYS_prlimit64,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
];

/// Calls that say in their first argument what the second names, and the value that is a process (setpriority(2),
/// `ioprio_set(2)`).
const ON_A_PROCESS_OR_MORE: [(libc::c_long, u32); 2] = [(libc::SYS_setpriority, 0), (libc::SYS_ioprio_set, 1)];

/// personality(2) that asks only.
const PERSONALITY_QUERY: u64 = 0xffff_ffff;

/// `timer_create(2)` of these clocks makes a timer of CPU time, which profilers alone want and CVE-2025-38352 needed; from
/// 2^31 up they name other processes' clocks.
const CPU_CLOCKS: [libc::clockid_t; 2] = [libc::CLOCK_PROCESS_CPUTIME_ID, libc::CLOCK_THREAD_CPUTIME_ID];
const DYNAMIC_CLOCKS: u64 = 0x8000_0000;

/// The filters, in the order in which they are installed; none where they are off.
pub(crate) fn filters(policy: &SandboxPolicy) -> Result<Vec<BpfProgram>, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    // Where several filters deny a call, the error is that of the last one installed (seccomp(2)).
    let mut filters = Vec::new();
    match policy.seccomp {
        Seccomp::Off => return Ok(filters),
        Seccomp::DenyList => {}
        Seccomp::AllowList => {
            let ipc = if policy.sysv_ipc { SYSV_IPC } else { &[] };
            let allowed = ALLOWED.iter().chain(ipc).map(|&call| (call, Vec::new())).collect();
            let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
            filters.push(SeccompFilter::new(allowed, denied, SeccompAction::Allow, arch)?.try_into()?);
        }
    }
    let ipc = if policy.sysv_ipc { &[] } else { SYSV_IPC };
    let mut rules: BTreeMap<_, _> = DENIED.iter().chain(ipc).map(|&call| (call, Vec::new())).collect();
    rules.extend(with_arguments(policy.unix_sockets)?);
    filters.push(filter(rules, libc::EPERM, arch)?);
    filters.push(filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS, arch)?);
    filters.push(no_unknown_calls());
    Ok(filters)
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: libc::c_int,
    arch: TargetArch,
) -> Result<BpfProgram, BackendError> {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, errno, arch)?.try_into()
}

/// An argument of 32 bits compared with a value.
fn argument(place: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(place, SeccompCmpArgLen::Dword, op, value)
}

fn number(value: libc::c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

/// All conditions hold.
fn rule(
    conditions: impl IntoIterator<Item = Result<SeccompCondition, BackendError>>,
) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

/// The calls that are denied with some arguments only; one rule that fits is enough.
fn with_arguments(unix_sockets: bool) -> Result<Vec<(i64, Vec<SeccompRule>)>, BackendError> {
    use SeccompCmpOp::{Eq, Ge, MaskedEq, Ne};
    let mut denied = vec![(libc::SYS_socket, sockets(unix_sockets)?)];
    if !unix_sockets {
        denied.push((libc::SYS_socketpair, socketpairs()?));
    }
    let namespaces = NAMESPACES.map(number).map(|bit| rule([argument(0, MaskedEq(bit), bit)]));
    denied.push((libc::SYS_clone, namespaces.into_iter().collect::<Result<_, _>>()?));
    let options = OPTIONS.map(|(level, name)| rule([argument(1, Eq, number(level)), argument(2, Eq, number(name))]));
    denied.push((libc::SYS_setsockopt, options.into_iter().collect::<Result<_, _>>()?));
    let out_of_band = number(libc::MSG_OOB);
    for (call, flags) in FLAGS {
        denied.push((call, vec![rule([argument(flags, MaskedEq(out_of_band), out_of_band)])?]));
    }
    for call in ON_A_PROCESS {
        denied.push((call, vec![rule([argument(0, Ne, 0)])?]));
    }
    for (call, process) in ON_A_PROCESS_OR_MORE {
        let others = vec![rule([argument(0, Ne, u64::from(process))])?, rule([argument(1, Ne, 0)])?];
        denied.push((call, others));
    }
    denied.push((libc::SYS_personality, vec![rule([argument(0, Ne, 0), argument(0, Ne, PERSONALITY_QUERY)])?]));
    let mut timers = vec![rule([argument(0, Ge, DYNAMIC_CLOCKS)])?];
    for clock in CPU_CLOCKS {
        timers.push(rule([argument(0, Eq, number(clock))])?);
    }
    denied.push((libc::SYS_timer_create, timers));
    Ok(denied)
}

/// socketpair(2): a pair that is connected for good. A pair for datagrams can be connected anew, and so reach whoever has
/// a socket with a name, such as the system's log (unix(7)).
fn socketpairs() -> Result<Vec<SeccompRule>, BackendError> {
    let connected = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].map(number);
    let others = (0..=TYPE_BITS).filter(|other| !connected.contains(other));
    others.map(|other| rule([argument(1, SeccompCmpOp::MaskedEq(TYPE_BITS), other)])).collect()
}

/// socket(2): TCP and UDP over IP, and of netlink what resolvers ask for the machine's addresses.
fn sockets(unix_sockets: bool) -> Result<Vec<SeccompRule>, BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let families = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let families = families.into_iter().chain(unix_sockets.then_some(libc::AF_UNIX));
    let mut denied = vec![rule(families.map(|family| argument(0, Ne, number(family))))?];
    let route = [argument(0, Eq, number(libc::AF_NETLINK)), argument(2, Ne, number(libc::NETLINK_ROUTE))];
    denied.push(rule(route)?);
    for family in [libc::AF_INET, libc::AF_INET6].map(number) {
        let protocols = PROTOCOLS.map(|protocol| argument(2, Ne, number(protocol)));
        denied.push(rule([argument(0, Eq, family)].into_iter().chain(protocols))?);
        let types = TYPES.map(number);
        for other in (0..=TYPE_BITS).filter(|other| !types.contains(other)) {
            denied.push(rule([argument(0, Eq, family), argument(1, MaskedEq(TYPE_BITS), other)])?);
        }
    }
    Ok(denied)
}

/// Calls from here up are newer than these lists, and nobody has judged them; on x86-64 the x32 calls are there too
/// (numbers from 2^30 up), which a list of numbers misses. They do not exist, and programs do without. seccompiler cannot
/// say "from here up".
fn no_unknown_calls() -> BpfProgram {
    // linux/bpf_common.h and linux/seccomp.h; `nr` is at offset 0 of seccomp_data.
    const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const RET_ERRNO: u32 = 0x0005_0000;
    const RET_ALLOW: u32 = 0x7fff_0000;
    let op = |code, jt, k| sock_filter { code, jt, jf: 0, k };
    vec![
        op(LOAD_WORD, 0, 0),
        op(JUMP_GREATER, 1, NEWEST_CALL),
        op(RETURN, 0, RET_ALLOW),
        op(RETURN, 0, RET_ERRNO | libc::ENOSYS.unsigned_abs()),
    ]
}
