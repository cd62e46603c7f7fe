//! The bytes of every message are fixed: a change here needs a new protocol number.
#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;

use wire::codec::MAX_FRAME;
use wire::codec::{CodecError, decode, encode};
use wire::ending::{Ending, Limit, Usage, Whose};
use wire::inspection::{Bound, Capabilities, Group, Inspection, Process, ProcessLimits};
use wire::message::{
    ChildId, Enforced, Exit, Farewell, Isolation, Label, PROTOCOL, Refusal, Reply, Request, StartStep, Status,
    TenantId, Ticket,
};
use wire::secret::UpstreamToken;

const ISOLATION: Isolation = Isolation { own_uid: true, cgroup: false, landlock: true, seccomp: false };

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, b| hex + &format!("{b:02x}"))
}

fn spawn() -> Request {
    Request::Spawn {
        ticket: Ticket(7),
        tenant: TenantId::new(42).expect("a tenant"),
        label: Label::parse("alice").expect("a label"),
        token: UpstreamToken::parse("s3cret").expect("a token"),
    }
}

fn requests() -> Vec<(Request, &'static str)> {
    vec![
        (Request::Hello { protocol: PROTOCOL }, "00000000 04000000"),
        (
            spawn(),
            "01000000 0700000000000000 2a00000000000000 0500000000000000 616c696365 0600000000000000 733363726574",
        ),
        (Request::Stop { ticket: Ticket(8), child: ChildId(3) }, "02000000 0800000000000000 0300000000000000"),
        (Request::Status { ticket: Ticket(9) }, "03000000 0900000000000000"),
        (Request::Inspect { ticket: Ticket(8), child: ChildId(3) }, "04000000 0800000000000000 0300000000000000"),
    ]
}

fn refused(refusal: Refusal) -> Reply {
    Reply::Refused { ticket: Ticket(1), refusal }
}

fn failed(step: StartStep, errno: i32) -> Reply {
    refused(Refusal::StartFailed { step, errno })
}

fn goodbye(reason: Farewell) -> Reply {
    Reply::Goodbye { reason }
}

fn exited(ending: Ending) -> Reply {
    Reply::Exited { child: ChildId(2), ending }
}

fn limited(limit: Limit) -> Reply {
    exited(Ending { limit: Some(limit), ..Ending::from(Exit::Signal(9)) })
}

const GROUP: Group = Group {
    memory_max: Bound::At(1),
    memory_high: Bound::Unlimited,
    swap_max: Bound::Missing,
    pids_max: Bound::At(2),
    cpu_max: Bound::At(3),
    cpu_weight: Bound::At(4),
    io_weight: Bound::Missing,
    oom_group: Bound::At(1),
    memory: Some(5),
    memory_peak: None,
    pids: Some(6),
    cpu_usec: Some(7),
    throttled_usec: Some(8),
    oom_kills: Some(9),
};
/// Its bytes, as a literal that `concat!` takes.
macro_rules! group {
    () => {
        "02000000 0100000000000000 01000000 00000000 02000000 0200000000000000 02000000 0300000000000000 \
         02000000 0400000000000000 00000000 02000000 0100000000000000 01 0500000000000000 00 01 0600000000000000 \
         01 0700000000000000 01 0800000000000000 01 0900000000000000"
    };
}

fn inspection() -> Inspection {
    let limits = ProcessLimits {
        open_files: Bound::At(256),
        processes: Bound::Unlimited,
        cpu_seconds: Bound::At(3600),
        file_size: Bound::At(0),
        data: Bound::At(1),
        address_space: Bound::Unlimited,
        core: Bound::At(1),
    };
    let capabilities = Capabilities { inheritable: 1, permitted: 2, effective: 3, bounding: 4, ambient: 5 };
    let process = Process {
        uids: [1, 2, 3, 4],
        gids: [5, 6, 7, 8],
        threads: 9,
        no_new_privs: true,
        seccomp: 2,
        capabilities,
        limits,
    };
    Inspection { tenant: TenantId::new(42).expect("a tenant"), pid: 3, process, user: None, own: Some(GROUP) }
}

