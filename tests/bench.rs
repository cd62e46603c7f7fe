//! `cargo bench`: what a call through the broker costs, beside what it cannot cost less than.
//!
//! Everything is measured in one run, in turns, so that a busy machine slows all of it alike; read the ratios before
//! the times. The real programs run as on a host (as root with uids of their own), started from `target/release`; the
//! child is the stand-in in its fast mode, which does the least that answers. The client is a blocking socket and the
//! same for all. Nothing here passes or fails.
//!
//! `cargo bench -- --idle 10000` sets how many idle sessions are opened for the last part (default 1000).

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::deployment::{Deployment, DeploymentConfig, Program, Result};
use harness::keep_alive::{INITIALIZE, INITIALIZED, KeepAlive};
use harness::release;
use harness::times::{Times, ratio};
use harness::usage::{descriptors, resident};

/// Turns, and calls of each kind in a turn.
const TURNS: usize = 20;
const CALLS: usize = 100;
/// Starts of each kind.
const STARTS: usize = 40;
/// How long each throughput measurement runs.
const SPAN: Duration = Duration::from_secs(3);

/// Room for a hundred sessions of one user, each with a uid.
const ROOM_BELOW: &str = "[uids]\ncount = 500\n[caps]\nchildren = 400\nchildren_per_tenant = 400\n\
    spawns_per_second = 1000\nspawn_burst = 1000\n[limits]\nprocesses = 4000\n";
/// The audit is off: the tool is in no table, so it counts as one that writes, and each call would be a line of the log.
const ROOM: &str = "[sessions]\nchildren_total = 400\nchildren_per_user = 400\nper_user = 100000\ntotal = 100000\n\
    [audit]\ncalls = \"off\"\n";
/// Any number of sessions, and four children for all of them.
const TIGHT: &str = "[sessions]\nchildren_total = 4\nchildren_per_user = 4\nper_user = 100000\ntotal = 100000\n\
    evict_after = \"0s\"\n";

const CALL: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello"}}}"#;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut idle = 1000;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--echo" => return echo_server(),
            "--idle" => idle = arguments.next().ok_or("--idle needs a number")?.parse()?,
            // Cargo's own.
            "--bench" => {}
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let binaries = release::programs()?;
    let child = binaries.join("stand-in-child");
    let dir = binaries.parent().unwrap_or(&binaries).join("bench");
    let _ = std::fs::remove_dir_all(&dir);
    let mut config = DeploymentConfig::new(&binaries, &dir, Program::stand_in(&child, &["--fast"]));
    // Apart from those of the tests: a supervisor kills whatever runs under its uids when it starts.
    config.first_uid = 90_000;
    ROOM_BELOW.clone_into(&mut config.supervisor);
    ROOM.clone_into(&mut config.broker);
    let isolated = config.privileged;
    let mut deployment = Deployment::set(config)?;
    let token = deployment.broker_token("alice", &deployment.forge_token("alice")?, &[])?;
    println!("cores: {}; isolated: {isolated}", thread::available_parallelism()?);
    round_trips(&deployment, &token, &child)?;
    opening(&deployment, &token, &child)?;
    throughput_and_memory(&deployment, &token)?;
    drop(deployment.broker.take());
    TIGHT.clone_into(&mut deployment.config.broker);
    deployment.start_broker()?;
    idle_sessions(&mut deployment, &token, &child, idle)
}

/// A handler that gives back what it got: what HTTP costs with axum and nothing behind it.
fn echo_server() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("LISTENING {}", listener.local_addr()?);
        io::stdout().flush()?;
        let echo = axum::routing::post(|body: axum::body::Bytes| async {
            ([(axum::http::header::CONTENT_TYPE, "application/json")], body)
        });
        Ok(axum::serve(listener, axum::Router::new().route("/mcp", echo)).await?)
    })
}

/// A process on bare pipes, killed when dropped.
struct Pipe {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    line: Vec<u8>,
}

impl Pipe {
    fn start(program: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or("a child without pipes")?;
        Ok(Self { child, stdin, stdout: BufReader::new(stdout), line: Vec::new() })
    }

