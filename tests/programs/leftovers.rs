//! A child that leaves behind what is hard to get rid of, or reaches for its neighbours. It says `ready`, then takes one
//! command a line on its standard input, answers each in one line, and ends with its input; its arguments mean nothing.
//!
//! ```text
//! ipc             one object of each kind of SysV IPC, the memory given away to uid 1; answers how many it got
//! queue           a POSIX queue, from here and from a user namespace of its own; answers how each try ended, and whether
//!                 a queue is there
//! leaderless      a process whose first thread has ended and whose second runs; answers its pid
//! hop             a process that is another one each moment: setsid, fork, the parent exits, for ever
//! descriptors     opens until it may not any more; answers how many it got
//! herd N          up to N processes in sessions of their own; answers how many there are
//! orphan          a process whose parent has ended; answers its pid
//! orphans N       N processes whose parents and which themselves have ended; answers when all have
//! call            waits 20 ms, as a tool does for Forgejo, and answers
//! bomb            a process that forks for ever, and so does each that it makes
//! spin N          N processes that compute for ever
//! hoard           a process that takes all the memory it can and goes on touching it, started anew whenever it is killed
//! storm           a process that stops everything that it may signal, for ever
//! poke PID        everything that one may do to another process; answers what was not refused, or `nothing`
//! ```
//!
//! JUSTIFICATION: forking, ending a thread alone and reaching for others are system calls without a safe wrapper.
//!
//! What it leaves keeps standard output open: whoever reads it sees the end when the last one is gone.

#![expect(unsafe_code, reason = "fork, and calls on other processes that no safe wrapper is for")]

use std::io::{BufRead, Write};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork, pause, setsid};

fn main() -> std::io::Result<()> {
    answer("ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (command, number) = line.split_once(' ').unwrap_or((&line, "0"));
        let number: i32 = number.parse().unwrap_or(0);
        let said = match command {
            "ipc" => ipc(),
            "queue" => queue(),
            "leaderless" => leaderless(),
            "hop" => leave(hop).map_or("no process".to_owned(), |_| "hopping".to_owned()),
            "herd" => (0..number).map_while(|_| leave(sleep)).count().to_string(),
            "orphan" => orphan(),
            "orphans" => orphans(number),
            "call" => call(),
            "descriptors" => descriptors(),
            "bomb" => leave(bomb).map_or("no process".to_owned(), |_| "burning".to_owned()),
            "spin" => (0..number).map_while(|_| leave(spin)).count().to_string(),
            "hoard" => leave(hoards).map_or("no process".to_owned(), |_| "hoarding".to_owned()),
            "storm" => leave(storm).map_or("no process".to_owned(), |_| "storming".to_owned()),
            "poke" => poke(Pid::from_raw(number)),
            other => format!("unknown command {other}"),
        };
        answer(&said)?;
    }
    Ok(())
}

fn answer(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Runs this in a process with a session of its own; `None` where no process can be had.
fn leave(run: impl Fn()) -> Option<Pid> {
    // SAFETY: this program has one thread, so the other process may go on with any code.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Some(child),
        Ok(ForkResult::Child) => {
            let _ = setsid();
            run();
            end()
        }
        Err(_) => None,
    }
}

/// Ends the process without anything that its parent had prepared for its own end.
fn end() -> ! {
    // SAFETY: _exit(2) takes a number.
    unsafe { libc::_exit(0) }
}

fn sleep() {
    loop {
        pause();
    }
}

fn hop() {
    loop {
        let _ = setsid();
        // SAFETY: as in `leave`.
        if let Ok(ForkResult::Parent { .. }) = unsafe { fork() } {
            end();
        }
    }
}

fn ipc() -> String {
    // SAFETY: all take numbers; shmctl(2) fills in and reads a structure that may start as zeros.
    let made = unsafe {
        let shm = libc::shmget(libc::IPC_PRIVATE, 4096, 0o600);
        let mut seen: libc::shmid_ds = std::mem::zeroed();
        libc::shmctl(shm, libc::IPC_STAT, &raw mut seen);
        seen.shm_perm.uid = 1;
        let given = libc::shmctl(shm, libc::IPC_SET, &raw mut seen);
        [libc::semget(libc::IPC_PRIVATE, 1, 0o600), libc::msgget(libc::IPC_PRIVATE, 0o600), given]
    };
    made.iter().filter(|id| **id >= 0).count().to_string()
}