fn replies() -> Vec<(Reply, &'static str)> {
    let status = Status {
        isolation: ISOLATION,
        children: 1,
        max_children: 2,
        tenants: 3,
        uids_free: 4,
        uids_unclean: 5,
        enforced: Enforced { memory: true, pids: true, cpu: false, io: true },
        all: None,
        landlock_abi: 7,
        proc_hidden: true,
        undumpable: false,
    };
    let full = Reply::Status { ticket: Ticket(1), status: Box::new(Status { all: Some(GROUP), ..status }) };
    let usage = Usage { memory_peak: Some(1), cpu_usec: 2, throttled_usec: Some(3) };
    vec![
        (Reply::Welcome { protocol: PROTOCOL, isolation: ISOLATION }, "00000000 04000000 01000100"),
        (
            Reply::Spawned { ticket: Ticket(1), child: ChildId(2), pid: 3, uid: 73_728 },
            "01000000 0100000000000000 0200000000000000 03000000 00200100",
        ),
        (Reply::Stopping { ticket: Ticket(1) }, "02000000 0100000000000000"),
        (refused(Refusal::ChildrenTotal { retry_after_ms: 1000 }), "03000000 0100000000000000 00000000 e8030000"),
        (refused(Refusal::ChildrenOfTenant { retry_after_ms: 1 }), "03000000 0100000000000000 01000000 01000000"),
        (refused(Refusal::SpawnRate { retry_after_ms: 1 }), "03000000 0100000000000000 02000000 01000000"),
        (refused(Refusal::NoFreeUid { retry_after_ms: 1 }), "03000000 0100000000000000 03000000 01000000"),
        (refused(Refusal::NoSuchChild), "03000000 0100000000000000 04000000"),
        (failed(StartStep::Pipes, 24), "03000000 0100000000000000 05000000 00000000 18000000"),
        (failed(StartStep::Cgroup, 0), "03000000 0100000000000000 05000000 01000000 00000000"),
        (failed(StartStep::Exec, -1), "03000000 0100000000000000 05000000 02000000 ffffffff"),
        (failed(StartStep::Program, 2), "03000000 0100000000000000 05000000 03000000 02000000"),
        (failed(StartStep::Sandbox, 12), "03000000 0100000000000000 05000000 04000000 0c000000"),
        (refused(Refusal::ShuttingDown), "03000000 0100000000000000 06000000"),
        (
            exited(Ending { usage, ..Ending::from(Exit::Code(1)) }),
            "04000000 0200000000000000 00000000 01000000 00 01 0100000000000000 0200000000000000 01 0300000000000000",
        ),
        (
            limited(Limit::Memory { whose: Whose::User, bytes: 5 }),
            "04000000 0200000000000000 01000000 09000000 01 00000000 00000000 0500000000000000 00 0000000000000000 00",
        ),
        (
            limited(Limit::Memory { whose: Whose::All, bytes: 5 }),
            "04000000 0200000000000000 01000000 09000000 01 00000000 01000000 0500000000000000 00 0000000000000000 00",
        ),
        (
            limited(Limit::MachineMemory),
            "04000000 0200000000000000 01000000 09000000 01 01000000 00 0000000000000000 00",
        ),
        (
            limited(Limit::Processes { whose: Whose::User, most: 5 }),
            "04000000 0200000000000000 01000000 09000000 01 02000000 00000000 0500000000000000 00 0000000000000000 00",
        ),
        (
            limited(Limit::CpuTime { seconds: 5 }),
            "04000000 0200000000000000 01000000 09000000 01 03000000 0500000000000000 00 0000000000000000 00",
        ),
        (
            Reply::Status { ticket: Ticket(1), status: Box::new(status) },
            "05000000 0100000000000000 01000100 01000000 02000000 03000000 04000000 05000000 01010001 00 07000000 0100",
        ),
        (
            full,
            concat!(
                "05000000 0100000000000000 01000100 01000000 02000000 03000000 04000000 05000000 01010001 01 ",
                group!(),
                "07000000 0100"
            ),
        ),
        (
            Reply::Inspected { ticket: Ticket(1), inspection: Box::new(inspection()) },
            concat!(
                "08000000 0100000000000000 2a00000000000000 03000000 01000000 02000000 03000000 04000000 ",
                "05000000 06000000 07000000 08000000 09000000 01 02000000 0100000000000000 0200000000000000 ",
                "0300000000000000 0400000000000000 0500000000000000 02000000 0001000000000000 01000000 ",
                "02000000 100e000000000000 02000000 0000000000000000 02000000 0100000000000000 01000000 ",
                "02000000 0100000000000000 00 01",
                group!()
            ),
        ),
        (goodbye(Farewell::PeerNotAllowed), "06000000 00000000"),
        (goodbye(Farewell::TooManyConnections), "06000000 01000000"),
        (goodbye(Farewell::UnsupportedProtocol { speaks: 1 }), "06000000 02000000 01000000"),
        (goodbye(Farewell::HelloExpected), "06000000 03000000"),
        (goodbye(Farewell::HelloRepeated), "06000000 04000000"),
        (goodbye(Farewell::BadFrame), "06000000 05000000"),
        (goodbye(Farewell::UnexpectedDescriptors), "06000000 06000000"),
        (goodbye(Farewell::NotReading), "06000000 07000000"),
        (goodbye(Farewell::ShuttingDown), "06000000 08000000"),
        (Reply::Draining, "07000000"),
        (Reply::ProgramReplaced { below: ChildId(4) }, "09000000 0400000000000000"),
    ]
}

