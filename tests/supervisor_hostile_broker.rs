//! A broker that has fallen to an attacker, and a real supervisor: it gains nothing, holds up nobody, and leaves nothing.
//! Single bad frames are in `tests/wire_hostile_frames.rs`.
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

#[cfg(test)]
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::supervised::{Client, Supervised, Surroundings, TOKEN, hear, own_range, root_or_skip, say};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_res_uid};
use wire::codec;
use wire::codec::MAX_FRAME;
use wire::message::{ChildId, Label, PROTOCOL, Refusal, Reply, Request, TenantId, Ticket};
use wire::secret::UpstreamToken;
use wire::socket::ReceiveError;

const SCRIPT: &str = "echo ready; exec cat";
/// Of linux/capability.h: `CAP_KILL`, `CAP_SETGID`, `CAP_SETUID`, and `CAP_SYS_RESOURCE` where it is there.
const KEPT: u64 = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 24;

fn field(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.expect("the field").trim().to_owned()
}

fn resident_kib(pid: u32) -> u64 {
    field(pid, "VmRSS").trim_end_matches(" kB").trim().parse().expect("a number")
}

/// What each descriptor is, by the kernel.
fn descriptors(pid: u32) -> Vec<String> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("readable").flatten();
    open.filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.display().to_string())).collect()
}

fn nulls(pid: u32) -> usize {
    descriptors(pid).iter().filter(|fd| *fd == "/dev/null").count()
}

#[tokio::test]
async fn root_keeps_the_capabilities_that_it_uses_and_no_descriptor_that_it_does_not() {
    if !root_or_skip("root_keeps_the_capabilities_that_it_uses_and_no_descriptor_that_it_does_not") {
        return;
    }
    // One that a careless starter leaves open.
    let left_open = std::fs::File::open(std::env::current_exe().expect("a path")).expect("open");
    nix::fcntl::fcntl(&left_open, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("set");
    let supervised = Supervised::start(SCRIPT, "");
    drop(left_open);
    let mut client = Client::connect(&supervised).await;
    let mut kid = client.spawn(1).await;
    let pid = supervised.pid();
    let set = |name| u64::from_str_radix(&field(pid, name), 16).expect("a set");
    assert_eq!(set("CapPrm") & !KEPT, 0);
    assert_eq!(set("CapPrm") & KEPT & 0xff, KEPT & 0xff, "all that are needed");
    assert_eq!(set("CapEff"), set("CapPrm"));
    assert_eq!((set("CapInh"), set("CapBnd"), set("CapAmb")), (0, 0, 0));
    assert_eq!(field(pid, "Threads"), "1");
    for fd in descriptors(pid) {
        let known = ["/dev/null", "anon_inode:", "socket:[", "pipe:["].iter().any(|kind| fd.starts_with(kind))
            || Path::new(&fd) == supervised.log
            || Path::new(&fd).starts_with("/sys/fs/cgroup");
        assert!(known, "{fd} is open: {:?}", descriptors(pid));
    }
    // A child that runs holds none; the pipes of one that was just made are on their way to the broker.
    let before = descriptors(pid).iter().filter(|fd| !fd.starts_with("pipe:[")).count();
    client.stop(&mut kid).await;
    let mut kid = client.spawn(2).await;
    client.stop(&mut kid).await;
    let mut turns = 0;
    while descriptors(pid).len() > before {
        turns += 1;
        assert!(turns < 10_000, "{:?}", descriptors(pid));
        client.status().await;
    }
}

#[tokio::test]
async fn the_supervisors_memory_is_its_own() {
    if !root_or_skip("the_supervisors_memory_is_its_own") {
        return;
    }
    // Of a process that can be dumped, these belong to its user.
    let supervised = Supervised::start_unprivileged(SCRIPT, "");
    let owner = |file: &str| {
        let meta = std::fs::metadata(format!("/proc/{}/{file}", supervised.pid())).expect("there");
        std::os::unix::fs::MetadataExt::uid(&meta)
    };
    assert_eq!(["mem", "environ", "fd"].map(owner), [0, 0, 0]);
}

#[test]
fn the_capabilities_that_are_left_are_enough_to_become_a_tenant_and_come_back() {
    if !root_or_skip("the_capabilities_that_are_left_are_enough_to_become_a_tenant_and_come_back") {
        return;
    }
    let range = own_range();
    let sleeper = |uid: u32| {
        let mut command = std::process::Command::new("/bin/sleep");
        std::os::unix::process::CommandExt::uid(&mut command, uid).arg("1000").spawn().expect("sleep")
    };
    let (mut of_tenant, mut of_another) = (sleeper(range), sleeper(range + 1));
    let pids = [&of_tenant, &of_another].map(|child| Pid::from_raw(child.id().cast_signed()));
    // Both are of the thread alone, as far as system calls go.
    let left = std::thread::spawn(move || {
        let kept = CapabilitySet::from_bits_retain(KEPT) & capabilities(None).expect("known").permitted;
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).expect("dropped");
        let [killer, tenant] = [range + 63, range].map(rustix::process::Uid::from_raw);
        let root = rustix::process::Uid::from_raw(0);
        set_thread_res_uid(killer, tenant, root).expect("CAP_SETUID");
        assert!(capabilities(None).expect("known").effective.is_empty());
        assert_eq!(
            kill(pids[1], nix::sys::signal::SIGKILL),
            Err(nix::errno::Errno::EPERM),
            "another's are out of reach"
        );
        kill(pids[0], nix::sys::signal::SIGKILL).expect("the tenant's are not");
        set_thread_res_uid(root, root, root).expect("the saved uid is root's");
        (kept, capabilities(None).expect("known"))
    });
    let (kept, sets) = left.join().expect("no panic");
    assert_eq!((sets.effective, sets.permitted), (kept, kept));
    of_tenant.wait().expect("killed");
    of_another.kill().and_then(|()| of_another.wait()).expect("killed");
}