    fn send(&mut self, line: &str) -> Result<()> {
        Ok(self.stdin.write_all(format!("{line}\n").as_bytes())?)
    }

    fn exchange(&mut self, line: &str) -> Result<()> {
        self.send(line)?;
        self.line.clear();
        self.stdout.read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() { Err("the process ended".into()) } else { Ok(()) }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn row(name: &str, times: &Times, unit: &Times) {
    let x = ratio(times.median(), unit.median());
    println!("  {name:<44} median {:>9.1?}  p99 {:>9.1?}  x {x:.2}", times.median(), times.at(99));
}

fn round_trips(deployment: &Deployment, token: &str, child: &Path) -> Result<()> {
    let mut echo = Command::new(std::env::current_exe()?).arg("--echo").stdout(Stdio::piped()).spawn()?;
    let outcome = round_trips_beside(deployment, token, child, &mut echo);
    echo.kill()?;
    echo.wait()?;
    outcome
}

fn round_trips_beside(deployment: &Deployment, token: &str, child: &Path, echo: &mut Child) -> Result<()> {
    let mut line = String::new();
    BufReader::new(echo.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let address = line.trim().strip_prefix("LISTENING ").ok_or("the echo server did not start")?;
    let mut plain = KeepAlive::connect(address, token)?;
    let mut hops = Pipe::start(Path::new("cat"), &[])?;
    let mut bare = Pipe::start(child, &["--fast"])?;
    bare.exchange(INITIALIZE)?;
    bare.send(INITIALIZED)?;
    let mut through = KeepAlive::open(&deployment.url, token)?;
    let [mut t_hops, mut t_bare, mut t_plain, mut t_through] = [(); 4].map(|()| Times::default());
    for turn in 0..=TURNS {
        for _ in 0..CALLS {
            t_hops.take(|| hops.exchange(CALL))?;
        }
        for _ in 0..CALLS {
            t_bare.take(|| bare.exchange(CALL))?;
        }
        for _ in 0..CALLS {
            t_plain.take(|| plain.send("POST", CALL).map(drop))?;
        }
        for _ in 0..CALLS {
            t_through.take(|| through.call(CALL))?;
        }
        if turn == 0 {
            // The first turn warms up.
            for times in [&mut t_hops, &mut t_bare, &mut t_plain, &mut t_through] {
                times.0.clear();
            }
        }
    }
    through.send("DELETE", "")?;
    println!("round trip of one tools/call, {} of each in turns (x: against the bare pipe)", TURNS * CALLS);
    row("two pipe hops (cat)", &t_hops, &t_bare);
    row("bare pipe to the child", &t_bare, &t_bare);
    row("axum echo handler, no child", &t_plain, &t_bare);
    row("through the broker to the child", &t_through, &t_bare);
    let adds = t_through.median().saturating_sub(t_bare.median());
    let budget = t_plain.median() + t_hops.median();
    let x = ratio(adds, budget);
    println!(
        "  the broker adds {adds:.1?}; an echo handler and two pipe hops cost {budget:.1?}: x {x:.2} (aim: below 1)"
    );
    Ok(())
}

/// Starts the child by itself; its end is not measured.
fn bare_start(child: &Path, times: &mut Times) -> Result<()> {
    let mut pipe = None;
    times.take(|| {
        let mut started = Pipe::start(child, &["--fast"])?;
        started.exchange(INITIALIZE)?;
        pipe = Some(started);
        Ok(())
    })
}

fn opening(deployment: &Deployment, token: &str, child: &Path) -> Result<()> {
    let (mut bare, mut open) = (Times::default(), Times::default());
    for _ in 0..STARTS {
        bare_start(child, &mut bare)?;
        let mut http = KeepAlive::connect(&deployment.url, token)?;
        open.take(|| http.send("POST", INITIALIZE).map(drop))?;
        http.send("DELETE", "")?;
    }
    println!("initialize of a new session, {STARTS} of each in turns");
    row("bare start of the child, until it answers", &bare, &bare);
    row("through the broker", &open, &bare);
    Ok(())
}

fn throughput_and_memory(deployment: &Deployment, token: &str) -> Result<()> {
    println!("calls a second, one connection a session, {SPAN:?} each");
    for sessions in [1_u64, 10, 100] {
        let before = (resident(deployment.broker.as_ref()), resident(deployment.supervisor.as_ref()));
        let mut open = (0..sessions).map(|_| KeepAlive::open(&deployment.url, token)).collect::<Result<Vec<_>>>()?;
        let (barrier, stop, calls) = (Barrier::new(open.len() + 1), AtomicBool::new(false), AtomicU64::new(0));
        let elapsed = thread::scope(|scope| {
            let workers: Vec<_> = open
                .iter_mut()
                .map(|http| {
                    let (barrier, stop, calls) = (&barrier, &stop, &calls);
                    scope.spawn(move || -> Result<()> {
                        barrier.wait();
                        while !stop.load(Ordering::Relaxed) {
                            http.call(CALL)?;
                            calls.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            barrier.wait();
            let begin = Instant::now();
            thread::sleep(SPAN);
            stop.store(true, Ordering::Relaxed);
            for worker in workers {
                worker.join().map_err(|_| "a client panicked")??;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(begin.elapsed())
        })?;
        let rate = calls.into_inner().saturating_mul(1000) / u64::try_from(elapsed.as_millis())?.max(1);
        let after = (resident(deployment.broker.as_ref()), resident(deployment.supervisor.as_ref()));
        println!(
            "  {sessions:>4} sessions: {rate:>7} calls/s; broker {} KiB (+{} a session), supervisor {} KiB (+{} a session)",
            after.0,
            after.0.saturating_sub(before.0) / sessions,
            after.1,
            after.1.saturating_sub(before.1) / sessions,
        );
        for http in &mut open {
            http.send("DELETE", "")?;
        }
    }
    println!("  (aim: the supervisor below 10240 KiB)");
    Ok(())
}

/// Sessions whose children were stopped: at a cap of four, each start takes the longest-idle child away.
fn idle_sessions(deployment: &mut Deployment, token: &str, child: &Path, count: u64) -> Result<()> {
    let broker = deployment.broker.as_ref();
    // The first few pay for what is made once.
    let mut http = KeepAlive::connect(&deployment.url, token)?;
    let mut ids = Vec::new();
    let mut open = |http: &mut KeepAlive| -> Result<()> {
        http.session = None;
        let status = http.send("POST", INITIALIZE)?;
        let id = http.session.clone().ok_or_else(|| format!("initialize: {status}"))?;
        http.send("POST", INITIALIZED)?;
        ids.push(id);
        Ok(())
    };
    for _ in 0..50 {
        open(&mut http)?;
    }
    let (memory, fds) = (resident(broker), descriptors(broker));
    for _ in 0..count {
        open(&mut http)?;
    }
    let (memory_after, fds_after) = (resident(broker), descriptors(broker));
    let bytes = memory_after.saturating_sub(memory).saturating_mul(1024) / count.max(1);
    println!("{count} idle sessions without a child");
    println!("  broker: {memory} KiB before, {memory_after} KiB after: {bytes} bytes a session (aim: below 2048)");
    println!("  open descriptors: {fds} before, {fds_after} after");
    // At the cap: somebody else's child is stopped first.
    let mut full = Times::default();
    for id in ids.iter().take(STARTS) {
        http.session = Some(id.clone());
        full.take(|| http.call(CALL))?;
    }
    // With room: a broker that was just restarted has no child yet, and every session in its store.
    drop(deployment.broker.take());
    ROOM.clone_into(&mut deployment.config.broker);
    deployment.start_broker()?;
    let mut http = KeepAlive::connect(&deployment.url, token)?;
    let (mut bare, mut wake) = (Times::default(), Times::default());
    for id in ids.iter().skip(STARTS).take(STARTS) {
        http.session = Some(id.clone());
        wake.take(|| http.call(CALL))?;
        bare_start(child, &mut bare)?;
    }
    row("bare start of the child, until it answers", &bare, &bare);
    row("a call that wakes a session", &wake, &bare);
    row("the same where all places are taken", &full, &bare);
    let adds = wake.median().saturating_sub(bare.median());
    println!("  waking adds {adds:.1?} (aim: below 2ms)");
    Ok(())
}