#[test]
fn every_message_has_exactly_these_bytes_and_comes_back_the_same() {
    for (message, golden) in requests() {
        let frame = encode(&message).expect("fits");
        assert_eq!(hex(&frame), golden.replace(' ', ""), "{message:?}");
        assert_eq!(decode::<Request>(&frame), Ok(message));
    }
    for (message, golden) in replies() {
        let frame = encode(&message).expect("fits");
        assert_eq!(hex(&frame), golden.replace(' ', ""), "{message:?}");
        assert_eq!(decode::<Reply>(&frame), Ok(message));
    }
}

#[test]
fn the_golden_list_has_every_variant() {
    // A new variant gets the next index; the highest one of each enum is not a message any more.
    let discriminants = |frames: Vec<Vec<u8>>| frames.iter().map(|f| f[0]).collect::<BTreeSet<_>>();
    let requests = discriminants(requests().iter().map(|(m, _)| encode(m).expect("fits").to_vec()).collect());
    let replies = discriminants(replies().iter().map(|(m, _)| encode(m).expect("fits").to_vec()).collect());
    assert_eq!((requests.len(), replies.len()), (5, 10));
    let next = [5_u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(decode::<Request>(&next), Err(CodecError::Undecodable));
    let next = [10_u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(decode::<Reply>(&next), Err(CodecError::Undecodable));
}

#[test]
fn every_truncation_and_every_byte_behind_a_message_is_refused() {
    let frame = encode(&spawn()).expect("fits");
    for length in 0..frame.len() {
        assert_eq!(decode::<Request>(&frame[..length]), Err(CodecError::Undecodable), "{length} bytes");
    }
    let mut longer = frame.to_vec();
    longer.push(0);
    assert_eq!(decode::<Request>(&longer), Err(CodecError::TrailingBytes));
}

#[test]
fn an_absurd_length_is_refused_and_not_believed() {
    let mut frame = encode(&spawn()).expect("fits").to_vec();
    for length in [1_u64 << 40, u64::MAX, u64::try_from(MAX_FRAME).expect("small") + 1] {
        frame[20..28].copy_from_slice(&length.to_le_bytes());
        assert_eq!(decode::<Request>(&frame), Err(CodecError::Undecodable), "{length}");
    }
}

#[test]
fn what_the_types_forbid_does_not_decode() {
    let good = encode(&spawn()).expect("fits");
    let mut no_tenant = good.to_vec();
    no_tenant[12..20].fill(0);
    assert_eq!(decode::<Request>(&no_tenant), Err(CodecError::Undecodable));
    let mut line_in_label = good.to_vec();
    line_in_label[28] = b'\n';
    assert_eq!(decode::<Request>(&line_in_label), Err(CodecError::Undecodable));
    let mut nul_in_token = good.to_vec();
    *nul_in_token.last_mut().expect("bytes") = 0;
    assert_eq!(decode::<Request>(&nul_in_token), Err(CodecError::Undecodable));
}

#[test]
fn an_oversize_frame_is_refused_both_ways() {
    assert_eq!(decode::<Request>(&vec![0; MAX_FRAME + 1]), Err(CodecError::FrameTooLong));
    assert_eq!(encode(&"x".repeat(MAX_FRAME)), Err(CodecError::EncodeTooLong));
}

#[test]
fn no_serde_attribute_that_corrupts_bincode_stands_in_the_contract() {
    let contract = [
        include_str!("../src/wire/message.rs"),
        include_str!("../src/wire/ending.rs"),
        include_str!("../src/wire/inspection.rs"),
    ];
    let lines = contract.iter().flat_map(|file| file.lines());
    let attributes = lines.filter(|line| line.trim_start().starts_with("#[serde"));
    for line in attributes {
        for banned in ["flatten", "skip", "tag", "untagged", "default", "alias"] {
            assert!(!line.contains(banned), "{line}");
        }
    }
}