#[tokio::test]
async fn a_log_pipe_that_nobody_reads_holds_up_nobody_and_what_was_lost_is_counted() {
    for root in [false, true] {
        if root && !root_or_skip("a_log_pipe_that_nobody_reads_holds_up_nobody_and_what_was_lost_is_counted") {
            return;
        }
        let surroundings = Surroundings { deaf_log: true, root, ..Surroundings::default() };
        let mut supervised = Supervised::start_in(surroundings, SCRIPT, "");
        let mut client = Client::connect(&supervised).await;
        for child in 0..400 {
            say(&client.socket, &Request::Stop { ticket: Ticket(u64::MAX), child: ChildId(child) }).await;
            assert!(matches!(hear(&client.socket).await, Some((Reply::Refused { .. }, _))));
        }
        client.spawn(1).await;
        // Read what it is full of, and no more.
        let mut deaf = supervised.deaf.take().expect("the other end");
        let mut read = vec![0; 64 * 1024];
        deaf.read_exact(&mut read).expect("it was full");
        assert!(read.iter().all(|&byte| byte == b'.'));
        // Something to log, of a class that was not told yet.
        say(&client.socket, &Request::Hello { protocol: PROTOCOL }).await;
        while hear(&client.socket).await.is_some() {}
        drop(supervised);
        let mut told = String::new();
        deaf.read_to_string(&mut told).expect("text");
        let lost = told.lines().find_map(|line| line.strip_suffix(" log lines were lost: nobody read them"));
        assert!(lost.is_some_and(|lost| lost.parse::<u32>().is_ok_and(|lost| lost > 0)), "{told}");
        assert!(told.contains("hello-repeated"), "{told}");
    }
}

#[tokio::test]
async fn without_a_descriptor_left_the_broker_is_heard_and_it_heals() {
    let surroundings = Surroundings { descriptors: Some((48, 48)), ..Surroundings::default() };
    let supervised = Supervised::start_in(surroundings, SCRIPT, "[caps]\nchildren = 64\nchildren_per_tenant = 64\n");
    let mut client = Client::connect(&supervised).await;
    let (before, reserve) = (descriptors(supervised.pid()).len(), nulls(supervised.pid()));
    let is_free = |fd: &u32| !Path::new(&format!("/proc/{}/fd/{fd}", supervised.pid())).is_symlink();
    let mut kids = [client.spawn(1).await, client.spawn(1).await, client.spawn(2).await];
    supervised.limit_descriptors((0..48).find(is_free).expect("a free one") + 3);
    let refused = client.try_spawn(1).await.expect_err("no pipe can be made");
    assert!(matches!(refused, Refusal::StartFailed { errno: libc_emfile, .. } if libc_emfile == 24), "{refused:?}");
    // To the last one: the lowest that is free is what the next one would be.
    supervised.limit_descriptors((0..48).find(is_free).expect("a free one"));
    let mut second = Client::connect(&supervised).await;
    assert_eq!(usize::try_from(second.status().await.children).expect("few"), kids.len());
    assert_eq!(nulls(supervised.pid()), reserve - 1, "it took the place of the reserve");
    drop(second);
    supervised.limit_descriptors(48);
    for kid in &mut kids {
        client.stop(kid).await;
    }
    client.spawn(1).await;
    drop(kids);
    let mut third = Client::connect(&supervised).await;
    third.status().await;
    assert_eq!(nulls(supervised.pid()), reserve, "the reserve is back");
    // The child's and the connection's.
    assert!(descriptors(supervised.pid()).len() <= before + 2, "{:?}", descriptors(supervised.pid()));
}