fn queue() -> String {
    let made = |name: &std::ffi::CStr, flags| {
        // SAFETY: the name ends with NUL, and no attributes are given.
        let queue = unsafe { libc::mq_open(name.as_ptr(), flags, 0o600, std::ptr::null::<libc::mq_attr>()) };
        nix::errno::Errno::result(queue).map_or_else(|errno| format!("{errno:?}"), |_| "made".to_owned())
    };
    let create = libc::O_CREAT | libc::O_RDWR;
    let first = made(c"/forgejo-mcp-leftover", create);
    // Where a child may have one, it is root there; its limits stay.
    // SAFETY: unshare(2) takes a number, and this program has one thread.
    unsafe { libc::unshare(libc::CLONE_NEWUSER) };
    let second = made(c"/forgejo-mcp-leftover", create);
    let there = made(c"/forgejo-mcp-leftover", libc::O_RDONLY);
    format!("{first}, {second}, {there}")
}

fn call() -> String {
    std::thread::sleep(std::time::Duration::from_millis(20));
    "done".to_owned()
}

fn descriptors() -> String {
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    held.len().to_string()
}

fn bomb() {
    loop {
        // SAFETY: as in `leave`.
        let _ = unsafe { fork() };
    }
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

fn hoards() {
    while let Some(one) = leave(hoard) {
        let _ = nix::sys::wait::waitpid(one, None);
    }
}

fn hoard() {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut more = Vec::new();
        if more.try_reserve_exact(1 << 20).is_ok() {
            more.resize(1 << 20, 1);
            held.push(more);
        }
        for byte in held.iter_mut().flat_map(|block| block.iter_mut().step_by(4096)) {
            *byte = byte.wrapping_add(1);
        }
    }
}

fn storm() {
    loop {
        let _ = kill(Pid::from_raw(-1), Signal::SIGSTOP);
    }
}

fn leaderless() -> String {
    let left = leave(|| {
        std::thread::spawn(sleep);
        // SAFETY: exit(2) of the kernel, not of the C library, ends the calling thread only.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let Some(left) = left else { return "no process".to_owned() };
    // Until the first thread has really ended; whoever reads the answer has a deadline.
    while !std::fs::read_to_string(format!("/proc/{left}/status")).is_ok_and(|status| status.contains("State:\tZ")) {
        std::thread::yield_now();
    }
    left.to_string()
}

fn orphan() -> String {
    let Ok((hear, tell)) = nix::unistd::pipe() else { return "no pipe".to_owned() };
    let parent = leave(|| {
        if let Some(left) = leave(sleep) {
            let _ = nix::unistd::write(&tell, left.to_string().as_bytes());
        }
    });
    let mut said = [0; 16];
    let length = nix::unistd::read(&hear, &mut said).unwrap_or(0);
    let _ = nix::sys::wait::waitpid(parent, None);
    String::from_utf8_lossy(said.get(..length).unwrap_or_default()).into_owned()
}

fn orphans(count: i32) -> String {
    for _ in 0..count {
        let parent = leave(|| {
            leave(|| ());
        });
        let Some(parent) = parent else { return "no process".to_owned() };
        let _ = nix::sys::wait::waitpid(parent, None);
    }
    "done".to_owned()
}

fn poke(target: Pid) -> String {
    let (pid, id) = (target.as_raw(), target.as_raw().unsigned_abs());
    let limit = libc::rlimit { rlim_cur: 1000, rlim_max: 1000 };
    let idle = libc::sched_param { sched_priority: 0 };
    let mut allowed = Vec::new();
    let mut tried = |what: &'static str, done: bool| {
        if done {
            allowed.push(what);
        }
    };
    tried("kill", kill(target, None).is_ok());
    // SAFETY: each takes numbers and pointers to what lives until it returns, with its right length; none writes.
    unsafe {
        let set: libc::cpu_set_t = std::mem::zeroed();
        let mut cpus = set;
        libc::CPU_SET(0, &mut cpus);
        tried("prlimit", libc::prlimit(pid, libc::RLIMIT_CPU, &raw const limit, std::ptr::null_mut()) == 0);
        tried("setpriority", libc::setpriority(libc::PRIO_PROCESS, id, 19) == 0);
        tried("sched_setscheduler", libc::sched_setscheduler(pid, libc::SCHED_IDLE, &raw const idle) == 0);
        tried("sched_setaffinity", libc::sched_setaffinity(pid, size_of_val(&cpus), &raw const cpus) == 0);
        // IOPRIO_WHO_PROCESS, and the idle class (ioprio_set(2)).
        tried("ioprio_set", libc::syscall(libc::SYS_ioprio_set, 1, pid, 3 << 13) == 0);
        tried("ptrace", libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) == 0);
    }
    for file in ["environ", "mem", "maps"] {
        tried(file, std::fs::File::open(format!("/proc/{pid}/{file}")).is_ok());
    }
    tried("fd", std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok());
    if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(" ") }
}