/// The flood's numbers, from a seed (splitmix64), so that a failure can be had again.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(u64::try_from(length.max(1)).expect("fits"))).expect("fits")
    }

    fn good(&mut self) -> Vec<u8> {
        let ticket = Ticket(self.next());
        let request = match self.below(20) {
            0 => Request::Spawn {
                ticket,
                tenant: TenantId::new(1 + self.next() / 4).expect("a tenant"),
                label: Label::parse("mallory").expect("a label"),
                token: UpstreamToken::parse(TOKEN).expect("a token"),
            },
            1..=7 => Request::Stop { ticket, child: ChildId(self.below(1 << 16)) },
            _ => Request::Status { ticket },
        };
        codec::encode(&request).expect("fits").to_vec()
    }

    /// One frame: mostly good ones, as a bad one ends its connection.
    fn frame(&mut self) -> Vec<u8> {
        let mut frame = self.good();
        match self.below(200) {
            0 => frame = codec::encode(&Request::Hello { protocol: PROTOCOL }).expect("fits").to_vec(),
            1 => frame.truncate(self.index(20)),
            2 => frame.push(0),
            3 => frame.resize(MAX_FRAME + self.index(32), 7),
            4 => frame = (0..self.below(64)).map(|_| self.next().to_le_bytes()[0]).collect(),
            5..=20 => {
                let at = self.index(frame.len());
                let bit = 1 << self.below(8);
                frame.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bit);
            }
            21 => {
                let hostile: [&[u8]; 4] = [b"FORGED\nUID=0", b"FORGED=1", b"FORGED\0", b"FORGED\xff"];
                let text = hostile.into_iter().cycle().nth(self.index(4)).unwrap_or_default();
                let length = u64::try_from(text.len()).expect("fits").to_le_bytes();
                frame = [&[1, 0, 0, 0], [1; 16].as_slice(), &length, text, &length, text].concat();
            }
            _ => {}
        }
        frame
    }
}

/// One connection of the flood: what it says and what it reads at the same time, to the end.
async fn one_connection(supervised: &Supervised, noise: &mut Noise, sent: &Cell<u64>) {
    let socket = supervised.connect().await;
    let kind = noise.below(50);
    if kind == 0 {
        // Said nothing at all.
        return;
    }
    let null = std::fs::File::open("/dev/null").expect("open");
    let says = async {
        if kind != 1 {
            let hello = codec::encode(&Request::Hello { protocol: PROTOCOL }).expect("fits");
            if socket.send(&hello, &[]).await.is_err() {
                return;
            }
        }
        for _ in 0..2000 {
            let fds: Vec<BorrowedFd<'_>> = if noise.below(2000) == 0 { vec![null.as_fd(); 3] } else { Vec::new() };
            if socket.send(&noise.frame(), &fds).await.is_err() {
                return;
            }
            sent.set(sent.get() + 1);
        }
        // Half of it is open.
        socket.close_writing().expect("closed");
    };
    let reads = async {
        // Slowly at first: it reads nothing before it cannot say more.
        loop {
            match socket.receive().await {
                Ok(Some(packet)) => match codec::decode(&packet.frame).expect("a reply") {
                    Reply::Spawned { .. } => assert_eq!(packet.fds.len(), 3),
                    Reply::Goodbye { .. } => return,
                    Reply::Status { status, .. } => assert!(status.children <= status.max_children),
                    _ => {}
                },
                Ok(None) | Err(ReceiveError::Io(_)) => return,
                Err(other) => panic!("{other}"),
            }
        }
    };
    if kind < 4 {
        // Never reads; the supervisor stops reading, too, until this side is gone.
        let _ = tokio::time::timeout(Duration::from_millis(50), says).await;
    } else {
        tokio::join!(says, reads);
    }
}

/// Uids of the range under which something runs, with what it is.
fn running(range: u32) -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()?;
        let name = status.lines().find_map(|line| line.strip_prefix("Name:"))?.trim().to_owned();
        let dead = status.contains("State:\tZ");
        ((range..range + 64).contains(&uid) && !dead).then_some((uid, name))
    };
    pids.filter_map(of).collect()
}

#[tokio::test]
async fn a_million_frames_of_a_hostile_broker_gain_nothing_hold_up_nobody_and_leave_nothing() {
    const FRAMES: u64 = 1_000_000;
    const CHILDREN: usize = 6;
    /// On a busy machine there are fewer.
    const PATIENCE: Duration = Duration::from_secs(50);
    if !root_or_skip("a_million_frames_of_a_hostile_broker_gain_nothing_hold_up_nobody_and_leave_nothing") {
        return;
    }
    let range = own_range();
    let caps = format!(
        "[caps]\nchildren = {CHILDREN}\nchildren_per_tenant = 2\nspawns_per_second = 20\nspawn_burst = 5\n\
         [uids]\nfirst = {range}\ncount = 64\n"
    );
    let supervised = Supervised::start(SCRIPT, &caps);
    let pid = supervised.pid();
    let mut honest = Client::connect(&supervised).await;
    let sent = Cell::new(0);
    let begun = Instant::now();
    let goes_on = |share: u64| {
        sent.get() < FRAMES / 10 * share && begun.elapsed() < PATIENCE / 10 * u32::try_from(share).expect("few")
    };
    let mut seeds = 0..;
    let mut slowest = Duration::ZERO;
    // The first tenth fills what is filled once: the allocator's and the runtime's own.
    let (mut resident, mut open) = (0, 0);
    for share in [1, 10] {
        let over = Cell::new(false);
        let floods = join_all(seeds.by_ref().take(3).map(|seed| {
            let (sent, supervised) = (&sent, &supervised);
            async move {
                let mut noise = Noise(seed);
                while goes_on(share) {
                    one_connection(supervised, &mut noise, sent).await;
                }
            }
        }));
        let floods = async {
            floods.await;
            over.set(true);
        };
        let asks = async {
            while !over.get() {
                let asked = Instant::now();
                let status = honest.status().await;
                slowest = slowest.max(asked.elapsed());
                assert!(status.children <= status.max_children);
                let running = running(range);
                assert!(
                    running.iter().all(|(_, name)| ["sh", "cat", "forgejo-mcp-sup"].contains(&name.as_str())),
                    "{running:?}"
                );
                assert!(running.len() <= CHILDREN, "{running:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::join!(floods, asks);
        loop {
            let status = honest.status().await;
            if status.children == 0 && status.uids_unclean == 0 {
                break;
            }
        }
        if share == 1 {
            (resident, open) = (resident_kib(pid), descriptors(pid).len());
        }
    }
    let elapsed = begun.elapsed();
    let sent = sent.get();
    println!(
        "{sent} frames in {elapsed:?}; the slowest answer to another took {slowest:?}; {resident} KiB, then {} KiB",
        resident_kib(pid)
    );
    assert!(sent > FRAMES / 20, "only {sent} frames");
    assert_eq!(running(range), []);
    // Connections that the supervisor was told goodbye on are closed in the turn after the last answer.
    honest.status().await;
    assert!(descriptors(pid).len() <= open + 1, "{open} descriptors, then {:?}", descriptors(pid));
    assert!(resident_kib(pid) <= resident + 2048, "{resident} KiB, then {} KiB", resident_kib(pid));
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let logged = supervised.logged();
    assert!(!logged.contains("FORGED") && !logged.contains(TOKEN));
    let mut lines = BTreeMap::<String, u64>::new();
    for line in logged.lines() {
        // The lines of children are bounded by the rate of starts.
        if let Some(reason) = line.split("reason=\"").nth(1).filter(|_| !line.contains(", ended: ")) {
            *lines.entry(reason.split('"').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
    }
    println!("{lines:?}");
    assert!(lines.contains_key("bad-frame") && lines.contains_key("no-such-child"), "{lines:?}");
    for (reason, count) in lines {
        assert!(count <= elapsed.as_secs() + 2, "{count} lines of {reason} in {elapsed:?}");
    }
}
